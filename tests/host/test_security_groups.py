"""Filtered ports on two nodes made of namespaces: what still connects to them, and what they still connect to."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from network_lab import OUTSIDE, Guest, Lab, Node, make_port, make_segment

from weft.contracts.driver.network import Allowed, Filter, Forward, Segment
from weft.drivers.network.bridge.nftables.connection_limits import LOOKUPS

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces"),
]

PYTHON = [sys.executable, "-S", "-E", "-c"]
OPEN = """
import socket, sys
try: print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.7).recv(9).decode(), end="")
except OSError: print("closed", end="")
"""
ANSWER = """
import socket
door = socket.create_server(("", 81))
print("ready", flush=True)
while True: door.accept()[0].sendall(b"open")
"""
TALK = """
import socket, sys
link = socket.create_connection((sys.argv[1], 82), 5)
link.settimeout(1.5)
print("ready", flush=True)
for line in sys.stdin:
    try:
        link.sendall(b"x")
        print("heard" if link.recv(1) else "ended", flush=True)
    except OSError: print("silence", flush=True)
"""
LISTEN = """
import socket, threading
def serve(link):
    while said := link.recv(1): link.sendall(said)
door = socket.create_server(("", 82))
print("ready", flush=True)
while True: threading.Thread(target=serve, args=(door.accept()[0],), daemon=True).start()
"""
HOLD = """
import socket, struct
door = socket.create_server(("", 83), backlog=99)
print("ready", flush=True)
held = []
while True:
    link, _ = door.accept()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    held.append(link)
"""
ANSWER_LATE = """
import socket, time
door = socket.socket(type=socket.SOCK_DGRAM)
door.bind(("", 84))
print("ready", flush=True)
while True:
    said, who = door.recvfrom(9)
    time.sleep(0.1)
    door.sendto(said, who)
"""
ASK_ON = """
import select, socket, sys, time
link = socket.socket(type=socket.SOCK_DGRAM)
link.connect((sys.argv[1], 84))
print("ready", flush=True)
while True:
    link.send(b"x")
    done, _, _ = select.select([link, sys.stdin], [], [], 0.3)
    if link in done: link.recv(9)
    if sys.stdin in done:
        sys.stdin.readline()
        heard, until = 0, time.monotonic() + 0.8
        while (left := until - time.monotonic()) > 0:
            link.send(b"x")
            if select.select([link], [], [], min(left, 0.3))[0]: heard += len(link.recv(9))
        print("heard" if heard else "silence", flush=True)
"""
OPEN_MANY = """
import select, socket, sys
links = [socket.socket() for _ in range(int(sys.argv[2]))]
for link in links:
    link.setblocking(False)
    link.connect_ex((sys.argv[1], 83))
waiting, opened = set(links), 0
while waiting:
    _, done, _ = select.select([], list(waiting), [], 0.8)
    if not done: break
    opened += sum(link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 for link in done)
    waiting -= set(done)
print("ready", flush=True)
print(opened, flush=True)
sys.stdin.read()
"""
LOOK_UP_MANY = """
import select, socket, sys
query = b"\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1c\\4blue\\0\\0\\1\\0\\1"
waiting, answered = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(int(sys.argv[2]))], 0
for link in waiting: link.sendto(query, (sys.argv[1], 53))
while waiting:
    done, _, _ = select.select(waiting, [], [], 0.8)
    if not done: break
    answered += len(done)
    waiting = [link for link in waiting if link not in done]
print(answered)
"""
MOST = 24  # connections of a guest
ANYONE = Allowed("any", 0, 65535, None)


def opens(guest: Guest, host: str, port: int = 81) -> bool:
    return guest.run(*PYTHON, OPEN, host, str(port)) == "open"


@contextmanager
def running(guest: Guest, program: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A program in a guest, from when it is ready to the end of the block."""
    command = ["nsenter", f"--net=/run/netns/{guest.namespace}", *PYTHON, program, *argv]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def talks(process: subprocess.Popen[str]) -> str:
    assert process.stdin and process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


