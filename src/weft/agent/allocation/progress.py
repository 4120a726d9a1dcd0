"""The progress of a guest's start, in the stages that people watch: image, disk, network, boot. Called by the worker."""

from __future__ import annotations

import msgspec

from weft.agent.allocation.steps.names import StepName
from weft.agent.allocation.steps.registry import STEPS
from weft.contracts.clock import Clock
from weft.kinds import allocation


class StartProgress:
    """The stages of the current or last start; ``shown`` are those reported before."""

    def __init__(self, clock: Clock, shown: list[allocation.Step]) -> None:
        self.current: StepName | None = None
        self.quiet = False  # the current steps are not a start
        self._clock = clock
        self._stages = {stage.name: stage for stage in shown}
        self._began: dict[str, float] = {}

    def adopt(self, shown: list[allocation.Step]) -> None:
        """Take the stages that an earlier agent reported, unless this one has begun some."""
        if not self._began:
            self._stages = {stage.name: stage for stage in shown}

    def begin(self, step: StepName) -> None:
        if self.quiet:
            return
        self.current = step
        name = STEPS[step].stage
        if not name:
            return
        if STEPS[step].opens:
            self._stages.clear()
            self._began.clear()
        if name not in self._began:
            self._began[name] = self._clock.elapsed()
            self._stages[name] = allocation.Step(name=name, state="doing")

    def show(self, step: StepName, detail: str) -> None:
        name = STEPS[step].stage
        if name in self._stages and not self.quiet:
            self._stages[name] = msgspec.structs.replace(self._stages[name], detail=detail)

    def rest(self) -> None:
        """A new plan begins."""
        self.current = None

    def end(self, step: StepName, detail: str) -> None:
        if STEPS[step].ends_stage and not self.quiet:
            self._end(STEPS[step].stage, detail)

    def fail(self, step: StepName) -> None:
        name = STEPS[step].stage
        if name and not self.quiet:
            self._stages[name] = allocation.Step(name=name, state="failed")

    def arrive(self) -> None:
        """The guest runs."""
        boot = self._stages.get("boot")
        if boot is not None and boot.state == "doing":
            self._end("boot", "")

    def list(self) -> list[allocation.Step]:
        return list(self._stages.values())

    def _end(self, name: str, detail: str) -> None:
        began = self._began.get(name)
        spent = self._clock.elapsed() - began if began is not None else 0.0
        if began is not None and not detail:
            detail = f"{spent * 1000:.0f} ms" if spent < 1 else f"{spent:.1f} s"
        self._stages[name] = allocation.Step(name=name, state="done", detail=detail, seconds=round(spent, 1))
