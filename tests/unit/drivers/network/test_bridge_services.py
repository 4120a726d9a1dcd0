"""What the bridge driver writes for services, without a kernel."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from tests.unit.drivers.network.test_bridge_plans import HOST, NAMES, PORT, SEGMENT

from weft.contracts.driver.network import Forward, NodeShare, Service, ServicePort, ServiceTarget
from weft.drivers.network.bridge.dnsmasq import render_hosts, render_names, render_own
from weft.drivers.network.bridge.migration import find_neighbours
from weft.drivers.network.bridge.nftables.parts import RulesetPart, make_parts
from weft.drivers.network.bridge.plan import Uplink
from weft.drivers.network.bridge.service.services import differ_in_services_only
from weft.drivers.network.bridge.service.tables import (
    find_published,
    render_published,
    render_services,
    render_split,
    render_steering,
)
from weft.drivers.network.bridge.validation import check_forwards, check_segment
from weft.drivers.network.slots import SLOTS, choose_slots
from weft.objects.errors import InvalidInput

A, B, C = (ServiceTarget(f"10.20.0.{number}", 1) for number in (11, 12, 13))
PORTS = (ServicePort("tcp", 80, 8080), ServicePort("udp", 53, 5353))


def shop(*targets: ServiceTarget, **more: object) -> Service:
    names = ("shop", "shop.blue", "shop.lab")
    return Service("10.20.0.100", names, PORTS, targets, **more)  # type: ignore[arg-type]


def served(*targets: ServiceTarget) -> object:
    return msgspec.structs.replace(SEGMENT, services=(shop(*targets),))


def count(targets: tuple[ServiceTarget, ...], *, sticky: bool = False) -> dict[str, int]:
    runs = choose_slots(targets, sticky=sticky)
    assert [slot for first, last, _ in runs for slot in range(first, last + 1)] == list(range(SLOTS))
    found = dict.fromkeys((target.address for target in targets), 0)
    for first, last, address in runs:
        found[address] += last - first + 1
    return found


def test_slots_are_given_by_weight_and_all_of_them() -> None:
    assert count((A, B, C)) == {A.address: 333, B.address: 334, C.address: 333}
    heavy = msgspec.structs.replace(B, weight=999)
    assert count((A, heavy)) == {A.address: 1, B.address: 999}


def test_a_sticky_client_changes_its_target_only_where_it_must() -> None:
    def owners(*targets: ServiceTarget) -> list[str]:
        return [address for first, last, address in choose_slots(targets, sticky=True) for _ in range(first, last + 1)]

    three, two = owners(A, B, C), owners(A, B)
    assert all(was == now for was, now in zip(three, two, strict=True) if was != C.address)
    assert all(250 < slots < 420 for slots in count((A, B, C), sticky=True).values())
    heavy = msgspec.structs.replace(C, weight=8)
    moved = [(was, now) for was, now in zip(three, owners(A, B, heavy), strict=True) if was != now]
    assert moved and all(now == C.address for _, now in moved)


def test_a_service_without_a_target_leads_nowhere_and_is_left_to_the_router_to_refuse() -> None:
    body = render_services(served(msgspec.structs.replace(A, weight=0)), []).text  # type: ignore[arg-type]
    assert "dnat" not in body.replace("ct status dnat", "").replace("priority dstnat", "")
    assert "8080" not in body
    assert render_split("x", [], sticky=False) == ([], "")


def test_a_table_is_changed_part_by_part() -> None:
    before = render_services(served(A, B), [])  # type: ignore[arg-type]
    after = render_services(served(A, msgspec.structs.replace(B, weight=3)), [])  # type: ignore[arg-type]
    change = after.change_from(before)
    assert "flush map ip services to_10_20_0_100" in change and "delete table" not in change
    assert "chain arriving" not in change and "map services" not in change
    assert after.digest in change and before.digest not in change
    fewer = make_parts("ip", "t", [RulesetPart("map", "m", "  head\n", "  e\n")])
    more = make_parts(
        "ip", "t", [RulesetPart("map", "m", "  head\n", "  e\n"), RulesetPart("chain", "c", "", "  use @m\n")]
    )
    assert fewer.change_from(more).splitlines()[:3] == [
        "delete chain ip t digest", "flush chain ip t c", "delete chain ip t c"
    ]  # fmt: skip
    assert "chain c" in more.change_from(fewer) and "flush" not in more.change_from(fewer)


def test_only_a_change_of_weights_is_one_of_services_alone() -> None:
    one = served(A, B)
    assert differ_in_services_only(one, served(A, msgspec.structs.replace(B, weight=0)))  # type: ignore[arg-type]
    for other in (served(A), served(A, C), SEGMENT, msgspec.structs.replace(one, mtu=1400)):  # type: ignore[type-var]
        assert not differ_in_services_only(one, other)  # type: ignore[arg-type]


def test_routers_know_targets_without_asking() -> None:
    assert find_neighbours(HOST, served(A, B)) == {  # type: ignore[arg-type]
        e.address: e.mac for e in SEGMENT.endpoints if e.address in (A.address, B.address)
    }


def test_its_names_go_before_those_of_guests() -> None:
    segment = msgspec.structs.replace(SEGMENT, services=(msgspec.structs.replace(shop(A), names=("a", "a.lab")),))
    lines = render_names(segment).splitlines()
    assert "10.20.0.100 a.blue.weft a" in lines and "10.20.0.100 a.lab.blue.weft a.lab" in lines
    assert not any("10.20.0.11" in line for line in lines)
    assert render_hosts([PORT], segment) == "52:54:00:00:00:0b,10.20.0.11,12h\n"
    assert "server=/a.lab/\n" in render_own(segment)
    foreign = msgspec.structs.replace(SEGMENT, services=(msgspec.structs.replace(shop(A), names=("a.physics.blue",)),))
    assert "10.20.0.100 a.physics.blue.blue.weft" in render_names(foreign).splitlines()
    assert "physics" not in render_own(foreign)


def test_a_published_port_is_split_among_nodes_and_then_among_what_is_here() -> None:
    nodes = (NodeShare("10.99.0.1", 250), NodeShare("10.99.0.2", 750))
    forward = Forward(8088, "tcp", SEGMENT.id, "10.20.0.100", 80, "", nodes, is_service=True)
    here = find_published(HOST, forward, served(A, B))  # type: ignore[arg-type]
    assert (here.targets, here.target_port) == ((A,), 8080)
    uplinks = {SEGMENT.id: Uplink("169.254.64.0", "169.254.64.1")}
    text = render_published(NAMES, HOST, [here], uplinks, {SEGMENT.id: SEGMENT.cidr}).text
    assert "0-749 : 10.99.0.2, 750-999 : 169.254.64.1" in text
    assert "ip saddr { 10.99.0.2 } dnat to 169.254.64.1" in text
    assert "8080" in render_services(served(A, B), [here]).text  # type: ignore[arg-type]
    beyond = msgspec.structs.replace(forward, nodes=nodes[1:])
    away = render_published(NAMES, HOST, [find_published(HOST, beyond, None)], {}, {}).text
    assert "0-999 : 10.99.0.2" in away
    nowhere = msgspec.structs.replace(forward, nodes=())
    assert "dnat to" not in render_published(NAMES, HOST, [find_published(HOST, nowhere, None)], {}, {}).text
    check_forwards([forward, msgspec.structs.replace(nowhere, port=8089)], NAMES.prefix)


def test_of_a_service_that_is_proxied_the_router_has_the_address_and_published_ports_lead_to_it() -> None:
    proxied = msgspec.structs.replace(SEGMENT, services=(shop(A, B, proxied=True),))
    forward = Forward(8088, "tcp", SEGMENT.id, "10.20.0.100", 80, "", (NodeShare("10.99.0.2", 1000),), is_service=True)
    here = find_published(HOST, forward, proxied)
    inside = render_services(proxied, [here]).text
    assert "dnat to numgen random mod 1000 map @published_tcp_8088 : 80" in inside and "8080" not in inside
    uplinks = {SEGMENT.id: Uplink("169.254.64.0", "169.254.64.1")}
    text = render_published(NAMES, HOST, [here], uplinks, {SEGMENT.id: SEGMENT.cidr}).text
    assert "0-999 : 169.254.64.1" in text and "10.99.0.2" not in text  # its own proxy takes all of them
    away = render_published(NAMES, HOST, [find_published(HOST, forward, None)], {}, {}).text
    assert "0-999 : 10.99.0.2" in away
    steering = "".join(table.text for table in render_steering(NAMES, HOST, [proxied]))
    assert A.address not in steering and find_neighbours(HOST, proxied) == {}
    assert not differ_in_services_only(proxied, msgspec.structs.replace(proxied, services=(shop(A, B),)))


@pytest.mark.parametrize(
    "change",
    [
        {"address": "10.21.0.1"},
        {"names": ("a b",)},
        {"ports": (ServicePort("tcp", 0, 1),)},
        {"ports": (ServicePort("sctp", 1, 1),)},  # type: ignore[arg-type]
        {"targets": (ServiceTarget("10.20.0.11; drop", 1),)},
        {"targets": (ServiceTarget("10.20.0.11", -1),)},
    ],
)
def test_what_cannot_become_kernel_state_is_refused(change: dict[str, object]) -> None:
    segment = msgspec.structs.replace(SEGMENT, services=(msgspec.structs.replace(shop(A), **change),))
    with pytest.raises(InvalidInput, match="services"):
        check_segment(segment, NAMES.prefix)


def test_weights_of_all_sizes_leave_no_slot_to_nobody() -> None:
    for weights in itertools.product((1, 2, 499, 997), repeat=3):
        targets = tuple(msgspec.structs.replace(one, weight=w) for one, w in zip((A, B, C), weights, strict=True))
        assert sum(count(targets).values()) == sum(count(targets, sticky=True).values()) == SLOTS
