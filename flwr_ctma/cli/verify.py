"""`flwr-ctma verify`: check an audit trail."""

from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from flwr_ctma.cli.screen import errors_as_sentences
from flwr_ctma.errors import parameter_error
from flwr_ctma.strategy.replay import replay
from flwr_ctma.tracking.audit import AuditError, read_trail

__all__ = ["verify"]


def verify(
    file: Annotated[Path, typer.Argument(help="The audit trail.")],
    key: Annotated[
        str,
        typer.Option(
            help="Public key of the server, 64 hexadecimal digits. Without it the "
            "trail is checked against the key in its own first line only."
        ),
    ] = "",
    unfinished: Annotated[
        bool,
        typer.Option(
            "--unfinished", help="Accept the trail of a run that has not ended."
        ),
    ] = False,
) -> None:
    """Check an audit trail, and recompute its rounds if it has the replies.

    The command checks every signature and the chain of all lines. If `Audited` kept
    the replies, it computes each round again, to the bit. It needs no network.
    """
    with errors_as_sentences():
        public = _public_key(key) if key else None
        if not file.is_file():
            remedy = "`Audited(strategy, path)` writes one."
            raise parameter_error("file", "an audit trail", str(file), remedy)
        entries = read_trail(file, public)
        if not entries or entries[0].get("kind") != "start":
            raise AuditError(f"{file} is no audit trail: it does not begin with a run")
        rounds = sum(entry["kind"] == "round" for entry in entries)
        print(f"{rounds} rounds, signed by {entries[0]['key']}")
        if entries[0]["replies-kept"]:
            print(f"{replay(file, entries)} rounds recomputed to the bit")
        if entries[-1]["kind"] != "end" and not unfinished:
            raise AuditError(
                f"{file} has no end: the run goes on or was killed, or lines were cut "
                "off. Accept that with --unfinished"
            )


def _public_key(text: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
    except ValueError as error:
        remedy = "It is the `key` in the first line of a trail that you trust."
        raise parameter_error("key", "64 hexadecimal digits", text, remedy) from error
