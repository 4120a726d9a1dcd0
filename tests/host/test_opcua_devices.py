"""The OPC UA driver against asyncua's own server, killed in the middle; and in the process of its own that the gateway gives it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping

import pytest
from tests.conformance.device_contract import ONE, OTHER, DeviceDriverContract, RecordingListener, until, until_works

from weft.contracts.clock import SystemClock
from weft.contracts.device import AnnouncedDevice, Thing, Value
from weft.drivers.device.opcua.driver import OpcuaDriver
from weft.drivers.device.process.driver import ProcessDriver
from weft.launch.edge.drivers import make_command
from weft.objects.errors import InvalidInput, Unavailable

clock = SystemClock()
NAMES = ("t", "fan", "door", "level")
DEVICES = {ONE.uid: "one", OTHER.uid: "other"}


class OpcuaServer:
    """One for all tests: it takes two seconds to start."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        words = [sys.executable, "-m", "tests.host.opcua_server", str(self.port)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"listens\n"

    def put(self, values: Mapping[str, Value | None]) -> None:
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(values).encode() + b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"done\n"

    def kill(self) -> None:
        if self.process is not None:
            with self.process:
                self.process.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[OpcuaServer]:
    server = OpcuaServer()
    try:
        yield server
    finally:
        server.kill()


def make_thing(thing: Thing, port: int, seconds: float = 0.05) -> Thing:
    hrefs = {name: f"ns=2;s={DEVICES[thing.uid]}.{name}" for name in NAMES}
    return Thing(thing.uid, thing.project, thing.name, f"127.0.0.1:{port}/weft", hrefs, seconds)


class OpcuaPeer:
    announces = False

    def __init__(self, server: OpcuaServer) -> None:
        self.server = server
        self.one, self.other = make_thing(ONE, server.port), make_thing(OTHER, server.port)
        self.driver = OpcuaDriver(clock, local=True)

    async def say(self, thing: Thing, values: Mapping[str, Value]) -> None:
        given = {f"{DEVICES[thing.uid]}.{name}": value for name, value in values.items()}
        await asyncio.to_thread(self.server.put, given)

    async def announce(self, found: AnnouncedDevice) -> None:
        raise NotImplementedError

    async def cut(self) -> None:
        await asyncio.to_thread(self.server.kill)

    async def mend(self) -> None:
        await asyncio.to_thread(self.server.start)


@pytest.fixture
async def peer(server: OpcuaServer) -> AsyncIterator[OpcuaPeer]:
    server.start()
    server.put({f"{device}.{name}": None for device in DEVICES.values() for name in NAMES})
    peer = OpcuaPeer(server)
    try:
        yield peer
    finally:
        await peer.driver.close()


class TestOpcuaDriver(DeviceDriverContract):
    pass


async def test_a_change_is_heard_when_it_happens_long_before_the_server_is_asked_again(peer: OpcuaPeer) -> None:
    heard = RecordingListener()
    await peer.say(peer.one, {"t": 1.0})
    await peer.driver.connect(make_thing(ONE, peer.server.port, 3600.0))
    peer.driver.observe(heard)
    await until(lambda: heard.values == [(ONE.uid, {"t": 1.0})])
    await peer.say(peer.one, {"t": 2.5})
    await until(lambda: heard.values[-1] == (ONE.uid, {"t": 2.5}))


async def test_a_value_is_written_as_the_node_has_it_or_refused_before_it_is_sent(peer: OpcuaPeer) -> None:
    await peer.driver.connect(peer.one)
    await peer.driver.write(ONE.uid, "c", {"level": 7.0}, 30.0)
    assert await peer.driver.read(ONE.uid, ["level"]) == {"level": 7}
    for name, value in (("level", 40_000), ("level", True), ("fan", 1), ("t", "warm"), ("other", 1)):
        with pytest.raises(InvalidInput, match=name):
            await peer.driver.write(ONE.uid, "c", {name: value}, 30.0)


async def test_a_server_of_the_settings_is_found_by_what_it_says_and_its_variables(
    server: OpcuaServer, peer: OpcuaPeer
) -> None:
    driver = OpcuaDriver(clock, [f"127.0.0.1:{server.port}/weft"], local=True, discover_seconds=0.1)
    try:
        driver.observe(RecordingListener())
        async with asyncio.timeout(60):
            while not await driver.discover():
                await asyncio.sleep(0.02)
        [found] = await driver.discover()
        assert found.address == f"127.0.0.1:{server.port}/weft"
        assert "ns=2;s=one.t" in found.facts["variables"]
    finally:
        await driver.close()


async def test_the_gateways_machine_is_not_reached_unless_the_settings_allow_it(server: OpcuaServer) -> None:
    driver = OpcuaDriver(clock)
    await driver.connect(make_thing(ONE, server.port))
    with pytest.raises(Unavailable, match="refused"):
        await driver.read(ONE.uid, ["t"])
    await driver.close()


async def test_noise_in_place_of_a_server_is_told_and_holds_nothing_up() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"MSGF" + (1 << 31).to_bytes(4, "little") + b"\xff" * 100_000)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        await asyncio.sleep(0.2)
        writer.close()

    noise = await asyncio.start_server(serve, "127.0.0.1", 0)
    driver = OpcuaDriver(clock, local=True, answer_seconds=1.0)
    try:
        await driver.connect(make_thing(ONE, noise.sockets[0].getsockname()[1]))
        with pytest.raises(Unavailable):
            await driver.read(ONE.uid, ["t"])
    finally:
        await driver.close()
        noise.close()


async def test_a_server_that_never_ends_a_message_is_left_before_it_fills_the_memory() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"ACKF" + (0x7FFFFFFF).to_bytes(4, "little"))
        with contextlib.suppress(OSError):
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()

    endless = await asyncio.start_server(serve, "127.0.0.1", 0)
    driver = OpcuaDriver(clock, local=True, answer_seconds=30.0)
    try:
        await driver.connect(make_thing(ONE, endless.sockets[0].getsockname()[1]))
        with pytest.raises(Unavailable, match="doesn't answer at all: connection lost"):
            await driver.read(ONE.uid, ["t"])
    finally:
        await driver.close()
        endless.close()


async def test_in_its_own_process_it_is_killed_and_comes_back_with_its_devices(peer: OpcuaPeer) -> None:
    driver, heard = (
        ProcessDriver("opcua", lambda fd: make_command("opcua", fd, [], local=True), clock),
        RecordingListener(),
    )
    try:
        await peer.say(peer.one, {"t": 1.0})
        await driver.connect(peer.one)
        driver.observe(heard)
        await until(lambda: heard.values == [(ONE.uid, {"t": 1.0})])
        os.kill(driver.pid, signal.SIGKILL)
        await until(lambda: heard.lines and "process ended" in heard.lines[-1])
        await peer.say(peer.one, {"t": 2.0})
        await until(lambda: heard.values[-1] == (ONE.uid, {"t": 2.0}))
        await until_works(driver)
        await driver.write(ONE.uid, "c", {"fan": True}, 30.0)
        await until(lambda: heard.values[-1][1].get("fan") is True)
        assert driver.starts == 2
    finally:
        await driver.close()
