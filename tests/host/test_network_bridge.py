"""The bridge driver on three nodes made of namespaces: what guests, neighbours and the outside see of it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import msgspec
import pytest
from network_lab import OUTSIDE, Guest, Lab, Node, fetch_command, make_port, make_segment

from weft.contracts.driver.network import Alias, Forward, Held, Segment
from weft.objects.errors import InUse, NotFound

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces"),
]

PYTHON = [sys.executable, "-S", "-E", "-c"]
MIRROR = """
import socket
door = socket.create_server(("", 99))
print("ready", flush=True)
link, peer = door.accept()
link.sendall(peer[0].encode())
"""
LOOK = """
import socket, sys
print(socket.create_connection((sys.argv[1], 99), 5).recv(99).decode(), end="")
"""
LOOK_FROM = """
import socket, sys
link = socket.create_connection((sys.argv[2], int(sys.argv[3])), 5, (sys.argv[1], 0))
link.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
print(b"".join(iter(lambda: link.recv(99), b"")).decode())
"""
ECHO = """
import socket
ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ear.bind(("", 7))
ear.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, do
print("ready", flush=True)
while True: ear.sendto(*ear.recvfrom(65535))
"""
SEND_WHOLE = """
import socket, sys
mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mouth.setsockopt(socket.IPPROTO_IP, 10, 2)
mouth.settimeout(3)
mouth.connect((sys.argv[1], 7))
try:
    mouth.send(bytes(int(sys.argv[2])))
    print("came back" if len(mouth.recv(65535)) == int(sys.argv[2]) else "cut", end="")
except OSError as problem:
    print(problem.strerror or problem, end="")
"""
WHO_HAS = """
import select, socket, sys
mac, own, asked = bytes.fromhex(sys.argv[1].replace(":", "")), *map(socket.inet_aton, sys.argv[2:])
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
wire.bind(("eth0", 0x0806))
wire.send(b"\\xff" * 6 + mac + bytes.fromhex("08060001080006040001") + mac + own + bytes(6) + asked)
while select.select([wire], [], [], 0.5)[0]:
    frame = wire.recv(99)
    if frame[20:22] == b"\\0\\2" and frame[28:32] == asked: print(frame[22:28].hex(":"), flush=True)
"""
ASK = """
import socket, struct, sys
mac, count = bytes.fromhex(sys.argv[1].replace(":", "")), int(sys.argv[2])
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("eth0", 0))
body = struct.pack("!4B4s8x12x16s192x", 1, 1, 6, 0, b"asks", mac) + bytes.fromhex("638253633501 01ff".replace(" ", ""))
head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(body), 0, 0, 64, 17, 0, bytes(4), b"\\xff" * 4)
total = sum(struct.unpack("!10H", head))
total = (total & 0xFFFF) + (total >> 16)
head = head[:10] + struct.pack("!H", 0xFFFF ^ total) + head[12:]
frame = b"\\xff" * 6 + mac + b"\\x08\\0" + head + struct.pack("!HHHH", 68, 67, 8 + len(body), 0) + body
for _ in range(count):
    try: wire.send(frame)
    except OSError: pass
"""
HEAR = """
import select, socket
ears = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
for ear, port in zip(ears, (4789, 4790)): ear.bind(("", port))
print("ready", flush=True)
while True:
    for ear in select.select(ears, [], [], 5)[0] or exit("silence"):
        port = ear.getsockname()[1]
        print(port, flush=True)
        if port == 4790: exit()
