"""What guests and tasks have printed, carried to this terminal."""

from __future__ import annotations

from weft.cli.exit_codes import INTERRUPTED
from weft.cli.session import Session
from weft.cli.stream import Stream, dial
from weft.cli.words import Target
from weft.objects.errors import WeftError

STDERR = 2
_LAST_LINES = 10


def show_log(session: Session, target: Target, follow: bool, tail: int, since: float | None = None, to: int = 1) -> int:
    """What a guest printed (of a function ``since`` so many seconds ago), its standard error on ours, the rest on descriptor
    ``to``; ends when all is read, or with ``follow`` when the guest has, or with Ctrl-C."""
    asked = {"follow": follow, "tail": tail, **({} if since is None else {"since": since})}
    ticket = session.client.verb(target.kind.name, target.name, "logs", asked)
    with dial(session.client.context, ticket) as sock:
        try:
            return Stream(sock, stdout=to, forward_end=False).run(None) or 0
        except KeyboardInterrupt:
            if follow:
                return INTERRUPTED  # enough was seen
            raise


def show_last_lines(session: Session, target: Target) -> None:
    """The end of what it printed, on standard error; nothing where it can't be had: it is said beside a failure."""
    try:
        show_log(session, target, follow=False, tail=_LAST_LINES, to=STDERR)
    except WeftError:
        return
