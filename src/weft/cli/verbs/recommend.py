"""`weft recommend vm/web`, `weft vm recommend --image tiny --cpu 4`: where the scheduler would put it now, as it is or as it
might be, and the least that would have to be otherwise where it fits on no node. Nothing is placed."""

from __future__ import annotations

import sys
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import OK, UNPLACEABLE
from weft.cli.command.flags import make_flags, read_flags
from weft.cli.command.grammar import PLACED, Entry
from weft.cli.command.lookup import look_up_one
from weft.cli.output.formats import print_object
from weft.cli.output.terminal import find_width
from weft.cli.placement.answer import render_recommendation
from weft.cli.placement.question import ask
from weft.cli.session import Session
from weft.kinds.record import Kind
from weft.objects.errors import WeftError


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    fields = make_flags(kind) if kind else []
    params = [
        options.targets(kind, many=False, able=entry.kinds, required=kind is None),
        *fields,
        options.timeout(),
        options.output(),
    ]
    summary = "Show where a workload would be placed now; with fields, where it would be placed with these."
    return options.build(verb, summary, _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], **given: Any) -> int:
    spec = read_flags(kind, given, {}) if kind else {}
    if not words:
        if not spec:
            raise click.UsageError("give a name, or fields of a possible workload: --image tiny --cpu 4")
        return answer_question(
            session,
            {"changes": spec, **({"kind": kind.name} if kind else {})},
            f"such a {kind.title if kind else 'workload'}",
        )
    target = look_up_one(session, kind, words, PLACED, "give one workload")
    session.client.get(target.kind.name, target.name)
    return answer_question(session, {"workload": target.what, "changes": spec}, target.what)


def answer_question(session: Session, question: dict[str, Any], what: str) -> int:
    """Ask, and print the answer about ``what``; the exit code says whether a node fits."""
    answered = ask(session, "recommendation", question)
    status = answered["status"]
    if session.is_data:
        print_object(session, answered)
    elif status["phase"] == "Failed":
        raise WeftError(f"{what} can't be placed as it is: {status['message']}", reason=status["reason"])
    else:
        print(render_recommendation(answered, what, find_width(sys.stdout), session.paint))
    return OK if status.get("best") else UNPLACEABLE