"""
SHOUT = """
import socket, sys
mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for port in (4789, 4790): mouth.sendto(b"hello", (sys.argv[1], port))
"""


@contextmanager
def python_in(namespace: str, program: str) -> Iterator[subprocess.Popen[str]]:
    """A program that listens in a namespace, from when it is ready to the end of the block."""
    command = ["nsenter", f"--net=/run/netns/{namespace}", *PYTHON, program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


# As MAC: says by ARP that it has an address, and by IPv6 that it is the router.
TAKE_PLACE = """
import socket, struct, sys
mac, target, address, asked, tag = sys.argv[1:]
mac, target, tag = bytes.fromhex(mac.replace(":", "")), bytes.fromhex(target.replace(":", "")), bytes.fromhex(tag)
arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, mac, socket.inet_aton(address), bytes(6), socket.inet_aton(asked))
source = socket.inet_pton(socket.AF_INET6, "fe80::" + mac.hex()[:4] + ":" + mac.hex()[4:8] + ":" + mac.hex()[8:])
everyone = socket.inet_pton(socket.AF_INET6, "ff02::1")
body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + b"\\1\\1" + mac
whole = source + everyone + struct.pack("!II", len(body), 58) + body
total = sum(struct.unpack("!%dH" % (len(whole) // 2), whole))
while total >> 16:
    total = (total & 0xFFFF) + (total >> 16)
body = body[:2] + struct.pack("!H", 0xFFFF ^ total) + body[4:]
advert = struct.pack("!IHBB", 0x60000000, len(body), 58, 255) + source + everyone + body
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0))
for _ in range(2):
    link.send(target + mac + tag + b"\\x08\\x06" + arp)
    link.send(b"\\x33\\x33\\0\\0\\0\\1" + mac + tag + b"\\x86\\xdd" + advert)
"""

# Says which server's port each datagram to a client of DHCP came from, until one comes from port 9.
HEAR_SERVERS = """
import select, socket
ears = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
for ear, port in zip(ears, (68, 546)): ear.bind(("", port))
print("ready", flush=True)
heard = 0
while heard < 2 and select.select(ears, [], [], 5)[0]:
    for ear in select.select(ears, [], [], 5)[0]:
        port = ear.recvfrom(99)[1][1]
        heard += port == 9
        print(port, flush=True)
"""
# To a client of DHCP and of DHCPv6, as a server and then as anybody: to all, and to the address and MAC of one.
ANSWER = """
import socket, struct, sys
mac, target, own, to = sys.argv[1:]
mac, target = bytes.fromhex(mac.replace(":", "")), bytes.fromhex(target.replace(":", ""))
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0))
def total(whole):
    found = sum(struct.unpack("!%dH" % (len(whole) // 2), whole))
    while found >> 16: found = (found & 0xFFFF) + (found >> 16)
    return 0xFFFF ^ found
def four(port, frame, to):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 32, 0, 0, 64, 17, 0, socket.inet_aton(own), socket.inet_aton(to))
    head = head[:10] + struct.pack("!H", total(head)) + head[12:]
    link.send(frame + mac + b"\\x08\\0" + head + struct.pack("!HHHH", port, 68, 12, 0) + b"mine")
def six(port):
    ends = socket.inet_pton(socket.AF_INET6, "fe80::1234") + socket.inet_pton(socket.AF_INET6, "ff02::1")
    body = struct.pack("!HHHH", port, 546, 12, 0) + b"mine"
    body = body[:6] + struct.pack("!H", total(ends + struct.pack("!II", len(body), 17) + body)) + body[8:]
    head = struct.pack("!IHBB", 0x60000000, len(body), 17, 255) + ends
    link.send(b"\\x33\\x33\\0\\0\\0\\1" + mac + b"\\x86\\xdd" + head + body)
for port in (67, 9):
    if port == 67: four(port, b"\\xff" * 6, "255.255.255.255")
    four(port, target, to)
for port in (547, 9): six(port)
"""


class Town:
    """Networks blue and green, with the same addresses, over three nodes: blue has a guest on each, green on two."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.n1, self.n2, self.n3 = lab.nodes
        self.blue = make_segment(1, "blue", {"a": self.n1, "b": self.n2, "c": self.n3})
        self.green = make_segment(2, "green", {"x": self.n1, "y": self.n2})
        self.guests: dict[str, Guest] = {}

    async def build(self) -> None:
        for segment in (self.blue, self.green):
            for endpoint in segment.endpoints:
                node = self.node_of(endpoint.node_address)
                await node.ensure_filters([])  # as an agent does: from here on connections are followed
                await node.ensure_segment(segment)
                guest = node.plug_guest(endpoint.name, make_port(segment, endpoint.name))
                guest.lease()
                guest.serve(f"I am {endpoint.name}")
                self.guests[endpoint.name] = guest
        self.lab.serve(self.lab.outside, "I am outside")

    def node_of(self, address: str) -> Node:
        return next(node for node in self.lab.nodes if node.address == address)

    def segments_on(self, node: Node) -> list[Segment]:
        return [self.blue] if node is self.n3 else [self.blue, self.green]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab(nodes=3)
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture(scope="module")
def built() -> list[Town]:
    return []


@pytest.fixture
async def town(lab: Lab, built: list[Town]) -> Town:
    """Built by the first test that asks, and shared: tests leave it as they found it."""
    if not built:
        town = Town(lab)
        await town.build()
        built.append(town)
    return built[0]


async def test_this_machine_can_carry_the_driver(town: Town) -> None:
    probe = await town.n1.probe()
    assert probe.usable, probe.problems
    assert {"overlay", "nat", "forwards", "antispoof"} <= set(probe.capabilities)


async def test_a_guest_leases_its_address_mtu_router_and_name_servers(town: Town) -> None:
    guest = town.guests["a"]
    assert "inet 10.20.0.11/24" in guest.run("ip", "addr", "show", "eth0")
    assert "mtu 1450" in guest.run("ip", "link", "show", "eth0")
    assert "default via 10.20.0.1" in guest.run("ip", "route")
    assert guest.resolv.read_text() == "nameserver 10.20.0.1\nsearch blue.weft\n"


async def test_guests_on_different_nodes_meet_by_name_and_address(town: Town) -> None:
    a, c = town.guests["a"], town.guests["c"]
    assert a.fetch("10.20.0.12") == "I am b"
    assert a.fetch("c") == "I am c"
    assert c.fetch("a.blue.weft") == "I am a"
    assert len(a.fetch("b", path="/big")) == 1 << 20  # full-sized segments fit through the overlay


@contextmanager
def echoes(*namespaces: str) -> Iterator[None]:
    """A program in each namespace that sends back every packet."""
    with ExitStack() as stack:
        for namespace in namespaces:
            stack.enter_context(python_in(namespace, ECHO))
        yield


def send_whole(guest: Guest, address: str, size: int) -> str:
    """What becomes of a packet of ``size`` bytes, headers and all, that nobody may take apart, sent there and back."""
    return guest.run(*PYTHON, SEND_WHOLE, address, str(size - 28))


async def test_a_packet_of_the_networks_size_passes_whole_between_nodes_and_none_larger(town: Town) -> None:
    a, c = town.guests["a"], town.guests["c"]
    with echoes(a.namespace, c.namespace, town.lab.outside):
        for guest, address in ((a, "10.20.0.13"), (c, "10.20.0.11"), (a, OUTSIDE)):
            assert send_whole(guest, address, 1450) == "came back", address
            assert send_whole(guest, address, 1451) == "Message too long", address


async def test_a_jumbo_packet_passes_where_the_link_between_nodes_carries_it_and_is_answered_for_where_not(
    town: Town,
) -> None:
    jumbo = make_segment(7, "jumbo", {"j": town.n1, "k": town.n3}, cidr="10.70.0.0/24", mtu=8950)
    guests = []
    for node, name in ((town.n1, "j"), (town.n3, "k")):
        await node.ensure_segment(jumbo)
        guests.append(node.plug_guest(name, make_port(jumbo, name)))
        guests[-1].lease()
        assert "mtu 8950" in guests[-1].run("ip", "link", "show", "eth0")
    links = [
        f"ip -n {town.lab.fabric} link set f{n.number} mtu {{0}}; ip -n {n.namespace} link set up0 mtu {{0}}"
        for n in (town.n1, town.n3)
    ]
    try:
        for link in links:
            town.lab.shell(link.format(9000))
        j, k = guests
        k.serve("I am k")
        with echoes(k.namespace):
            assert send_whole(j, "10.70.0.12", 8950) == "came back"
            assert send_whole(j, "10.70.0.12", 8951) == "Message too long"
            for link in links:
                town.lab.shell(link.format(1500))
            assert send_whole(j, "10.70.0.12", 8950) == "Message too long"  # told by the way itself
            assert send_whole(j, "10.70.0.12", 1450) == "came back"
        assert len(j.fetch("k", path="/big")) == 1 << 20
    finally:
        for link in links:
            town.lab.shell(link.format(1500))
        for node, name in ((town.n1, "j"), (town.n3, "k")):
            await node.unplug(make_port(jumbo, name).id)
            await node.remove_segment(jumbo.id)


async def test_a_guest_of_another_project_is_found_by_its_project_and_takes_no_name(town: Town) -> None:
    """Whatever it calls itself when it asks for its address, and before there is one of that name."""
    lab = make_segment(8, "lab", {"web": town.n1, "far": town.n1}, "10.71.0.0/24", domain="weft")
    own, far = lab.endpoints
    foreign = msgspec.structs.replace(far, name="web.biology")
    port = msgspec.structs.replace(make_port(lab, "far"), hostname=foreign.name)
    alone = msgspec.structs.replace(lab, endpoints=[foreign])
    try:
        await town.n1.ensure_segment(alone)
        guest = town.n1.plug_guest("far", port)
        guest.lease()
        guest.lease("eth0", "-x", "hostname:web")
        assert guest.attempt("getent", "hosts", "web").returncode != 0
        assert guest.run("getent", "hosts", "web.biology.lab.weft").split()[0] == far.address
        await town.n1.ensure_segment(msgspec.structs.replace(lab, endpoints=[own, foreign]))
        guest.run("sh", "-c", "for i in $(seq 100); do getent hosts web && exit; sleep 0.1; done; exit 1")
        for name in ("web", "web.weft", "web.lab"):
            assert guest.run("getent", "hosts", name).split()[0] == own.address
        assert guest.attempt("getent", "hosts", "web.biology.weft").returncode != 0
        assert guest.run("getent", "hosts", far.address).split()[1] == "web.biology.lab.weft"
    finally:
        await town.n1.unplug(port.id)
        await town.n1.remove_segment(lab.id)


async def test_two_networks_with_the_same_addresses_do_not_meet(town: Town) -> None:
    assert town.guests["a"].fetch("10.20.0.11") == "I am a"
    assert town.guests["x"].fetch("10.20.0.12") == "I am y"  # and a's 10.20.0.12 was b
    assert not town.guests["x"].reaches("10.20.0.13")  # c lives in blue only
    assert town.guests["a"].attempt("getent", "hosts", "x").returncode != 0
    back_door = re.search(r"inet (169\S+)/31", town.n1.shell(f"ip -n w1n{town.green.id} addr show dev wan0"))
    assert back_door and not town.guests["a"].reaches(back_door[1])  # nor through the node


async def test_a_guest_gets_out_behind_its_nodes_address(town: Town) -> None:
    assert town.guests["a"].fetch(OUTSIDE) == "I am outside"
    with python_in(town.lab.outside, MIRROR):
        seen = town.guests["a"].run(*PYTHON, LOOK, OUTSIDE)
    assert seen == town.n1.address


async def test_a_guest_reaches_neither_its_node_nor_the_overlay_between_nodes(town: Town) -> None:
    a = town.guests["a"]
    town.lab.serve(town.n1.namespace, "I am the node", port=8181)
    assert town.n1.fetch(town.n1.address, 8181) == "I am the node"
    assert a.attempt("busybox", "nc", "-w", "1", town.n1.address, "8181").returncode != 0
    with python_in(town.lab.outside, HEAR) as ears:
        a.run(*PYTHON, SHOUT, OUTSIDE)
        assert ears.communicate(timeout=60)[0] == "4790\n"  # 4789 was sent before it: forged frames for some VXLAN


async def test_a_guest_is_refused_the_fabrics_other_ranges_at_once_and_nothing_else(town: Town) -> None:
    other, lab = "10.77.0.5", town.lab  # somewhere outside, in a range that is another network's
    lab.shell(f"ip -n {lab.outside} addr add {other}/32 dev lo; ip -n {lab.fabric} route add {other} via {OUTSIDE}")
    x = town.green.endpoints[0]
    published = Forward(8080, "tcp", town.green.id, x.address, 80, x.node_address)
    a = town.guests["a"]
    try:
        assert a.fetch(other) == "I am outside"
        for node in lab.nodes:
            await node.ensure_refused(["10.77.0.0/16", "10.20.0.0/24"], [])
            await node.ensure_forwards([published])
        refused = a.attempt(*fetch_command(other), timeout_seconds=3)  # it isn't left waiting
        assert "unreachable" in refused.stderr
        assert not a.reaches(other)
        assert a.fetch(OUTSIDE) == "I am outside"
        assert a.fetch("b") == "I am b"
        assert a.fetch(town.n1.address, 8080) == "I am x"  # another network, by way of its published port
        assert a.fetch(town.n2.address, 8080) == "I am x"
        assert town.guests["b"].fetch(town.n2.address, 8080) == "I am x"
        reach = ["nsenter", f"--net=/run/netns/{lab.outside}", *PYTHON, LOOK_FROM, other, town.n1.address, "8080"]
        assert "I am x" in lab.shell(shlex.join(reach))  # asked from such an address, a published port answers
        town.n1.restart()
        assert await town.n1.heal() == []
        await town.n1.ensure_refused(["10.77.0.0/16", "10.20.0.0/24"], [])
        town.n1.shell(f"nft delete table ip weft_{town.n1.host.link_prefix}_refused")
        assert await town.n1.heal() == ["refused destinations"]
        assert not a.reaches(other)
    finally:
        for node in lab.nodes:
            await node.ensure_forwards([])
            await node.ensure_refused([], [])
    assert a.fetch(other) == "I am outside"
    lab.shell(f"ip -n {lab.outside} addr del {other}/32 dev lo; ip -n {lab.fabric} route del {other}")


async def test_a_guest_reaches_other_nodes_only_at_published_ports(town: Town) -> None:
    lab, a, n2 = town.lab, town.guests["a"], town.n2
    x = town.green.endpoints[0]
    lab.serve(n2.namespace, "I am another node", port=8182)
    assert a.fetch(n2.address, 8182) == "I am another node"  # nobody has told its node of others yet
    nodes = [f"{node.address}/32" for node in lab.nodes]
    try:
        for node in lab.nodes:
            await node.ensure_forwards([Forward(8090, "tcp", town.green.id, x.address, 80, x.node_address)])
            await node.ensure_refused(["10.20.0.0/24"], nodes)
        refused = a.attempt(*fetch_command(n2.address, 8182), timeout_seconds=3)  # it isn't left waiting
        assert "unreachable" in refused.stderr or "No route to host" in refused.stderr, refused.stderr
        for node in lab.nodes:
            assert a.fetch(node.address, 8090) == "I am x"
            assert town.guests["b"].fetch(node.address, 8090) == "I am x"
        assert a.reaches(n2.address) and a.fetch(OUTSIDE) == "I am outside"
        await town.n1.ensure_forwards([])  # published no more, its port is as any other
        assert a.attempt(*fetch_command(n2.address, 8090), timeout_seconds=3).returncode != 0
    finally:
        for node in lab.nodes:
            await node.ensure_forwards([])
            await node.ensure_refused([], [])


async def test_a_guest_reaches_no_metadata_service_of_the_machine(town: Town) -> None:
    metadata = "169.254.169.254"  # what a cloud tells the machine under us is not for guests
    town.lab.shell(f"ip -n {town.lab.fabric} addr add {metadata}/32 dev lo")
    try:
        assert town.n1.shell(f"busybox ping -c 1 -W 1 {metadata}")
        assert not town.guests["a"].reaches(metadata)
    finally:
        town.lab.shell(f"ip -n {town.lab.fabric} addr del {metadata}/32 dev lo")


async def test_the_gateway_answers_on_every_node_and_only_there(town: Town) -> None:
    for name in ("a", "b", "c"):
        assert town.guests[name].reaches("10.20.0.1")
    c = town.blue.endpoints[2]
    assert town.guests["c"].run(*PYTHON, WHO_HAS, c.mac, c.address, "10.20.0.1") == "02:77:65:66:74:01\n"
    with counting_dhcp(town.n2, town.blue) as count:
        town.guests["a"].lease()
        assert count() == 0  # it asked its own node, and n2 never heard of it
        town.guests["b"].lease()
        assert count() > 0


@contextmanager
def counting_dhcp(node: Node, segment: Segment) -> Iterator[Callable[[], int]]:
    """How many packets have come to the server of the segment on the node."""
    enter = f"nsenter --net=/run/netns/$(ip netns list | grep -o '[^ ]*{segment.id}')"
    rule = "table ip counted { chain in { type filter hook input priority -300; udp dport 67 counter; }; }"
    node.shell(f"{enter} nft '{rule}'")
    try:
        yield lambda: int(node.shell(f"{enter} nft list table ip counted | grep -o 'packets [0-9]*'").split()[1])
    finally:
        node.shell(f"{enter} nft delete table ip counted")


async def test_a_guest_that_asks_for_its_address_without_end_fills_no_log_and_keeps_nobody_from_theirs(
    town: Town,
) -> None:
    """DHCPDISCOVER by its own MAC, as fast as it can: 2.8 MB of log a second, once."""
    log = f"{town.n2.host.run_dir}/network/{town.blue.id}/dnsmasq.log"
    before = int(town.n2.shell(f"stat -c %s {log}"))
    with counting_dhcp(town.n2, town.blue) as count:
        town.guests["b"].run(*PYTHON, ASK, town.blue.endpoints[1].mac, "20000")
        assert 0 < count() < 200
    assert int(town.n2.shell(f"stat -c %s {log}")) - before < 16384
    town.guests["b"].lease()  # itself, too, once it asks as others do


async def test_a_log_of_names_and_leases_that_has_grown_long_keeps_its_end(town: Town) -> None:
    folder = f"{town.n1.host.run_dir}/network/{town.blue.id}"
    town.n1.shell(f"yes 'one line of many' | head -c 3000000 >>{folder}/dnsmasq.log; echo last >>{folder}/dnsmasq.log")
    assert await town.n1.heal() == []
    kept = town.n1.shell(f"cat {folder}/dnsmasq.log")
    assert len(kept) <= 64 << 10 and kept.endswith("last\n") and kept.startswith("one line")
    town.n1.shell(f"kill -HUP $(cat {folder}/dnsmasq.pid)")
    town.n1.shell(f"for i in $(seq 300); do grep -q 'read ' {folder}/dnsmasq.log && exit; sleep 0.1; done; exit 1")
    assert "\0" not in town.n1.shell(f"cat {folder}/dnsmasq.log")  # it goes on where the file ends now


async def test_a_guest_cannot_speak_for_another(town: Town) -> None:
    a, b = town.guests["a"], town.guests["b"]
    a.run("ip", "addr", "add", "10.20.0.77/24", "dev", "eth0")
    try:
        assert a.attempt("busybox", "ping", "-c", "1", "-W", "1", "-I", "10.20.0.77", "10.20.0.12").returncode != 0
        assert b.attempt("busybox", "ping", "-c", "1", "-W", "1", "10.20.0.77").returncode != 0
    finally:
        a.run("ip", "addr", "del", "10.20.0.77/24", "dev", "eth0")
    assert a.reaches("10.20.0.12")


@pytest.mark.parametrize("tag", ["", "81000000", "88a80000", "8100000081000000", "81000007"])
async def test_a_guest_cannot_take_anothers_place_with_tagged_frames_or_without(town: Town, tag: str) -> None:
    """A kernel takes what has the tag of no VLAN as if it had none: rules that look at a frame's type must not miss it."""
    a, b = town.guests["a"], town.guests["b"]
    mac_a, mac_b = (next(e.mac for e in town.blue.endpoints if e.name == name) for name in ("a", "b"))
    b.run("ip", "neigh", "flush", "dev", "eth0")
    a.run(*PYTHON, TAKE_PLACE, mac_a, mac_b, "10.20.0.13", "10.20.0.12", tag)  # c's, towards b
    assert mac_a not in b.run("ip", "neigh", "show", "10.20.0.13")
    assert "default" not in b.run("ip", "-6", "route")


async def test_published_ports_answer_on_every_node_from_everywhere(town: Town) -> None:
    def forward(port: int, segment: Segment, name: str) -> Forward:
        target = next(e for e in segment.endpoints if e.name == name)
        return Forward(port, "tcp", segment.id, target.address, 80, target.node_address)

    wish = [forward(8080, town.blue, "b"), forward(8081, town.green, "x")]
    try:
        for node in town.lab.nodes:
            await node.ensure_forwards(wish)
        for node in town.lab.nodes:
            for port, text in ((8080, "I am b"), (8081, "I am x")):
                assert town.lab.fetch(town.lab.fabric, node.address, port) == text
                assert town.lab.fetch(town.lab.outside, node.address, port) == text
                assert node.fetch(node.address, port) == text  # a process on the node itself
                assert node.fetch("127.0.0.1", port) == text
        assert town.n1.fetch(town.n3.address, 8080) == "I am b"
        assert town.guests["a"].fetch(town.n1.address, 8080) == "I am b"  # a guest, by way of its own node
        assert town.guests["b"].fetch(town.n2.address, 8080) == "I am b"  # a guest, to itself and back
        assert town.guests["y"].fetch(town.n1.address, 8081) == "I am x"

        before = town.n2.dump()
        town.n2.restart()
        await town.n2.ensure_forwards(wish)
        assert town.n2.dump() == before
        await town.n2.ensure_forwards(wish[1:])
        flows = town.n2.shell("conntrack -L -p tcp -w 0 2>/dev/null")
        assert "dport=8080" not in flows and "dport=8081" in flows  # what is published no more ends, the rest goes on
    finally:
        for node in town.lab.nodes:
            await node.ensure_forwards([])
    with pytest.raises(AssertionError):
        town.lab.fetch(town.lab.fabric, town.n2.address, 8080)


async def test_a_published_port_that_a_program_of_a_node_listens_on_stays_that_program_s_there(town: Town) -> None:
    a, lab = town.blue.endpoints[0], town.lab
    forwards = [Forward(port, "tcp", town.blue.id, a.address, 80, a.node_address) for port in (2222, 2223)]

    async def answers(node: Node, host: str, port: int, text: str, of: str = "") -> None:
        """Until who listens has begun, or ended, to."""
        for _ in range(100):
            held = await node.find_held()
            command = ["nsenter", f"--net=/run/netns/{of or node.namespace}", *fetch_command(host, port)]
            tried = subprocess.run(command, capture_output=True, text=True, timeout=20)
            if tried.stdout == text:
                return
        raise AssertionError(f"{host}:{port} from {of or node.namespace}: {tried.stdout}{tried.stderr}, held: {held}")

    lab.serve(town.n3.namespace, "I am n3", port=2222)
    lab.serve(town.n2.namespace, "I am n2's loopback", port=2223, address="127.0.0.1")
    await answers(town.n3, town.n3.address, 2222, "I am n3")
    await answers(town.n2, "127.0.0.1", 2223, "I am n2's loopback")
    try:
        for node in lab.nodes:
            await node.ensure_forwards(forwards)
        for of in (lab.outside, town.n1.namespace, town.n3.namespace):
            assert lab.fetch(of, town.n3.address, 2222) == "I am n3"
        assert lab.fetch(town.n3.namespace, "127.0.0.1", 2222) == "I am n3"
        assert lab.fetch(lab.outside, town.n2.address, 2222) == "I am a"
        assert lab.fetch(town.n2.namespace, "127.0.0.1", 2223) == "I am n2's loopback"
        assert lab.fetch(lab.outside, town.n2.address, 2223) == "I am a"  # at its address nobody else listens
        late = lab.serve(town.n2.namespace, "I am n2", port=2222)
        await answers(town.n2, town.n2.address, 2222, "I am n2", of=lab.outside)
        assert Held("tcp", 2222) in await town.n2.find_held()
        late.kill()
        late.wait()
        await answers(town.n2, town.n2.address, 2222, "I am a", of=lab.outside)
        assert await town.n2.heal() == []
    finally:
        for node in lab.nodes:
            await node.ensure_forwards([])


async def test_a_client_whose_address_lies_in_the_network_is_answered(town: Town) -> None:
    b = town.blue.endpoints[1]
    await town.n2.ensure_forwards([Forward(8080, "tcp", town.blue.id, b.address, 80, b.node_address)])
    town.lab.shell(f"""
        ip -n {town.lab.outside} addr add 10.20.0.200/32 dev eth0
        ip -n {town.lab.outside} route replace 10.99.0.0/24 via 203.0.113.1 src 10.20.0.200
        ip -n {town.lab.fabric} route add 10.20.0.200 via {OUTSIDE}
    """)
    try:
        assert town.lab.fetch(town.lab.outside, town.n2.address, 8080) == "I am b"
    finally:
        await town.n2.ensure_forwards([])
        town.lab.shell(f"""
            ip -n {town.lab.outside} route replace 10.99.0.0/24 via 203.0.113.1
            ip -n {town.lab.outside} addr del 10.20.0.200/32 dev eth0
            ip -n {town.lab.fabric} route del 10.20.0.200
        """)


async def test_a_neighbour_reaches_no_loopback_service_of_a_node(town: Town) -> None:
    town.lab.serve(town.n2.namespace, "for the node alone", address="127.0.0.1", port=8282)
    wish = [Forward(8080, "tcp", town.blue.id, "10.20.0.11", 80, town.n1.address)]
    await town.n2.ensure_forwards(wish)
    assert town.n2.fetch("127.0.0.1", 8282) == "for the node alone"
    neighbour = f"{town.lab.tag}evil"
    town.lab.add_namespace(neighbour)
    try:
        town.lab.shell(f"""
            ip -n {town.lab.fabric} link add evil0 address 02:00:00:00:00:01 type veth peer name eth0 netns {neighbour}
            ip -n {town.lab.fabric} link set evil0 master under0 up
            ip -n {neighbour} addr add 10.99.0.66/24 dev eth0
            ip -n {neighbour} link set eth0 up
            ip -n {neighbour} addr flush dev lo
            ip -n {neighbour} link set lo down
            ip netns exec {neighbour} sysctl -qw net.ipv4.conf.eth0.route_localnet=1
            ip -n {neighbour} route add 127.0.0.1/32 via {town.n2.address} src 10.99.0.66
        """)
        reach = ["nsenter", f"--net=/run/netns/{neighbour}", *fetch_command("127.0.0.1", 8282)]
        for forwards in ([], wish):  # dropped by the kernel's own rules, then by ours; refused would mean it got there
            await town.n2.ensure_forwards(forwards)
            with pytest.raises(subprocess.TimeoutExpired):
                subprocess.run(reach, timeout=1, capture_output=True)
    finally:
        await town.n2.ensure_forwards([])


async def test_an_unchanged_request_changes_nothing(town: Town) -> None:
    for node in town.lab.nodes:
        before = node.dump()
        for _ in range(2):  # by a process that knows, then by one that doesn't
            for segment in town.segments_on(node):
                await node.ensure_segment(segment)
                for endpoint in segment.endpoints:
                    if endpoint.node_address == node.address:
                        await node.plug(make_port(segment, endpoint.name))
            assert node.dump() == before
            node.restart()
        assert await node.heal() == []
        assert node.dump() == before


async def test_a_killed_dnsmasq_is_healed_and_told_of(town: Town) -> None:
    pid_file = f"{town.n1.host.run_dir}/network/{town.blue.id}/dnsmasq.pid"
    killed = town.n1.shell(f"cat {pid_file}; kill -9 $(cat {pid_file})").strip()
    town.n1.shell(f"while grep -q . /proc/{killed}/cmdline 2>/dev/null; do :; done")  # it is ending, its ports held
    town.n1.restart()  # even by a process to which nobody wished anything yet
    assert await town.n1.heal() == ["DHCP and DNS of network blue"]
    assert town.n1.shell(f"cat {pid_file}").strip() != killed
    assert "nobody" in town.n1.shell(f"ps -o user= -p $(cat {pid_file})")
    town.guests["a"].lease()
    assert town.guests["a"].fetch("b") == "I am b"


async def test_what_is_torn_down_behind_our_back_is_mended(town: Town) -> None:
    segment, node = town.blue, town.n2
    damages = {
        "overlay": f"ip link del w2x{segment.id}",
        "router": f"ip netns del w2n{segment.id}",
        "filters": "nft flush ruleset",
        "forwarding entries": f"bridge fdb del {segment.endpoints[0].mac} dev w2x{segment.id} master",
        f"port {make_port(segment, 'b').id}": f"ip link set dev {'w2t' + make_port(segment, 'b').id} nomaster",
        "DHCP and DNS": f"rm {node.host.run_dir}/network/{segment.id}/dnsmasq.pid",
    }
    for part, damage in damages.items():
        assert await find_sound(node)
        node.shell(damage)
        assert f"{part} of network blue" in await node.heal()
        assert await node.heal() == []
        for guest, place, answer in (("b", "a", "I am a"), ("b", OUTSIDE, "I am outside"), ("y", "x", "I am x")):
            tried = town.guests[guest].attempt(*fetch_command(place))
            assert tried.stdout == answer, (part, guest, place, tried.stderr)


async def find_sound(node: Node) -> bool:
    """Look until nothing is amiss and nothing is read again: whether that comes."""
    for _ in range(3):
        if await node.heal() == [] and node.programs == []:
            return True
    return False


async def test_a_node_that_looks_as_it_did_when_it_was_sound_starts_no_program_and_the_least_damage_is_seen(
    town: Town,
) -> None:
    segment, node, port = town.blue, town.n2, make_port(town.blue, "b")
    inside = f"ip netns exec w2n{segment.id}"
    damages = (
        f"ip link set dev w2b{segment.id} mtu 1300",
        f"ip link set dev w2b{segment.id} alias other",
        f"ip link set dev w2x{segment.id} down",
        f"ip link set dev w2t{port.id} type bridge_slave learning on",
        f"ip addr add 10.9.9.9/32 dev w2u{segment.id}",
        f"bridge fdb append 02:00:00:00:00:77 dev w2x{segment.id} dst {town.n1.address} self permanent",
        f"bridge fdb replace 02:00:00:00:00:78 dev w2t{port.id} master static",
        f"{inside} ip route del default",
        f"{inside} ip neigh replace {segment.endpoints[0].address} lladdr 02:00:00:00:00:79 dev lan0 nud permanent",
        f"{inside} sh -c 'echo 0 > /proc/sys/net/ipv4/ip_forward'",
        f"{inside} nft flush ruleset",
        f"echo 0 > /proc/sys/net/ipv4/conf/w2u{segment.id}/route_localnet",
        "echo 0 > /proc/sys/net/ipv4/ip_forward",
    )
    for damage in damages:
        assert await find_sound(node), damage
        node.shell(damage)
        await node.heal()
        assert node.programs, damage
        assert await node.heal() == [], damage
        assert town.guests["b"].fetch("a") == "I am a" and town.guests["b"].fetch(OUTSIDE) == "I am outside"
    assert await find_sound(node)


async def test_what_goes_between_a_look_and_its_mending_is_looked_at_again(town: Town) -> None:
    """A namespace ends some time after its name: its links are there at one look, and gone at the next."""
    segment, node = town.blue, town.n2
    node.shell(f"ip netns del w2n{segment.id}")
    node.meddle(f"ip link del w2r{segment.id}")
    assert "router of network blue" in await node.heal()
    assert await node.heal() == []
    assert town.guests["b"].fetch("a") == "I am a"


async def test_an_endpoint_that_comes_moves_and_goes_is_followed(town: Town) -> None:
    d = make_segment(1, "blue", {"a": town.n1, "b": town.n2, "c": town.n3, "d": town.n2})
    on_n3 = msgspec.structs.replace(
        d, endpoints=[*town.blue.endpoints, msgspec.structs.replace(d.endpoints[3], node_address=town.n3.address)]
    )
    a = town.guests["a"]
    for segment, node in ((d, town.n2), (on_n3, town.n3)):
        for each in town.lab.nodes:
            await each.ensure_segment(segment)
        guest = node.plug_guest(f"d{node.number}", make_port(segment, "d"))
        guest.lease()
        assert "10.20.0.14/24" in guest.run("ip", "addr", "show", "eth0")
        guest.serve(f"I am d on {node.host.node}")
        assert a.fetch("d") == f"I am d on {node.host.node}"
        await node.unplug(make_port(segment, "d").id)
    for each in town.lab.nodes:
        await each.ensure_segment(town.blue)
    assert a.attempt("getent", "hosts", "d").returncode != 0
    assert "10.20.0.14" not in "".join(n.shell(f"cat {n.host.run_dir}/network/*/hosts") for n in town.lab.nodes)


async def test_an_address_given_to_another_guest_is_leased_at_once(town: Town) -> None:
    first = make_segment(1, "blue", {"a": town.n1, "b": town.n2, "c": town.n3, "e": town.n1})
    heir = msgspec.structs.replace(make_port(first, "e"), id="heir", mac="52:54:00:00:aa:01")
    await town.n1.ensure_segment(first)
    town.n1.plug_guest("e", make_port(first, "e")).lease()
    await town.n1.unplug(make_port(first, "e").id)
    guest = town.n1.plug_guest("heir", heir)
    guest.lease()
    assert "10.20.0.14/24" in guest.run("ip", "addr", "show", "eth0")
    await town.n1.unplug("heir")
    await town.n1.ensure_segment(town.blue)


async def test_a_guest_is_no_server_of_dhcp_to_its_neighbours(town: Town) -> None:
    segment = make_segment(1, "blue", {"a": town.n1, "b": town.n2, "c": town.n3, "e": town.n1})
    a, e = segment.endpoints[0], segment.endpoints[3]
    await town.n1.ensure_segment(segment)
    neighbour = town.n1.plug_guest("e2", make_port(segment, "e"))
    try:
        neighbour.lease()
        with python_in(neighbour.namespace, HEAR_SERVERS) as ears:
            town.guests["a"].run(*PYTHON, ANSWER, a.mac, e.mac, a.address, e.address)
            assert ears.communicate(timeout=60)[0].split() == ["9", "9"]
    finally:
        await town.n1.unplug(make_port(segment, "e").id)
        await town.n1.ensure_segment(town.blue)


async def test_nobody_gets_in_to_a_guest_but_by_a_published_port(town: Town) -> None:
    """Neither from the node nor through it, though both are told the way; each of the two stands without the other."""
    a, n1, lab = town.guests["a"], town.n1, town.lab
    router = f"{n1.host.link_prefix}n{town.blue.id}"
    leg = n1.shell(f"ip netns exec {router} ip -o -4 addr show dev wan0").split()[3].removesuffix("/31")
    n1.shell(f"ip route add 10.20.0.11 via {leg}; sysctl -qw net.ipv4.ip_forward=1")
    lab.shell(f"""
        ip -n {lab.fabric} route add 10.20.0.11 via {n1.address}
        ip -n {lab.outside} route add 10.20.0.11 via 203.0.113.1
    """)

    def tries(namespace: str) -> str:
        command = ["timeout", "1", "nsenter", f"--net=/run/netns/{namespace}", *fetch_command("10.20.0.11")]
        return subprocess.run(command, capture_output=True, text=True).stdout

    try:
        assert tries(n1.namespace) == ""
        n1.shell(f"ip netns exec {router} nft insert rule ip router through_router accept")
        assert tries(n1.namespace) == "I am a"
        assert tries(lab.outside) == ""
        n1.shell(f"nft insert rule ip weft_{n1.host.link_prefix}_node through_node accept")
        assert tries(lab.outside) == "I am a"
    finally:
        lab.shell(f"ip -n {lab.fabric} route del 10.20.0.11; ip -n {lab.outside} route del 10.20.0.11")
        n1.shell(f"ip route del 10.20.0.11; ip netns exec {router} nft flush ruleset; nft flush ruleset")
        await n1.heal()
    assert a.fetch(OUTSIDE) == "I am outside"


async def test_a_guest_in_two_networks_goes_out_by_the_first_and_knows_the_names_of_both(town: Town) -> None:
    node, green = town.n3, make_segment(6, "red", {"w": town.n2, "m": town.n3}, cidr="10.60.0.0/24")
    blue = make_segment(1, "blue", {"a": town.n1, "b": town.n2, "c": town.n3, "m": town.n3})
    blue = msgspec.structs.replace(blue, aliases=[Alias(f"{e.name}.red", e.address) for e in green.endpoints])
    for each in (town.n2, node):
        await each.ensure_segment(green)
    for each in town.lab.nodes:
        await each.ensure_segment(blue)
    w = town.n2.plug_guest("w", make_port(green, "w"))
    w.lease()
    w.serve("I am w")
    side = msgspec.structs.replace(make_port(green, "m"), id="side000001", main=False)
    m = node.plug_guest("m", make_port(blue, "m"))
    m.add_nic(await node.plug(side), side.mac)
    m.lease()
    names = m.resolv.read_text()
    m.lease("eth1")
    try:
        assert [line.split()[:5] for line in m.run("ip", "route", "show", "default").splitlines()] == [
            ["default", "via", "10.20.0.1", "dev", "eth0"]
        ]
        assert "mtu 1450" in m.run("ip", "link", "show", "eth1")
        assert m.resolv.read_text() == names and "10.20.0.1" in names
        assert m.fetch("a") == m.fetch("a.blue") == "I am a"
        assert m.fetch("w.red") == m.fetch("w.red.blue.weft") == "I am w"
        for name in (
            "a.blue",
            "w.red",
        ):  # an IPv6 address, which they don't have, is asked of nobody else: here of nobody
            m.run("getent", "ahosts", name, timeout_seconds=4)  # a resolver's patience is 5 s
        assert m.attempt("getent", "hosts", "w").returncode != 0  # a name alone is the first network's
        assert m.fetch(OUTSIDE) == "I am outside"
        assert "10.60.0.12" in w.run("getent", "hosts", "m") and w.reaches("m")
        assert not town.guests["c"].reaches("10.60.0.11")  # to know a name is not to get there
        folder = f"{node.host.run_dir}/network/{green.id}"
        server, read = f"cat {folder}/dnsmasq.pid", f"grep -c 'read .*/hosts' {folder}/dnsmasq.log"
        before, reads = node.shell(server), int(node.shell(read))
        named = [msgspec.structs.replace(e, name="v") if e.name == "w" else e for e in green.endpoints]
        await node.ensure_segment(msgspec.structs.replace(green, endpoints=named))
        node.shell(f"for i in $(seq 100); do [ $({read}) -gt {reads} ] && exit; sleep 0.1; done; exit 1")
        m.lease("eth1")  # of the same server, which a reload leaves alive
        assert node.shell(server) == before
        await node.ensure_segment(green)
        node.restart()
        assert await node.heal() == []  # the kernel knows which NIC is which
    finally:
        await node.unplug(side.id)
        await node.unplug(make_port(blue, "m").id)
        await town.n2.unplug(make_port(green, "w").id)
        for each in town.lab.nodes:
            await each.remove_segment(green.id)
            if each is not node:
                await each.ensure_segment(town.blue)
        await node.ensure_segment(town.blue)


async def test_a_network_without_nat_stays_inside(town: Town) -> None:
    inside = make_segment(3, "inside", {"i": town.n3}, cidr="10.30.0.0/24", nat=False)
    await town.n3.ensure_segment(inside)
    guest = town.n3.plug_guest("i", make_port(inside, "i"))
    guest.lease()
    assert guest.reaches("10.30.0.1")
    assert not guest.reaches(OUTSIDE)
    await town.n3.unplug(make_port(inside, "i").id)
    await town.n3.remove_segment(inside.id)


async def test_a_network_of_a_rehearsal_beside_the_one_that_it_stands_for_reaches_nothing(town: Town) -> None:
    """It has the same range, and its guest the address of a guest of the other: nothing of theirs gets across, in either way."""
    rehearsal = make_segment(9, "rehearsal", {"r": town.n1}, nat=False)
    await town.n1.ensure_segment(rehearsal)
    guest, original = town.n1.plug_guest("r", make_port(rehearsal, "r")), town.guests["a"]
    guest.lease()
    try:
        others = [town.blue.endpoints[1].address, OUTSIDE]
        assert all(original.reaches(address) for address in others)  # so that what follows says something
        assert original.fetch(others[0]) == "I am b"
        hosts = [node.address for node in town.lab.nodes]
        pings = " ".join([*others, *hosts, "169.254.169.254", "169.254.64.0"])
        connects = " ".join([rehearsal.endpoints[0].address, *others, *hosts])
        reached = guest.run(
            *("busybox", "sh", "-c"),
            f"for a in {pings}; do (ping -c 2 -W 1 $a >/dev/null 2>&1 && echo $a answers) & done; "
            f"for a in {connects}; do (busybox nc -w 2 $a 80 </dev/null >/dev/null 2>&1 && echo $a accepts) & done; wait",
        )
        assert reached == ""
        asked = guest.run("busybox", "nslookup", "example.com", rehearsal.gateway, check=False)
        assert "REFUSED" in asked, asked
    finally:
        await town.n1.unplug(make_port(rehearsal, "r").id)
        await town.n1.remove_segment(rehearsal.id)
    assert original.reaches(OUTSIDE)


async def test_a_leftover_file_in_a_namespaces_place_is_no_obstacle(town: Town) -> None:
    segment = make_segment(4, "late", {}, cidr="10.40.0.0/24")
    town.n3.shell(f"touch /run/netns/w3n{segment.id}")
    await town.n3.ensure_segment(segment)
    await town.n3.remove_segment(segment.id)


async def test_a_vni_held_by_another_network_is_refused(town: Town) -> None:
    with pytest.raises(InUse, match="VNI 101"):
        await town.n3.ensure_segment(make_segment(5, "thief", {}, cidr="10.50.0.0/24", vni=101))
    await town.n3.remove_segment("seg0000005")


async def test_a_port_needs_its_network_first(town: Town) -> None:
    with pytest.raises(NotFound):
        await town.n3.plug(make_port(town.green, "x"))


async def test_what_a_node_that_lost_its_power_keeps_of_a_network_is_found_and_removed(town: Town) -> None:
    """Its links, namespaces and processes are gone, the files in its run_dir are not, and no guest brings the network back."""
    node, segment = town.n3, make_segment(8, "lost", {"z": town.n3})
    await node.ensure_segment(segment)
    node.shell(f"""
        kill -9 $(cat {node.host.run_dir}/network/{segment.id}/dnsmasq.pid)
        ip netns del w3n{segment.id}
        for link in $(ip -o link | grep -o 'w3[bxru]{segment.id}' | sort -u); do ip link del $link || true; done
    """)
    node.restart()
    assert segment.id in (await node.state()).segments
    await node.remove_segment(segment.id)
    assert segment.id not in (await node.state()).segments
    assert node.shell(f"find {node.host.run_dir} -path '*{segment.id}*'") == ""


async def test_removing_leaves_nothing(town: Town, built: list[Town]) -> None:
    built.clear()
    with pytest.raises(InUse, match="1 ports"):
        await town.n1.remove_segment(town.blue.id)
    for node in town.lab.nodes:
        await node.ensure_forwards([])
        for segment in town.segments_on(node):
            for endpoint in segment.endpoints:
                await node.unplug(make_port(segment, endpoint.name).id)
            await node.remove_segment(segment.id)
            await node.remove_segment(segment.id)
        state = await node.state()
        assert (state.segments, state.ports) == ([], [])
        assert node.shell("ip -o link | cut -d: -f2 | cut -d@ -f1").split() == ["lo", "up0"]
        assert node.shell("nft list tables; ls /run/netns; pgrep -x dnsmasq || true") == ""
        assert node.shell(f"find {node.host.run_dir} -type f") == ""
