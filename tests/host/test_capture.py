"""Captures on a real link: what comes, what is bounded, and that nothing is left however it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weft.agent.stream.capture import MOST_AT_ONCE, MOST_OF_ONE, Captures
from weft.agent.stream.connection import Stream
from weft.agent.stream.guest_location import Departed
from weft.cli.network.packets import Packet, Splitter, describe
from weft.contracts.clock import SystemClock
from weft.drivers.network.bridge.capture.tap import open_tap
from weft.kinds.parts.stream_verbs import CaptureInput
from weft.objects.errors import NotFound, Unavailable, WeftError
from weft.protocol.frames import FrameDecoder, FrameType, encode_frame

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make links")]

LINK, PEER = f"wc{os.getpid()}", f"wp{os.getpid()}"
LOCAL: Any = SimpleNamespace(uid="u", short_name="vm/web", spec=SimpleNamespace(nics=[SimpleNamespace(uid="n")]))
FRAME = bytes.fromhex("020000000001020000000002") + b"\x08\0" + struct.pack(
    "!BBHHHBBH4s4s", 0x45, 0, 48, 1, 0, 64, 17, 0, bytes([10, 0, 0, 2]), bytes([10, 0, 0, 3])
) + struct.pack("!HHHH", 5000, 9, 28, 0) + bytes(20)  # fmt: skip


class OnALink:
    name = "link"

    @property
    def taps(self) -> OnALink:
        return self

    def open(self, port_id: str, filter: str, most_bytes: int) -> socket.socket:
        return open_tap(LINK, filter, most_bytes)


class Guest:
    """Where it is."""

    def __init__(self) -> None:
        self.gone: Departed | None = None

    async def inspect(self) -> Departed | None:
        return self.gone


class Client:
    """The other end of a capture's stream."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._decoder, self._splitter = sock, FrameDecoder(), Splitter()
        self.packets: list[Packet] = []
        self.end: dict[str, Any] = {}
        self.began = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._sock, 65536):
            for frame in self._decoder.feed(data):
                self.began.set()
                if frame.type == FrameType.DATA_OUT:
                    self.packets += self._splitter.feed(frame.payload)[1]
                elif frame.type == FrameType.STDERR:
                    self.end = json.loads(frame.payload)

    async def until(self, holds: Callable[[], object]) -> None:
        while not holds():
            await asyncio.sleep(0.01)


@pytest.fixture
def link() -> Iterator[Callable[..., None]]:
    """A pair of links; sends frames that arrive at the one that is captured."""
    subprocess.run(["ip", "link", "add", LINK, "type", "veth", "peer", "name", PEER], check=True)
    for name in (LINK, PEER):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    wire.bind((PEER, 0))

    def send(*frames: bytes) -> None:
        for frame in frames:
            wire.send(frame)

    yield send
    wire.close()
    subprocess.run(["ip", "link", "del", LINK], check=False, capture_output=True)


@asynccontextmanager
async def capturing(
    captures: Captures, given: CaptureInput, subject: str = "ann", guest: Any = None
) -> AsyncIterator[tuple[Client, asyncio.Task[None]]]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    client = Client(theirs)
    stream = Stream(*await asyncio.open_connection(sock=ours))
    reading = asyncio.ensure_future(client.run())

    async def serve() -> None:
        try:
            await captures.serve(stream, subject, LOCAL, given, guest or Guest())
        finally:
            await stream.close()

    serving = asyncio.ensure_future(serve())
    began = asyncio.ensure_future(client.began.wait())
    await asyncio.wait((began, serving), return_when=asyncio.FIRST_COMPLETED)
    began.cancel()
    try:
        yield client, serving
    finally:
        theirs.close() if not serving.done() else None
        reading.cancel()
        await asyncio.gather(serving, reading, return_exceptions=True)
        theirs.close()


def workers(parent: int | None = None) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-f", "weft.agent.stream.capture_worker " + str(parent or os.getpid())], capture_output=True
    )
    return [int(word) for word in found.stdout.split()]


def ears() -> int:
    """Packet sockets that listen on the link, and how many want all of its packets."""
    index = int(Path(f"/sys/class/net/{LINK}/ifindex").read_text())
    lines = [line.split() for line in Path("/proc/net/packet").read_text().splitlines()[1:]]
    return sum(1 for words in lines if int(words[4]) == index)


