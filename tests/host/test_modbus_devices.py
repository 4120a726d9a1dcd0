"""The Modbus driver against pymodbus's own server, killed in the middle, and against a server that lies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from tests.conformance.device_contract import ONE, OTHER, DeviceDriverContract, RecordingListener, until, until_works

from weft.contracts.clock import SystemClock
from weft.contracts.device import AnnouncedDevice, Thing, Value
from weft.drivers.device.modbus.driver import ModbusDriver
from weft.drivers.device.modbus.points import encode, read_href
from weft.objects.errors import InvalidInput, TimedOut, Unavailable

clock = SystemClock()
HREFS = {"t": "holding/0?type=float32", "fan": "coil/0", "door": "holding/10?type=text&registers=4"}


def find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def make_thing(thing: Thing, port: int, unit: int, **hrefs: str) -> Thing:
    return Thing(thing.uid, thing.project, thing.name, f"127.0.0.1:{port}/{unit}", {**HREFS, **hrefs}, 0.05)


class ModbusPeer:
    announces = False

    def __init__(self) -> None:
        self.port = find_port()
        self.one, self.other = make_thing(ONE, self.port, 1), make_thing(OTHER, self.port, 2)
        self.driver = ModbusDriver(clock, local=True)
        self.process: asyncio.subprocess.Process | None = None

    async def mend(self) -> None:
        words = (sys.executable, "-m", "tests.host.modbus_server", str(self.port))
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe)
        assert self.process.stdout is not None
        assert await self.process.stdout.readline() == b"listens\n"

    async def cut(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def say(self, thing: Thing, values: Mapping[str, Value]) -> None:
        rows = []
        for name, value in values.items():
            point = read_href(HREFS[name], name)
            words = [bool(value)] if point.table == "coil" else encode(point, value, name)
            unit = int(thing.address.rpartition("/")[2])
            rows.append({"unit": unit, "table": point.table, "address": point.address, "words": words})
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(rows).encode() + b"\n")
        assert await self.process.stdout.readline() == b"done\n"

    async def announce(self, found: AnnouncedDevice) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        await self.driver.close()
        if self.process is not None and self.process.returncode is None:
            await self.cut()


@pytest.fixture
async def peer() -> AsyncIterator[ModbusPeer]:
    peer = ModbusPeer()
    await peer.mend()
    try:
        yield peer
    finally:
        await peer.close()


class TestModbusDriver(DeviceDriverContract):
    pass


async def test_a_value_that_a_register_cannot_hold_is_refused_before_it_is_sent(peer: ModbusPeer) -> None:
    await peer.driver.connect(make_thing(ONE, peer.port, 1, level="holding/30?type=int16&scale=0.1", seen="input/3"))
    await peer.driver.write(ONE.uid, "c", {"level": -12.5}, 30.0)
    assert await peer.driver.read(ONE.uid, ["level"]) == {"level": -12.5}
    for name, value in (("level", 4000.0), ("level", True), ("seen", 1), ("fan", 3), ("other", 1)):
        with pytest.raises(InvalidInput, match=name):
            await peer.driver.write(ONE.uid, "c", {name: value}, 30.0)
    assert await peer.driver.read(ONE.uid, ["level"]) == {"level": -12.5}


async def test_the_gateways_machine_is_not_reached_by_an_address_or_a_name_unless_the_settings_allow_it(
    peer: ModbusPeer,
) -> None:
    driver, heard = ModbusDriver(clock), RecordingListener()
    try:
        driver.observe(heard)
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
            await driver.connect(Thing(ONE.uid, "default", "a", f"{host}:{peer.port}/1", HREFS, 0.05))
            await until(lambda: "refused" in heard.reach.get(ONE.uid, ""))
            with pytest.raises(Unavailable, match="refused"):
                await driver.write(ONE.uid, "c", {"fan": True}, 30.0)
            heard.reach.clear()
        assert heard.values == []
    finally:
        await driver.close()


def frame(request: bytes, body: bytes, *, length: int | None = None, transaction: int = 0) -> bytes:
    """An answer to ``request``, whose header may lie."""
    number = (int.from_bytes(request[:2], "big") + transaction) & 0xFFFF
    return struct.pack(">HHHB", number, 0, len(body) + 1 if length is None else length, request[6]) + body


def registers(*words: int) -> bytes:
    return bytes([3, 2 * len(words)]) + struct.pack(f">{len(words)}H", *words)


LIES: dict[str, Callable[[bytes], bytes]] = {
    "fewer registers than asked for": lambda request: frame(request, registers(1)),
    "more registers than asked for": lambda request: frame(request, registers(*range(100))),
    "a count beyond the message's end": lambda request: frame(request, bytes([3, 200, 0, 1, 0, 2])),
    "a length beyond the message's end": lambda request: frame(request, registers(1, 2), length=60_000),
    "no body": lambda request: frame(request, b""),
    "an answer to another request": lambda request: frame(request, registers(1, 2), transaction=7),
    "an answer to another function": lambda request: frame(request, bytes([6, 0, 1, 0, 2])),
    "an exception that nobody knows": lambda request: frame(request, bytes([0x83, 99])),
    "an exception without a code": lambda request: frame(request, bytes([0x83])),
    "five megabytes of noise": lambda request: b"\xff\x00\x13\x37" * (5 << 18),
    "nothing, and the end": lambda request: b"",
}


async def test_a_server_that_lies_is_not_believed_and_believed_again_when_it_is_honest() -> None:
    lie: list[str] = [""]
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                request = await reader.readexactly(12)
                asked += 1
                if not lie[0]:
                    writer.write(frame(request, registers(*struct.unpack(">2H", struct.pack(">f", 4.5)))))
                    continue
                writer.write(LIES[lie[0]](request))
                await writer.drain()
                if lie[0].startswith("nothing"):
                    break
        writer.close()

    port = find_port()
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    driver, heard = ModbusDriver(clock, local=True, answer_seconds=0.3), RecordingListener()
    thing = Thing(ONE.uid, "default", "a", f"127.0.0.1:{port}", {"t": HREFS["t"]}, 0.05)
    try:
        await driver.connect(thing)
        driver.observe(heard)
        for what in LIES:
            await until_works(driver)
            lie[0] = what
            await until(lambda: heard.reach.get(ONE.uid, "") != "")
            with pytest.raises(Unavailable):
                await driver.read(ONE.uid, ["t"])
            lie[0] = ""
        await until_works(driver)
        assert heard.values == [(ONE.uid, {"t": 4.5})]
        assert heard.refused == []
    finally:
        await driver.close()
        server.close()


async def test_absurd_numbers_and_texts_are_refused_and_the_rest_is_heard(peer: ModbusPeer) -> None:
    heard = RecordingListener()
    await peer.driver.connect(peer.one)
    peer.driver.observe(heard)
    assert peer.process is not None and peer.process.stdin is not None
    rows: list[dict[str, Any]] = [
        {"unit": 1, "table": "holding", "address": 0, "words": [0x7FC0, 0]},  # not a number
        {"unit": 1, "table": "holding", "address": 10, "words": [0xFFFF, 0xFFFE, 0, 0]},
        {"unit": 1, "table": "coil", "address": 0, "words": [True]},
    ]
    peer.process.stdin.write(json.dumps(rows).encode() + b"\n")
    await until(lambda: len(heard.refused) >= 2)
    await until(lambda: heard.values == [(ONE.uid, {"fan": True})])
    assert set(heard.refused) == {(ONE.uid, "payload")}


async def test_a_server_that_does_not_answer_holds_up_no_other_and_a_command_ends_in_time(peer: ModbusPeer) -> None:
    silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(600), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    heard = RecordingListener()
    await peer.driver.connect(peer.one)
    for number in range(20):
        await peer.driver.connect(
            Thing(f"s{number}", "default", f"s{number}", f"127.0.0.1:{port}/{number}", HREFS, 0.05)
        )
    peer.driver.observe(heard)
    await peer.say(peer.one, {"t": 1.0})
    await until(lambda: heard.values == [(ONE.uid, {"t": 1.0})])
    with pytest.raises((TimedOut, Unavailable)):
        await peer.driver.write("s3", "c", {"fan": True}, 0.5)
    assert await peer.driver.probe() == ""
    await peer.driver.close()
    silent.close()
