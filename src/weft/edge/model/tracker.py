"""Tracker between the gateway, its engine of models and the process that runs them: hands over questions, takes answers, keeps the
deadlines.

All in the gateway's event loop; nothing waits. The gateway carries out what was decided.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from weft.contracts.clock import Clock
from weft.contracts.device import Value
from weft.contracts.edge.model_runner import ModelRunner
from weft.edge.model.engine import Decision, DecisionModel, ModelEngine, Ran
from weft.protocol.devices import MOST_TEXT, RanModel

MOST_MODELS = 50
_NEVER = Ran()

log = logging.getLogger("weft.edge.model")


class ModelTracker:
    """``read``: as for ``ModelEngine``. ``carry_out`` does what was decided, and returns why it can't ("" if it could);
    ``note_decision`` hears all that is decided. ``runner`` None: this gateway runs no models."""

    def __init__(
        self,
        runner: ModelRunner | None,
        clock: Clock,
        read: Callable[[str], Mapping[str, Value] | None],
        carry_out: Callable[[Decision], str],
        ran: Mapping[str, Ran],
        note_decision: Callable[[Decision], None] | None = None,
    ) -> None:
        self._runner, self._clock, self._carry_out, self._note_decision = runner, clock, carry_out, note_decision
        self._engine = ModelEngine(read)
        self._engine.ran.update(ran)
        self._refused: dict[str, str] = {}  # why models aren't put to the runner, by uid
        self._told: dict[tuple[str, str], bool] = {}  # of events: the last decision, by model and device
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._is_acting = False

    @property
    def ran(self) -> dict[str, Ran]:
        return self._engine.ran

    def put(
        self, models: Mapping[str, tuple[DecisionModel, Iterable[str]]], problems: Mapping[str, str] | None = None
    ) -> None:
        """These are all models now, by uid, each with the devices (uids) that it is for. ``problems``: why files aren't there."""
        taken = {uid: (model, frozenset(devices)) for uid, (model, devices) in list(models.items())[:MOST_MODELS]}
        more = f"the gateway runs {MOST_MODELS} models, and this is one more"
        self._refused = {**(problems or {}), **dict.fromkeys(models.keys() - taken.keys(), more)}
        at = self._clock.elapsed()
        self._refused.update(self._engine.put(taken, at))
        known = {(uid, device) for uid, (_, devices) in taken.items() for device in devices}
        self._told = {key: was for key, was in self._told.items() if key in known}
        if self._runner is not None:
            self._runner.put({uid: model.file for uid, (model, _) in taken.items()})
        self._act(at)

    def list_used(self) -> set[str]:
        return self._runner.list_used() if self._runner is not None else set()

    def watches(self, device: str) -> bool:
        return self._engine.watches(device)

    def note(self, device: str, at: float) -> None:
        """Values of the device changed."""
        self._engine.note(device, at)
        self._act(at)

    async def keep(self) -> None:
        """Run until this is cancelled."""
        if self._runner is not None:
            await self._runner.keep(self)

    def take_dirty(self) -> bool:
        """Whether counts changed since this was asked."""
        was, self._engine.is_dirty = self._engine.is_dirty, False
        return was

    def note_unsaved(self) -> None:
        self._engine.is_dirty = True

    def list_ran(self, at: float) -> Sequence[RanModel]:
        """List what is reported of each model."""
        rows = []
        for uid in [*self._engine.ran, *sorted(self._refused.keys() - self._engine.ran.keys())]:
            one = self._engine.ran.get(uid, _NEVER)
            problem = self._refused.get(uid) or self._engine.find_problem(uid, at)
            p99 = self._engine.find_p99_ms(uid)
            file = self._engine.find_file(uid)
            rows.append(RanModel(uid, file, one.runs, one.late, one.nan, one.dead, p99, problem[:MOST_TEXT]))
        return rows

    # --- AnswerListener ----------------------------------------------------------------------------------------------

    def note_answer(self, number: int, value: float | None, problem: str) -> None:
        at = self._clock.elapsed()
        self._engine.answer(number, value, problem, at)
        self._act(at)

    def note_lost(self, numbers: Sequence[int]) -> None:
        at = self._clock.elapsed()
        self._engine.lose(numbers, at)
        self._act(at)

    def note_running(self, versions: Mapping[str, str]) -> None:
        at = self._clock.elapsed()
        self._engine.note_running(versions, at)
        self._act(at)

    def note_problems(self, problems: Mapping[str, str]) -> None:
        self._engine.problems = problems

    # --- within ------------------------------------------------------------------------------------------------------

    def _act(self, at: float) -> None:
        """Hand over questions, carry out decisions, and set the alarm for the next deadline."""
        if self._is_acting:
            return  # a decision changed a value: the loop below goes on with what comes of it
        self._is_acting = True
        engine = self._engine
        try:
            while engine.asks or engine.decisions:
                asks, engine.asks = engine.asks, []
                for ask in asks:
                    if self._runner is None or not self._runner.ask(ask.number, ask.uid, ask.inputs):
                        engine.refuse(ask, at)
                decisions, engine.decisions = engine.decisions, []
                for decision in decisions:
                    self._perform(decision, at)
        finally:
            self._is_acting = False
        self._set_alarm(at)

    def _perform(self, decision: Decision, at: float) -> None:
        if self._note_decision is not None:
            self._note_decision(decision)
        if decision.value is None:
            return
        result = decision.model.result
        if result.event:
            key = decision.model.uid, decision.device
            was, self._told[key] = self._told.get(key, False), decision.value is True
            if was or decision.value is not True:
                return
        if problem := self._carry_out(decision):
            self._engine.note_problem(decision.model.uid, problem, at)

    def _set_alarm(self, at: float) -> None:
        due = self._engine.find_next()
        if due is None or (self._alarm is not None and self._alarm_at <= due):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = due
        self._alarm = asyncio.get_running_loop().call_later(max(0.0, due - at), self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        at = self._clock.elapsed()
        self._engine.tick(at)
        self._act(at)
