"""Commands in the real guest agent that go on, as the command line carries them, through a second gateway when the first dies."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.guest_program import Guest
from tests.scenario.agent_lab import NODE_UID, make_allocation
from tests.scenario.gateway.test_gateway_sessions import Program
from tests.scenario.gateway_lab import GatewayLab

from weft.cli.stream import held_exec
from weft.cli.stream.client import Stream, dial
from weft.cli.stream.held_exec import Cut, HeldExec
from weft.client.context import Context
from weft.contracts.driver.runtime import SESSION_LOST
from weft.objects.errors import Unavailable, WeftError
from weft.objects.identity import SERVER_NAME
from weft.protocol.frames import ClientSession, FrameType, encode_data, encode_json

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
WEB = make_allocation("web")


class Labs:
    """Two gateways to which one node is connected; commands ask them in turn, as of two servers, and skip one that is closed."""

    def __init__(self, labs: list[GatewayLab]) -> None:
        self.first, self.second = labs
        self.opened: list[GatewayLab] = []
        self.lost = threading.Event()

    @asynccontextmanager
    async def node(self, program: Program) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for lab in (self.first, self.second):
                await stack.enter_async_context(lab.node(NODE_UID, program, [WEB]))
            yield

    def begin(self, given: dict[str, Any], stdin: int | None, *, seconds: float = 30.0) -> Command:
        return Command(self, given, stdin, seconds)


class Command:
    """One command, carried in a thread."""

    def __init__(self, labs: Labs, given: dict[str, Any], stdin: int | None, seconds: float) -> None:
        self._labs, self._given, self._seconds = labs, given, seconds
        self.out = bytearray()
        self.slowed = threading.Event()
        self.slowed.set()
        self.done = asyncio.ensure_future(asyncio.to_thread(self._run, stdin))

    def _run(self, stdin: int | None) -> int | None:
        ticks = iter(range(10_000))
        held = HeldExec(self._open, lambda: next(ticks) * self._seconds / 100, threading.Event().wait)
        with held.begin() as sock:
            return Stream(sock, write=self._write, held=held).run(stdin)

    def _write(self, descriptor: int, data: bytes) -> None:
        self.slowed.wait()
        if descriptor == 1:
            self.out += data

    def _open(self, where: ClientSession) -> ssl.SSLSocket:
        for lab in (self._labs.first, self._labs.second):
            ticket = {"ticket": lab.ticket(WEB, "exec", self._given), "address": f"127.0.0.1:{lab.port}"}
            try:
                context = Context(server="https://127.0.0.1", ca=lab.authority.ca)
                sock = dial(context, {**ticket, "server_name": SERVER_NAME}, session=msgspec.to_builtins(where))
            except Unavailable:
                continue
            self._labs.opened.append(lab)
            return sock
        raise Unavailable("no gateway")


@pytest.fixture
def guest(agent_program: Path) -> Iterator[Guest]:
    guest = Guest(agent_program)
    yield guest
    guest.end()


@pytest.fixture
async def labs(tmp_path: Path) -> AsyncIterator[Labs]:
    async with AsyncExitStack() as stack:
        yield Labs([await stack.enter_async_context(GatewayLab(tmp_path).serving()) for _ in range(2)])


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_true():
            await asyncio.sleep(0.01)


async def test_every_byte_of_a_command_comes_once_when_its_gateway_dies_in_the_middle(labs: Labs, guest: Guest) -> None:
    program, data = Program(), os.urandom(3_000_000)
    await program.take(guest)
    read, write = os.pipe()
    async with labs.node(program):
        command = labs.begin({"argv": ["sh", "-c", "cat; exit 5"]}, read)

        def feed() -> None:
            with os.fdopen(write, "wb") as pipe:
                pipe.write(data)

        feeding = asyncio.ensure_future(asyncio.to_thread(feed))
        await until(lambda: len(command.out) > 500_000)
        command.slowed.clear()  # so that much is on its way
        await asyncio.sleep(0.1)
        await labs.first.gateway.close()
        command.slowed.set()
        assert await command.done == 5
        await feeding
    assert bytes(command.out) == data
    assert labs.opened == [labs.first, labs.second]
    os.close(read)


async def test_a_terminal_keeps_its_size_and_a_quiet_command_its_end(labs: Labs, guest: Guest) -> None:
    program = Program()
    await program.take(guest)
    async with labs.node(program):
        script = "echo begun; while [ ! -e $0 ]; do sleep 0.05; done; echo over"
        flag = Path(guest.folder) / "flag" if hasattr(guest, "folder") else labs.first.folder / "flag"
        command = labs.begin({"argv": ["sh", "-c", script, str(flag)]}, None)
        await until(lambda: b"begun" in command.out)
        await labs.first.gateway.close()
        await until(lambda: labs.opened == [labs.first, labs.second])
        flag.touch()
        assert await command.done == 0
    assert bytes(command.out) == b"begun\nover\n"


async def test_a_command_whose_guest_lost_it_is_not_begun_twice(labs: Labs, guest: Guest, agent_program: Path) -> None:
    program, count = Program(), labs.first.folder / "count"
    await program.take(guest)
    async with labs.node(program):
        command = labs.begin({"argv": ["sh", "-c", f"echo x >>{count}; echo begun; sleep 100"]}, None)
        await until(lambda: b"begun" in command.out)
        program.lose("running")
        other = Guest(agent_program)
        try:
            await labs.first.gateway.close()
            await program.take(other)
            with pytest.raises(WeftError) as caught:
                await command.done
        finally:
            other.end()
    assert caught.value.token == SESSION_LOST and count.read_text() == "x\n"


async def test_without_another_gateway_the_command_s_end_says_so(labs: Labs, guest: Guest) -> None:
    program = Program()
    await program.take(guest)
    async with labs.node(program):
        command = labs.begin({"argv": ["sh", "-c", "echo begun; sleep 100"]}, None, seconds=3000.0)
        await until(lambda: b"begun" in command.out)
        await labs.second.gateway.close()
        await labs.first.gateway.close()
        with pytest.raises(
            Unavailable, match=r"the gateway at 127.0.0.1:\d+ was lost.*no other gateway was found"
        ) as caught:
            await command.done
    assert caught.value.hint == "the command may still be running" and caught.value.token == "streamLost"


async def test_what_a_client_says_of_a_session_is_checked(labs: Labs, guest: Guest) -> None:
    program = Program()
    await program.take(guest)
    lab = labs.first
    wrong: list[Any] = [7, {"key": "../x"}, {"first": -1}, {"run": "x" * 101}, {"stdout": "many"}]
    async with labs.node(program):
        for said in wrong:
            client = await lab.dial()
            ticket = lab.ticket(WEB, "exec", {"argv": ["true"]})
            client.writer.write(encode_json(FrameType.HELLO, {"role": "client", "ticket": ticket, "session": said}))
            end = (await client.rest())[2]
            assert end is not None and end.error().token == "invalidInput", said
        client = await lab.dial()
        ticket = lab.ticket(WEB, "exec", {"argv": ["sh", "-c", "echo out; cat"]})
        client.writer.write(encode_json(FrameType.HELLO, {"role": "client", "ticket": ticket, "session": {}}))
        await client.send(FrameType.ACK, b'{"stdout": 1000, "stderr": 0}')
        end = (await client.rest())[2]
        assert end is not None and "wasn't sent" in end.error().message


async def test_no_more_input_is_held_than_a_guest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_exec, "HELD_BYTES", 10)
    held = HeldExec(lambda where: pytest.fail("nothing is lost"), lambda: 0.0, lambda seconds: None)
    held.put(b"x" * 10)
    assert not held.has_capacity  # before the gateway has said whether the session is kept
    held.take(FrameType.SESSION, b"", lambda: {"key": "0" * 32, "run": "r"})
    assert not held.has_capacity
    held.take(FrameType.ACK, b"", lambda: {"stdin": 2})
    assert held.has_capacity and held.repeat() == b"".join(encode_data(FrameType.DATA_IN, b"x" * 8))
    held.take(FrameType.SESSION, b"", lambda: {"key": "", "run": ""})
    held.put(b"x" * 100)
    assert held.has_capacity and held.repeat() == b""
    with pytest.raises(Cut):
        held.find_again(Cut("the connection was lost"))
