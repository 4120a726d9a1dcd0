"""The CoAP driver against devices of aiocoap, killed in the middle, and against one that lies."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from tests.conformance.device_contract import ONE, OTHER, DeviceDriverContract, RecordingListener, until, until_works

from weft.contracts.clock import SystemClock
from weft.contracts.device import AnnouncedDevice, Thing, Value
from weft.drivers.device.coap.driver import CoapDriver
from weft.objects.errors import InvalidInput, Unavailable

clock = SystemClock()
HREFS = {"t": "/v/t", "fan": "/v/fan", "door": "/v/door"}


def find_ports(count: int) -> list[int]:
    probes = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def make_thing(thing: Thing, port: int, seconds: float = 0.05, **hrefs: str) -> Thing:
    return Thing(thing.uid, thing.project, thing.name, f"127.0.0.1:{port}", {**HREFS, **hrefs}, seconds)


class CoapPeer:
    announces = False

    def __init__(self) -> None:
        self.ports = find_ports(2)
        self.one, self.other = (make_thing(thing, port) for thing, port in zip((ONE, OTHER), self.ports, strict=True))
        self.driver = CoapDriver(clock, local=True, answer_seconds=2.0)
        self.process: asyncio.subprocess.Process | None = None

    async def mend(self) -> None:
        words = (sys.executable, "-m", "tests.host.coap_server", *map(str, self.ports))
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe)
        assert self.process.stdout is not None
        assert await self.process.stdout.readline() == b"listens\n"

    async def cut(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def say(self, thing: Thing, values: Mapping[str, Value]) -> None:
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        given = {"device": 0 if thing.uid == ONE.uid else 1, "values": dict(values)}
        self.process.stdin.write(json.dumps(given).encode() + b"\n")
        assert await self.process.stdout.readline() == b"done\n"

    async def announce(self, found: AnnouncedDevice) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        await self.driver.close()
        if self.process is not None and self.process.returncode is None:
            await self.cut()


@pytest.fixture
async def peer() -> AsyncIterator[CoapPeer]:
    peer = CoapPeer()
    await peer.mend()
    try:
        yield peer
    finally:
        await peer.close()


class TestCoapDriver(DeviceDriverContract):
    pass


async def test_a_change_is_heard_when_it_happens_long_before_the_device_is_asked_again(peer: CoapPeer) -> None:
    heard = RecordingListener()
    await peer.say(peer.one, {"t": 1.0})
    await peer.driver.connect(make_thing(ONE, peer.ports[0], 3600.0))
    peer.driver.observe(heard)
    await until(lambda: heard.values == [(ONE.uid, {"t": 1.0})])
    for value in (2.0, 3.5):
        await peer.say(peer.one, {"t": value})
        await until(lambda: heard.values[-1] == (ONE.uid, {"t": value}))  # noqa: B023


async def test_a_device_that_changes_without_a_word_is_heard_when_it_is_asked(peer: CoapPeer) -> None:
    heard = RecordingListener()
    await peer.say(peer.one, {"quiet": 1})
    await peer.driver.connect(make_thing(ONE, peer.ports[0], quiet="/v/quiet"))
    peer.driver.observe(heard)
    for value in (1, 2, 3):
        await peer.say(peer.one, {"quiet": value})
        await until(lambda: heard.values != [] and heard.values[-1] == (ONE.uid, {"quiet": value}))  # noqa: B023


async def test_devices_at_the_hosts_of_the_settings_are_found_by_what_they_list(peer: CoapPeer) -> None:
    hosts = [*(f"127.0.0.1:{port}" for port in peer.ports), "127.0.0.1:1", "no host"]
    driver = CoapDriver(clock, hosts, local=True, answer_seconds=2.0, discover_seconds=0.1)
    try:
        driver.observe(RecordingListener())
        async with asyncio.timeout(60):
            while len(await driver.discover()) < 2:
                await asyncio.sleep(0.02)
        found = await driver.discover()
        assert [one.address for one in found] == hosts[:2]
        assert found[0].facts["resources"].split() == ["/v/t", "/v/fan", "/v/door", "/v/quiet"]
        assert found[0].facts["observable"].split()[0] == "/v/t"
    finally:
        await driver.close()


async def test_values_that_are_none_or_too_long_are_refused_and_the_rest_is_heard(peer: CoapPeer) -> None:
    heard = RecordingListener()
    await peer.driver.connect(peer.one)
    peer.driver.observe(heard)
    await peer.say(peer.one, {"t": "raw:\xff\xfe", "door": "x" * 2000, "fan": True})
    await until(lambda: {(ONE.uid, "payload"), (ONE.uid, "size")} <= set(heard.refused))
    await until(lambda: heard.values == [(ONE.uid, {"fan": True})])
    with pytest.raises(InvalidInput, match="no href"):
        await peer.driver.write(ONE.uid, "c", {"other": True}, 30.0)


async def test_the_gateways_machine_is_not_reached_unless_the_settings_allow_it(peer: CoapPeer) -> None:
    driver, heard = CoapDriver(clock, [f"localhost:{peer.ports[0]}"], discover_seconds=0.1), RecordingListener()
    try:
        await driver.connect(make_thing(ONE, peer.ports[0]))
        driver.observe(heard)
        await until(lambda: "refused" in heard.reach.get(ONE.uid, ""))
        with pytest.raises(Unavailable, match="refused"):
            await driver.write(ONE.uid, "c", {"fan": True}, 30.0)
        assert await driver.discover() == []
    finally:
        await driver.close()


class Liar(asyncio.DatagramProtocol):
    """Answers each datagram with what ``lie`` makes of it."""

    def __init__(self) -> None:
        self.lie = "noise"
        self.asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked += 1
        token = data[4 : 4 + (data[0] & 15)]
        head = bytes([0x60 | len(token), 0x45]) + data[2:4]
        answers = {
            "noise": b"\xff" * 60_000,
            "another token": head + b"\0" * len(token) + b"\xff1",
            "options without an end": head + token + b"\xdd\xff\xff",
            "a reset": b"\x70\x00" + data[2:4],
            "a failure": bytes([head[0], 0xA0]) + head[2:] + token,
            "honest": head + token + b"\xff4.5",
        }
        self.transport.sendto(answers[self.lie], addr)


async def test_a_device_that_lies_is_not_believed_and_believed_again_when_it_is_honest() -> None:
    [port] = find_ports(1)
    transport, liar = await asyncio.get_running_loop().create_datagram_endpoint(Liar, local_addr=("127.0.0.1", port))
    driver, heard = CoapDriver(clock, local=True, answer_seconds=0.5), RecordingListener()
    try:
        await driver.connect(Thing(ONE.uid, "default", "a", f"127.0.0.1:{port}", {"t": "/t"}, 0.05))
        driver.observe(heard)
        for lie in ("noise", "another token", "options without an end", "a reset", "a failure"):
            liar.lie = lie
            await until(lambda: heard.reach.get(ONE.uid, "") != "")
            liar.lie = "honest"
            await until_works(driver)
        assert heard.values == [(ONE.uid, {"t": 4.5})]
    finally:
        await driver.close()
        transport.close()


class Flooder(asyncio.DatagramProtocol):
    """Answers, and sends ``rest`` with it."""

    def __init__(self, rest: list[bytes]) -> None:
        self.rest, self.asked, self.reset = rest, 0, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if data[0] >> 4 == 7:
            self.reset += 1  # that nobody serves this
            return
        self.asked += 1
        token = data[4 : 4 + (data[0] & 15)]
        for one in self.rest:
            self.transport.sendto(one, addr)
        self.transport.sendto(bytes([0x60 | len(token), 0x45]) + data[2:4] + token + b"\xff4.5", addr)


async def test_requests_and_noise_of_a_device_are_kept_nowhere_and_fill_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    [port] = find_ports(1)
    requests = [bytes([0x44, code, number, 7]) + b"abcd\xb1x" for code in (1, 3) for number in range(10)]
    noise = [b"", b"\x40", b"\x44\x45\x00\x01abcd\xb1\xff\xff1", b"\x40\xe1\x00\x01", b"\xff" * 1000]
    transport, flooder = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Flooder(requests + noise), local_addr=("127.0.0.1", port)
    )
    driver, heard = CoapDriver(clock, local=True, answer_seconds=2.0), RecordingListener()
    try:
        await driver.connect(Thing(ONE.uid, "default", "a", f"127.0.0.1:{port}", {"t": "/t"}, 0.05))
        driver.observe(heard)
        await until(lambda: flooder.asked >= 5)
        await until_works(driver)
        manager = driver._context.request_interfaces[0].token_interface
        assert len(manager._recent_messages) == 0 and flooder.reset == 0
        assert heard.values == [(ONE.uid, {"t": 4.5})] and caplog.messages == []
    finally:
        await driver.close()
        transport.close()


class Late(asyncio.DatagramProtocol):
    """A device that answers after a while, and is observed; a ``payload`` that is refused is one that nobody listens to."""

    def __init__(self, payload: bytes, seconds: float) -> None:
        self.payload, self.seconds, self.asked = payload, seconds, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if data[1] == 0:
            return  # what it says is acknowledged
        self.asked += 1
        token = data[4 : 4 + (data[0] & 15)]
        answer = bytes([0x60 | len(token), 0x45]) + data[2:4] + token + b"\x61\x05\x61\x32\xff" + self.payload
        asyncio.get_running_loop().call_later(self.seconds, self.transport.sendto, answer, addr)


async def test_a_hundred_devices_are_asked_at_once_and_each_is_heard() -> None:
    loop, ports, transports = asyncio.get_running_loop(), find_ports(100), []
    for port in ports:
        transport, _ = await loop.create_datagram_endpoint(lambda: Late(b"4.5", 1.0), local_addr=("127.0.0.1", port))
        transports.append(transport)
    driver, heard, problems = CoapDriver(clock, local=True, answer_seconds=20.0), RecordingListener(), set[str]()
    note_reach = heard.note_reach

    def note(uid: str, problem: str) -> None:
        problems.add(problem)
        note_reach(uid, problem)

    heard.note_reach = note  # type: ignore[method-assign]
    try:
        driver.observe(heard)
        for at, port in enumerate(ports):
            await driver.connect(Thing(f"u{at}", "default", f"d{at}", f"127.0.0.1:{port}", {"t": "/t"}, 3600.0))
            await asyncio.sleep(0.005)
        await until(lambda: len(heard.reach) == len(ports))
        assert problems == {""}
    finally:
        await driver.close()
        for transport in transports:
            transport.close()


async def test_observations_of_what_is_refused_do_not_pile_up() -> None:
    [port] = find_ports(1)
    loop = asyncio.get_running_loop()
    transport, device = await loop.create_datagram_endpoint(lambda: Late(b"{", 0.0), local_addr=("127.0.0.1", port))
    driver = CoapDriver(clock, local=True)
    try:
        hrefs = {f"p{at}": f"/{at}" for at in range(10)}
        await driver.connect(Thing(ONE.uid, "default", "a", f"127.0.0.1:{port}", hrefs, 0.05))
        driver.observe(RecordingListener())
        await until(lambda: device.asked > 100)
        assert sum(len(one.outgoing_requests) for one in driver._context.request_interfaces) <= 2
    finally:
        await driver.close()
        transport.close()
