"""The agent's spans: each step for an allocation whose workload people have just written, until the node has what they want."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from weft.agent.allocation.steps.names import StepName
from weft.agent.state.allocation_state import AllocationState
from weft.contracts.trace.context import Context, new_span, read_mark
from weft.contracts.trace.span import Active, Tracer, active, describe
from weft.kinds.allocation import AllocationPhase, is_current

_RESTS = ("running", "suspended", "stopped", "released")  # there is nothing left to do
_LATER = (StepName.FORGET,)  # nobody waits for it


class StepTraces:
    """Traces of steps; without a tracer nothing is recorded."""

    def __init__(self, tracer: Tracer | None) -> None:
        self._tracer = tracer
        self._settled: dict[str, str] = {}  # by allocation: the mark whose write it has carried out
        self._seen: set[str] = set()  # allocations
        self._started: dict[str, float] = {}  # by allocation: when its guest was started, until it runs (unix seconds)

    @contextmanager
    def step(self, step: StepName, state: AllocationState) -> Iterator[None]:
        """Record what happens inside. What the step's drivers record are its children; a step that a killed agent began is
        known, too."""
        context, tracer = self._find(state), self._tracer
        if context is None or tracer is None:
            yield
            return
        about, began, id = state.local.what, tracer.clock.now(), new_span()
        if step not in _LATER:
            tracer.record(context, step.value, began, 0.0, id=id, about=about)
        token = active.set(Active(tracer, Context(context.trace, id), about))
        problem: BaseException | None = None
        try:
            yield
        except BaseException as error:
            problem = error
            raise
        finally:
            active.reset(token)
            now = tracer.clock.now()
            tracer.record(context, step.value, began, now, id=id, about=about, error=describe(problem))
            if step is StepName.START and problem is None:
                self._started[state.local.name] = now

    def arrive(self, state: AllocationState) -> None:
        """Its guest runs."""
        began = self._started.pop(state.local.name, None)
        if began is not None and self._tracer is not None and (context := self._find(state)) is not None:
            self._tracer.record(context, "boot", began, self._tracer.clock.now(), about=state.local.what)

    def _notice(self, state: AllocationState, mark: str) -> None:
        """Notice an allocation at first sight: what an agent before this one has carried out is done, and what its guest needs now
        has other causes."""
        local = state.local
        if local.name not in self._seen:
            self._seen.add(local.name)
            if local.report.state in _RESTS and is_current(local.spec, local.report) and local.spec.migration is None:
                self._settled[local.name] = mark

    def settle(self, state: AllocationState, phase: AllocationPhase) -> None:
        """Nothing is left to do for it now: later steps have another cause. One that is to migrate waits for the other node."""
        if phase in _RESTS and state.local.spec.migration is None and isinstance(mark := state.envelope.trace, str):
            self._settled[state.local.name] = mark
            self._seen.add(state.local.name)

    def forget(self, name: str) -> None:
        """The allocation is gone."""
        self._settled.pop(name, None)
        self._seen.discard(name)
        self._started.pop(name, None)

    def _find(self, state: AllocationState) -> Context | None:
        if self._tracer is None or not isinstance(mark := state.envelope.trace, str):
            return None
        self._notice(state, mark)
        if self._settled.get(state.local.name) == mark:
            return None
        return read_mark(mark, self._tracer.clock.now())
