"""Which of an agent's steps belong to the trace of a person's write."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from weft.agent.allocation.steps.names import StepName
from weft.agent.allocation.trace import StepTraces
from weft.contracts.clock import SystemClock
from weft.contracts.trace.context import Context, make_mark
from weft.contracts.trace.span import Span, Tracer
from weft.kinds.allocation import AllocationReport


@pytest.mark.parametrize(("reported", "steps"), [("", ["start", "start"]), ("running", [])])
def test_an_agent_that_comes_back_starts_a_guest_that_ran_for_no_earlier_write(reported: Any, steps: list[str]) -> None:
    taken: list[Span] = []
    traces = StepTraces(Tracer("node/n1", SystemClock(), taken.append))
    spec = SimpleNamespace(desired_count=1, migration=None)
    local = SimpleNamespace(
        name="n1.web", what="vm/default/web", spec=spec, report=AllocationReport(state=reported, desired_count=1)
    )
    trace = make_mark(Context("a" * 32, "b" * 16), SystemClock().now())
    state: Any = SimpleNamespace(local=local, envelope=SimpleNamespace(trace=trace))
    with traces.step(StepName.START, state):
        pass
    assert [one.name for one in taken] == steps
