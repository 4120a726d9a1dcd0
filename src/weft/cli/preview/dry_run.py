"""Additions of ``--dry-run`` for something new: whether and where the scheduler would place it. Nothing is stored."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from weft.cli.command.exit_codes import OK, UNPLACEABLE
from weft.cli.command.target import Target
from weft.cli.output.terminal import find_width
from weft.cli.placement.answer import render_recommendation
from weft.cli.placement.question import ask
from weft.cli.session import Session
from weft.cli.wait.follow import print_one
from weft.kinds.fields.cells import dig
from weft.kinds.parts.goal import is_stuck
from weft.kinds.registry import is_workload
from weft.objects.errors import WeftError

Object = Mapping[str, Any]


MOST_ASKED = 20


class Foreseen(NamedTuple):
    """A forecast of what the scheduler would do with a new object now. ``words`` follow "would be created"; ``answer`` is the
    scheduler's, None if there is nothing to place now, or no scheduler answers."""

    words: str = ""
    answer: Object | None = None

    @property
    def refused(self) -> bool:
        """Whether no node would take it."""
        status = self.answer["status"] if self.answer is not None else {}
        if status.get("phase") == "Failed":
            return is_stuck(status["reason"])
        return self.answer is not None and not status.get("best")


def foresee(session: Session, target: Target, made: Object, before: Sequence[Object] = ()) -> Foreseen:
    """Whether and where ``made``, which the server has checked and not stored, would be placed. ``before``: those that are placed
    first, as ``RecommendationSpec.assumed`` has them."""
    answer = _ask_where(session, target, made, before)
    status = answer["status"] if answer is not None else {}
    if status.get("best"):
        return Foreseen(f", and placed on {status['best']} by {status['policy']}", answer)
    if status.get("phase") == "Failed":
        return Foreseen(f", and wait: {status['reason']}: {status['message']}", answer)
    return Foreseen(", and stay Pending" if answer is not None else "", answer)


def foresee_each(session: Session, new: Sequence[tuple[Target, Object]]) -> dict[str, Foreseen]:
    """Forecasts for those of ``new`` that are placed, by name, one after the other, with those before counted. Objects that wait
    for others among them are left out, and those beyond MOST_ASKED."""
    found: dict[str, Foreseen] = {}
    before: list[Object] = []
    placed = [(target, made) for target, made in new if is_workload(target.kind.template[0] or target.kind.name)]
    for target, made in placed[:MOST_ASKED]:
        forecast = foresee(session, target, made, before)
        if node := dig(forecast.answer or {}, "status.best"):
            kind, field = target.kind.template
            before.append({"kind": kind or target.kind.name, "spec": dig(made, field), "node": node})
        waits = forecast.answer is not None and forecast.answer["status"].get("phase") == "Failed"
        if not waits or len(new) == 1:
            found[target.what] = forecast
    if len(placed) > MOST_ASKED:
        session.notify(f"placement was checked for the first {MOST_ASKED} of {len(placed)}")
    return found


def describe_refusal(foreseen: Foreseen, what: str) -> str:
    """Explain in one line why no node would take it; empty if one would."""
    if not foreseen.refused or foreseen.answer is None:
        return ""
    status = foreseen.answer["status"]
    return f"{what} fits on no node now: {status.get('reason') or 'refused'}: {status.get('message') or ''}".rstrip(
        ": "
    )


def show_dry_run(session: Session, target: Target, made: Object, done: str) -> int:
    """Print what would be ``done``, with ``made`` as the server would have made it; 6 where no node would take it now."""
    forecast = foresee(session, target, made)
    print_one(session, made, f"{target.what}  would be {done}{forecast.words}")
    if (
        forecast.answer is not None
        and forecast.refused
        and forecast.answer["status"].get("phase") != "Failed"
        and not session.is_data
    ):
        print(render_recommendation(forecast.answer, target.what, find_width(sys.stdout), session.paint))
    return UNPLACEABLE if forecast.refused else OK


def _ask_where(session: Session, target: Target, made: Object, before: Sequence[Object]) -> Object | None:
    """The scheduler's answer; None if there is nothing to place now, or no scheduler answers."""
    kind, field = target.kind.template
    kind = kind or target.kind.name
    waits = dig(made, "spec.hold") or dig(made, "spec.run", "run") != "run" or dig(made, "spec.schedule")
    elsewhere = made.get("project") not in (None, session.client.project)
    if not is_workload(kind) or waits or elsewhere:
        return None
    question: dict[str, Any] = {"kind": kind, "changes": dig(made, field)}
    if before:
        question["assumed"] = list(before)
    try:
        return ask(session, "recommendation", question)
    except WeftError as problem:
        session.notify(f"placement can't be checked now: {problem.message}")
        return None
