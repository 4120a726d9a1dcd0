"""A node's egress endpoints: asked for once, left when nobody needs them, and asked for anew when the server has forgotten them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from weft.agent.function.egress_endpoints import EgressEndpoints
from weft.agent.network.plan import ports_of
from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.table import AllocationTable
from weft.contracts.driver.host import Capacity, Host
from weft.kinds.allocation import AllocatedNic
from weft.objects.errors import Unavailable

HOST = Host(
    node="n1", node_uid="n-uid", state_dir="/s", run_dir="/r", link_prefix="w", underlay_address="10.99.0.1",
    underlay_link="up0", cgroup="weft", capacity=Capacity(1.0, 1 << 30, 1 << 30),
)  # fmt: skip


def make_nic(address: str) -> AllocatedNic:
    return AllocatedNic(
        uid=f"e-{address}", network="blue", network_uid="blue", vni=7, cidr="10.20.0.0/24", gateway="10.20.0.1", mtu=1450,
        domain="weft", nat=True, mac="52:57:0a:14:00:fe", address=address,
    )  # fmt: skip


class Room:
    """What a node's networks and the server would be; ``plugged`` by address."""

    def __init__(self) -> None:
        self.gives, self.asked, self.changes = "10.20.0.254", 0, 0
        self.plugged: list[str] = []
        self.fails = False
        self.table = AllocationTable()
        self.egress_endpoints = EgressEndpoints(HOST, self, self, self, self.table, self)  # type: ignore[arg-type]

    def ask_egress_endpoint(self, node: str, project: str, network_uid: str) -> AllocatedNic:
        assert (node, project, network_uid) == ("n1", "p", "blue")
        self.asked += 1
        return make_nic(self.gives)

    def follow_networks(self) -> None:
        assert self.table.networks() == set(self.egress_endpoints.networks())

    def wake(self) -> None:
        self.changes += 1

    async def wait_for_network(self, network_uid: str) -> None:
        assert self.egress_endpoints.networks() == ["blue"]  # it is followed by now

    async def plug(self, wanted: LocalAllocation) -> list[str]:
        if self.fails:
            raise Unavailable("not now")
        (port,) = ports_of(wanted)
        assert port.inside is not None and port.inside.shared
        self.plugged.append(port.address)
        return [f"/run/netns/{port.inside.guest}"]

    async def unplug(self, wanted: LocalAllocation, leftover: Any = None) -> None:
        self.plugged = [address for address in self.plugged if address != ports_of(wanted)[0].address]


async def test_those_who_need_it_at_once_ask_once() -> None:
    room = Room()
    found = await asyncio.gather(*(room.egress_endpoints.ensure("p", "blue") for _ in range(5)))
    assert room.asked == 1 and room.plugged == ["10.20.0.254"] and len(set(found)) == 1
    assert (found[0].name_server, found[0].mtu) == ("10.20.0.1", 1450)
    await room.egress_endpoints.keep_only(lambda: {"blue"})
    assert room.plugged == ["10.20.0.254"]
    await room.egress_endpoints.keep_only(set)
    assert room.plugged == [] and room.egress_endpoints.networks() == []


async def test_with_a_proxy_there_it_stays_without_functions_and_with_the_agents_end() -> None:
    room = Room()
    await room.egress_endpoints.ensure("p", "blue")
    await room.egress_endpoints.ensure("p", "blue", proxy=True)
    assert room.egress_endpoints.of_functions() == {"blue"}
    await room.egress_endpoints.close()
    assert room.plugged == ["10.20.0.254"] and room.egress_endpoints.of_functions() == set()
    await room.egress_endpoints.drop_proxy("blue")
    assert room.plugged == [] and room.table.egress == {}


async def test_one_of_an_earlier_agent_is_plugged_again_without_a_question() -> None:
    room = Room()
    room.egress_endpoints.recall("blue", make_nic("10.20.0.250"))
    assert room.table.networks() == {"blue"}
    await room.egress_endpoints.ensure("p", "blue", proxy=True)
    assert room.asked == 0 and room.plugged == ["10.20.0.250"]


async def test_one_that_cannot_be_plugged_leaves_nothing_and_is_tried_again() -> None:
    room = Room()
    room.fails = True
    with pytest.raises(Unavailable):
        await room.egress_endpoints.ensure("p", "blue")
    assert room.egress_endpoints.networks() == [] and room.table.hosted() == []
    room.fails = False
    await room.egress_endpoints.ensure("p", "blue")
    assert room.plugged == ["10.20.0.254"]


async def test_a_server_that_forgot_the_address_is_asked_again() -> None:
    room = Room()
    await room.egress_endpoints.ensure("p", "blue")
    await room.egress_endpoints.confirm("blue", {"10.20.0.254", "10.20.0.2"})
    assert room.asked == 1
    await room.egress_endpoints.confirm("blue", {"10.20.0.2"})
    assert room.asked == 2 and room.plugged == ["10.20.0.254"]  # it is still nobody else's
    room.gives = "10.20.0.253"
    await room.egress_endpoints.confirm("blue", {"10.20.0.2"})
    assert room.plugged == []
    await room.egress_endpoints.ensure("p", "blue")
    assert room.plugged == ["10.20.0.253"]
