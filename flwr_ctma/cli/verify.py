"""`flwr-ctma verify`: check an audit trail."""

from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from flwr_ctma.cli.common import errors_as_sentences
from flwr_ctma.strategy.replay import replay
from flwr_ctma.tracking.audit import AuditError, read_trail

__all__ = ["verify"]


def verify(
    file: Annotated[Path, typer.Argument(help="The audit trail.")],
    key: Annotated[
        str,
        typer.Option(
            help="Public key that must have signed, 64 hexadecimal digits. Without it "
            "the trail is only checked against the key in its first line."
        ),
    ] = "",
    unfinished: Annotated[
        bool,
        typer.Option(
            "--unfinished", help="Accept a trail of a run that has not ended."
        ),
    ] = False,
) -> None:
    """Check an audit trail, and recompute its rounds if replies were kept.

    Every signature and the chain of all lines are checked. Where `Audited` kept the
    replies, each round is computed again, to the bit. Nothing is asked of a network.
    """
    with errors_as_sentences():
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)) if key else None
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
