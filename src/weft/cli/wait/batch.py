"""One action on several objects: each fails alone, and the exit code covers all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weft.cli.command.errors import complain
from weft.cli.command.exit_codes import OK, partial_code
from weft.cli.command.lookup import clarify
from weft.cli.command.target import Target
from weft.cli.session import Session
from weft.cli.wait.finish import Done, finish
from weft.cli.wait.watch import Wait
from weft.objects.errors import NotAuthenticated, Unavailable, WeftError


def each(session: Session, targets: Sequence[Target], act: Callable[[Target], object]) -> list[int]:
    """Do ``act`` to each target and report its failure; the exit codes. An error that all would meet ends it at once."""
    codes: list[int] = []
    for target in targets:
        try:
            act(target)
            codes.append(OK)
        except (Unavailable, NotAuthenticated):
            raise
        except WeftError as problem:
            if len(targets) == 1:
                raise
            codes.append(complain(clarify(session, problem), session.output, session.color, session.debug))
    return codes


def finish_each(session: Session, codes: Sequence[int], done: Sequence[Done], waits: Sequence[Wait]) -> int:
    """The exit code of all: ``codes`` are those of ``each``; for accepted actions, the outcome of the wait counts."""
    refused = [code for code in codes if code != OK]
    return partial_code([*refused, *([finish(session, done, waits)] if done else [])])
