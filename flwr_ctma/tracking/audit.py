"""A signed log of rounds that cannot be changed afterwards without being noticed.

Each line is a JSON object: an entry, the SHA-256 of the line before, and an Ed25519
signature over both. A line that is changed, dropped, inserted or moved breaks the chain
or a signature. The first line holds the public key, the last one says that the run
ended: if that is missing, the run goes on, was killed, or lines were cut off.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from flwr_ctma.errors import parameter_error

__all__ = ["AuditError", "AuditTrail", "load_key", "naming_file", "read_trail"]

_START = "0" * 64
_BEGINS = b'{"entry":{'


class AuditError(ValueError):
    """An audit trail is not what was written, or does not fit what it refers to."""


class AuditTrail:
    """Append signed entries to a file.

    Parameters
    ----------
    path : Path
        The file. An existing trail by the same key is continued.
    key : Ed25519PrivateKey
        Whoever holds this key can write another trail: keep it where the server's
        operator cannot replace it, or publish hashes of lines while the run goes on.

    Raises
    ------
    AuditError
        If the file holds something else, or a trail that another key signed.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "audit.jsonl"
    >>> trail = AuditTrail(path, Ed25519PrivateKey.generate())
    >>> trail.append({"kind": "start"})
    >>> trail.append({"kind": "end"})
    >>> [entry["kind"] for entry in read_trail(path)]
    ['start', 'end']
    """

    def __init__(self, path: Path, key: Ed25519PrivateKey) -> None:
        self.path = path
        self._key = key
        self.entries = 0
        self.last: dict[str, Any] | None = None
        self._previous = _START
        self._size = 0
        if path.exists() and path.stat().st_size:
            # A crash leaves half a line. A file that is no trail stays as it is.
            whole = _whole_lines(path)
            found = read_trail(path, key.public_key(), whole)
            os.truncate(path, whole)
            self._size = whole
            self.entries = len(found)
            self.last = found[-1] if found else None
            lines = path.read_bytes().splitlines()
            self._previous = _sha256(lines[-1]) if lines else _START

    def append(self, entry: Mapping[str, Any]) -> None:
        """Sign an entry, and write it to the disk.

        Raises
        ------
        AuditError
            If the file does not end where the entry before does.
        OSError
            If the disk is full or cannot be written to.
        """
        entry = dict(entry)
        if self.entries == 0:
            entry["key"] = self._key.public_key().public_bytes_raw().hex()
        body = {"entry": entry, "previous": self._previous}
        signature = self._key.sign(_canonical(body)).hex()
        line = _canonical({**body, "signature": signature})
        with naming_file(self.path):
            self._write(line + b"\n")
        self._size += len(line) + 1
        self.entries += 1
        self.last = entry
        self._previous = _sha256(line)

    def _write(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            if file.tell() != self._size:
                raise AuditError(
                    f"{self.path} was changed since its last line was written: another "
                    "run or strategy writes to it. Give each a file of its own"
                )
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Raise errors of the disk as one sentence with the name of a file."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"Could not write to the audit trail ({error.strerror}); its whole lines "
            "are intact. See that it has room and can be written to, and resume",
            str(path),
        ) from error


def read_trail(
    path: Path, public_key: Ed25519PublicKey | None = None, size: int | None = None
) -> list[dict[str, Any]]:
    """Return the entries of a trail, after a check of every line.

    Parameters
    ----------
    path : Path
    public_key : Ed25519PublicKey | None (default: None)
        The key that must have signed. If None, the key in the first line: the trail is
        then consistent, but anybody can have written it.
    size : int | None (default: None)
        Number of bytes to read; None: all.

    Raises
    ------
    AuditError
        Naming the first line that is wrong.
    """
    entries: list[dict[str, Any]] = []
    previous = _START
    for number, line in enumerate(path.read_bytes()[:size].splitlines(), start=1):
        try:
            body = json.loads(line)
            entry, signature = body["entry"], bytes.fromhex(body.pop("signature"))
            chained = body["previous"]
            if number == 1:
                stated = Ed25519PublicKey.from_public_bytes(bytes.fromhex(entry["key"]))
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise AuditError(
                f"{path}, line {number} is not an entry of an audit trail "
                f"({type(error).__name__})"
            ) from error
        if chained != previous:
            raise AuditError(
                f"{path}, line {number} does not follow the line before: a line was "
                "changed, dropped, inserted or moved"
            )
        try:
            (public_key or stated).verify(signature, _canonical(body))
        except InvalidSignature as error:
            raise AuditError(
                f"{path}, line {number} was not signed by this key, or was changed"
            ) from error
        entries.append(entry)
        previous = _sha256(line)
    return entries


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key in PEM, as `openssl genpkey -algorithm ed25519` writes it.

    Raises
    ------
    ValueError
        If the file holds no such key.
    """
    key: Any = None
    with suppress(ValueError, TypeError, UnsupportedAlgorithm, FileNotFoundError):
        key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise parameter_error(
            "key",
            "a file with an Ed25519 private key in PEM, without a password",
            str(path),
            "Write one: openssl genpkey -algorithm ed25519 -out key.pem",
        )
    return key


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _whole_lines(path: Path) -> int:
    """Return the number of bytes in finished lines.

    Raises
    ------
    AuditError
        If there is none, and what is there does not begin as an entry does.
    """
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if not whole and not data.startswith(_BEGINS[: len(data)]):
        raise AuditError(f"{path} is no audit trail, and is left as it is")
    return whole
