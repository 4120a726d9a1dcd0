"""What guests reach of nodes and of the server's machine: nothing but what is published or opened for their network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import msgspec
import pytest
from network_lab import OUTSIDE, Guest, Lab, Node, fetch_command, make_port, make_segment

from weft.api.network.facts import (
    Backend,
    Balanced,
    Caller,
    Group,
    Network,
    NetworkAddress,
    Published,
    ReachabilityFacts,
    Workload,
)
from weft.api.network.trace import trace
from weft.contracts.driver.network import Allowed, Forward, Port, Segment, Service, ServicePort, ServiceTarget
from weft.contracts.network.rules import Opened, RefusedDestinations
from weft.kinds.allocation import AllocatedGroup, AllocatedNic, AllocatedRule

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces"),
]

PYTHON = [sys.executable, "-S", "-E", "-c"]
SERVER = "10.99.0.254"  # the fabric's own address: the namespace between the nodes stands for the server's machine
SERVER_ELSEWHERE = "203.0.113.1"  # the same machine, from outside
API, SSH = 8443, 2022
ECHO = """
import socket, struct, sys
ears = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ears.bind(("0.0.0.0", int(sys.argv[1])))
ears.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO: it answers from the address that it was asked at
print("ready", flush=True)
while True:
    said, info, _, peer = ears.recvmsg(99, 64)
    ears.sendmsg([said], [(0, 8, struct.pack("i4s4x", 0, info[0][2][4:8]))], 0, peer)
"""
ASK = """
import socket, sys
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.settimeout(1)
link.connect((sys.argv[1], int(sys.argv[2])))
try:
    link.send(b"hello")
    print(link.recv(99).decode(), end="")
except OSError: print("silence", end="")
"""
HOLD = """
import socket, sys
link = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
link.settimeout(5)
print("ready", flush=True)
for line in sys.stdin:
    try:
        link.send(b"more")
        print(link.recv(99).decode(), flush=True)
    except OSError: print("ended", flush=True)
"""
ANSWER = """
import socket, sys, threading
ears = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
def answer(link):
    while got := link.recv(99): link.send(got)
while True: threading.Thread(target=answer, args=ears.accept()[:1], daemon=True).start()
"""


class Place:
    """Networks blue and green on two nodes: a in blue on n1, b in blue on n2, x in green on n1."""

    def __init__(self, lab: Lab) -> None:
        self.lab, (self.n1, self.n2) = lab, lab.nodes
        self.blue = make_segment(1, "blue", {"a": self.n1, "b": self.n2})
        self.green = make_segment(2, "green", {"x": self.n1}, cidr="10.30.0.0/24")
        self.hosts = [f"{node.address}/32" for node in lab.nodes] + [f"{SERVER}/32", f"{SERVER_ELSEWHERE}/32"]
        self.guests: dict[str, Guest] = {}

    async def build(self) -> None:
        for segment in (self.blue, self.green):
            for endpoint in segment.endpoints:
                node = self.node_of(endpoint.node_address)
                await node.ensure_segment(segment)
                guest = node.plug_guest(endpoint.name, make_port(segment, endpoint.name))
                guest.lease()
                self.guests[endpoint.name] = guest
        for namespace, text in ((self.lab.fabric, "server"), (self.n1.namespace, "n1"), (self.n2.namespace, "n2")):
            for port in (API, SSH):
                self.lab.serve(namespace, f"{text}'s {port}", port)
            self.lab.start(["nsenter", f"--net=/run/netns/{namespace}", *PYTHON, ECHO, "5555"])
        self.lab.serve(self.lab.outside, "I am outside")
        await self.refuse(self.hosts)

    async def refuse(self, hosts: list[str]) -> None:
        for node in self.lab.nodes:
            await node.ensure_refused(["10.20.0.0/24", "10.30.0.0/24"], hosts)

    async def open(self, *rules: Allowed) -> None:
        """Open exactly this to blue."""
        for node in self.lab.nodes:
            await node.ensure_segment(self.opened(*rules))

    def opened(self, *rules: Allowed) -> Segment:
        return msgspec.structs.replace(self.blue, open=rules)

    def node_of(self, address: str) -> Node:
        return next(node for node in self.lab.nodes if node.address == address)

    def reached(self, guest: str) -> set[str]:
        """The services of hosts that answer a guest: ADDRESS:PORT by TCP, ADDRESS/PORT by UDP."""
        command = [*PYTHON, REACHED, *(cidr.removesuffix("/32") for cidr in self.hosts)]
        return set(self.guests[guest].run(*command).split())


REACHED = f"""
import selectors, socket, sys, time
tried, answered = selectors.DefaultSelector(), []
for host in sys.argv[1:]:
    for port in ({API}, {SSH}):
        link = socket.socket()
        link.setblocking(False)
        link.connect_ex((host, port))
        tried.register(link, selectors.EVENT_WRITE, f"{{host}}:{{port}}")
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    link.setblocking(False)
    link.connect((host, 5555))
    link.send(b"hello")
    tried.register(link, selectors.EVENT_READ, f"{{host}}/5555")
