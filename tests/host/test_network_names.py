"""A network's name server while guests come and go: the lookups of all others are answered."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from network_lab import Lab, make_port, make_segment

from weft.drivers.network.bridge.names import GATEWAY_MAC

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces"),
]

GATEWAY = "10.20.0.1"

# Asks for "a" every 2 ms until its input ends; then says how often it asked, and each failure.
LOOK_UP = """
import select, socket, struct, sys
asked, failed = 0, []
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.002)[0]:
    asked += 1
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wire.settimeout(10)
    try:
        wire.connect((sys.argv[1], 53))
        wire.send(struct.pack("!6H", asked & 0xFFFF, 0x100, 1, 0, 0, 0) + b"\\1a\\0" + struct.pack("!2H", 1, 1))
        answer = wire.recv(512)
        if answer[-4:] != socket.inet_aton(sys.argv[2]): failed.append(answer.hex())
    except OSError as problem:
        failed.append(repr(problem))
    wire.close()
print(asked, len(failed), *failed[:3], flush=True)
"""

# Asks for a lease as a client whose hardware isn't Ethernet.
ASK = """
import socket, struct, sys
mac, address, gateway = bytes.fromhex(sys.argv[1].replace(":", "")), *map(socket.inet_aton, sys.argv[2:])
wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
wire.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
wire.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
wire.bind(("0.0.0.0", 68))
wire.settimeout(10)
head = struct.pack("!4BIHH16x16s192x", 1, 6, 6, 0, 77, 0, 0x8000, mac)
options = bytes([53, 1, 3, 50, 4]) + address + bytes([54, 4]) + gateway + bytes([255])
wire.sendto(head + b"\\x63\\x82\\x53\\x63" + options, ("255.255.255.255", 67))
wire.recv(1500)
"""


# Gives back the lease of another guest, and says that its address is taken: whole, and in fragments of which the first doesn't
# reach the client's MAC.
SPEAK_FOR = """
import socket, struct, sys
own, other, gateway_mac = (bytes.fromhex(one.replace(":", "")) for one in sys.argv[1:4])
mine, theirs, gateway = map(socket.inet_aton, sys.argv[4:])
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("eth0", 0))

def send(payload, source, flags):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 7, flags, 64, 17, 0, source, gateway)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    wire.send(gateway_mac + own + b"\\x08\\0" + head[:10] + struct.pack("!H", 0xFFFF ^ total) + head[12:] + payload)

for client, address, kind in ((own, mine, 8), (other, theirs, 7), (other, theirs, 4)):
    asked = bytes([50, 4]) + theirs if kind == 4 else b""
    options = bytes([53, 1, kind, 54, 4]) + gateway + asked + bytes([255])
    body = struct.pack("!4BI4x4s12x16s192x", 1, 1, 6, 0, 7, address, client) + b"\\x63\\x82\\x53\\x63" + options
    for source in (mine, bytes(4)):
        send(struct.pack("!4H", 68, 67, 8 + len(body), 0) + body, source, 0)
        send(struct.pack("!4H", 68, 67, 8 + len(body), 0), source, 0x2000)
        send(body, source, 1)
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab(nodes=1)
    try:
        yield lab
    finally:
        lab.close()


