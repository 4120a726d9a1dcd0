"""A guest moves between two nodes of three while clients everywhere ask it: none of them is refused, cut or made to wait
for a retry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from network_lab import OUTSIDE, Lab, Node, make_port, make_segment

from weft.contracts.driver.network import Allowed, Filter, Forward, Migrated, Port, Segment

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces"),
]
CLIENTS = [sys.executable, "-S", "-E", str(Path(__file__).with_name("network_clients.py"))]
# A client that goes on sending whatever it hears.
SPEAK = """
import socket, sys, time
link = socket.create_connection((sys.argv[1], 9090), 5)
print("ready", flush=True)
while link.send(b"x"):
    time.sleep(0.05)
"""
PAUSE_SECONDS = 0.06
NEWS_SECONDS = 0.3  # how late nodes that take no part in the move learn of it


class Street:
    """One network over three nodes; guest a is to move, c is on the third node."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.n1, self.n2, self.n3 = lab.nodes
        self.segment = make_segment(1, "blue", {"a": self.n1, "b": self.n2, "c": self.n3})
        self.port = make_port(self.segment, "a")
        self.migrated: dict[str, list[Migrated]] = {node.address: [] for node in lab.nodes}

    async def build(self) -> None:
        for node in self.lab.nodes:
            await node.ensure_segment(self.segment)
            await node.ensure_refused([self.segment.cidr], [])
            await node.ensure_forwards(self.forwards(self.n1))
        await self.n1.ensure_filters([self.filter(self.port)])
        self.a, self.b, self.c = (
            node.plug_guest(name, make_port(self.segment, name))
            for node, name in zip(self.lab.nodes, "abc", strict=True)
        )
        for guest in (self.a, self.b, self.c):
            guest.lease()
        for namespace in (self.a.namespace, self.c.namespace, self.lab.outside):
            enter = ["nsenter", f"--net=/run/netns/{namespace}"]
            self.lab.start([*enter, *CLIENTS, "serve"], stdin=subprocess.PIPE)

    def forwards(self, at: Node) -> list[Forward]:
        address = self.port.address
        return [
            Forward(outer, "tcp", self.segment.id, address, inner, at.address)
            for outer, inner in ((8080, 80), (9090, 9))
        ]

    def filter(self, port: Port) -> Filter:
        """Guest a lets itself be asked for three things, and asks for whatever it likes."""
        asked = [Allowed("udp", 7, 7, None), *(Allowed("tcp", inner, inner, None) for inner in (9, 80))]
        anything = (Allowed("any", 0, 65535, None),)
        return Filter(port.id, self.segment.id, port.address, self.segment.gateway, tuple(asked), anything)

    def see(self, node: Node, at: Node) -> Segment:
        """The network as a node is to know it while guest a is at ``at``."""
        endpoints = [
            msgspec.structs.replace(e, node_address=at.address) if e.mac == self.port.mac else e
            for e in self.segment.endpoints
        ]
        return msgspec.structs.replace(self.segment, endpoints=endpoints, migrated=self.migrated[node.address])

    async def migrate(self, source: Node, target: Node) -> Port:
        """Guest a's hand-over, as two agents do it; the third node hears of it later."""
        third = next(node for node in self.lab.nodes if node not in (source, target))
        self.note(target, Migrated("in", self.port.mac, self.port.address, source.address))
        self.note(source, Migrated("out", self.port.mac, self.port.address, target.address))
        port = msgspec.structs.replace(self.port, id=f"p{target.number}moved000")
        for node in (source, target):
            await node.ensure_segment(self.see(node, source))
        assert not self.passes_on(target) and not self.passes_on(source), "neither sends to the other, who sends back"
        await target.ensure_filters([self.filter(port)])
        tap = await target.plug(port)
        target.seed_flows(port, source.list_flows(self.port))
        self.a.tell_nic("at", target.namespace, tap)
        source.switch(self.port, target.address)
        assert self.passes_on(source)
        source.switch(self.port, source.address)  # it goes on here after all
        assert not self.passes_on(source)
        self.a.tell_nic("stop")
        source.switch(self.port, target.address)
        target.switch(port, target.address)
        time.sleep(PAUSE_SECONDS)
        self.a.tell_nic("go")
        self.migrated[target.address] = [m for m in self.migrated[target.address] if m.way == "in"]
        for node in (source, third):
            self.migrated[node.address] = [
                m for m in self.migrated[node.address] if (m.way, m.node_address) != ("in", target.address)
            ]
        await target.ensure_segment(self.see(target, target))
        await target.ensure_forwards(self.forwards(target))
        time.sleep(NEWS_SECONDS)
        for node in (third, source):
            await node.ensure_segment(self.see(node, target))
            await node.ensure_forwards(self.forwards(target))
        await source.unplug(self.port.id)
        await source.ensure_filters([])
        self.port = port
        return port

    def note(self, node: Node, newest: Migrated) -> None:
        """One way out at most, and one way in from each node."""
        before = self.migrated[node.address]
        key = (newest.way, newest.way == "out" or newest.node_address)
        self.migrated[node.address] = [
            *[m for m in before if (m.way, m.way == "out" or m.node_address) != key],
            newest,
        ]

    def forget_flows(self) -> None:
        """No router knows of any connection."""
        for node in self.lab.nodes:
            node.shell("for name in $(ls /run/netns); do nsenter --net=/run/netns/$name conntrack -F; done")

    def count_carried(self) -> int:
        """What all nodes have sent to each other so far."""
        told = [json.loads(node.shell("ip -j -s link show dev up0")) for node in self.lab.nodes]
        return sum(link["stats64"]["tx"]["packets"] for [link] in told)

    def passes_on(self, node: Node) -> bool:
        """Whether frames for guest a that come from another node are sent on."""
        return self.port.mac in node.shell(
            f"nft list table netdev weft_w{node.number}_moved_{self.segment.id}", check=False
        )

    def watch(self, namespace: str, *what: str) -> subprocess.Popen[str]:
        enter = ["nsenter", f"--net=/run/netns/{namespace}"]
        return self.lab.start([*enter, *CLIENTS, "watch", *what], stdin=subprocess.PIPE)


