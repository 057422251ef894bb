"""Audit trails: every change is found, and rounds are recomputed to the bit."""

import json
import random
import resource
import shutil
import signal

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flwr_ctma.cli import app as cli
from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import (
    AnyTimeSGD,
    AsyncRobustStrategy,
    Audited,
    Checkpointed,
    DivergenceGuard,
    RobustStrategy,
)
from flwr_ctma.strategy.replay import rebuild, replay
from flwr_ctma.strategy.wrappers.audited import decode, encode
from flwr_ctma.tracking.audit import AuditError, AuditTrail, read_trail
from flwr_ctma.tracking.detectors import Exclusion

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))
N = 12


def client_app():
    app = ClientApp()

    @app.train()
    def train(message, context):
        client = int(context.node_config["partition-id"])
        if client == 1:
            return None
        if client == 2:
            raise RuntimeError("broken")
        (x,) = message.content["arrays"].to_numpy_ndarrays()
        step = 0.1 * (np.linspace(0, 1, x.size) + client / 10 - x)
        metrics = MetricRecord({"num-examples": 5 + client, "loss": float(client)})
        content = {"arrays": ArrayRecord([x + step]), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    return ByzantineMod("nonfinite", nodes=1).around(app)


def run(
    file,
    inside=FedAvg,
    rounds=4,
    keep=True,
    around=lambda s: s,
    robustly=None,
    **settings,
):
    random.seed(1)
    settings = {"fraction_train": 1.0, "min_train_nodes": N, **settings}
    flower = inside(fraction_evaluate=0.0, min_available_nodes=N, **settings)
    robustly = {"aggregator": "ctma(cwmed)", **(robustly or {})}
    robust = RobustStrategy(flower, num_malicious_nodes=3, **robustly)
    strategy = around(Audited(robust, file, KEY, keep))
    start = ArrayRecord([np.zeros(6)])
    result = strategy.start(InProcessGrid(client_app(), N), start, rounds)
    accepted = [
        metrics["replies-accepted"]
        for metrics in result.train_metrics_clientapp.values()
    ]
    assert len(accepted) == rounds and min(accepted) >= 5
    return result


@pytest.fixture(scope="module")
def trail(tmp_path_factory):
    file = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    run(file)
    return file


@pytest.fixture
def copy(trail, tmp_path):
    """A trail to tamper with."""
    shutil.copytree(trail.parent, tmp_path / "copy")
    return tmp_path / "copy" / trail.name


def public(key):
    return key.public_key().public_bytes_raw().hex()


def verify(*arguments):
    return CliRunner().invoke(cli, ["verify", *map(str, arguments)])


def test_a_line_says_what_was_sent_and_what_came(trail):
    entries = read_trail(trail, KEY.public_key())
    kinds = ["start", "round", "round", "round", "round", "end"]
    assert [entry["kind"] for entry in entries] == kinds
    entry = entries[1]
    assert len(entry["sent"]) == len(entry["replies"]) == N
    assert len({digest for _, digest in entry["sent"]}) == 1
    verdicts = {node: verdict for node, _, verdict in entry["replies"]}
    assert verdicts[2] == "rejected"
    assert verdicts[3] == verdicts[4] == "missing"
    assert {*verdicts.values()} == {"rejected", "missing", "trimmed", "counted"}


def test_auditing_changes_no_bit(tmp_path):
    audited = run(tmp_path / "audit.jsonl", fraction_train=0.9, min_train_nodes=2)
    random.seed(1)
    settings = {"fraction_train": 0.9, "min_available_nodes": N}
    plain = RobustStrategy(
        FedAvg(fraction_evaluate=0.0, **settings), "ctma(cwmed)", num_malicious_nodes=3
    ).start(InProcessGrid(client_app(), N), ArrayRecord([np.zeros(6)]), 4)
    assert audited.arrays == plain.arrays


@pytest.mark.parametrize("inside", [FedAvg, FedAdam, FedAvgM])
@pytest.mark.parametrize("fraction", [0.9, 1.0])
def test_rounds_are_recomputed_to_the_bit(tmp_path, inside, fraction):
    """Server optimisers and samples included."""
    file = tmp_path / "audit.jsonl"
    run(file, inside, fraction_train=fraction, min_train_nodes=2)
    found = verify(file, "--key", public(KEY))
    assert found.exit_code == 0, found.output
    assert "4 rounds recomputed to the bit" in found.output


def run_without_a_robust_strategy(file, kind=FedAvg, size=5):
    """All replies count there: the clients are honest."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        (x,) = message.content["arrays"].to_numpy_ndarrays()
        step = int(context.node_config["partition-id"]) / 10 - 0.1 * x
        metrics = MetricRecord({"num-examples": 5, "loss": 0.5})
        content = {"arrays": ArrayRecord([x + step]), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    strategy = Audited(kind(fraction_evaluate=0.0), file, KEY, keep_replies=True)
    strategy.start(InProcessGrid(app, 3), ArrayRecord([np.zeros(size)]), 3)


@pytest.mark.parametrize("kind", [FedAvg, FedAdam])
def test_rounds_without_a_robust_strategy_are_recomputed_to_the_bit(tmp_path, kind):
    run_without_a_robust_strategy(tmp_path / "audit.jsonl", kind)
    found = verify(tmp_path / "audit.jsonl")
    assert found.exit_code == 0, found.output
    assert "3 rounds recomputed to the bit" in found.output


class SuspectLast:
    """A detector that suspects the last node that replied."""

    def judge(self, seen):
        return {node: node == max(seen.accepted) for node in seen.accepted}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize(
    "exclusion",
    [
        Exclusion(max_rejections=2),
        Exclusion(max_rejections=1, appeal_after=1),
        Exclusion(by_verdict=True),
    ],
)
def test_rounds_with_an_exclusion_are_recomputed_to_the_bit(tmp_path, exclusion):
    """The node that sends NaN is excluded, and where it may appeal asked again."""
    file = tmp_path / "audit.jsonl"
    run(file, rounds=6, robustly={"exclusion": exclusion})
    excluded = [entry["excluded"] for entry in read_trail(file)[1:-1]]
    assert any(excluded)
    found = verify(file)
    assert found.exit_code == 0, found.output
    assert "6 rounds recomputed to the bit" in found.output


def test_a_detector_that_verify_cannot_build_is_named_before_the_run(tmp_path, caplog):
    file, said = tmp_path / "audit.jsonl", "cannot build the detector SuspectLast"
    run(tmp_path / "other.jsonl", rounds=1)
    assert said not in caplog.text
    exclusion = Exclusion(by_verdict=True)
    run(file, robustly={"exclusion": exclusion, "detector": SuspectLast()})
    assert said in caplog.text
    found = verify(file)
    assert found.exit_code == 1
    assert "detector SuspectLast cannot be built" in found.output.replace("\n", " ")
    robust = RobustStrategy(
        FedAvg(min_available_nodes=N),
        "ctma(cwmed)",
        num_malicious_nodes=3,
        grace_period=None,
        detector=SuspectLast(),
        exclusion=Exclusion(by_verdict=True),
    )
    entries = read_trail(file)
    assert any(entry["excluded"] for entry in entries[1:-1])
    assert replay(file, entries, robust) == 4


def test_a_server_update_that_verify_cannot_build_is_named_before_the_run(
    tmp_path, caplog
):
    def server_update(server_round, arrays):
        return ArrayRecord({name: arrays[name] for name in arrays})

    file = tmp_path / "audit.jsonl"
    settings = {"aggregator": "zeno(cwmed)", "server_update": server_update}
    run(file, robustly=settings)
    assert "cannot build the server_update" in caplog.text
    found = verify(file)
    assert found.exit_code == 1
    assert "cannot be built from the trail" in found.output.replace("\n", " ")


def test_another_strategy_gives_another_result(trail):
    entries = read_trail(trail)
    other = RobustStrategy(FedAvg(), "cwtm", num_malicious_nodes=3, grace_period=None)
    with pytest.raises(AuditError, match="Round 1 has another result"):
        replay(trail, entries, other)


def tamper(change):
    """Change the lines of a file."""

    def apply(file):
        lines = file.read_text().splitlines()
        change(lines)
        file.write_text("".join(f"{line}\n" for line in lines))

    return apply


def edit(number, name, value):
    def change(lines):
        body = json.loads(lines[number])
        body["entry"][name] = value
        lines[number] = json.dumps(body)

    return tamper(change)


def swap(lines):
    lines[2], lines[3] = lines[3], lines[2]


TAMPERED = {
    "a number in a line": (edit(2, "round", 7), "line 3 was not signed"),
    "the first line": (edit(0, "num-rounds", 9), "line 1 was not signed"),
    "the result": (edit(3, "result", "0" * 64), "line 4 was not signed"),
    "a dropped line": (tamper(lambda lines: lines.pop(2)), "line 3 does not follow"),
    "a dropped first line": (tamper(lambda lines: lines.pop(0)), "line 1 "),
    "a dropped end": (tamper(lambda lines: lines.pop()), "has no end"),
    "three dropped at the end": (
        tamper(lambda lines: [lines.pop() for _ in "abc"]),
        "has no end",
    ),
    "two lines in another order": (tamper(swap), "line 3 does not follow"),
    "a line twice": (
        tamper(lambda lines: lines.insert(2, lines[2])),
        "line 4 does not follow",
    ),
    "garbage": (tamper(lambda lines: lines.insert(1, "[1]")), "line 2 is not an entry"),
    "an empty file": (lambda file: file.write_text(""), "is no audit trail"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_change_of_the_trail_is_found(copy, how):
    change, message = TAMPERED[how]
    assert verify(copy).exit_code == 0
    change(copy)
    found = verify(copy)
    assert found.exit_code == 1
    assert message in found.output


def test_a_trail_written_anew_with_another_key_is_found(copy):
    """Consistent in itself; only the key that is expected tells."""
    entries = read_trail(copy)
    copy.unlink()
    forged = AuditTrail(copy, OTHER)
    for entry in entries:
        forged.append({**entry, **({"round": 5} if entry.get("round") == 4 else {})})
    assert verify(copy).exit_code == 0
    found = verify(copy, "--key", public(KEY))
    assert found.exit_code == 1 and "line 1 was not signed by this key" in found.output


def contents(file):
    return file.with_name(f"{file.name}.contents")


def test_a_replaced_reply_is_found(copy):
    entry = read_trail(copy)[2]
    digest = next(d for _, d, verdict in entry["replies"] if verdict == "counted")
    (contents(copy) / digest).write_bytes(encode(RecordDict()))
    found = verify(copy)
    assert found.exit_code == 1 and "was replaced by another one" in found.output
    (contents(copy) / digest).unlink()
    found = verify(copy)
    assert found.exit_code == 1 and "is not there" in found.output


@pytest.mark.parametrize("lie", ["result", "verdict", "reply", "sent"])
def test_a_server_that_signs_another_round_is_found(copy, lie):
    """With the right key, but not with what the replies lead to."""
    entries = read_trail(copy)
    copy.unlink()
    forged = AuditTrail(copy, KEY)
    for entry in entries:
        if entry.get("round") == 3:
            replies = [list(reply) for reply in entry["replies"]]
            counted = [i for i, r in enumerate(replies) if r[2] == "counted"]
            if lie == "result":
                entry["result"] = entries[1]["result"]
            elif lie == "sent":
                entry["sent"] = entries[1]["sent"]
            elif lie == "verdict":
                replies[counted[0]][2] = "rejected"
            else:
                replies[counted[0]][1] = replies[counted[1]][1]
            entry["replies"] = replies
        forged.append(entry)
    found = verify(copy, "--key", public(KEY))
    assert found.exit_code == 1 and "Round 3" in found.output


def test_without_replies_only_the_chain_is_checked(tmp_path):
    file = tmp_path / "audit.jsonl"
    run(file, keep=False)
    assert not contents(file).exists()
    found = verify(file)
    assert found.exit_code == 0 and "recomputed" not in found.output


def test_a_resumed_run_continues_the_trail(tmp_path):
    file = tmp_path / "audit.jsonl"
    for rounds in (2, 4):
        run(
            file,
            rounds=rounds,
            keep=False,
            around=lambda s: Checkpointed(s, tmp_path / "checkpoints"),
        )
    numbers = [e["round"] for e in read_trail(file) if e["kind"] == "round"]
    assert numbers == [1, 2, 3, 4]
    assert verify(file).exit_code == 0


def test_a_full_disk_is_one_error_and_spoils_no_content(tmp_path):
    """A limit on the size of files stands for it: a content is written half."""
    file = tmp_path / "audit.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, hard))
    try:
        with pytest.raises(OSError, match=r"Could not write .*: '.*contents"):
            run_without_a_robust_strategy(file, size=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert {entry["kind"] for entry in read_trail(file)} == {"start"}
    run_without_a_robust_strategy(file, size=10_000)
    found = verify(file)
    assert found.exit_code == 0, found.output


def test_half_a_line_costs_the_line(tmp_path):
    file = tmp_path / "audit.jsonl"
    AuditTrail(file, KEY).append({"kind": "start"})
    with file.open("a") as opened:
        opened.write('{"entry": {"kind": "rou')
    AuditTrail(file, KEY).append({"kind": "end"})
    assert [entry["kind"] for entry in read_trail(file)] == ["start", "end"]


@pytest.mark.parametrize("text", ["my notes", "my notes\nof today"])
def test_a_file_that_is_no_trail_stays_as_it_is(tmp_path, text):
    file = tmp_path / "audit.jsonl"
    file.write_text(text)
    with pytest.raises(AuditError):
        AuditTrail(file, KEY)
    assert file.read_text() == text


def test_a_trail_of_another_key_is_not_continued(copy):
    with pytest.raises(AuditError, match="not signed by this key"):
        Audited(FedAvg(), copy, OTHER)


def test_a_reply_that_cannot_be_written_down_costs_its_hash(tmp_path):
    file = tmp_path / "audit.jsonl"
    strategy = Audited(RobustStrategy(FedAvg(), num_malicious_nodes=1), file, KEY, True)
    grid = InProcessGrid(client_app(), N)
    asked = strategy.configure_train(
        1, ArrayRecord([np.zeros(6)]), ConfigRecord(), grid
    )
    replies = []
    for i, message in enumerate(asked):
        message.metadata.__dict__["_message_id"] = f"asked-{i}"
        arrays = ArrayRecord([np.ones(6)])
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"loss": 1})})
        replies.append(Message(content, reply_to=message))
    replies[0].content["arrays"]["0"].data = 3
    replies.append(Message(RecordDict(), reply_to=asked[0]))
    strategy.aggregate_train(1, replies)
    entry = read_trail(file)[-1]
    assert entry["replies"][0] == [asked[0].metadata.dst_node_id, None, "rejected"]
    assert entry["replies"][-1][0] is None and entry["replies"][-1][2] == "ignored"


VALUES = st.integers(-(2**63), 2**63 - 1) | st.floats() | st.lists(st.floats())
CONFIGS = VALUES | st.text() | st.binary() | st.booleans() | st.lists(st.binary())


@given(
    st.dictionaries(st.text(), VALUES, max_size=3),
    st.dictionaries(st.text(), CONFIGS, max_size=3),
    st.lists(st.floats(width=32), max_size=4),
)
def test_contents_survive_their_bytes(metrics, configs, values):
    content = RecordDict(
        {
            "m": MetricRecord(metrics),
            "c": ConfigRecord(configs),
            "a": ArrayRecord([np.array(values, np.float32)]),
        }
    )
    data = encode(content)
    assert encode(decode(data)) == data
    assert list(decode(data)) == ["m", "c", "a"]


def test_a_key_in_a_file(tmp_path):
    pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    audited = Audited(FedAvg(), tmp_path / "audit.jsonl", tmp_path / "key.pem")
    assert audited.file == tmp_path / "audit.jsonl"
    (tmp_path / "key.pem").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="Parameter `key`"):
        Audited(FedAvg(), tmp_path / "audit.jsonl", tmp_path / "key.pem")


def test_strategies_that_cannot_be_audited_are_refused(tmp_path):
    file = tmp_path / "audit.jsonl"
    waits = AsyncRobustStrategy(AnyTimeSGD(0.1), num_malicious_nodes=1)
    with pytest.raises(ValueError, match="works in rounds"):
        Audited(waits, file, KEY)
    with pytest.raises(ValueError, match="Parameter `keep_replies`"):
        Audited(DivergenceGuard(FedAvg(), rollback=True), file, KEY, True)


def test_rebuild_leaves_out_wrappers_that_change_no_model_and_refuses_others():
    def part(kind, package="flwr_ctma"):
        return {"kind": kind, "package": package, "settings": {}}

    known = [part("Observed"), part("DivergenceGuard"), part("FedAvg", "flwr")]
    assert type(rebuild({"strategies": known})) is FedAvg
    with pytest.raises(AuditError, match="Checkpointed cannot be built"):
        rebuild({"strategies": [part("Checkpointed"), *known]})
