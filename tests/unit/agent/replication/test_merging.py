"""Points that are gone leave no layers behind, and steps of allocations go first."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.conformance.points import add_three, list_layers, show
from tests.unit.drivers.volume.test_volume_layers import make_driver

from weft.agent.replication.merging import Merging
from weft.agent.snapshot.turns import DiskTurns
from weft.agent.volume.pools import Pools
from weft.contracts.clock import SystemClock


async def test_layers_of_points_that_are_gone_are_merged_but_not_beside_steps_that_want_the_node_alone(
    tmp_path: Path,
) -> None:
    driver, turns, clock = make_driver(tmp_path), DiskTurns(), SystemClock()
    merging = Merging(Pools(driver, {}, clock, asyncio.Event()), turns, clock)
    await add_three(driver)
    await merging.merge_all()
    assert [len(layers) for layers in (await list_layers(driver)).values()] == [1, 2, 3]
    await driver.layers.drop("p1")
    await driver.layers.drop("p2")
    async with turns.steps(("web",), alone=True):
        await merging.merge_all()
        assert await list_layers(driver) == {"p3": ("in1", "in2", "in3")}
    await merging.merge_all()
    assert (await list_layers(driver), await show(driver, "p3")) == ({"p3": ("in3",)}, "ab.c.c")