def end(watch: subprocess.Popen[str]) -> dict[str, Any]:
    assert watch.stdin and watch.stdout
    watch.stdin.write("over\n")
    watch.stdin.flush()
    return dict(json.loads(watch.stdout.readline()))


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab(nodes=3)
    yield lab
    lab.close()


@pytest.fixture
async def street(lab: Lab) -> Street:
    street = Street(lab)
    await street.build()
    return street


@pytest.mark.long
async def test_no_client_of_a_guest_that_moves_there_and_back_loses_anything(street: Street) -> None:
    ends = [
        f"{kind}:{node.address}:{port}" for node in street.lab.nodes for kind, port in (("http", 8080), ("count", 9090))
    ]
    address, c_address = street.port.address, make_port(street.segment, "c").address
    watches = [
        street.watch(street.lab.outside, *ends),
        street.watch(street.c.namespace, f"udp:{address}:7", f"count:{address}:9", f"http:{address}:80"),
        street.watch(street.b.namespace, f"udp:{address}:7", f"count:{address}:9"),
        street.watch(street.a.namespace, f"count:{OUTSIDE}:9", f"count:{c_address}:9"),
    ]
    await street.migrate(street.n1, street.n2)
    time.sleep(1)
    await street.migrate(street.n2, street.n1)
    time.sleep(1)
    seen = [end(watch) for watch in watches]
    for tallies in seen:
        for what, tally in tallies.items():
            assert tally["asked"] > 10, what
            if not what.startswith("udp"):
                assert tally["failed"] == 0, (what, tally)
    assert street.passes_on(street.n2) and not street.passes_on(street.n1)
    deadline = time.monotonic() + 60
    while street.n2.count_older(street.segment.id, address):
        assert time.monotonic() < deadline, "what was opened through the second node has ended"
        time.sleep(0.2)
    for node in street.lab.nodes:
        street.migrated[node.address].clear()
        await node.ensure_segment(street.see(node, street.n1))
        assert await node.heal() == []
        assert "migrated" not in node.shell("nft list tables")


