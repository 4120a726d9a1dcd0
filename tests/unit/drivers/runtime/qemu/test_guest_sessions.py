"""Sessions that outlive their host: the real guest agent, hosts that are cut off at any byte, and the gateway's ledger."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guest_program import Guest

from weft.contracts.driver.runtime import DETACHED, SESSION_LOST, ExecRequest, SessionMark
from weft.drivers.runtime.qemu.guest_agent.channel import GuestChannel
from weft.drivers.runtime.qemu.guest_agent.frames import MAGIC, encode_frame
from weft.drivers.runtime.qemu.guest_agent.session import GuestSession
from weft.gateway.stream.exec_replay import ExecReplay
from weft.objects.errors import Unavailable
from weft.protocol.frames import FrameDecoder, FrameType

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")


@pytest.fixture
def guest(agent_program: Path) -> Iterator[Guest]:
    guest = Guest(agent_program)
    yield guest
    guest.end()


class CutChannel(GuestChannel):
    """A host that is lost after so many bytes more have come from the guest, or gone to it."""

    still_in: int | None = None
    still_out: int | None = None

    def data_received(self, data: bytes) -> None:
        if self.still_in is not None:
            data = data[: self.still_in]
            self.still_in -= len(data)
        super().data_received(data)
        if self.still_in == 0:
            self.close()

    def send(self, frame: bytes) -> None:
        if self.still_out is not None:
            frame = frame[: self.still_out]
            self.still_out -= len(frame)
        super().send(frame)
        if self.still_out == 0 and self._transport is not None:
            transport, self._transport = self._transport, None  # what was written still goes out
            transport.close()


class Client:
    """One session as a gateway has it; ``attach`` serves it until its end or until the host is lost."""

    def __init__(self, argv: list[str], stdin: bytes, *, tty: bool = False) -> None:
        self.request = ExecRequest(argv, tty=tty)
        self.ledger, self.decoder = ExecReplay(os.urandom(16).hex()), FrameDecoder()
        self.out = {FrameType.DATA_OUT: bytearray(), FrameType.STDERR: bytearray()}
        self.stdin, self.code, self.attached = stdin, -1, 0

    async def attach(self, channel: GuestChannel) -> bool:
        """Whether it came to its end."""
        try:
            session = await channel.exec_kept(self.request, SessionMark(**self.ledger.mark))
        except Unavailable as problem:
            assert problem.token != SESSION_LOST
            return False
        self.attached += 1
        self.ledger.resume(session.standing)
        feeding = asyncio.ensure_future(self._feed(session))
        try:
            async for chunk in session.output():
                if chunk.channel == "taken":
                    self.ledger.take(chunk.taken)
                elif chunk.channel == "exit":
                    self.code = chunk.code if chunk.code is not None else 128 + (chunk.signal or 0)
                    await session.close()
                    return True
                else:
                    type_ = FrameType.DATA_OUT if chunk.channel == "stdout" else FrameType.STDERR
                    self.out[type_] += chunk.data
                    self._arrive(session, type_, chunk.data)
        except Unavailable as problem:
            assert problem.token == DETACHED, problem.message
            return False
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        raise AssertionError("output ended without an exit")

    def _arrive(self, session: GuestSession, type_: FrameType, data: bytes) -> None:
        self.ledger.arrive(self.decoder.feed(bytes([type_]) + len(data).to_bytes(4, "big") + data)[0])
        mark = self.ledger.mark
        session.acknowledge(mark["stdout"], mark["stderr"])

    async def _feed(self, session: GuestSession) -> None:
        while True:
            while self.stdin and self.ledger.has_capacity:
                self.ledger.put(
                    FrameDecoder().feed(b"\1" + (n := min(len(self.stdin), 5000)).to_bytes(4, "big") + self.stdin[:n])[
                        0
                    ]
                )
                self.stdin = self.stdin[n:]
            if not self.stdin:
                self.ledger.put(FrameDecoder().feed(b"\4\0\0\0\0")[0])
            for encoded in self.ledger.take_unsent():
                for frame in FrameDecoder().feed(encoded):
                    if frame.type == FrameType.DATA_IN:
                        await session.write(frame.payload)
                    elif frame.type == FrameType.END_IN:
                        await session.close_stdin()
            await asyncio.sleep(0.001)


SCRIPT = 'cat; echo "on stderr" >&2; exit 7'


@pytest.mark.parametrize("way", ["from the guest", "to the guest"])
async def test_cut_at_every_byte_nothing_is_lost_or_told_twice(guest: Guest, way: str) -> None:
    """Until the host lives long enough for the whole session: only then has every byte been the first to be lost."""
    data = b"".join(b"line %d\n" % i for i in range(12))
    cut, whole = 1, False
    while not whole:
        client = Client(["sh", "-c", SCRIPT], data)
        channel = await guest.connect_as(CutChannel)
        if way == "from the guest":
            channel.still_in = cut
        else:
            channel.still_out = cut
        whole = await asyncio.wait_for(client.attach(channel), 60)
        channel.close()
        if not whole:
            again = await guest.connect()
            assert await asyncio.wait_for(client.attach(again), 60), cut
            again.close()
        assert (bytes(client.out[FrameType.DATA_OUT]), client.code) == (data, 7), cut
        assert client.out[FrameType.STDERR] == b"on stderr\n", cut
        cut += 1
    assert cut > 150  # it was cut in all of its frames


@pytest.mark.parametrize("seed", range(4))
async def test_much_of_both_ways_survives_hosts_that_live_for_any_number_of_bytes(guest: Guest, seed: int) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(1_500_000)
    client = Client(["sh", "-c", SCRIPT], data)
    while True:
        channel = await guest.connect_as(CutChannel)
        channel.still_in, channel.still_out = chance.randint(1, 400_000), chance.randint(1, 400_000)
        done = await asyncio.wait_for(client.attach(channel), 20)
        channel.close()
        if done:
            break
    assert hashlib.sha256(client.out[FrameType.DATA_OUT]).digest() == hashlib.sha256(data).digest()
    assert (bytes(client.out[FrameType.STDERR]), client.code) == (b"on stderr\n", 7)
    assert client.attached > 4


async def test_a_command_that_ended_meanwhile_tells_all_it_said_and_its_code(guest: Guest) -> None:
    client = Client(["sh", "-c", "read x; echo got $x; exit 3"], b"")
    channel = await guest.connect()
    mark = SessionMark(**client.ledger.mark)
    session = await channel.exec_kept(client.request, mark)
    client.ledger.resume(session.standing)
    await session.write(b"it\n")
    client.stdin = b""
    client.ledger.put(FrameDecoder().feed(b"\1\0\0\0\3it\n")[0])
    channel.close()
    await asyncio.sleep(0.2)
    assert await client.attach(await guest.connect())
    assert (bytes(client.out[FrameType.DATA_OUT]), client.code) == (b"got it\n", 3)


async def test_what_was_hung_up_or_never_was_is_lost(guest: Guest, tmp_path: Path) -> None:
    channel = await guest.connect()
    key = os.urandom(16).hex()
    session = await channel.exec_kept(ExecRequest(["sleep", "50"]), SessionMark(key))
    run = session.standing.run
    await session.close()
    for mark in (SessionMark(key, run), SessionMark(os.urandom(16).hex(), run, 5, 0), SessionMark(key, "another run")):
        with pytest.raises(Unavailable) as told:
            await channel.exec_kept(ExecRequest(["touch", str(tmp_path / "ran")]), mark)
        assert told.value.token == SESSION_LOST
    again = SessionMark(os.urandom(16).hex(), run)  # it was told to begin, and the guest never heard of it
    began = await channel.exec_kept(ExecRequest(["touch", str(tmp_path / "ran")]), again)
    async for chunk in began.output():
        assert (chunk.channel, chunk.code) == ("exit", 0)
    assert (tmp_path / "ran").exists()


async def test_one_session_is_let_go_and_taken_by_another_of_the_same_host(guest: Guest) -> None:
    channel = await guest.connect()
    key = os.urandom(16).hex()
    first = await channel.exec_kept(ExecRequest(["cat"]), SessionMark(key))
    await first.write(b"one\n")
    output = first.output()
    while (chunk := await anext(output)).channel == "taken":
        pass
    assert chunk.data == b"one\n"
    await first.let_go()
    second = await channel.exec_kept(ExecRequest(["cat"]), SessionMark(key, first.standing.run, 4, 0))
    assert (second.standing.received, second.standing.ended) == (4, False)
    await second.write(b"two\n")
    await second.close_stdin()
    assert [c.data for c in [c async for c in second.output()] if c.channel == "stdout"] == [b"two\n"]


async def test_a_host_that_knows_no_names_ends_them(guest: Guest) -> None:
    channel = await guest.connect()
    session = await channel.exec_kept(ExecRequest(["sh", "-c", "echo $$; sleep 50"]), SessionMark(os.urandom(16).hex()))
    pid = int((await anext(aiter(session.output()))).data)
    channel.send(encode_frame("H", payload=MAGIC + os.urandom(16)))  # as an older weft says it
    for _ in range(6000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("it lives on")


async def test_a_terminal_gets_the_end_of_its_input_once(guest: Guest) -> None:
    client = Client(["sh", "-c", "stty -echo; echo on; cat; echo between; cat; echo off"], b"x\n", tty=True)
    channel = await guest.connect()
    serving = asyncio.ensure_future(client.attach(channel))
    while b"between" not in client.out[FrameType.DATA_OUT]:
        await asyncio.sleep(0.01)
    channel.close()
    assert not await serving
    again = await guest.connect()
    serving = asyncio.ensure_future(client.attach(again))
    await asyncio.sleep(0.3)
    assert b"off" not in client.out[FrameType.DATA_OUT]  # the second cat was not told of an end
    serving.cancel()
