"""The snapshots of one node: its report lists them, its server removes them, and its chains become short again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.agent_lab import Lab, change, make_allocation
from tests.unit.agent.snapshot.layer_lab import ValueLayers

from weft.agent.snapshot import absorption
from weft.objects.identity import short_id


class Copying:
    """A runtime's part that absorbs: each takes until ``gate`` is set."""

    def __init__(self) -> None:
        self.gate, self.under_way, self.done = asyncio.Event(), set[str](), list[str]()

    async def absorb(self, guest_id: str, serial: str, layer: str) -> None:
        self.under_way.add(layer)
        try:
            await self.gate.wait()
        finally:
            self.under_way.discard(layer)
        self.done.append(layer)


class SnapshotLab(Lab):
    """A node whose pool has layers, and whose guests absorb them."""

    def __init__(self, folder: Path) -> None:
        self.layers, self.copying = ValueLayers(), Copying()
        super().__init__(folder)

    def make_drivers(self) -> None:
        super().make_drivers()
        volumes: Any = self.volumes
        runtime: Any = self.runtime
        volumes.layers, runtime.snapshots = self.layers, self.copying

    def reported(self) -> list[str]:
        report = self.server.node_report
        return [one.uid for one in report.snapshots] if report is not None else []


@pytest.fixture
async def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SnapshotLab:
    monkeypatch.setattr(absorption, "LOOK_SECONDS", 0.2)
    return SnapshotLab(tmp_path)


async def test_a_removed_snapshot_leaves_the_report_and_its_layer_the_chain(lab: SnapshotLab) -> None:
    web = make_allocation()
    root = short_id(web.uid)
    lab.layers.chains[root] = ["l1", "l2"]
    lab.layers.add("s1", root=["l1"])
    lab.layers.add("s2", root=["l1", "l2"])
    lab.copying.gate.set()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        await lab.until(lambda: lab.reported() == ["s1", "s2"])
        assert not lab.copying.done
        lab.server.remove_snapshots = ["s1"]
        lab.server.put(change(web, ssh_keys=[]))
        await lab.until(lambda: lab.reported() == ["s2"])
        await lab.until(lambda: lab.layers.chains[root] == ["l2"])
    assert lab.copying.done == ["/pool/l1"]


async def test_a_stop_and_an_end_of_the_agent_cut_the_copy_off_and_it_is_made_again(lab: SnapshotLab) -> None:
    web = make_allocation()
    root = short_id(web.uid)
    lab.layers.chains[root] = ["l1"]
    async with lab.agent():
        lab.server.put(web)
        await lab.until(lambda: lab.copying.under_way)
    assert not lab.copying.under_way and lab.layers.chains[root] == ["l1"]
    async with lab.agent():
        await lab.until(lambda: lab.copying.under_way)
        lab.server.put(change(web, desired="stop", desired_count=1))
        await lab.until_state(web, "stopped")
        assert not lab.copying.under_way
        await lab.until(lambda: lab.layers.chains[root] == [])
    assert [volume for volume, _, _ in lab.layers.absorbed] == [root]
