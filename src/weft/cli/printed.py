"""What guests and tasks have printed, carried to this terminal."""

from __future__ import annotations

from weft.cli.exit_codes import INTERRUPTED
from weft.cli.session import Session
from weft.cli.stream import Stream, dial
from weft.cli.terminal import clean
from weft.cli.words import Target
from weft.objects.errors import WeftError

_LAST_LINES = 10
_LAST_BYTES = 1 << 16
_WIDEST = 500


def show_log(session: Session, target: Target, follow: bool, tail: int, since: float | None = None) -> int:
    """What a guest printed (of a function ``since`` so many seconds ago), its standard error on ours; ends when all is read, or
    with ``follow`` when the guest has, or with Ctrl-C."""
    asked = {"follow": follow, "tail": tail, **({} if since is None else {"since": since})}
    ticket = session.client.verb(target.kind.name, target.name, "logs", asked)
    with dial(session.client.context, ticket) as sock:
        try:
            return Stream(sock, forward_end=False).run(None) or 0
        except KeyboardInterrupt:
            if follow:
                return INTERRUPTED  # enough was seen
            raise


def show_last_lines(session: Session, target: Target) -> None:
    """The end of what it printed, on standard error, beside a failure of it; nothing where that is empty or can't be had."""
    kept = bytearray()

    def keep(_: int, piece: bytes) -> None:
        kept.extend(piece)
        del kept[:-_LAST_BYTES]

    try:
        ticket = session.client.verb(target.kind.name, target.name, "logs", {"follow": False, "tail": _LAST_LINES})
        with dial(session.client.context, ticket) as sock:
            Stream(sock, forward_end=False, write=keep).run(None)
    except WeftError:
        return
    lines = kept.decode(errors="replace").splitlines()[-_LAST_LINES:]
    if any(lines):
        session.say(f"{target.what}  printed last:")
    for line in lines if any(lines) else ():
        session.say(f"  {clean(line)[:_WIDEST]}")
