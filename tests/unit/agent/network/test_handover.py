"""Where what is for a moving guest goes, whatever the server says yet."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from weft.agent.network.executor import NetworkExecutor
from weft.agent.server.reporter import Reporter
from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.checkpoint import CheckpointStore
from weft.agent.state.table import AllocationTable
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.network import Endpoint
from weft.drivers.network.fake.driver import FakeNetwork, FakeWire
from weft.drivers.runtime.fake.driver import FakeDriver
from weft.kinds.allocation import AllocatedImage, AllocatedNic, AllocationSpec, Resources
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.objects.identity import Ref, short_id

OWN, PEER, OTHER = "10.0.0.1", "10.0.0.2", "10.0.0.3"
NIC = AllocatedNic(
    uid="nic",
    network="blue",
    network_uid="net",
    vni=7,
    cidr="10.20.0.0/24",
    gateway="10.20.0.1",
    mtu=1450,
    domain="blue.weft",
    nat=True,
    mac="52:54:00:00:00:01",
    address="10.20.0.11",
)


class Side:
    """One node's keeper of networks, over a wire that outlives it."""

    def __init__(self, folder: Path, address: str = OWN) -> None:
        self.folder, self.address, self.wire, self.table = folder, address, FakeWire(), AllocationTable()
        self.begin()

    def begin(self) -> None:
        """An agent, the first or the next one."""
        capacity = Capacity(cpu=1, memory_bytes=1 << 30, disk_bytes=1 << 30)
        self.host = host = Host(
            node="n1",
            node_uid="n1",
            state_dir=str(self.folder),
            run_dir=str(self.folder),
            link_prefix="w1",
            underlay_address=self.address,
            underlay_link="up0",
            cgroup="weft",
            capacity=capacity,
        )
        clock = SystemClock()
        driver = FakeNetwork(host, clock, self.wire)
        reporter = Reporter("n1", cast(Any, None), clock, asyncio.Event())
        runtimes = Runtimes({"vm": FakeDriver(host, clock)})
        store = CheckpointStore(str(self.folder))
        self.keeper = NetworkExecutor(driver, host, store, clock, self.table, runtimes, reporter)

    def hear(self, address: str) -> None:
        """The server's word on where the guest is."""
        self.keeper.put_neighbour("net", NIC.address, Endpoint(NIC.mac, NIC.address, "web", address))

    async def leads_to(self) -> str:
        await self.keeper.refresh()
        [endpoint] = self.wire.segments[short_id("net")].endpoints
        return endpoint.node_address

    def has(self, role: str, migration: AllocatedMigration | None = None) -> LocalAllocation:
        spec = AllocationSpec(
            node="n1",
            node_uid="n1",
            workload=Ref("vm", "default", "web", "uid"),
            workload_generation=1,
            incarnation=1,
            role=role,  # type: ignore[arg-type]
            resources=Resources(),
            image=AllocatedImage(name="tiny", uid="i", sha256="s", size=1, url=""),
            nics=[NIC],
            migration=migration,
        )
        wanted = LocalAllocation("n1.a", "allocation", spec)
        self.here = [wanted]
        return wanted

    @property
    def here(self) -> list[LocalAllocation]:
        return self.table.hosted()

    @here.setter
    def here(self, hosted: list[LocalAllocation]) -> None:
        self.table.egress = {local.uid: local for local in hosted}  # which are hosted without more ado


@pytest.fixture
def side(tmp_path: Path) -> Side:
    return Side(tmp_path)


async def test_a_target_takes_what_is_for_the_guest_when_it_is_switched_and_keeps_it(side: Side) -> None:
    wanted = side.has("target")
    side.hear(PEER)
    assert await side.keeper.prepare_migration(wanted) == [f"w1t{port}" for port in side.wire.ports]
    assert await side.leads_to() == PEER
    side.keeper.handover.switch_here(wanted)
    assert await side.leads_to() == OWN, "though the server still says the source"
    side.begin()
    assert await side.leads_to() == OWN, "an agent made anew remembers it"
    side.has("active")
    side.hear(OWN)
    assert await side.leads_to() == OWN


async def test_between_clusters_a_guest_is_at_its_node_from_the_first_and_nothing_is_switched(side: Side) -> None:
    apart = AllocatedMigration(key="m", peer="east/n1", peer_uid="n1-of-east", peer_ca="PEM", peer_allocation="a")
    arriving = side.has("target", apart)
    assert await side.keeper.prepare_migration(arriving) == [f"w1t{port}" for port in side.wire.ports]
    assert await side.leads_to() == OWN, "though the server lists no endpoint of it yet"
    [segment] = side.wire.segments.values()
    assert segment.migrated == [] and side.keeper.handover.hops == []
    side.keeper.handover.undo_switch(arriving)
    assert await side.leads_to() == OWN
    leaving = side.has("source", apart)
    side.hear(OWN)
    assert await side.keeper.prepare_migration(leaving, PEER) == []
    assert await side.leads_to() == OWN and side.keeper.handover.hops == [], "no frame goes to the other cluster"