class Street:
    """Network blue with a and b on one node and c on the other, and green with the same addresses on the first."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.n1, self.n2 = lab.nodes
        self.blue = make_segment(1, "blue", {"a": self.n1, "b": self.n1, "c": self.n2, "d": self.n1})
        self.green = make_segment(2, "green", {"x": self.n1, "y": self.n1})
        self.guests: dict[str, Guest] = {}

    async def build(self) -> None:
        for segment in (self.blue, self.green):
            for endpoint in segment.endpoints:
                node = next(n for n in self.lab.nodes if n.address == endpoint.node_address)
                await node.ensure_segment(segment)
                self.guests[endpoint.name] = node.plug_guest(endpoint.name, make_port(segment, endpoint.name))
                self.guests[endpoint.name].lease()
        self.lab.serve(self.lab.outside, "I am outside")

    def filter(
        self, name: str, ingress: list[Allowed], egress: list[Allowed], segment: Segment | None = None
    ) -> Filter:
        segment = segment or self.blue
        port = make_port(segment, name)
        return Filter(port.id, segment.id, port.address, segment.gateway, tuple(ingress), tuple(egress))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab(nodes=2, most_connections=MOST)
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture(scope="module")
def built() -> list[Street]:
    return []


@pytest.fixture
async def street(lab: Lab, built: list[Street]) -> Street:
    """Built by the first test that asks, and shared: tests leave it without filters."""
    if not built:
        street = Street(lab)
        await street.build()
        built.append(street)
    for node in built[0].lab.nodes:
        await node.ensure_filters([])
    return built[0]


async def test_only_what_is_allowed_comes_in_and_what_was_asked_for_comes_back(street: Street) -> None:
    a, b, c = (street.guests[name] for name in "abc")
    web = Allowed("tcp", 81, 81, ("10.20.0.13",))
    await street.n1.ensure_filters([street.filter("b", [web], [ANYONE])])
    with running(a, ANSWER), running(b, ANSWER):
        assert opens(c, "10.20.0.12") and not opens(a, "10.20.0.12")  # c is the one allowed, over the overlay
        assert not c.reaches("10.20.0.12") and not a.reaches("10.20.0.12")  # and nothing else, even for it
        assert opens(b, "10.20.0.11") and b.reaches("10.20.0.13")  # what b begins is answered
        by_gateway = ["ip", "netns", "exec", f"w1n{street.blue.id}", *PYTHON, OPEN, "10.20.0.12", "81"]
        assert street.n1.shell(shlex.join(by_gateway)) == "open"  # weft's own way in, which wants a ticket
        closed = msgspec.structs.replace(street.filter("b", [], []), closed=True)
        await street.n1.ensure_filters([closed])  # its lease hasn't begun
        assert street.n1.shell(shlex.join(by_gateway)) != "open"
        b.lease()  # its network is made while it boots
        await street.n1.ensure_filters([street.filter("b", [web], [ANYONE])])
        assert opens(c, "10.20.0.11")  # who carries no group is open, on the same bridge
    assert b.fetch(OUTSIDE) == "I am outside" and b.run("getent", "hosts", "a")
    b.lease()
    x, y = street.guests["x"], street.guests["y"]
    with running(y, ANSWER):
        assert opens(x, "10.20.0.12")  # the same address in another network is another's


async def test_only_what_is_allowed_goes_out_but_names_always_resolve(street: Street) -> None:
    a, b = street.guests["a"], street.guests["b"]
    await street.n1.ensure_filters([street.filter("b", [ANYONE], [Allowed("tcp", 80, 90, ("10.20.0.0/28",))])])
    with running(a, ANSWER), running(b, ANSWER):
        assert opens(b, "10.20.0.11") and not b.reaches("10.20.0.11")
        assert b.attempt(*PYTHON, OPEN, OUTSIDE, "80").stdout == "closed"
        assert b.run("getent", "hosts", "c")
        assert opens(a, "10.20.0.12") and a.reaches("10.20.0.12")  # what comes in is answered


async def test_two_filtered_neighbours_both_have_their_say(street: Street) -> None:
    a, b = street.guests["a"], street.guests["b"]
    ping = Allowed("icmp", 0, 65535, None)
    await street.n1.ensure_filters([street.filter("a", [ping], [ping]), street.filter("b", [ANYONE], [ping])])
    with running(b, ANSWER):
        assert a.reaches("10.20.0.12") and b.reaches("10.20.0.11") and not opens(a, "10.20.0.12")


async def test_a_change_holds_at_once_and_ends_what_it_forbids_and_nothing_else(street: Street) -> None:
    a, b, c = (street.guests[name] for name in "abc")
    both = Allowed("tcp", 82, 82, ("10.20.0.11", "10.20.0.13"))
    await street.n1.ensure_filters([street.filter("b", [both], [])])
    with running(b, LISTEN), running(a, TALK, "10.20.0.12") as from_a, running(c, TALK, "10.20.0.12") as from_c:
        assert talks(from_a) == talks(from_c) == "heard"
        await street.n1.ensure_filters([street.filter("b", [Allowed("tcp", 82, 82, ("10.20.0.13",))], [])])
        assert talks(from_a) == "silence"
        assert talks(from_c) == "heard"
        await street.n1.ensure_filters([street.filter("b", [both], [])])
        with running(a, TALK, "10.20.0.12") as again:
            assert talks(again) == "heard"


async def test_an_answer_on_its_way_keeps_no_connection_open_and_what_is_allowed_again_goes_on(street: Street) -> None:
    everywhere, nothing = [ANYONE], [Allowed("tcp", 1, 1, None)]
    await street.n1.ensure_filters([street.filter("b", everywhere, everywhere)])
    with running(street.guests["b"], ANSWER_LATE), running(street.guests["a"], ASK_ON, "10.20.0.12") as asks:
        assert talks(asks) == "heard"
        for _ in range(3):
            await street.n1.ensure_filters([street.filter("b", nothing, everywhere)])
            assert talks(asks) == "silence"
            await street.n1.ensure_filters([street.filter("b", everywhere, everywhere)])
            assert talks(asks) == "heard"
        await street.n1.ensure_filters([street.filter("b", nothing, everywhere)])
        assert talks(asks) == "silence"
        await street.n1.ensure_filters([])
        assert talks(asks) == "heard"


async def test_nothing_gets_around_a_filter(street: Street) -> None:
    a, b = street.guests["a"], street.guests["b"]
    await street.n1.ensure_filters([street.filter("b", [Allowed("tcp", 1, 1, None)], [ANYONE])])
    b.run("ip", "addr", "add", "10.20.0.77/24", "dev", "eth0")  # an address that the fabric didn't give it
    mac = make_port(street.blue, "b").mac
    a.run("ip", "neigh", "replace", "10.20.0.77", "lladdr", mac, "dev", "eth0")
    try:
        assert not a.reaches("10.20.0.77")
        six = b.run("ip", "-o", "-6", "addr", "show", "dev", "eth0", "scope", "link").split()[3].partition("/")[0]
        assert a.attempt("busybox", "ping6", "-c", "1", "-W", "1", "-I", "eth0", six).returncode != 0
        await street.n1.ensure_filters([])
        # Several: what asked for the neighbour before was refused, and the kernel asks again only a second later.
        asks = ("busybox", "ping6", "-c", "1", "-W", "2", "-I", "eth0", six)
        assert any(a.attempt(*asks).returncode == 0 for _ in range(8))
    finally:
        b.run("ip", "addr", "del", "10.20.0.77/24", "dev", "eth0")
        a.run("ip", "neigh", "del", "10.20.0.77", "dev", "eth0")


async def test_a_published_port_needs_a_rule_too_and_sees_who_asks_and_whom_it_refused(street: Street) -> None:
    b = street.guests["b"]
    with running(b, ANSWER):
        await street.n1.ensure_forwards([Forward(8080, "tcp", street.blue.id, "10.20.0.12", 81, street.n1.address)])
        ask = [*PYTHON, OPEN, street.n1.address, "8080"]
        reach = ["nsenter", f"--net=/run/netns/{street.lab.outside}", *ask]
        for ranges, answer in ((("198.51.100.0/24",), "closed"), ((f"{OUTSIDE}/32",), "open")):
            await street.n1.ensure_filters([street.filter("b", [Allowed("tcp", 81, 81, ranges)], [])])
            assert subprocess.run(reach, capture_output=True, text=True, timeout=20).stdout == answer
            refused = street.n1.read_refused(make_port(street.blue, "b"))
            assert [(flow.source, flow.destination_port) for flow in refused] == [(OUTSIDE, 81)] * (answer == "closed")
    await street.n1.ensure_forwards([])


async def test_filters_outlive_their_process_are_mended_and_leave_nothing(street: Street) -> None:
    node, a = street.n1, street.guests["a"]
    wish = [street.filter("b", [Allowed("tcp", 1, 9, None)], [ANYONE]), street.filter("y", [], [], street.green)]
    await node.ensure_filters(wish)
    before = node.dump()
    node.restart()
    assert await node.heal() == []
    await node.ensure_filters(wish)
    assert node.dump() == before and not a.reaches("10.20.0.12")
    node.shell("nft flush ruleset")
    assert "security groups" in await node.heal()
    assert not a.reaches("10.20.0.12")
    await node.ensure_filters([])
    assert a.reaches("10.20.0.12")
    left = node.shell("nft list ruleset")
    assert "refuse_" not in left and "elements" not in left.partition("_filters {")[2].partition("\n}\n")[0]


async def test_a_member_that_is_told_of_later_may_come_in_then(street: Street) -> None:
    a, b = street.guests["a"], street.guests["b"]
    nobody = Allowed("any", 0, 65535, ())
    await street.n1.ensure_filters([street.filter("b", [nobody], [ANYONE])])
    assert not a.reaches("10.20.0.12")
    member = msgspec.structs.replace(nobody, ranges=("10.20.0.11",))
    await street.n1.ensure_filters([street.filter("b", [member], [ANYONE])])
    assert a.reaches("10.20.0.12") and b.reaches("10.20.0.11")


def followed(street: Street, node: Node, address: str) -> int:
    """How many open connections of an address a node follows, wherever."""
    routers = [f"ip netns exec w{node.number}n{street.blue.id}", ""]
    listed = [node.shell(f"{inside} conntrack -L -p tcp 2>/dev/null || true") for inside in routers]
    return sum(f"src={address} " in line and "ESTABLISHED" in line for text in listed for line in text.splitlines())


async def test_a_guest_takes_its_part_of_both_nodes_tables_and_gives_it_back_with_its_port(street: Street) -> None:
    c, d = street.guests["c"], street.guests["d"]
    ends = (street.n1, "10.20.0.14"), (street.n2, "10.20.0.14")
    with running(c, HOLD):
        with running(d, OPEN_MANY, "10.20.0.13", str(MOST + 16)) as flood:
            assert flood.stdout
            opened = int(flood.stdout.readline())  # its questions for names count too
            assert MOST - 4 <= opened <= MOST and [followed(street, *end) for end in ends] == [opened, opened]
            assert not opens(d, OUTSIDE, 80) and not opens(street.guests["a"], "10.20.0.13", 83)
            assert street.guests["a"].fetch(OUTSIDE) == "I am outside"  # others go on
            assert d.run("getent", "hosts", "c")  # its resolver answers, too: within a part of its own
            answered = int(d.run(*PYTHON, LOOK_UP_MANY, street.blue.gateway, str(LOOKUPS + MOST + 16)))
            assert LOOKUPS - 8 <= answered <= LOOKUPS
            for node in street.lab.nodes:  # nothing of this makes the kernel forget what it has counted
                await node.ensure_filters([street.filter("a", [ANYONE], [ANYONE])])
                node.restart()
                await node.heal()
            assert not opens(d, OUTSIDE, 80)
        assert street.n1.read_fill()[0] >= opened
    long = street.n1.shell("conntrack -L -p tcp 2>/dev/null | awk '$3 > 3600'").splitlines()
    assert not [line for line in long if "10.20.0." in line]


async def test_connections_end_with_their_guests_port(street: Street) -> None:
    c, d = street.guests["c"], street.guests["d"]
    street.lab.start(["nsenter", f"--net=/run/netns/{street.lab.outside}", *PYTHON, HOLD])
    with running(c, HOLD), running(d, OPEN_MANY, "10.20.0.13", "4"), running(d, OPEN_MANY, OUTSIDE, "4"):
        assert followed(street, street.n1, "10.20.0.14") == 12  # four in the router too
        masked = street.n1.shell(f"conntrack -L -p tcp -d {OUTSIDE} --dport 83 2>/dev/null").splitlines()
        assert len(masked) == 8  # in the network's zone, and with the router's address
        await street.n1.unplug(make_port(street.blue, "d").id)
        assert followed(street, street.n1, "10.20.0.14") == 0
        assert street.n1.shell(f"conntrack -L -p tcp -d {OUTSIDE} --dport 83 2>/dev/null") == ""
