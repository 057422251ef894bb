"""The file of an audit trail, checked with the keys and hashes themselves."""

import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flwr_ctma.tracking.audit import AuditError, AuditTrail, load_key, read_trail

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ENTRIES = [{"kind": "start", "b": 1, "a": {"d": 2, "c": "é"}}, {"round": 1}, {}]


def write(file, entries=ENTRIES):
    trail = AuditTrail(file, KEY)
    for entry in entries:
        trail.append(entry)
    return trail


def spelled(value):
    """The one way to write a value: without spaces, keys in order."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def test_lines_are_spelled_in_one_way_chained_and_signed(tmp_path):
    write(tmp_path / "trail")
    previous = "0" * 64
    for line in (tmp_path / "trail").read_bytes().splitlines():
        held = json.loads(line)
        assert line == spelled(held)
        signature = bytes.fromhex(held.pop("signature"))
        KEY.public_key().verify(signature, spelled(held))
        assert held["previous"] == previous
        previous = hashlib.sha256(line).hexdigest()


def test_only_the_first_entry_states_the_key(tmp_path):
    write(tmp_path / "trail")
    stated = KEY.public_key().public_bytes_raw().hex()
    assert read_trail(tmp_path / "trail") == [
        {**ENTRIES[0], "key": stated},
        {"round": 1},
        {},
    ]


def test_continued_trail_is_in_the_state_in_which_it_was_left(tmp_path):
    left = write(tmp_path / "trail", [{}, *ENTRIES[:2]])
    found = AuditTrail(tmp_path / "trail", KEY)
    assert found.entries == left.entries == 3
    assert found.last == left.last == {"round": 1}
    found.append({"kind": "end"})
    assert read_trail(tmp_path / "trail")[2:] == [{"round": 1}, {"kind": "end"}]


@pytest.mark.parametrize("rest", [b"", b'{"en'])
def test_trail_without_a_whole_line_is_begun_anew(tmp_path, rest):
    (tmp_path / "trail").write_bytes(rest)
    trail = AuditTrail(tmp_path / "trail", KEY)
    assert (trail.entries, trail.last) == (0, None)
    trail.append({})
    assert len(read_trail(tmp_path / "trail", KEY.public_key())) == 1


def test_wrong_line_is_named(tmp_path):
    file = tmp_path / "trail"
    write(file)
    first, second, third = file.read_bytes().splitlines()
    for lines, said in [
        ([first, third, second], "line 2 does not follow the line before"),
        ([first, second.replace(b":1}", b":2}")], "line 2 was not signed by this key"),
        ([first, b"[]"], "line 2 is not an entry"),
        ([second], "line 1 is not an entry"),
    ]:
        file.write_bytes(b"\n".join(lines) + b"\n")
        with pytest.raises(AuditError, match=said):
            read_trail(file)


def test_file_without_a_key_is_named(tmp_path):
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(ValueError, match=r"`key` should be a file .* openssl genpkey"):
        load_key(tmp_path / "key.pem")
    with pytest.raises(ValueError, match=r"openssl genpkey .* -out key\.pem"):
        load_key(tmp_path / "none.pem")


def test_trail_that_somebody_else_writes_to_is_not_continued(tmp_path):
    """Lines of two writers follow no chain."""
    first, second = (AuditTrail(tmp_path / "trail", KEY) for _ in range(2))
    first.append({"kind": "start"})
    with pytest.raises(AuditError, match=r"another run or strategy .* file of its own"):
        second.append({"kind": "start"})
    assert len(read_trail(tmp_path / "trail")) == 1
    first.append({"kind": "end"})
    (tmp_path / "trail").unlink()
    with pytest.raises(AuditError, match="was changed"):
        first.append({})
