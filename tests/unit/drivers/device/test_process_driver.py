"""A driver in a process of its own promises what every driver does, while its process is killed, hangs, or sends nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from tests.conformance.device_contract import ONE, OTHER, DeviceDriverContract, RecordingListener, until, until_works

from weft.contracts.clock import SystemClock
from weft.contracts.device import AnnouncedDevice, Thing, Value
from weft.drivers.device.process.driver import ProcessDriver
from weft.launch.edge.drivers import make_command
from weft.objects.errors import NotFound, TimedOut, Unavailable

clock = SystemClock()


class ProcessPeer:
    """The fake driver in a process: what is written to a device is what it says."""

    one, other, announces = ONE, OTHER, False

    def __init__(self) -> None:
        self.command = ["fake"]
        self.driver = ProcessDriver("fake", self.make_command, clock)

    def make_command(self, descriptor: int) -> list[str]:
        return make_command(self.command[0], descriptor, [], local=False)

    async def say(self, thing: Thing, values: Mapping[str, Value]) -> None:
        with contextlib.suppress(NotFound):  # it speaks, and nobody listens
            await self.driver.write(thing.uid, os.urandom(8).hex(), values, 30.0)

    async def announce(self, found: AnnouncedDevice) -> None:
        raise NotImplementedError

    async def cut(self) -> None:
        self.command[0] = "missing"
        os.kill(self.driver.pid, signal.SIGKILL)
        await until(lambda: self.driver.pid == 0)

    async def mend(self) -> None:
        self.command[0] = "fake"


@pytest.fixture
async def peer() -> AsyncIterator[ProcessPeer]:
    peer = ProcessPeer()
    try:
        yield peer
    finally:
        await peer.driver.close()


class TestProcessDriver(DeviceDriverContract):
    pass


def make_liar(program: str, answer_seconds: float = 1.0) -> ProcessDriver:
    """A driver whose process runs ``program`` with the socket ``s``."""
    head = "import socket, sys, time; s = socket.socket(fileno=int(sys.argv[1]))\n"
    return ProcessDriver(
        "liar",
        lambda fd: [sys.executable, "-c", head + program, str(fd)],
        clock,
        answer_seconds=answer_seconds,
        ping_seconds=0.1,
    )


@pytest.mark.parametrize(
    "program",
    [
        "s.sendall(bytes([255]) * 100_000)\ntime.sleep(600)",
        "s.sendall(bytes([0, 0, 0, 2]) + b'{}')\ntime.sleep(600)",
        "time.sleep(600)",
        "sys.exit(3)",
    ],
    ids=["a length of four gigabytes", "no message", "silence", "it ends"],
)
async def test_a_process_that_does_not_keep_to_the_form_is_ended_and_started_again(program: str) -> None:
    driver, heard = make_liar(program), RecordingListener()
    try:
        await driver.connect(ONE)
        driver.observe(heard)
        await until(lambda: driver.starts >= 2)
        assert "its driver's process ended" in heard.reach[ONE.uid]
        with pytest.raises(Unavailable):
            await driver.read(ONE.uid, ["t"])
        with pytest.raises(TimedOut):
            await driver.write(ONE.uid, "c", {"fan": True}, 0.0)
        assert await driver.discover() == []
    finally:
        await driver.close()


async def test_what_a_process_says_of_devices_that_are_not_its_own_or_too_many_values_is_not_heard() -> None:
    program = (
        "import json\n"
        "def tell(**given):\n"
        "    body = json.dumps({'type': 'note', 'about': 'values', **given}).encode()\n"
        "    s.sendall(len(body).to_bytes(4, 'big') + body)\n"
        "tell(uid='stranger', values={'t': 1})\n"
        "tell(uid='uid-1', values={f'p{at}': 1 for at in range(201)})\n"
        "tell(uid='uid-1', values={'t': 2})\n"
        "time.sleep(600)"
    )
    driver, heard = make_liar(program, 60.0), RecordingListener()
    try:
        await driver.connect(ONE)
        driver.observe(heard)
        await until(lambda: heard.values != [])
        assert heard.values == [(ONE.uid, {"t": 2})]
        assert heard.refused == [(ONE.uid, "size")]
    finally:
        await driver.close()


def is_driver(pid: int) -> bool:
    try:
        return b"driver_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def test_a_process_ends_when_its_gateway_is_killed() -> None:
    program = (
        "import asyncio, sys\n"
        "from weft.contracts.clock import SystemClock\n"
        "from weft.drivers.device.process.driver import ProcessDriver\n"
        "from weft.launch.edge.drivers import make_command\n"
        "class Quiet:\n"
        "    def __getattr__(self, name): return lambda *given: None\n"
        "async def main():\n"
        "    driver = ProcessDriver('fake', lambda fd: make_command('fake', fd, [], local=False), SystemClock())\n"
        "    driver.observe(Quiet())\n"
        "    while await driver.probe(): await asyncio.sleep(0.02)\n"
        "    print(driver.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    gateway = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert gateway.stdout is not None
    pid = int(await gateway.stdout.readline())
    gateway.kill()
    await gateway.wait()
    await until(lambda: not is_driver(pid))


async def test_after_a_kill_all_devices_are_served_again(peer: ProcessPeer) -> None:
    heard = RecordingListener()
    await peer.driver.connect(ONE)
    peer.driver.observe(heard)
    await until_works(peer.driver)
    await peer.driver.connect(OTHER)
    os.kill(peer.driver.pid, signal.SIGKILL)
    await until(lambda: peer.driver.starts == 2)
    await until_works(peer.driver)
    for thing in (ONE, OTHER):
        await peer.say(thing, {"t": 1.0})
        await until(lambda: heard.values[-1:] == [(thing.uid, {"t": 1.0})])  # noqa: B023


async def test_a_process_that_says_what_the_gateway_cannot_take_is_started_again() -> None:
    program = (
        'body = b\'{"type": "note", "about": "values", "uid": "uid-1", "values": {"t": 1}}\'\n'
        "s.sendall(len(body).to_bytes(4, 'big') + body)\n"
        "time.sleep(600)"
    )

    class Fails(RecordingListener):
        def note_values(self, uid: str, values: Mapping[str, Value]) -> None:
            raise OverflowError("more than a float holds")

    driver, heard = make_liar(program, 60.0), Fails()
    try:
        await driver.connect(ONE)
        driver.observe(heard)
        await until(lambda: driver.starts >= 2)
        assert "can't be served: OverflowError" in heard.reach[ONE.uid]
    finally:
        await driver.close()


async def test_a_process_that_hangs_holds_up_no_list_of_found_devices(peer: ProcessPeer) -> None:
    peer.driver.observe(RecordingListener())
    await until_works(peer.driver)
    os.kill(peer.driver.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(20):  # the process has 30 s for an answer
            for _ in range(100):
                assert await peer.driver.discover() == []
    finally:
        os.kill(peer.driver.pid, signal.SIGCONT)
