"""Answers the questions that people ask the scheduler: Recommendations and Reports."""

from __future__ import annotations

import msgspec

from weft.informer.commit import Commit
from weft.informer.view import Changed, View
from weft.kinds.registry import KINDS
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.recommendation.plan import plan_recommendation
from weft.scheduler.recommendation.suggest import FabricCache
from weft.scheduler.report.plan import plan_report

QUESTIONS = tuple(kind.name for kind in KINDS if kind.lifetime.ephemeral)


class _Answered(msgspec.Struct):
    """The beginning of both kinds' status."""

    phase: str = "Pending"


class Questions:
    """The open questions; true while there is any."""

    def __init__(self) -> None:
        self._open: dict[str, None] = {}
        self._fabric = FabricCache()

    def __bool__(self) -> bool:
        return bool(self._open)

    def notice(self, change: Changed) -> None:
        if change.new is not None and not change.new.deleting and change.new.status(_Answered).phase == "Pending":
            self._open[change.key] = None

    def plan(self, view: View, engine: Engine, strategy: str, now: float) -> list[Commit]:
        """The answers to all open questions, from the present state."""
        asked = [item for key in self._open if (item := view.get(key)) is not None]
        self._open.clear()
        return [
            plan_report(view, engine, item, strategy, now)
            if item.envelope.kind == "report"
            else plan_recommendation(view, engine, item, strategy, now, self._fabric)
            for item in asked
        ]
