"""What follows from all that is remembered of one allocation, and which of it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import pytest
from tests.scenario.agent_lab import change, make_allocation, make_nic

from weft.agent.state.allocation import Checkpoint, Health
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.checkpoint import CheckpointStore
from weft.kinds.allocation import AllocatedContainer, HealthCheck

BAD = Health("unhealthy", 3, "exit code 1")


def make_state(folder: Path, checkpoint: Checkpoint | None = None, **fields: object) -> AllocationState:
    return AllocationState(make_allocation(**fields), checkpoint or Checkpoint(), CheckpointStore(str(folder)))


@pytest.mark.parametrize(("on_unhealthy", "unwell"), [("restart", "exit code 1"), ("nothing", "")])
def test_health_ends_a_container_only_if_its_check_says_so(
    tmp_path: Path, on_unhealthy: Literal["nothing", "restart"], unwell: str
) -> None:
    check = HealthCheck(command=["ask"], on_unhealthy=on_unhealthy)
    state = make_state(tmp_path, container=AllocatedContainer(image="web", health_check=check))
    assert state.unwell == ""
    state.health = BAD  # also by the report of an agent that was here before
    assert state.unwell == unwell


def test_one_without_a_check_is_never_unwell(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    state.health = BAD
    assert state.unwell == ""


async def test_nothing_is_saved_before_something_was_made_and_nothing_after_the_release(tmp_path: Path) -> None:
    state, store = make_state(tmp_path), CheckpointStore(str(tmp_path))
    await state.save()
    assert store.load() == []
    state.checkpoint = Checkpoint(made=True)
    await state.save()
    assert [checkpoint for _, checkpoint in store.load()] == [Checkpoint(made=True)]
    state.release()
    await state.save(Checkpoint(made=True, run="up"))
    assert store.load() == [] and not state.alive


def test_nics_that_a_spec_loses_are_left_over_until_their_ports_are_removed(tmp_path: Path) -> None:
    nic = make_nic()
    state = make_state(tmp_path, Checkpoint(run="up", made=True), nics=[nic])
    assert state.update(change(state.envelope, nics=[]))
    assert state.checkpoint.leftover == [nic]
    assert not state.update(msgspec.structs.replace(state.envelope, generation=2)), "its spec is the same"
