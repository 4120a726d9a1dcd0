"""Disks that stand on layers, on one node: their guests start on them, and no disk leaves what it stands on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.scenario.agent_lab import Lab, change, make_allocation

from weft.contracts.driver.runtime import DiskLayer
from weft.kinds.allocation import ROOT, AllocatedVolume
from weft.kinds.fields.allocated_migration import AllocatedDiskRelocation
from weft.objects.identity import short_id

VOLUME = "6f1f3c9e-1c2d-4b6a-9a55-0d5f6b9c1a11"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


async def test_a_guest_starts_on_the_layers_of_each_of_its_disks(lab: Lab) -> None:
    web = make_allocation(volumes=[AllocatedVolume(name="data", uid=VOLUME, size=1 << 20)])
    lab.shelf.layers.chains |= {short_id(web.uid): ["l1", "l2"], VOLUME: ["l3"]}
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
    guest = lab.guest(web)
    assert guest is not None
    folder = Path(lab.host.state_dir) / "volumes" / "layers"
    found = {disk.serial: disk.layers for disk in guest.plan.disks if disk.layers}
    l1, l2, l3 = (DiskLayer(str(folder / f"{name}.qcow2"), "qcow2") for name in ("l1", "l2", "l3"))
    assert list(found.values()) == [[l1, l2], [l3]]
    assert guest.plan.disks[0].layers == [l1, l2] and guest.plan.disks[0].base, "the image is below"


async def test_a_disk_on_layers_is_not_relocated_and_stays_as_it_was(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        web = change(web, desired="stop")
        lab.server.put(web)
        await lab.until_state(web, "stopped")
        lab.shelf.layers.chains[short_id(web.uid)] = ["l1"]
        order = AllocatedDiskRelocation(key="move-1", disk=ROOT, pool="san", pool_id="")
        lab.server.put(change(web, storage=order))
        await lab.until(lambda: lab.server.reports[web.name].migration is not None, "its report")
        await lab.until(lambda: lab.server.reports[web.name].migration.phase == "failed", "its failure")  # type: ignore[union-attr]
        report = lab.server.reports[web.name].migration
    assert report is not None and report.reason == "unsupported"
    assert "root disk stands on snapshots" in report.message
    assert lab.san.shelf.volumes == {} and lab.shelf.layers.chains[short_id(web.uid)] == ["l1"]
