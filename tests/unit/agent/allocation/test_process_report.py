"""How a machine's one process is, as an agent reports it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from tests.scenario.agent_lab import make_allocation

from weft.agent.allocation.lifecycle import Lifecycle
from weft.agent.allocation.report import failure_of, health_of
from weft.agent.state.allocation import Checkpoint, SetUp
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.checkpoint import CheckpointStore
from weft.agent.workload.health import Health
from weft.contracts.clock import SystemClock
from weft.contracts.driver.runtime import GuestFacts, ProcessFacts
from weft.objects.errors import DriverFailed, InvalidInput


def test_a_machine_is_as_well_as_the_process_that_it_is_there_for() -> None:
    assert health_of(ProcessFacts(True)) == Health("healthy")
    assert health_of(ProcessFacts(True, 2, 3)) == Health("healthy")
    told = health_of(ProcessFacts(False, 2, 3))
    assert (told.state, told.message) == ("unhealthy", "its process ended with exit code 3 and is restarting")


class Machine:
    """A runtime with one machine, in whose image a command can't be run."""

    def __init__(self, guest: GuestFacts) -> None:
        self.guest = guest

    async def inspect(self, local: object) -> GuestFacts:
        return self.guest

    def of(self, local: object) -> Machine:
        return self

    async def exec(self, *_: object, **__: object) -> Any:
        raise OSError("no shell")


async def test_a_machine_whose_process_was_started_has_been_set_up(tmp_path: Path) -> None:
    allocation = make_allocation("box", user_data="command /bin/httpd")
    state = AllocationState(allocation, Checkpoint(made=True), CheckpointStore(str(tmp_path)))
    guest = GuestFacts(state.local.id, state.local.uid, "box", 1, "running", ready=True)
    machine: Any = Machine(guest)
    reporter: Any = SimpleNamespace(put_event=lambda *_: None)
    life = Lifecycle(state, machine, SystemClock(), reporter)
    await life.inspect()
    assert state.set_up == SetUp("running"), "its agent has not said how its process is"
    machine.guest = msgspec.structs.replace(guest, process=ProcessFacts(True))
    await life.inspect()
    assert state.set_up == SetUp("done")
    machine.guest = msgspec.structs.replace(guest, state="stopped", ready=None)
    await life.inspect()
    assert state.set_up == SetUp()
    life.close()


def test_what_another_spec_alone_can_help_says_so_with_how() -> None:
    refused = failure_of(InvalidInput("tiny has no cloud-init", reason="noCloudInit", hint="use debian-12"), None, 0.0)
    assert (refused.reason, refused.message, refused.retry_at) == (
        "noCloudInit",
        "tiny has no cloud-init; use debian-12",
        None,
    )
    assert failure_of(DriverFailed("qemu: no", hint="h"), None, 0.0).message == "qemu: no"