end = time.monotonic() + 0.5
while tried.get_map() and (left := end - time.monotonic()) > 0:
    for key, _ in tried.select(left):
        tried.unregister(key.fileobj)
        if key.fileobj.type == socket.SOCK_STREAM: works = not key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        else:
            try: works = key.fileobj.recv(99) == b"hello"
            except OSError: works = False
        if works: print(key.data)
"""
OPEN = """
import selectors, socket, sys, time
tried = selectors.DefaultSelector()
for place in sys.argv[1:]:
    link = socket.socket()
    link.setblocking(False)
    link.connect_ex((place.split(":")[0], int(place.split(":")[1])))
    tried.register(link, selectors.EVENT_WRITE, place)
end = time.monotonic() + 1
while tried.get_map() and (left := end - time.monotonic()) > 0:
    for key, _ in tried.select(left):
        tried.unregister(key.fileobj)
        if not key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR): print(key.data)
"""
ALL_OF_SERVER = {f"{host}{port}" for host in (SERVER, SERVER_ELSEWHERE) for port in (f":{API}", f":{SSH}", "/5555")}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab(nodes=2)
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture(scope="module")
def built() -> list[Place]:
    return []


@pytest.fixture
async def place(lab: Lab, built: list[Place]) -> Place:
    """Built by the first test that asks, and shared: tests leave it as they found it."""
    if not built:
        place = Place(lab)
        await place.build()
        built.append(place)
    return built[0]


@contextmanager
def holding(guest: Guest, address: str, port: int) -> Iterator[subprocess.Popen[str]]:
    """A connection of a guest that stays open; each line to it asks whether it still answers."""
    command = ["nsenter", f"--net=/run/netns/{guest.namespace}", *PYTHON, HOLD, address, str(port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


def ask(*processes: subprocess.Popen[str]) -> list[str]:
    """What each says, asked together: one whose connection is closed says so after five seconds."""
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.stdout.readline().strip() for process in processes if process.stdout]


async def test_a_guest_reaches_no_service_of_a_node_or_of_the_server_s_machine(place: Place) -> None:
    await place.refuse([])  # as before anybody has told the nodes of hosts
    try:
        assert place.reached("a") >= ALL_OF_SERVER  # the listeners are there, and the guest's way to them
    finally:
        await place.refuse(place.hosts)
    for guest in ("a", "b", "x"):
        assert place.reached(guest) == set()
        assert place.guests[guest].reaches(SERVER) and place.guests[guest].reaches(place.n2.address)  # ping
        assert place.guests[guest].fetch(OUTSIDE) == "I am outside"
    refused = place.guests["a"].attempt(*fetch_command(SERVER, API), timeout_seconds=3)  # it isn't left waiting
    assert "No route to host" in refused.stderr, refused.stderr


async def test_what_a_network_opens_is_reached_from_it_and_nothing_else(place: Place) -> None:
    api = Allowed("tcp", API, API, (f"{SERVER}/32", f"{SERVER_ELSEWHERE}/32"))
    try:
        await place.open(api)
        for guest in ("a", "b"):
            assert place.reached(guest) == {f"{SERVER}:{API}", f"{SERVER_ELSEWHERE}:{API}"}
        assert place.guests["a"].fetch(SERVER, API) == f"server's {API}"
        assert place.reached("x") == set()  # green has opened nothing
        await place.open(Allowed("udp", 5000, 6000, None), Allowed("tcp", SSH, SSH, (f"{place.n1.address}/32",)))
        on_all = {f"{cidr.removesuffix('/32')}/5555" for cidr in place.hosts}
        for guest in ("a", "b"):  # n1 is the one's own node, and another one for the other
            assert place.reached(guest) == {*on_all, f"{place.n1.address}:{SSH}"}
        await place.open(Allowed("any", 0, 65535, (f"{SERVER}/32",)))
        assert place.reached("a") == {f"{SERVER}:{API}", f"{SERVER}:{SSH}", f"{SERVER}/5555"}
    finally:
        await place.open()
    assert place.reached("a") == place.reached("b") == set()


async def test_what_is_open_stays_open_over_a_new_agent_and_damage_and_comes_back_with_nothing_more(
    place: Place,
) -> None:
    open = [Allowed("tcp", API, API, (f"{SERVER}/32",)), Allowed("tcp", SSH, SSH, (f"{place.n1.address}/32",))]
    reached = {f"{SERVER}:{API}", f"{place.n1.address}:{SSH}"}
    try:
        await place.open(*open)
        before = place.n1.dump()
        place.n1.restart()
        assert await place.n1.heal() == []
        assert place.n1.dump() == before and place.reached("a") == reached
        await place.n1.ensure_refused(["10.20.0.0/24", "10.30.0.0/24"], place.hosts)
        assert place.n1.dump() == before and place.reached("a") == reached
        await place.n1.ensure_segment(place.opened(*open))
        assert place.n1.dump() == before
        place.n1.shell("nft flush ruleset")
        assert "refused destinations" in await place.n1.heal()
        assert await place.n1.heal() == [] and place.reached("a") == reached
    finally:
        await place.open()
    assert await place.n1.heal() == []


async def test_a_network_that_goes_takes_what_it_opened_along(place: Place) -> None:
    red = make_segment(3, "red", {}, cidr="10.40.0.0/24", open=(Allowed("tcp", API, API, None),))
    await place.n1.ensure_segment(red)
    assert red.id in place.n1.shell("nft list ruleset")
    await place.n1.remove_segment(red.id)
    assert await place.n1.heal() == []
    assert red.id not in place.n1.shell("nft list ruleset")


async def test_an_address_that_becomes_the_server_s_is_closed_and_open_connections_to_it_end(place: Place) -> None:
    lab, later, a = place.lab, "198.51.100.7", place.guests["a"]
    lab.shell(f"ip -n {lab.fabric} addr add {later}/32 dev under0")
    lab.start(["nsenter", f"--net=/run/netns/{lab.fabric}", *PYTHON, ANSWER, "7777"])
    try:
        with holding(a, later, 7777) as held:
            assert ask(held) == ["more"]
            await place.refuse([*place.hosts, f"{later}/32"])
            assert ask(held) == ["ended"]
        assert a.attempt(*fetch_command(later, API), timeout_seconds=3).returncode != 0
        await place.refuse(place.hosts)  # the server has left that address: it may be anybody's
        assert a.fetch(later, API) == f"server's {API}"
    finally:
        await place.refuse(place.hosts)
        lab.shell(f"ip -n {lab.fabric} addr del {later}/32 dev under0")


async def test_a_connection_ends_when_what_it_goes_to_is_closed_and_no_other_does(place: Place) -> None:
    for namespace in (place.lab.fabric, place.n2.namespace):
        place.lab.start(["nsenter", f"--net=/run/netns/{namespace}", *PYTHON, ANSWER, "7778"])
    to_server, to_node = (Allowed("tcp", 7778, 7778, (f"{host}/32",)) for host in (SERVER, place.n2.address))
    try:
        await place.open(to_server, to_node)
        with (
            holding(place.guests["a"], SERVER, 7778) as one,
            holding(place.guests["a"], place.n2.address, 7778) as two,
            holding(place.guests["b"], place.n2.address, 7778) as own,  # its own node
        ):
            assert ask(one, two, own) == ["more", "more", "more"]
            await place.open(to_server)
            assert ask(one, two, own) == ["more", "ended", "ended"]
    finally:
        await place.open()


async def test_published_ports_are_reached_at_nodes_and_led_on_though_hosts_are_closed(place: Place) -> None:
    x = place.green.endpoints[0]
    place.guests["x"].serve("I am x")
    try:
        for node in place.lab.nodes:
            await node.ensure_forwards([Forward(8090, "tcp", place.green.id, x.address, 80, x.node_address)])
        for guest in ("a", "b", "x"):
            for node in place.lab.nodes:
                assert place.guests[guest].fetch(node.address, 8090) == "I am x"
        assert place.lab.fetch(place.lab.outside, place.n2.address, 8090) == "I am x"
        published = place.lab.serve(place.lab.fabric, "published by the server", 8090)  # as --publish-on does
        for _ in range(50):
            tried = place.guests["a"].attempt(*fetch_command(SERVER, 8090), timeout_seconds=5)
            if tried.returncode == 0:
                break
        assert tried.stdout == "published by the server"
        published.kill()
    finally:
        for node in place.lab.nodes:
            await node.ensure_forwards([])
    assert place.reached("a") == set()


async def test_names_are_asked_of_no_host_that_isn_t_the_gateway_s_own_name_server(place: Place) -> None:
    for namespace in (place.lab.fabric, place.n1.namespace, place.n2.namespace):
        place.lab.start(["nsenter", f"--net=/run/netns/{namespace}", *PYTHON, ECHO, "53"])
    a = place.guests["a"]
    for host in (SERVER, place.n1.address, place.n2.address):
        assert a.run(*PYTHON, ASK, host, "53") == "silence", host
    assert "10.20.0.12" in a.run("getent", "hosts", "b")


async def test_a_node_finds_its_addresses_of_every_link_but_none_that_no_other_reaches(place: Place) -> None:
    n1 = place.n1
    assert await n1.find_addresses() == [n1.address]
    n1.shell("ip addr add 192.0.2.9/24 dev up0; ip addr add 198.51.100.3/32 dev lo; ip addr add 169.254.7.7/16 dev up0")
    try:
        assert await n1.find_addresses() == [n1.address, "192.0.2.9", "198.51.100.3"]
    finally:
        n1.shell(
            "ip addr del 192.0.2.9/24 dev up0; ip addr del 198.51.100.3/32 dev lo; ip addr del 169.254.7.7/16 dev up0"
        )


def make_group(name: str, ingress: Sequence[AllocatedRule] = (), egress: Sequence[AllocatedRule] = ()) -> Group:
    return Group(AllocatedGroup(name=name, uid=name, ingress=list(ingress), egress=list(egress)))


def tcp(port: int, **peer: str) -> AllocatedRule:
    return AllocatedRule(protocol="tcp", first_port=port, last_port=port, **peer)


class Traced:
    """The place as a trace has it, with the nodes' filters made of the same groups."""

    def __init__(self, place: Place, groups: Mapping[str, Group]) -> None:
        self.place = place
        served = Service("10.20.0.100", ("shop",), (ServicePort("tcp", 80, 81),), (ServiceTarget("10.20.0.12", 1),))
        self.segments = [msgspec.structs.replace(place.blue, services=(served,)), place.green]
        self.ends, self.networks = dict[str, Workload](), dict[str, Network]()
        self._ports = dict[str, Port]()
        for segment in self.segments:
            for end in segment.endpoints:
                mine = (groups[end.name],) if end.name in groups else ()
                nic = AllocatedNic(
                    uid=end.name, network=segment.name, network_uid=segment.name, vni=segment.vni, cidr=segment.cidr, mtu=1450,
                    gateway=segment.gateway, domain=segment.domain, nat=True, mac=end.mac, address=end.address,
                )  # fmt: skip
                node = place.node_of(end.node_address)
                self.ends[end.name] = Workload(
                    *("vm", end.name, "default", end.name, (segment.name,), (nic,), mine, node.host.node, node.address)
                )
                self._ports[end.name] = make_port(segment, end.name)
            members = tuple(
                msgspec.structs.replace(end, groups=(end.name,) if end.name in groups else ())
                for end in segment.endpoints
            )
            addresses = tuple(one.address for one in segment.services)
            self.networks[segment.name] = Network(
                segment.name, f"network/{segment.name}", segment.cidr, True, members, addresses
            )

    async def apply(self) -> None:
        for node in self.place.lab.nodes:
            await node.ensure_segment(self.segments[0])
            x = self.ends["x"]
            await node.ensure_forwards(
                [Forward(8092, "tcp", self.place.green.id, x.nics[0].address, 82, x.node_address)]
            )
            here = [end for end in self.ends.values() if end.node_address == node.address]
            filters = [(end.name, end.filter(end.nics[0], self.networks[end.networks[0]])) for end in here]
            await node.ensure_filters(
                [
                    msgspec.structs.replace(one, port_id=self._ports[name].id, segment_id=self._ports[name].segment_id)
                    for name, one in filters
                    if one is not None
                ]
            )

    def say(
        self, source: Workload | Caller, target: Workload | Balanced | Published | NetworkAddress, port: int
    ) -> str:
        hosts = tuple(self.place.hosts)
        refused = RefusedDestinations(("10.20.0.0/24", "10.30.0.0/24"), hosts, frozenset({("tcp", 8092)}))
        facts = ReachabilityFacts(source, target, self.networks, refused, Opened({}, ()), "tcp", port)
        return trace(facts).verdict

    def open(self, source: str, places: Sequence[str]) -> set[str]:
        """Those of the places that answer one of the guests, or the machine outside."""
        if source in self.place.guests:
            return set(self.place.guests[source].run(*PYTHON, OPEN, *places).split())
        command = ["nsenter", f"--net=/run/netns/{self.place.lab.outside}", *PYTHON, OPEN, *places]
        return set(subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split())


