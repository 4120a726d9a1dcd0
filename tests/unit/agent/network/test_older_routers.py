"""Whom nodes ask for the connections of a guest that has been on several of them: each that it left is asked, once, and
nobody asks in a ring."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from test_handover import NIC, Side

from weft.agent.network.plan import fold_segments
from weft.contracts.driver.network import Endpoint
from weft.drivers.network.bridge.migration import find_older, older_hops

NODES = [f"10.0.0.{number}" for number in range(1, 6)]


class Walk:
    """A guest that goes from node to node, and opens a connection on each."""

    def __init__(self, folder: Path) -> None:
        self.sides = {node: Side(folder / node, node) for node in NODES}
        self.at, self.been = NODES[0], {NODES[0]}
        self.sides[self.at].has("active")
        for side in self.sides.values():
            side.wire.older[NIC.address] = 1
            side.hear(self.at)

    async def go(self, target: str, *, called_off: bool = False) -> None:
        """To ``target``, or there and back within the moment in which the guest stands still."""
        leaving, coming = self.sides[self.at], self.sides[target]
        wanted, expected = leaving.has("source"), coming.has("target")
        await leaving.keeper.prepare_migration(wanted, target)
        await coming.keeper.prepare_migration(expected)
        leaving.keeper.handover.switch_away(wanted, target)
        coming.keeper.handover.switch_here(expected)
        if called_off:
            leaving.keeper.handover.undo_switch(wanted)
            coming.keeper.handover.undo_switch(expected)
            leaving, coming, target = coming, leaving, self.at
        leaving.here = []
        coming.has("active")
        self.at = target
        self.been.add(target)
        for side in self.sides.values():
            side.hear(target)
            await side.keeper.refresh()
        if called_off:
            await self.look()

    async def look(self) -> None:
        for side in self.sides.values():
            await side.keeper.handover.end({nic.uid: w.spec.role for w in side.here for nic in w.spec.nics})

    def check(self, seed: int) -> None:
        asks = {node: self.asks(side) for node, side in self.sides.items()}
        reached, found = set[str](), [(self.at, "")]
        while found:
            node, by = found.pop()
            assert node not in reached, (seed, asks, "in a ring, or twice")
            reached.add(node)
            found += [(other, node) for other in asks[node] if other != by]
        assert reached == self.been, (seed, asks)

    def asks(self, side: Side) -> list[str]:
        known = {NIC.network_uid: [Endpoint(NIC.mac, NIC.address, "web", self.at)]}
        folded = fold_segments(side.here, known, side.address, side.keeper.handover.hops)
        segment = folded.get(NIC.network_uid)
        return list(find_older(side.host, segment)) if segment is not None else []


@pytest.mark.parametrize("among", [2, 3, 4, 5])
async def test_every_node_that_it_has_been_on_is_asked_and_none_twice(
    among: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)  # no power cut here, and thousands of writes
    for seed in range(among - 2, 40, 4):
        walk, dice = Walk(tmp_path / str(seed)), random.Random(seed)
        for _ in range(12):
            others = [node for node in NODES[:among] if node != walk.at]
            await walk.go(dice.choice(others), called_off=dice.random() < 0.2)
            walk.check(seed)
            if dice.random() < 0.4:
                await walk.look()
                walk.check(seed)


async def test_routers_that_ask_keep_their_addresses_whoever_joins(tmp_path: Path) -> None:
    walk = Walk(tmp_path)
    await walk.go(NODES[1])
    side = walk.sides[NODES[1]]
    known = [Endpoint(NIC.mac, NIC.address, "web", NODES[1])]
    [segment] = fold_segments(side.here, {"net": known}, side.address, side.keeper.handover.hops).values()
    one = older_hops(side.host, segment)
    more = [
        msgspec.structs.replace(segment.migrated[0], node_address=f"10.0.0.{number}", mac=f"m{number}")
        for number in range(1, 200)
    ]
    both = older_hops(side.host, msgspec.structs.replace(segment, migrated=more))
    assert both[NODES[0]] == one[NODES[0]]
    assert len(set(both.values())) == len(both) == 198
