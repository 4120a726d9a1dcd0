"""How a machine's one process is, as an agent reports it."""

from __future__ import annotations

from weft.agent.allocation.report import health_of
from weft.agent.workload.health import Health
from weft.contracts.driver.runtime import ProcessFacts


def test_a_machine_is_as_well_as_the_process_that_it_is_there_for() -> None:
    assert health_of(ProcessFacts(True)) == Health("healthy")
    assert health_of(ProcessFacts(True, 2, 3)) == Health("healthy")
    told = health_of(ProcessFacts(False, 2, 3))
    assert (told.state, told.message) == ("unhealthy", "its process ended with exit code 3 and is restarting")
