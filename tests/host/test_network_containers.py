"""Containers' NICs beside guests' on two nodes made of namespaces: one network, names, rules and ways out for both."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator

import msgspec
import pytest
from network_lab import OUTSIDE, Lab, Node, fetch_command, make_port, make_segment

from weft.contracts.driver.network import Allowed, Filter, Forward, Inside, Port, Segment
from weft.objects.errors import DriverFailed, InvalidInput

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces"),
]

SPOOF = """
import socket, sys
mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mouth.bind((sys.argv[1], 0))
mouth.sendto(b"not me", (sys.argv[2], 9))
"""
# Runs a command with all rights over a network namespace that its own users have, and none over the node.
AS_ITS_ROOT = """
import ctypes, fcntl, os, sys
network = os.open(sys.argv[1], os.O_RDONLY)
users, node, (mapped, tell) = fcntl.ioctl(network, 0xB701), os.getpid(), os.pipe()
if child := os.fork():
    os.read(mapped, 1)
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{child}/{name}", "r+") as file:
            if not file.read(): file.write("0 2013265920 65536")
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
libc = ctypes.CDLL(None)
assert libc.setns(users, 0x10000000) == 0
os.write(tell, b"x")
while not open("/proc/self/gid_map").read(): pass
os.setresuid(0, 0, 0)
assert libc.setns(network, 0x40000000) == 0
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Container:
    """A namespace that the driver made, as a runtime finds it: by the path it was told."""

    def __init__(self, lab: Lab, node: Node, path: str) -> None:
        self.lab, self.node, self.path = lab, node, path

    def run(self, *command: str, check: bool = True) -> str:
        entered = ["timeout", "10", "nsenter", f"--net={self.path}", *map(str, command)]
        return self.node.shell(shlex.join(entered), check=check)

    def rule(self, *command: str) -> str:
        """What it can do that was given all rights over its network."""
        entered = [sys.executable, "-S", "-E", "-c", AS_ITS_ROOT, self.path, *map(str, command)]
        return self.node.shell(shlex.join(["timeout", "10", *entered]))

    def fetch(self, address: str, port: int = 80) -> str:
        return self.run(*fetch_command(address, port))

    def look_up(self, name: str, server: str) -> str:
        return self.run("busybox", "nslookup", name, server, check=False)

    def serve(self, text: str) -> None:
        folder = self.lab.folder / f"{os.path.basename(self.path)}.www"
        self.node.shell(f"mkdir -p {folder}; printf %s {shlex.quote(text)} > {folder}/index.html")
        self.node.shell(f"nsenter --net={self.path} busybox httpd -p 80 -h {folder} >/dev/null 2>&1")


def inside(segment: Segment, name: str, device: str = "eth0", main: bool = True) -> Port:
    port = make_port(segment, name)
    return msgspec.structs.replace(port, inside=Inside(f"box{name:0>7}", device, own_users=True), main=main)


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab(nodes=2)
    try:
        yield lab
    finally:
        lab.close()


async def test_containers_share_a_network_with_guests(lab: Lab) -> None:
    n1, n2 = lab.nodes
    blue = make_segment(1, "blue", {"a": n1, "b": n1, "c": n2})
    side = make_segment(2, "side", {"b": n1, "d": n2}, cidr="10.30.0.0/24")
    for node in (n1, n2):
        await node.ensure_segment(blue)
        await node.ensure_segment(side)
    lab.serve(lab.outside, "I am outside")
    guest = n1.plug_guest("a", make_port(blue, "a"))
    guest.lease()
    guest.serve("I am a")
    path = await n1.plug(inside(blue, "b"))
    assert path == await n1.plug(inside(side, "b", "eth1", main=False))
    b = Container(lab, n1, path)
    c = Container(lab, n2, await n2.plug(inside(blue, "c")))
    d = Container(lab, n2, await n2.plug(inside(side, "d")))
    for container, text in ((b, "I am b"), (c, "I am c"), (d, "I am d")):
        container.serve(text)

    shown = b.run("ip", "addr")
    assert "inet 10.20.0.12/24" in shown and "inet 10.30.0.11/24" in shown and "mtu 1450" in shown
    assert b.run("ip", "route").count("default") == 1
    assert b.fetch("10.20.0.11") == "I am a"
    assert b.fetch("10.20.0.13") == "I am c"  # through the overlay
    assert b.fetch("10.30.0.12") == "I am d"
    assert b.fetch("127.0.0.1") == "I am b"
    assert guest.fetch("b") == "I am b"
    assert guest.fetch("c.blue.weft") == "I am c"
    assert "10.20.0.11" in c.look_up("a.blue.weft", "10.20.0.1")
    assert c.fetch(OUTSIDE) == "I am outside"

    await n1.ensure_forwards([Forward(8080, "tcp", blue.id, "10.20.0.13", 80, n2.address)])
    await n2.ensure_forwards([Forward(8080, "tcp", blue.id, "10.20.0.13", 80, n2.address)])
    assert lab.fetch(lab.outside, n1.address, 8080) == "I am c"

    assert await n1.heal() == [] and await n2.heal() == []
    before = n1.dump()
    n1.restart()
    await n1.ensure_segment(blue)
    await n1.ensure_segment(side)
    assert await n1.plug(inside(blue, "b")) == path  # where a container runs on while its agent is made anew
    assert n1.dump() == before
    assert b.fetch("10.20.0.13") == "I am c"


