"""The end of commands that start something longer: watch one object until it ends, and print its result.

Ctrl-C ends the watching only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from weft.cli.command.errors import complain
from weft.cli.command.exit_codes import INTERRUPTED
from weft.cli.output.formats import print_names, print_object
from weft.cli.session import Session
from weft.cli.wait.progress import Progress
from weft.cli.wait.watch import Result, Wait, follow
from weft.objects.errors import WeftError


def follow_to_end(
    session: Session,
    wait: Wait,
    shown_by: type[Progress],
    parting: str,
    judge: Callable[[Result], WeftError | None] = lambda result: result.error,
) -> Result | int:
    """How it ended; an exit code if the watching was interrupted, after ``parting``, or ``judge`` found an error, which is
    printed."""
    progress = shown_by(session.clock.elapsed, color=session.color, only_live=session.output == "json")
    try:
        (result,) = follow(session, [wait], progress)
    except KeyboardInterrupt:
        session.notify(parting)
        return INTERRUPTED
    error = judge(result)
    return result if error is None else complain(error, session.output, session.color, session.debug)


def print_one(session: Session, obj: Mapping[str, Any], line: str) -> None:
    """``obj`` for a program, or ``line`` for a person."""
    if session.output == "name":
        print_names([obj])
    elif session.is_data:
        print_object(session, obj)
    else:
        print(line, flush=True)