async def test_a_source_sends_what_is_for_the_guest_on_until_the_server_says_where_it_is(side: Side) -> None:
    wanted = side.has("source")
    side.hear(OWN)
    await side.keeper.prepare_migration(wanted, PEER)
    assert await side.leads_to() == OWN
    side.keeper.handover.switch_away(wanted, PEER)
    assert await side.leads_to() == PEER
    side.begin()
    assert await side.leads_to() == PEER
    side.hear(OTHER)
    assert await side.leads_to() == OTHER, "it has moved on"


async def test_a_guest_that_goes_on_at_the_source_is_there_again_on_both_sides(tmp_path: Path) -> None:
    for number, (role, before) in enumerate((("source", OWN), ("target", PEER))):
        side = Side(tmp_path / str(number))
        wanted = side.has(role)
        side.hear(OWN if role == "source" else PEER)
        await side.keeper.prepare_migration(wanted, PEER)
        if role == "source":
            side.keeper.handover.switch_away(wanted, PEER)
        else:
            side.keeper.handover.switch_here(wanted)
        assert await side.leads_to() != before
        side.keeper.handover.undo_switch(wanted)
        assert await side.leads_to() == before


async def test_a_network_that_a_guest_left_is_kept_while_its_connections_lead_through_here(side: Side) -> None:
    wanted = side.has("source")
    side.hear(OWN)
    await side.keeper.prepare_migration(wanted, PEER)
    await side.keeper.plug(wanted)
    side.keeper.handover.switch_away(wanted, PEER)
    side.here = []
    await side.keeper.unplug(wanted)
    assert await side.keeper.handover.end({}) == set(), "the server hasn't said that it is there"
    side.hear(PEER)
    side.wire.older[NIC.address] = 2
    assert await side.keeper.handover.end({}) == set()
    assert await side.leads_to() == PEER
    side.wire.older.clear()
    assert await side.keeper.handover.end({}) == {"net"}


async def test_a_guest_that_comes_back_leaves_nothing_behind_of_its_way_out(side: Side) -> None:
    wanted = side.has("source")
    side.hear(OWN)
    await side.keeper.prepare_migration(wanted, PEER)
    side.keeper.handover.switch_away(wanted, PEER)
    side.hear(PEER)
    wanted = side.has("target")
    await side.keeper.prepare_migration(wanted)
    assert await side.leads_to() == PEER
    side.keeper.handover.switch_here(wanted)
    assert await side.leads_to() == OWN
    side.has("active")
    side.hear(OWN)
    assert await side.keeper.handover.end({"nic": "active"}) == set()
    assert [(hop.way, hop.peer) for hop in side.keeper.handover.hops] == [("in", PEER)]


async def test_who_comes_while_others_are_looked_through_is_not_forgotten(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, handover = side.has("source"), side.keeper.handover
    side.hear(OWN)
    await side.keeper.prepare_migration(wanted, PEER)
    handover.switch_away(wanted, PEER)
    side.here = []
    side.hear(PEER)
    look = side.keeper.handover._is_used

    async def look_slowly(nic: AllocatedNic) -> bool:
        handover.expect(side.has("target"))
        handover.switch_here(side.here[0])
        return await look(nic)

    monkeypatch.setattr(handover, "_is_used", look_slowly)
    await handover.end({})
    assert [(hop.way, hop.peer, hop.switched) for hop in handover.hops] == [("in", PEER, True)]


async def test_who_has_the_address_of_a_guest_that_moved_and_is_gone_inherits_nothing_of_its_way(side: Side) -> None:
    wanted = side.has("target")
    side.hear(PEER)
    await side.keeper.prepare_migration(wanted)
    side.keeper.handover.switch_here(wanted)
    wanted = side.has("source")
    side.hear(OWN)
    await side.keeper.prepare_migration(wanted, OTHER)
    side.keeper.handover.switch_away(wanted, OTHER)
    next_one = side.has("active")
    next_one.spec.nics = [msgspec.structs.replace(NIC, uid="another")]
    side.keeper.put_neighbour("net", NIC.address, Endpoint(NIC.mac, NIC.address, "next", OWN, uid="another"))
    assert await side.leads_to() == OWN
    assert side.wire.segments[short_id("net")].migrated == [], "at once"
    assert await side.keeper.handover.end({"another": "active"}) == {"net"}, "and for good"
    assert side.keeper.handover.hops == []
