"""The simulation's own store: a process beside those who ask it."""

from __future__ import annotations

import asyncio

from tests.simulation.fabric import Fabric
from tests.simulation.fate import Fate
from tests.simulation.simulation import simulate
from tests.simulation.virtual_loop import Part
from weft.contracts.store import Put


def test_one_who_asks_and_is_killed_at_once_leaves_a_store_that_goes_on() -> None:
    async def run(fabric: Fabric) -> None:
        await fabric.ledger.open()
        caller = Part(fabric.loop, "caller")

        async def ask_and_die() -> None:
            asking = asyncio.ensure_future(fabric.ledger.commit_as("caller", [Put("/-/1", b"1")]))
            await asyncio.sleep(0)
            caller.kill()  # it has been asked; the store's process hasn't begun
            await asking

        caller.spawn(ask_and_die())
        await caller.died
        await asyncio.wait_for(fabric.ledger.commit_as("another", [Put("/-/2", b"2")]), timeout=60)

    with simulate(1, Fate(1, 0, {}), "sqlite") as fabric:
        fabric.loop.run_until_complete(run(fabric))
