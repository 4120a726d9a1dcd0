"""Disks that stand on layers, on one node: their guests start on them, and no disk leaves what it stands on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.scenario.agent_lab import Lab, make_allocation

from weft.agent.snapshot.transfer import PackedLayers, pack_layers
from weft.agent.state.allocation import read_allocation
from weft.agent.volume.pools import Pools
from weft.contracts.driver.runtime import DiskLayer
from weft.kinds.allocation import ROOT, AllocatedVolume
from weft.objects.errors import InvalidInput
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


async def test_a_disk_does_not_leave_what_it_stands_on_where_its_driver_can_not_send_that(lab: Lab) -> None:
    web = make_allocation(volumes=[AllocatedVolume(name="data", uid=VOLUME, size=1 << 20)])
    local, pools = read_allocation(web), Pools(lab.volumes, {}, lab.clock, asyncio.Event())
    assert await pack_layers(pools, local, "m1", [ROOT, VOLUME]) == PackedLayers()
    for id_, name in ((short_id(web.uid), "root disk"), (VOLUME, "volume data")):
        lab.shelf.layers.chains = {id_: ["l1"]}
        with pytest.raises(InvalidInput, match=f"its {name} stands on snapshots") as caught:
            await pack_layers(pools, local, "m1", [ROOT, VOLUME])
        assert caught.value.token == "unsupported" and caught.value.hint
