"""What a trace says of each thing that lets a connection pass or stops it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from weft.api.network.answer import NetworkTrace
from weft.api.network.facts import (
    Anothers,
    Backend,
    Balanced,
    Caller,
    Group,
    Network,
    NetworkAddress,
    Published,
    ReachabilityFacts,
    TraceTarget,
    Workload,
)
from weft.api.network.trace import trace
from weft.contracts.driver.network import Allowed, Endpoint
from weft.contracts.network.rules import Opened, RefusedDestinations
from weft.kinds.allocation import AllocatedGroup, AllocatedNic, AllocatedRule
from weft.kinds.securitygroup import read_rule
from weft.objects.identity import short_id

HOST = "10.99.0.1"


def nic(network: str, address: str) -> AllocatedNic:
    start = address.rpartition(".")[0]
    return AllocatedNic(
        uid=f"nic {address}", network=network, network_uid=network, vni=1, cidr=f"{start}.0/24", gateway=f"{start}.1",
        mtu=1450, domain="weft", nat=True, mac="52:54:00:00:00:01", address=address,
    )  # fmt: skip


def group(name: str, ingress: Sequence[str] = (), egress: Sequence[str] = ("any",)) -> Group:
    def read(written: str, way: Any) -> AllocatedRule:
        rule = read_rule(written, way, "spec")
        return AllocatedRule(
            protocol=rule.protocol,
            first_port=rule.first_port,
            last_port=rule.last_port,
            cidr=rule.cidr,
            group_uid=rule.group,
        )

    allocated = AllocatedGroup(
        name=name,
        uid=name,
        ingress=[read(rule, "ingress") for rule in ingress],
        egress=[read(rule, "egress") for rule in egress],
    )
    return Group(allocated, tuple(ingress), tuple(egress))


def vm(name: str, *nics: AllocatedNic, groups: Sequence[Group] = (), node: str = "n1", **more: Any) -> Workload:
    address = f"10.99.0.{node[1:]}"
    networks = tuple(one.network for one in nics)
    return Workload("vm", name, "default", f"vm/{name}", networks, nics, tuple(groups), node, address, **more)


def network(name: str, *members: Workload, nat: bool = True, **more: Any) -> Network:
    ends = [
        Endpoint(
            one.mac, one.address, "", who.node_address, tuple(group.allocated.uid for group in who.groups), one.uid
        )
        for who in members
        for one in who.nics
        if one.network == name
    ]
    services = more.pop("services", ())
    return Network(name, f"network/{name}", "10.20.0.0/24", nat, tuple(ends), services, **more)


def ask(
    source: Workload | Caller, target: TraceTarget, *networks: Network, what: str = "tcp/80", **more: Any
) -> NetworkTrace:
    protocol, _, port = what.partition("/")
    refused = RefusedDestinations(("10.20.0.0/23",), (f"{HOST}/32", "10.99.0.2/32"), frozenset({("tcp", 8080)}))
    values: dict[str, Any] = {
        "refused": refused,
        "opened": Opened({short_id("blue"): (Allowed("tcp", 2049, 2049, (f"{HOST}/32",)),)}, ()),
        "protocol": protocol,
        "port": int(port or 0),
        **more,
    }
    return trace(ReachabilityFacts(source, target, {one.uid: one for one in networks}, **values))


OPEN_A = vm("a", nic("blue", "10.20.0.11"))
WEB_A = vm("a", nic("blue", "10.20.0.11"), groups=[group("web", egress=["tcp:80-90 to 10.20.0.0/28"])])
B = vm("b", nic("blue", "10.20.0.12"), node="n2")
DB = vm("b", nic("blue", "10.20.0.12"), groups=[group("db", ["tcp:5432 from group:web"])], node="n2")
GREEN = vm("g", nic("green", "10.20.1.12"))
SHOP = Balanced(
    "service/shop",
    network("blue"),
    "10.20.0.100",
    {("tcp", 80): 5432},
    (Backend(DB, "10.20.0.12"), Backend(B, "10.20.0.12")),
)
SHOP_ALONE = msgspec.structs.replace(SHOP, backends=(Backend(DB, "10.20.0.12"),))
HTTP = msgspec.structs.replace(SHOP_ALONE, http=True)
PORT = Published("publishedport/tcp-8080", 8080, "tcp", 5432, DB)
TO_SHOP = msgspec.structs.replace(PORT, leads_to=SHOP, target_port=80)
ADMITTING = vm("b", nic("blue", "10.20.0.12"), groups=[group("db", ["tcp:5432 from 192.0.2.0/24"])])


@pytest.mark.parametrize(
    ("source", "target", "what", "verdict", "reason", "by"),
    [
        (OPEN_A, B, "tcp/80", "allowed", "", ""),
        (WEB_A, B, "tcp/80", "allowed", "", ""),
        (WEB_A, B, "tcp/91", "blocked", "egressDenied", "securitygroup/web"),
        (WEB_A, B, "icmp", "blocked", "egressDenied", "securitygroup/web"),
        (OPEN_A, DB, "tcp/5432", "blocked", "ingressDenied", "securitygroup/db"),
        (vm("a", nic("blue", "10.20.0.11"), groups=[group("web")]), DB, "tcp/5432", "allowed", "", ""),
        (OPEN_A, GREEN, "tcp/80", "blocked", "otherNetwork", "network/blue"),
        (vm("a"), B, "icmp", "blocked", "noAddress", "vm/a"),
        (OPEN_A, vm("b"), "icmp", "blocked", "noAddress", "vm/b"),
        (OPEN_A, Anothers("10.20.0.12"), "icmp", "unknown", "", ""),
        (WEB_A, Anothers("10.20.0.12"), "icmp", "blocked", "egressDenied", "securitygroup/web"),
        (OPEN_A, NetworkAddress("", is_all=True), "tcp/443", "allowed", "", ""),
        (WEB_A, NetworkAddress("", is_all=True), "tcp/80", "blocked", "egressDenied", "securitygroup/web"),
        (OPEN_A, NetworkAddress("198.51.100.7"), "tcp/443", "allowed", "", ""),
        (OPEN_A, NetworkAddress("10.20.1.12"), "icmp", "blocked", "otherNetwork", ""),
        (OPEN_A, NetworkAddress("10.20.1.12", network="network/green"), "icmp", "blocked", "otherNetwork", "network/green"),
        (OPEN_A, NetworkAddress("169.254.169.254"), "tcp/80", "blocked", "linkLocal", "network/blue"),
        (OPEN_A, NetworkAddress(HOST), "tcp/22", "blocked", "hostClosed", "network/blue"),
        (OPEN_A, NetworkAddress(HOST), "tcp/2049", "allowed", "", ""),
        (OPEN_A, NetworkAddress(HOST), "tcp/8080", "allowed", "", ""),
        (OPEN_A, NetworkAddress(HOST), "icmp", "allowed", "", ""),
        (OPEN_A, NetworkAddress("10.20.0.77"), "icmp", "blocked", "nothingThere", "network/blue"),
        (WEB_A, NetworkAddress("10.20.0.1"), "udp/53", "allowed", "", ""),
        (OPEN_A, NetworkAddress("10.20.0.1"), "tcp/22", "blocked", "nothingThere", "network/blue"),
        (OPEN_A, SHOP_ALONE, "tcp/80", "blocked", "ingressDenied", "securitygroup/db"),
        (OPEN_A, SHOP, "tcp/80", "partial", "ingressDenied", "securitygroup/db"),
        (WEB_A, SHOP_ALONE, "tcp/80", "blocked", "egressDenied", "securitygroup/web"),  # the endpoint's port counts
        (OPEN_A, SHOP, "tcp/81", "blocked", "noSuchPort", "service/shop"),
        (OPEN_A, msgspec.structs.replace(SHOP, backends=()), "tcp/80", "blocked", "noEndpoints", "service/shop"),
        (GREEN, SHOP, "tcp/80", "blocked", "otherNetwork", "network/green"),
        (WEB_A, HTTP, "tcp/80", "blocked", "ingressDenied", "securitygroup/db"),  # the proxy asks, not the workload
        (Caller(), PORT, "tcp/8080", "blocked", "ingressDenied", "securitygroup/db"),
        (Caller("192.0.2.9"), msgspec.structs.replace(PORT, leads_to=ADMITTING), "tcp/8080", "allowed", "", ""),
        (Caller(), msgspec.structs.replace(PORT, leads_to=ADMITTING), "tcp/8080", "blocked", "ingressDenied", "securitygroup/db"),
        (OPEN_A, msgspec.structs.replace(PORT, leads_to=B), "tcp/8080", "allowed", "", ""),
        (OPEN_A, PORT, "tcp/8080", "blocked", "ingressDenied", "securitygroup/db"),
        (Caller(), msgspec.structs.replace(PORT, leads_to=SHOP), "tcp/8080", "blocked", "noSuchPort", "service/shop"),
        (Caller(), TO_SHOP, "tcp/8080", "partial", "ingressDenied", "securitygroup/db"),
        (Caller(), PORT, "tcp/81", "blocked", "noSuchPort", "publishedport/tcp-8080"),
        (Caller(), B, "tcp/80", "blocked", "notPublished", ""),
    ],
)  # fmt: skip
def test_the_first_thing_that_stops_a_connection_is_named(
    source: Workload | Caller, target: TraceTarget, what: str, verdict: str, reason: str, by: str
) -> None:
    members = [end for end in (source, target, DB, B) if isinstance(end, Workload)]
    found = ask(
        source, target, network("blue", *members, services=("10.20.0.100",)), network("green", GREEN), what=what
    )
    assert (found.verdict, found.reason, found.by) == (verdict, reason, by), found


def test_a_remedy_is_the_command_that_keeps_the_rules_there_are_and_adds_the_one_that_lacks() -> None:
    web = vm("a", nic("blue", "10.20.0.11"), groups=[group("front")])
    blue = network("blue", web, DB)
    assert ask(web, DB, blue, what="tcp/5432").remedy == (
        "weft securitygroup set db --ingress 'tcp:5432 from group:web' --ingress 'tcp:5432 from group:front' -p default"
    )
    assert ask(OPEN_A, GREEN, blue, network("green", GREEN)).remedy == (
        "weft vm set a --network blue --network green -p default"
    )
    found = ask(OPEN_A, NetworkAddress(HOST), network("blue", OPEN_A, open=("api",)), what="tcp/22")
    assert found.remedy == f"weft network set blue --open api --open 'tcp:22 to {HOST}/32' -p default"
    closed = network("blue", OPEN_A, nat=False)
    found = ask(OPEN_A, NetworkAddress("", is_all=True), closed)
    assert (found.reason, found.remedy) == ("noNat", "weft network set blue --nat -p default")


def test_names_resolve_whatever_a_group_says_and_a_question_to_another_server_is_blocked() -> None:
    silent = vm("a", nic("blue", "10.20.0.11"), groups=[group("none", egress=[])])
    found = ask(silent, NetworkAddress("1.1.1.1"), network("blue", silent), what="udp/53")
    assert (found.verdict, found.reason) == ("blocked", "egressDenied")
    assert [(step.stage, step.passes) for step in found.steps][:4] == [
        ("source", True),
        ("spoofGuard", True),
        ("names", True),
        ("egress", False),
    ]


def test_the_chosen_nic_decides_and_a_guest_that_stands_still_is_told_beside_the_verdict() -> None:
    both = vm("a", nic("blue", "10.20.0.11"), nic("green", "10.20.1.11"))
    stopped = vm("b", nic("green", "10.20.1.12"), silent="is Stopped")
    networks = network("blue", both), network("green", both, stopped)
    found = ask(both, stopped, *networks)
    assert (found.verdict, found.silent) == ("allowed", "vm/b is Stopped: it answers nothing")
    assert found.steps[0].by == "network/green"
    assert ask(both, stopped, *networks, source_nic="blue").reason == "otherNetwork"
    assert ask(both, stopped, *networks, source_nic="nowhere").reason == "noAddress"
