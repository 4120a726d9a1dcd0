"""A node says of an endpoint that leaves that it sends it no new connections, once that is so."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
from tests.unit.agent.network.test_handover import OWN, Side
from tests.unit.agent.service.test_proxy_executor import Node

from weft.agent.state.service import Leaving, ServedAddress, read_service, report_departures
from weft.contracts.driver.network import ServiceTarget
from weft.drivers.network.fake.driver import FakeNetwork
from weft.kinds.endpoint import ENDPOINT, EndpointSpec, Served, ServedPort, ServedTarget
from weft.kinds.node import MOST_DEPARTED
from weft.objects.errors import DriverFailed
from weft.objects.identity import Ref

LEAVES = ["s1/10.20.0.12"]


def read(weight: int, *, leaves: bool, departure: int = 0) -> ServedAddress:
    ports = [ServedPort(port=80, target=8080, protocol="tcp")]
    targets = [ServedTarget(address="10.20.0.12", weight=weight, leaves=leaves, departure=departure)]
    spec = EndpointSpec(
        workload=Ref("service", "shop", "s1", "default"),
        network="blue",
        network_uid="net",
        index=0,
        mac="m",
        address="10.20.0.99",
        served=Served(ports=ports, targets=targets),
    )
    found = read_service(ENDPOINT.make("net.10.20.0.99", spec, 1.0))
    assert found is not None
    return found


async def test_routers_have_it_before_it_is_said(tmp_path: Path) -> None:
    side = Side(tmp_path)
    side.has("active")
    side.hear(OWN)

    def departures() -> list[str]:
        return [name for one in side.keeper.departed for name in one.departures]

    side.keeper.service_addresses.put("net", "10.20.0.99", read(1000, leaves=False))
    await side.keeper.refresh()
    assert departures() == []
    side.keeper.service_addresses.put("net", "10.20.0.99", read(0, leaves=True))
    assert departures() == [], "the routers have yet to hear of it"
    ensure = FakeNetwork.ensure_segment

    async def fail(*_: object) -> None:
        raise DriverFailed("busy")

    FakeNetwork.ensure_segment = fail  # type: ignore[method-assign, assignment]
    try:
        with contextlib.suppress(DriverFailed):
            await side.keeper.refresh()
        assert departures() == []
    finally:
        FakeNetwork.ensure_segment = ensure  # type: ignore[method-assign]
    await side.keeper.refresh()
    assert departures() == LEAVES
    side.keeper.service_addresses.put("net", "10.20.0.99", read(1000, leaves=False))
    await side.keeper.refresh()
    assert departures() == []


async def test_a_proxy_has_it_before_it_is_said(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.follow()
    before = node.services["blue"]["1"]
    service = msgspec.structs.replace(before.service, targets=(ServiceTarget("10.0.0.2", 0),))
    leaving = msgspec.structs.replace(before, service=service, leaving=(Leaving("10.0.0.2"),))
    node.services["blue"]["1"] = leaving
    node.trouble = "proxy: a change was refused"
    await node.follow()
    assert not node.proxies.has_departed(leaving) and node.reports == 0
    node.trouble = ""
    await node.follow()
    assert node.proxies.has_departed(leaving) and node.reports == 1


async def test_a_network_of_which_nothing_is_here_sends_nothing(tmp_path: Path) -> None:
    side = Side(tmp_path)
    side.keeper.service_addresses.put("net", "10.20.0.99", read(0, leaves=True, departure=7))
    await side.keeper.refresh()
    assert side.keeper.departed == [], "no guest of this node is in the network"
    side.table.networks = lambda: {"net"}  # type: ignore[method-assign]
    await side.keeper.refresh()
    assert report_departures(side.keeper.departed) == ["s1/10.20.0.12/7"], "its guest is stopped, or has yet to be made"
    side.has("active")
    side.hear(OWN)
    await side.keeper.refresh()
    assert report_departures(side.keeper.departed) == ["s1/10.20.0.12/7"]
    side.here = []
    side.keeper.service_addresses.put("net", "10.20.0.99", read(1, leaves=True, departure=8))
    await side.keeper.refresh()
    assert side.keeper.departed == [], "its router stands for a while, as it was"


def test_a_report_names_so_many_departures_and_always_the_same_ones() -> None:
    one = read(0, leaves=True)
    many = [
        msgspec.structs.replace(
            one, uid=f"s{number:04}", leaving=tuple(Leaving(f"10.0.0.{last}", 5) for last in range(10))
        )
        for number in range(MOST_DEPARTED)
    ]
    found = report_departures(many)
    assert len(found) == MOST_DEPARTED and found[-1] == "s0039/10.0.0.9/5"
    assert report_departures(reversed(many)) == found
    assert report_departures(many[:3]) == [f"s000{number}/10.0.0.{last}/5" for number in range(3) for last in range(10)]
