"""Whether a running guest has what its allocation asks for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.agent.test_agent_parts import wanted

from weft.agent.allocation.plan import ADJUST, PlanInput, StepName, plan_allocation
from weft.agent.state.allocation import Checkpoint
from weft.agent.workload.kinds import kind_of
from weft.agent.workload.shape import name_serial
from weft.contracts.driver.runtime import GuestFacts, GuestShape
from weft.kinds.allocation import AllocatedVolume, AllocationSpec

SPEC = wanted().spec
SHAPE = GuestShape(
    cpu=SPEC.resources.cpu,
    memory_bytes=SPEC.resources.memory,
    disks={"root": SPEC.resources.disk, "weft-seed": 0},
    nics=[nic.mac for nic in SPEC.nics],
    most_cpu=8,
    most_memory_bytes=2**32,
)
VOLUME = AllocatedVolume(name="data", uid="d", size=100)


def is_shaped(spec: AllocationSpec, shape: GuestShape) -> bool:
    return kind_of(spec).is_shaped(spec, shape)


def asked(**changes: Any) -> AllocationSpec:
    return msgspec.structs.replace(SPEC, **changes)


def test_a_guest_as_asked_for_fits_whatever_it_boots_from() -> None:
    assert is_shaped(SPEC, SHAPE)


@pytest.mark.parametrize(
    "changes",
    [
        {"resources": msgspec.structs.replace(SPEC.resources, cpu=SPEC.resources.cpu + 1)},
        {"resources": msgspec.structs.replace(SPEC.resources, memory=1)},
        {"resources": msgspec.structs.replace(SPEC.resources, disk=SPEC.resources.disk + 1)},
        {"volumes": [VOLUME]},
        {"nics": []},
    ],
)
def test_any_difference_is_one(changes: dict[str, Any]) -> None:
    assert not is_shaped(asked(**changes), SHAPE)


def test_a_volume_counts_once_it_is_as_large_as_asked_for() -> None:
    spec = asked(volumes=[VOLUME])
    assert is_shaped(spec, msgspec.structs.replace(SHAPE, disks={**SHAPE.disks, "data": 100}))
    assert not is_shaped(spec, msgspec.structs.replace(SHAPE, disks={**SHAPE.disks, "data": 99}))


def test_a_long_name_keeps_its_serial_whatever_others_come_and_go() -> None:
    names = ["a-very-long-volume-name-1", "a-very-long-volume-name-2"]
    assert len({name_serial(name) for name in names}) == 2
    assert all(len(name_serial(name)) <= 20 for name in names)


def plan(spec: AllocationSpec, checkpoint: Checkpoint, *, can_adjust: bool = True) -> tuple[tuple[StepName, ...], str]:
    guest = GuestFacts("g", "u", "web", 1, "running", ready=True, shape=SHAPE)
    local = msgspec.structs.replace(wanted(), spec=spec)
    planned = plan_allocation(PlanInput(local=local, checkpoint=checkpoint, guest=guest, can_adjust=can_adjust))
    return planned.steps, planned.state


def test_a_running_guest_that_does_not_fit_is_brought_to_it_without_being_stopped() -> None:
    checkpoint = Checkpoint(run="up", answered=True, made=True)
    assert plan(asked(volumes=[VOLUME]), checkpoint) == (ADJUST, "running")
    assert plan(asked(volumes=[VOLUME]), checkpoint, can_adjust=False) == ((), "running")
    assert plan(SPEC, checkpoint) == ((), "running")


def test_ports_of_nics_it_gave_up_go_after_them() -> None:
    checkpoint = Checkpoint(run="up", answered=True, made=True, leftover=SPEC.nics)
    assert plan(asked(nics=[]), checkpoint)[0] == ADJUST
    assert plan(SPEC, checkpoint)[0] == (StepName.TIDY,)


def test_ports_of_nics_that_a_stopped_guest_gave_up_go_at_once() -> None:
    """Another may have the address by now, on this node too."""
    known = PlanInput(
        local=msgspec.structs.replace(wanted(), spec=asked(nics=[], desired="stop")),
        guest=GuestFacts("g", "u", "web", 1, "stopped"),
        checkpoint=Checkpoint(run="up", made=True, leftover=SPEC.nics),
    )
    told = plan_allocation(known)
    assert (told.steps, told.state) == ((StepName.TIDY,), "stopped")