async def test_connections_opened_on_each_node_outlive_a_guests_ways_over_all_of_them(street: Street) -> None:
    """There and back among three: who has it asks, over others, whoever had it."""
    n1, n2, n3 = street.lab.nodes
    ways = [(n1, n2), (n2, n3), (n3, n2), (n2, n1), (n1, n3)]
    watches = [street.watch(street.lab.outside, f"count:{n1.address}:9090")]
    for source, target in ways:
        await street.migrate(source, target)
        watches.append(street.watch(street.lab.outside, f"count:{target.address}:9090"))
        watches.append(street.watch(street.a.namespace, f"count:{OUTSIDE}:9"))
    time.sleep(1)
    for number, watch in enumerate(watches):
        [(what, tally)] = end(watch).items()
        assert tally["failed"] == 0 and tally["asked"] > 10, (number, what, tally)
        assert tally["gap_ms"] < 3000, (number, what, tally)


@pytest.mark.long
async def test_a_node_that_a_guest_left_takes_up_nothing_that_another_one_began(street: Street) -> None:
    """It is asked for a connection that it doesn't know: to send it out under a name of its own would have it reset."""
    n1, n2, n3 = street.lab.nodes
    watch = street.watch(street.lab.outside, f"count:{n1.address}:9090")
    await street.migrate(n1, n2)
    street.note(n3, Migrated("out", street.port.mac, street.port.address, n2.address))
    street.migrated[n2.address].insert(0, Migrated("in", street.port.mac, street.port.address, n3.address))
    for node in (n3, n2):
        await node.ensure_segment(street.see(node, n2))
    time.sleep(2)
    [tally] = end(watch).values()
    assert tally["failed"] == 0 and tally["asked"] > 10 and tally["gap_ms"] < 1500, tally


async def test_a_node_that_does_not_know_a_connection_neither_resets_it_nor_shows_its_inside(street: Street) -> None:
    n1, fabric = street.n1, f"ip netns exec {street.lab.fabric} nft"
    street.lab.shell(
        f"{fabric} 'add table ip seen; add chain ip seen arriving {{ type filter hook prerouting priority -400; }};"
        f" add rule ip seen arriving ip saddr 169.254.0.0/16 counter;"
        f" add rule ip seen arriving ip saddr {n1.address} tcp flags rst counter'"
    )
    speaking = [f"--net=/run/netns/{street.lab.outside}", sys.executable, "-S", "-E", "-c", SPEAK, n1.address]
    street.lab.start(["nsenter", *speaking])
    n1.shell("echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose; conntrack -F")
    time.sleep(1)
    seen = street.lab.shell(f"{fabric} list table ip seen")
    assert seen.count("counter packets 0 ") == 2, seen


@pytest.mark.long
async def test_what_no_router_knows_is_not_carried_on_for_ever(street: Street) -> None:
    """Even by nodes that ask each other in a ring, as they may for a moment, while one of them has old news."""
    n1, n2, n3 = street.lab.nodes
    watches = [street.watch(street.lab.outside, f"count:{n1.address}:9090")]
    await street.migrate(n1, n2)
    for node, asked in ((n1, n3), (n2, n1), (n3, n2)):
        ring = Migrated("in", street.port.mac, street.port.address, asked.address)
        street.migrated[node.address] = [Migrated("out", ring.mac, ring.address, n2.address), ring]
        await node.ensure_segment(msgspec.structs.replace(street.see(node, n2), migrated=street.migrated[node.address]))
    street.forget_flows()
    time.sleep(1)
    before = street.count_carried()
    time.sleep(2)
    assert street.count_carried() - before < 20_000
    for watch in watches:
        watch.kill()