async def test_packets_come_as_the_filter_and_the_lengths_say_and_the_client_may_end_it(
    link: Callable[..., None],
) -> None:
    captures = Captures(OnALink(), SystemClock())  # type: ignore[arg-type]
    async with capturing(captures, CaptureInput(filter="udp port 9", snaplen=64)) as (client, serving):
        flags = subprocess.run(["ip", "-d", "link", "show", LINK], capture_output=True, text=True).stdout
        assert "promiscuity 0" in flags and len(workers()) == 1
        status = Path(f"/proc/{workers()[0]}/status").read_text()
        assert "NoNewPrivs:\t1" in status and "CapEff:\t0000000000000000" in status and "Uid:\t65534" in status
        link(FRAME + bytes(100), FRAME[:36] + b"\0\7" + FRAME[38:], FRAME)
        await client.until(lambda: len(client.packets) == 2)
        client._sock.send(encode_frame(FrameType.END_IN))
        await serving
        await client.until(lambda: client.end)
    first, second = client.packets
    assert (len(first.data), first.length) == (64, len(FRAME) + 100) and second.data == FRAME
    assert first.seconds > 1_700_000_000 and "10.0.0.2:5000 > 10.0.0.3:9: UDP" in describe(second)
    assert client.end["packets"] == 2 and client.end["dropped"] == 0 and client.end["ended"] == "asked"
    assert not workers() and not ears()


async def test_time_and_size_end_it_and_what_a_flood_loses_is_told(link: Callable[..., None]) -> None:
    captures = Captures(OnALink(), SystemClock())  # type: ignore[arg-type]
    async with capturing(captures, CaptureInput(seconds=0.3)) as (client, serving):
        await serving
        await client.until(lambda: client.end)
    assert client.end["ended"] == "seconds" and client.end["packets"] == 0
    async with capturing(captures, CaptureInput(size=1 << 20)) as (client, serving):
        (worker,) = workers()
        os.kill(worker, signal.SIGSTOP)  # the flood is faster than anybody reads
        await asyncio.to_thread(link, *[FRAME + bytes(1400)] * 6000)
        os.kill(worker, signal.SIGCONT)
        await serving
        await client.until(lambda: client.end)
    assert client.end["ended"] == "size" and client.end["dropped"] > 0
    assert client.end["bytes"] <= 1 << 20 and len(client.packets) == client.end["packets"] > 500


async def test_only_so_many_are_under_way_and_a_place_comes_free(link: Callable[..., None]) -> None:
    captures = Captures(OnALink(), SystemClock())  # type: ignore[arg-type]
    held = [capturing(captures, CaptureInput(), f"person {number // 2}") for number in range(20)]
    opened = [await one.__aenter__() for one in held]
    refused = [serving for _, serving in opened if serving.done()]
    assert len(refused) == 20 - MOST_AT_ONCE and len(workers()) == MOST_AT_ONCE
    assert all(isinstance(serving.exception(), Unavailable) for serving in refused)
    for one in held:
        await one.__aexit__(None, None, None)
    assert not workers() and not ears()
    own = [capturing(captures, CaptureInput()) for _ in range(MOST_OF_ONE + 1)]
    opened = [await one.__aenter__() for one in own]
    assert [serving.done() for _, serving in opened] == [False] * MOST_OF_ONE + [True]
    assert "captures of yours" in str(opened[-1][1].exception())
    for one in own:
        await one.__aexit__(None, None, None)


async def test_it_ends_with_a_word_when_the_guest_migrates_its_nic_goes_or_its_worker_is_killed(
    link: Callable[..., None],
) -> None:
    captures = Captures(OnALink(), SystemClock())  # type: ignore[arg-type]
    guest = Guest()

    async def end(by: Callable[[], object]) -> tuple[dict[str, Any], BaseException | None]:
        async with capturing(captures, CaptureInput(), guest=guest) as (client, serving):
            link(FRAME)
            await client.until(lambda: client.packets)
            by()
            await asyncio.wait((serving,))
            assert len(client.packets) == 1
            return client.end, serving.exception()

    _, problem = await end(lambda: setattr(guest, "gone", Departed({"node_uid": "other"})))
    assert isinstance(problem, WeftError) and problem.token == "guestMigrated" and "has migrated" in problem.message
    guest.gone = None
    _, problem = await end(lambda: os.kill(workers()[0], signal.SIGKILL))
    assert isinstance(problem, WeftError) and problem.token == "workerDied"
    _, problem = await end(lambda: subprocess.run(["ip", "link", "del", LINK], check=True))
    assert isinstance(problem, WeftError) and problem.token == "guestEnded"
    with pytest.raises(NotFound):
        open_tap(LINK, "", 100)
    assert not workers()


AGENT = """
import asyncio
from tests.host.test_capture import *
async def main():
    from tests.host import test_capture
    test_capture.LINK = sys.argv[1]
    async with capturing(Captures(OnALink(), SystemClock()), CaptureInput()):
        print("ready", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_an_agent_that_is_killed_leaves_no_process_and_no_socket(link: Callable[..., None]) -> None:
    agent = subprocess.Popen([sys.executable, "-c", AGENT, LINK], stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None and agent.stdout.readline() == "ready\n"
    assert len(workers(agent.pid)) == 1 and ears() == 1
    agent.kill()
    agent.wait()
    while workers(agent.pid) or ears():
        await asyncio.sleep(0.02)