async def test_a_container_speaks_as_itself_and_obeys_its_groups(lab: Lab) -> None:
    n1, _ = lab.nodes
    blue = make_segment(1, "blue", {"b": n1, "c": n1, "d": n1})
    await n1.ensure_segment(blue)
    ports = {name: inside(blue, name) for name in ("b", "c", "d")}
    b, c, d = [Container(lab, n1, await n1.plug(port)) for port in ports.values()]
    for container, text in ((b, "I am b"), (c, "I am c")):
        container.serve(text)
    assert d.fetch("10.20.0.11") == "I am b"

    sent = ["nsenter", f"--net={d.path}", sys.executable, "-S", "-E", "-c", SPOOF]
    drops = "awk '/^Udp: [0-9]/{print $3}' /proc/net/snmp"  # datagrams that came for nobody
    told = ["nsenter", f"--net={b.path}", "sh", "-c", drops]
    before = int(n1.shell(shlex.join(told)))
    n1.shell(shlex.join([*sent, "10.20.0.13", "10.20.0.11"]))
    assert int(n1.shell(shlex.join(told))) == before + 1  # as itself
    d.run("ip", "addr", "add", "10.20.0.99/32", "dev", "eth0")
    n1.shell(shlex.join([*sent, "10.20.0.99", "10.20.0.11"]))
    assert int(n1.shell(shlex.join(told))) == before + 1  # as another: it never arrives

    only_c = Allowed("tcp", 80, 80, ("10.20.0.12/32",))
    anywhere = Allowed("any", 0, 65535, None)
    await n1.ensure_filters([Filter(ports["b"].id, blue.id, "10.20.0.11", "10.20.0.1", (only_c,), (anywhere,))])
    assert c.fetch("10.20.0.11") == "I am b"
    assert b.fetch("10.20.0.12") == "I am c"
    assert "I am b" not in d.run(*fetch_command("10.20.0.11"), check=False)


async def test_rights_over_its_network_make_a_container_no_other(lab: Lab) -> None:
    """Its end of the wire is its own to change; what comes out of the node's end is held to what the node knows of it."""
    n1, _ = lab.nodes
    blue = make_segment(1, "blue", {"b": n1, "c": n1, "d": n1})
    await n1.ensure_segment(blue)
    ports = {name: inside(blue, name) for name in ("b", "c", "d")}
    b, c, d = [Container(lab, n1, await n1.plug(port)) for port in ports.values()]
    b.serve("I am b")
    c.serve("I am c")
    others = {name: next(e for e in blue.endpoints if e.name == name) for name in ("b", "c")}

    def reaches(address: str) -> bool:
        return "1 packets received" in d.run("busybox", "ping", "-c", "1", "-W", "1", address, check=False)

    d.rule("ip", "addr", "add", "10.20.0.99/24", "dev", "eth0")
    assert reaches("10.20.0.11")
    d.rule("ip", "addr", "del", "10.20.0.13/24", "dev", "eth0")  # what is left is an address that nobody has
    assert not reaches("10.20.0.11")
    d.rule("ip", "addr", "add", f"{others['c'].address}/24", "dev", "eth0")  # a neighbour's, and then its MAC too
    assert not reaches("10.20.0.11")
    d.rule("ip", "link", "set", "eth0", "address", others["c"].mac)
    assert not reaches("10.20.0.11")
    assert c.fetch("10.20.0.11") == "I am b" and b.fetch("10.20.0.12") == "I am c"

    d.rule("ip", "link", "del", "eth0")  # and with it the node's end
    d.rule("ip", "link", "add", "eth0", "type", "bridge")
    n1.restart()
    await n1.ensure_segment(blue)
    await n1.heal()
    assert b.fetch("10.20.0.12") == "I am c"
    with pytest.raises(DriverFailed):  # the name is taken: nobody's trouble but its own
        await n1.plug(ports["d"])
    d.rule("ip", "link", "del", "eth0")
    await n1.plug(ports["d"])
    assert d.fetch("10.20.0.11") == "I am b"


async def test_a_namespace_goes_with_its_last_port(lab: Lab) -> None:
    n1, _ = lab.nodes
    blue = make_segment(1, "blue", {"b": n1, "c": n1})
    side = make_segment(2, "side", {"b": n1}, cidr="10.30.0.0/24")
    await n1.ensure_segment(blue)
    await n1.ensure_segment(side)
    empty = n1.shell("ls /run/netns").split()
    first, second, other = inside(blue, "b"), inside(side, "b", "eth1", main=False), inside(blue, "c")
    path = await n1.plug(first)
    await n1.plug(second)
    await n1.plug(other)
    await n1.unplug(first.id)
    assert "eth0" not in n1.shell(f"nsenter --net={path} ip link") and os.path.basename(path) in n1.shell(
        "ls /run/netns"
    )
    await n1.unplug(second.id)
    await n1.unplug(second.id)
    assert os.path.basename(path) not in n1.shell("ls /run/netns")
    assert (await n1.state()).ports == [other.id]
    n1.shell(
        f"ip netns del {os.path.basename(await n1.plug(other))}"
    )  # behind the driver's back: its link goes with it
    again = await n1.plug(other)
    assert "10.20.0.12" in n1.shell(f"nsenter --net={again} ip addr")
    await n1.unplug(other.id)
    assert n1.shell("ls /run/netns").split() == empty
    with pytest.raises(InvalidInput, match=r"inside\.device"):
        await n1.plug(inside(blue, "b", "eth0; reboot"))