async def test_a_trace_says_what_packets_do(place: Place) -> None:
    for guest, port in (("b", 81), ("a", 83), ("x", 82)):
        place.guests[guest].serve(guest, port)
    web, uplinks, other_node = tcp(81), tcp(82, cidr="169.254.64.0/18"), tcp(82, cidr=f"{place.n2.address}/32")
    rounds = (
        {
            "b": make_group("b", [tcp(81, group_uid="a")]),
            "x": make_group("x", [tcp(82, cidr=f"{OUTSIDE}/32"), uplinks]),
        },
        {
            "a": make_group("a", [tcp(83, cidr="10.20.0.12/32")], [web]),
            "b": make_group("b", [tcp(81, group_uid="a")], [tcp(83), tcp(8092)]),
            "x": make_group("x", [other_node]),
        },
    )
    entry = f"{place.n1.address}:8092"
    asked = {
        "a": ("10.20.0.12:81", "10.20.0.100:80", "10.30.0.11:82", f"{OUTSIDE}:80", f"{SERVER}:{API}", entry),
        "b": ("10.20.0.11:83", f"{OUTSIDE}:80", entry),
        "outside": (entry,),
    }
    try:
        for number, groups in enumerate(rounds):
            traced = Traced(place, groups)
            await traced.apply()
            ends = traced.ends
            shop = Balanced(
                *(
                    "shop",
                    traced.networks["blue"],
                    "10.20.0.100",
                    {("tcp", 80): 81},
                    (Backend(ends["b"], "10.20.0.12"),),
                )
            )
            known: dict[str, Workload | Balanced | Published | NetworkAddress] = {
                "10.20.0.11:83": ends["a"],
                "10.20.0.12:81": ends["b"],
                "10.20.0.100:80": shop,
                "10.30.0.11:82": ends["x"],
                entry: Published("port", 8092, "tcp", 82, ends["x"]),
            }
            said, seen = dict[str, list[str]](), dict[str, list[str]]()
            with ThreadPoolExecutor() as pool:
                reached = dict(zip(asked, pool.map(traced.open, asked, asked.values()), strict=True))
            for who, places in asked.items():
                source = ends.get(who, Caller(OUTSIDE))
                for there in places:
                    host, _, port = there.partition(":")
                    verdict = traced.say(source, known.get(there, NetworkAddress(host)), int(port))
                    said.setdefault(who, []).extend([there] if verdict == "allowed" else [])
                    seen.setdefault(who, []).extend([there] if there in reached[who] else [])
            assert said == seen
            assert said == (
                {"a": [f"{OUTSIDE}:80", entry], "b": [], "outside": [entry]}
                if number == 0
                else {"a": ["10.20.0.12:81", "10.20.0.100:80"], "b": ["10.20.0.11:83", entry], "outside": []}
            )
    finally:
        for node in place.lab.nodes:
            await node.ensure_filters([])
            await node.ensure_forwards([])
        await place.open()
