"""Ports of guests that boot ahead of their lease: closed until they are held, and open by the start."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest
from tests.scenario.agent_lab import make_allocation, make_nic
from tests.unit.agent.network.test_handover import Side

from weft.agent.state.allocation import Checkpoint
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.checkpoint import CheckpointStore
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.fields.lease import AllocatedLease


@pytest.fixture
def side(tmp_path: Path) -> Side:
    return Side(tmp_path)


def reserve(side: Side, start: float) -> AllocationState:
    """An allocation on that node whose lease begins at ``start`` and which has been begun."""
    lease = AllocatedLease(mode="reservation", start=start, end=start + 1000.0, prepare_at=start - 60.0)
    allocation = make_allocation("class", lease=lease, nics=[make_nic()])
    state = AllocationState(allocation, Checkpoint(made=True), CheckpointStore(str(side.folder)))
    side.table.states[state.local.uid] = state
    return state


def let_through(side: Side) -> bool:
    return not any(filter_.closed for filter_ in side.wire.filters)


async def test_the_ports_are_closed_while_it_boots_and_open_once_it_is_held(side: Side) -> None:
    state = reserve(side, time.time() + 30.0)
    await side.keeper.plug(state.local)
    assert not let_through(side)
    state.guest = GuestFacts(state.local.id, state.local.uid, "class", 1, "running")
    await side.keeper.refresh()
    assert not let_through(side), "it may answer while it boots"
    state.guest = msgspec.structs.replace(state.guest, held=True)
    await side.keeper.refresh()
    assert let_through(side)
    async with side.keeper._changing:  # another network is being made
        await asyncio.wait_for(side.keeper.open(state.local), 5)
    state.guest = GuestFacts(state.local.id, state.local.uid, "class", 1, "absent")
    await side.keeper.plug(state.local)  # it ended while it was held, and boots again
    assert not let_through(side)


async def test_what_wasnt_held_in_time_is_opened_at_its_start(side: Side) -> None:
    state = reserve(side, time.time() + 0.3)
    state.guest = GuestFacts(state.local.id, state.local.uid, "class", 1, "running")
    await side.keeper.plug(state.local)
    assert not let_through(side)
    await asyncio.sleep(0.4)
    await side.keeper.open(state.local)
    assert not let_through(side), "the server doesn't hear this node: its lease may have been given to another"
    state.checkpoint = msgspec.structs.replace(state.checkpoint, begun=True)
    await side.keeper.open(state.local)
    assert let_through(side)