async def test_lookups_never_fail_while_guests_leave_and_others_get_their_addresses(lab: Lab) -> None:
    [node] = lab.nodes
    segment = make_segment(1, "blue", dict.fromkeys("abcd", node))
    await node.ensure_filters([])
    await node.ensure_segment(segment)
    ports = {name: make_port(segment, name) for name in "abcd"}
    guests = {name: node.plug_guest(name, port) for name, port in ports.items()}
    for guest in guests.values():
        guest.lease()
    folder = Path(node.host.run_dir) / "network" / segment.id
    server = (folder / "dnsmasq.pid").read_text()
    asking = subprocess.Popen(
        [
            "nsenter",
            f"--net=/run/netns/{guests['a'].namespace}",
            sys.executable,
            "-S",
            "-E",
            "-c",
            LOOK_UP,
            GATEWAY,
            ports["a"].address,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert asking.stdout and asking.stdout.readline() == "ready\n"
        for turn, name in enumerate("bcd"):
            gone, heir = ports[name], f"new-{name}"
            await node.unplug(gone.id)
            endpoints = [
                msgspec.structs.replace(e, name=heir, mac=f"52:54:00:00:bb:0{turn}") if e.name == name else e
                for e in segment.endpoints
            ]
            segment = msgspec.structs.replace(segment, endpoints=endpoints)
            await node.ensure_segment(segment)
            assert gone.mac not in (folder / "leases").read_text()
            port = msgspec.structs.replace(gone, id=f"heir{turn}", mac=f"52:54:00:00:bb:0{turn}", hostname=heir)
            guest = node.plug_guest(heir, port)
            guest.lease()
            assert f"{gone.address}/24" in guest.run("ip", "addr", "show", "eth0")
            assert guests["a"].run("getent", "hosts", heir).split()[0] == gone.address
            assert guests["a"].attempt("getent", "hosts", name).returncode != 0
            assert heir in guests["a"].run("getent", "hosts", gone.address)
        said, _ = asking.communicate("", timeout=60)
    finally:
        asking.kill()
        asking.wait()
    asked, failed, *which = said.split(maxsplit=2)
    assert int(asked) > 20
    assert (failed, which) == ("0", [])
    assert (folder / "dnsmasq.pid").read_text() == server  # it was never started afresh


async def test_a_lease_that_nobody_can_free_costs_a_fresh_start_and_not_the_address(lab: Lab) -> None:
    [node] = lab.nodes
    segment = make_segment(1, "blue", {"a": node, "b": node})
    await node.ensure_filters([])
    await node.ensure_segment(segment)
    port = make_port(segment, "b")
    node.plug_guest("b", port).lease()
    folder = Path(node.host.run_dir) / "network" / segment.id
    server = (folder / "dnsmasq.pid").read_text()
    (folder / "leases").write_text("what no server has written\n")  # as after a full disk
    await node.unplug(port.id)
    assert (folder / "dnsmasq.pid").read_text() != server
    heir = node.plug_guest("heir", msgspec.structs.replace(port, id="heir", mac="52:54:00:00:bb:01"))
    heir.lease()
    assert f"{port.address}/24" in heir.run("ip", "addr", "show", "eth0")


async def test_a_guest_that_calls_its_hardware_something_else_does_not_stop_the_name_server(lab: Lab) -> None:
    [node] = lab.nodes
    segment = make_segment(1, "blue", {"a": node, "b": node})
    await node.ensure_filters([])
    await node.ensure_segment(segment)
    port = make_port(segment, "a")
    guest = node.plug_guest("a", port)
    guest.lease()
    folder = Path(node.host.run_dir) / "network" / segment.id
    server = (folder / "dnsmasq.pid").read_text()
    guest.run(sys.executable, "-S", "-E", "-c", ASK, port.mac, port.address, GATEWAY)
    assert f"06-{port.mac}" in (folder / "leases").read_text()
    renamed = [msgspec.structs.replace(e, name="c") if e.name == "b" else e for e in segment.endpoints]
    await node.ensure_segment(msgspec.structs.replace(segment, endpoints=renamed))
    assert port.mac not in (folder / "leases").read_text()
    assert (folder / "dnsmasq.pid").read_text() == server
    guest.lease()


async def test_a_guest_gives_back_and_refuses_no_address_but_its_own(lab: Lab) -> None:
    [node] = lab.nodes
    segment = make_segment(1, "blue", {"a": node, "b": node})
    await node.ensure_filters([])
    await node.ensure_segment(segment)
    a, b = make_port(segment, "a"), make_port(segment, "b")
    guests = [node.plug_guest(port.hostname, port) for port in (a, b)]
    for guest in guests:
        guest.lease()
    folder = Path(node.host.run_dir) / "network" / segment.id
    guests[0].run(sys.executable, "-S", "-E", "-c", SPEAK_FOR, a.mac, b.mac, GATEWAY_MAC, a.address, b.address, GATEWAY)
    guests[0].lease()  # by then the server has read what came before
    assert b.mac in (folder / "leases").read_text()
    assert "DHCPDECLINE" not in (folder / "dnsmasq.log").read_text()
    guests[1].lease()
