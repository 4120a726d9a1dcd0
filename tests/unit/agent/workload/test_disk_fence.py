"""Before a guest begins, clients elsewhere are cut off from its disks, but for those that its running guest has open."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.unit.agent.test_agent_parts import wanted

from weft.agent.state.allocation import LocalAllocation
from weft.agent.volume.pools import Pools
from weft.agent.workload.fence import fence_disks
from weft.agent.workload.shape import ROOT_SERIAL, name_serial
from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.drivers.volume.fake.driver import FakeVolumes
from weft.kinds.allocation import AllocatedVolume
from weft.objects.errors import DriverFailed


class FencedVolumes(FakeVolumes):
    def __init__(self, host: Host) -> None:
        super().__init__(host, SystemClock())
        self.own_host = host
        self.fenced: list[str] = []
        self.fails = False

    async def fence(self, volume_id: str) -> list[str]:
        if self.fails:
            raise DriverFailed("the cluster doesn't answer")
        self.fenced.append(volume_id)
        return ["10.0.0.3:0/1"]


@pytest.fixture
def shared(tmp_path: Path) -> FencedVolumes:
    capacity = Capacity(4, 1 << 32, 1 << 34)
    host = Host("n1", "u", str(tmp_path), str(tmp_path), "wtst", "10.0.0.1", "lo", "weft/t", capacity)
    return FencedVolumes(host)


def make(shared: FencedVolumes) -> tuple[Pools, LocalAllocation]:
    local = wanted()
    volumes = [
        AllocatedVolume(name="data", uid="uid-data", size=1, pool="ceph"),
        AllocatedVolume(name="own", uid="o", size=1),
    ]
    spec = replace(local.spec, pool="ceph", volumes=volumes)
    plain = FakeVolumes(shared.own_host, SystemClock())
    return Pools(plain, {"ceph": shared}, SystemClock(), asyncio.Event()), replace(local, spec=spec)


async def test_a_guest_that_begins_has_its_disks_in_shared_storage_to_itself(shared: FencedVolumes) -> None:
    pools, local = make(shared)
    await fence_disks(pools, local)
    assert shared.fenced == [local.id, "uid-data"]


async def test_a_running_guest_keeps_what_it_has_open_and_gets_the_rest_to_itself(shared: FencedVolumes) -> None:
    pools, local = make(shared)
    await fence_disks(pools, local, has=[ROOT_SERIAL])
    assert shared.fenced == ["uid-data"]
    await fence_disks(pools, local, has=[ROOT_SERIAL, name_serial("data")])
    assert shared.fenced == ["uid-data"]


async def test_nothing_begins_while_others_cannot_be_cut_off(shared: FencedVolumes) -> None:
    pools, local = make(shared)
    shared.fails = True
    with pytest.raises(DriverFailed):
        await fence_disks(pools, local)
