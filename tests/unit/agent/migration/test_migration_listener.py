"""The listener of a migration, over real TLS on loopback: who gets in, what is carried, what is left when a side ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import statistics
import struct
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from listener_lab import Fabric

from weft.agent.migration import listener as listening
from weft.agent.migration.connection import TlsConnection
from weft.agent.migration.listener import TlsListener
from weft.agent.migration.relay import Limit, take_from_all
from weft.contracts.clock import SystemClock
from weft.objects.errors import DriverFailed, Unavailable
from weft.protocol.migration import Hello, MigrationAnswer, MigrationRequest, send_message

CLOCK = SystemClock()


class StillClock(SystemClock):
    now = 0.0

    def elapsed(self) -> float:
        return self.now


class Ends:
    """A listener with a machine behind it that reads to the end and says how much came; and a line to it."""

    def __init__(self, folder: Path, coming: Sequence[Limit] = (), going: Sequence[Limit] = ()) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.fabric, self.going = folder, Fabric(folder), going
        self.asked: list[str] = []
        self.listener = TlsListener("key", "source", self.fabric.node("target"), self._respond, coming, CLOCK)
        self.address = self.listener.open("127.0.0.1")
        self.machine = socket.socket(socket.AF_UNIX)
        self.machine.bind(str(folder / "machine"))
        self.machine.listen()
        self.listener.lead({"memory": str(folder / "machine")})
        self.lines: list[TlsConnection] = []

    async def _respond(self, ask: MigrationRequest) -> MigrationAnswer:
        self.asked.append(ask.do)
        if ask.do == "status":
            raise DriverFailed("it looks bad", reason="tooBad")
        return MigrationAnswer()

    def line(self, node: str = "source", *, key: str = "key", peer: str = "target", rate: int = 0) -> TlsConnection:
        limits = [*self.going, Limit(rate, CLOCK)]
        self.lines.append(TlsConnection(key, self.address, peer, self.fabric.node(node), limits, CLOCK))
        return self.lines[-1]

    async def carry(
        self, line: TlsConnection, data: bytes, answer: bytes = b"heard", *, ahead: int = 0
    ) -> tuple[bytes, bytes]:
        """What the machine at the target got of ``data``, and the one at the source of its answer."""
        line.offer({"memory": self.folder / "offered"}, ahead=ahead)

        def send() -> bytes:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(self.folder / "offered"))
                sock.sendall(data)
                heard = sock.recv(100)
                return heard

        def receive() -> bytes:
            sock, _ = self.machine.accept()
            with sock:
                got = bytearray()
                while len(got) < len(data) and (piece := sock.recv(1 << 20)):
                    got += piece
                sock.sendall(answer)
                while sock.recv(100):
                    pass
                return bytes(got)

        async with asyncio.timeout(120):
            heard, got = await asyncio.gather(asyncio.to_thread(send), asyncio.to_thread(receive))
        return got, heard

    def close(self) -> None:
        for line in self.lines:
            line.close()
        self.listener.close()
        self.machine.close()


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[Ends]:
    ends = Ends(tmp_path)
    yield ends
    ends.close()


async def test_what_a_machine_sends_arrives_whole_and_its_answer_comes_back(ends: Ends) -> None:
    line, data = ends.line(), os.urandom(9 << 20)
    assert await ends.carry(line, data) == (data, b"heard")
    assert line.meter.sent == ends.listener.meter.received == len(data)


@pytest.mark.parametrize("ahead", [1, 3])
async def test_what_was_dialled_before_it_is_needed_reaches_the_machine_only_with_what_is_sent(
    ends: Ends, ahead: int
) -> None:
    line, data = ends.line(), os.urandom(3 << 20)
    assert await ends.carry(line, data, ahead=ahead) == (data, b"heard")
    assert line.meter.sent == ends.listener.meter.received == len(data)
    line.close()
    ends.machine.settimeout(0.3)
    with pytest.raises(TimeoutError):  # a machine takes the end of a connection for the end of its move
        await asyncio.to_thread(ends.machine.accept)
    async with asyncio.timeout(20):
        while [thread for thread in threading.enumerate() if thread.name == "weft-migration"]:
            await asyncio.sleep(0.02)


async def test_a_limit_is_kept_and_loses_nothing(ends: Ends) -> None:
    data, began = os.urandom(1 << 20), CLOCK.elapsed()
    assert (await ends.carry(ends.line(rate=2 << 20), data))[0] == data
    assert CLOCK.elapsed() - began > 0.4


@pytest.mark.parametrize(("comes", "goes"), [(2, 0), (0, 2), (1, 1)])
async def test_what_a_node_may_carry_is_shared_by_all_that_comes_and_goes(
    tmp_path: Path, comes: int, goes: int
) -> None:
    node, data = Limit(2 << 20, CLOCK), os.urandom(1 << 20)
    moves = [Ends(tmp_path / f"in{number}", coming=[node]) for number in range(comes)]
    moves += [Ends(tmp_path / f"out{number}", going=[node]) for number in range(goes)]
    began = CLOCK.elapsed()
    carried = await asyncio.gather(*(ends.carry(ends.line(), data) for ends in moves))
    assert CLOCK.elapsed() - began > 0.85
    assert all(one == (data, b"heard") for one in carried)
    for ends in moves:
        ends.close()


def test_bytes_that_one_limit_refuses_stay_with_the_other() -> None:
    clock = StillClock()
    node, slow = Limit(10 << 20, clock), Limit(1000, clock)
    clock.now = 1.0
    there = node.take(1 << 30)
    assert there > 0
    node.give_back(there)
    assert [take_from_all([node, slow], 256 << 10) for _ in range(100)][1:] == [0] * 99
    assert node.take(1 << 30) >= there - 2000


async def test_questions_are_answered_in_turn_and_a_refusal_says_why(ends: Ends) -> None:
    line = ends.line()
    await line.order(MigrationRequest("stopped"))
    with pytest.raises(DriverFailed, match="it looks bad") as failed:
        await line.order(MigrationRequest("status"))
    assert failed.value.token == "tooBad"
    assert ends.asked == ["stopped", "status"]


@pytest.mark.parametrize(
    ("node", "key", "peer"), [("stranger", "key", "target"), ("source", "other", "target"), ("source", "key", "n3")]
)
async def test_who_isnt_the_named_peer_with_the_right_key_is_not_heard_nor_spoken_to(
    ends: Ends, node: str, key: str, peer: str
) -> None:
    with pytest.raises(Unavailable):
        await ends.line(node, key=key, peer=peer).ask(MigrationRequest("takeOver"))
    await ends.line().order(MigrationRequest("stopped"))
    assert ends.asked == ["stopped"]


async def test_strangers_silence_and_garbage_keep_nobody_out(ends: Ends) -> None:
    host, _, port = ends.address.rpartition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(listening.MOST_STRANGERS * 2)]
    for sock in silent[::3]:
        sock.sendall(os.urandom(300))
    data = os.urandom(1 << 20)
    assert (await ends.carry(ends.line(), data))[0] == data
    for sock in silent:
        sock.close()


async def test_the_peer_itself_is_let_go_when_it_speaks_nonsense(ends: Ends) -> None:
    host, _, port = ends.address.rpartition(":")
    tls = ends.fabric.node("source").dial()
    for nonsense in (b"\xff" * 64, struct.pack(">I", 20) + b"{" * 20):
        with tls.wrap_socket(socket.create_connection((host, int(port)), 10)) as secure:
            secure.sendall(nonsense)
            assert await asyncio.to_thread(secure.recv, 10) == b""
    with tls.wrap_socket(socket.create_connection((host, int(port)), 10)) as secure:
        send_message(secure, Hello("key", "disks"))
        assert b"refused" in await asyncio.to_thread(secure.recv, 1000)
    await ends.line().order(MigrationRequest("stopped"))


async def test_an_agent_made_anew_is_heard_though_its_last_connection_never_ended(ends: Ends) -> None:
    await ends.line().order(MigrationRequest("stopped"))
    await ends.line().order(MigrationRequest("takeOver"))
    assert ends.asked == ["stopped", "takeOver"]


async def test_a_certificate_of_another_fabric_opens_nothing(ends: Ends, tmp_path: Path) -> None:
    other = Fabric(tmp_path / "other")
    host, _, port = ends.address.rpartition(":")
    tls = other.node("source").dial()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        tls.wrap_socket(socket.create_connection((host, int(port)), 10))


async def test_who_shows_a_certificate_of_another_fabric_is_named_as_the_reason(ends: Ends, tmp_path: Path) -> None:
    stranger = Fabric(tmp_path / "other").node("source")  # and the target is a stranger to it
    line = TlsConnection("key", ends.address, "target", stranger, [Limit(0, CLOCK)], CLOCK)
    half = ends.fabric.node("half")  # trusts this fabric, and shows another's certificate
    for name in ("node.crt", "node.key"):
        (tmp_path / "half" / name).write_bytes((tmp_path / "other" / "source" / name).read_bytes())
    for refused in (line, TlsConnection("key", ends.address, "target", half, [Limit(0, CLOCK)], CLOCK)):
        with pytest.raises(Unavailable, match="certificate") as failed:
            await refused.ask(MigrationRequest("stopped"))
        assert failed.value.token == "peerRefused"
        refused.close()
    assert ends.asked == []


class FullDisk:
    """Where no disk has room."""

    async def begin(self, disk: str) -> tuple[Path, int]:
        return Path("/dev/full"), 1 << 40

    async def complete(self, disk: str, form: str) -> None:
        raise AssertionError("it can't be")


async def test_a_disk_that_there_is_no_room_for_is_sent_no_further_and_says_why(ends: Ends) -> None:
    ends.listener.receive = FullDisk()
    line, disk = ends.line(rate=64 << 20), ends.folder / "disk"
    disk.write_bytes(os.urandom(24 << 20))
    with pytest.raises(DriverFailed, match="no space left") as failed:
        await line.carry_file("root", disk)
    assert failed.value.token == "noSpace"
    assert line.meter.sent < 20 << 20


async def test_when_the_listener_closes_both_machines_notice_and_nothing_of_it_is_left(ends: Ends) -> None:
    line = ends.line()
    line.offer({"memory": ends.folder / "offered"})
    sender = socket.socket(socket.AF_UNIX)
    sender.connect(str(ends.folder / "offered"))
    receiver, _ = await asyncio.to_thread(ends.machine.accept)
    sender.sendall(b"begun")
    assert await asyncio.to_thread(receiver.recv, 10) == b"begun"
    ends.listener.close()
    assert await asyncio.to_thread(receiver.recv, 10) == b""
    assert await asyncio.to_thread(sender.recv, 10) == b""
    with pytest.raises(Unavailable):
        await line.ask(MigrationRequest("stopped"))
    line.close()
    async with asyncio.timeout(20):
        while [thread for thread in threading.enumerate() if thread.name in ("weft-migration", "weft-offer")]:
            await asyncio.sleep(0.02)


async def test_what_a_slow_path_cant_carry_yet_waits_at_the_machine_and_not_on_the_way(ends: Ends) -> None:
    """The guest stands still for as long as what is on the way takes: here nearly 5 MB would find room in the kernel's buffers."""
    line, whole, rate = ends.line(), 12_000_000, 4_000_000
    line.offer({"memory": ends.folder / "offered"})
    sender = socket.socket(socket.AF_UNIX)
    sender.connect(str(ends.folder / "offered"))
    receiver, _ = await asyncio.to_thread(ends.machine.accept)
    sent, read, on_the_way = 0, 0, list[int]()

    def send() -> None:
        nonlocal sent
        with contextlib.suppress(OSError):
            while True:
                sent += sender.send(bytes(1 << 16))

    def receive() -> None:
        nonlocal read
        began = CLOCK.elapsed()
        while read < whole:  # on a busy machine the path is slower still
            if read < (CLOCK.elapsed() - began) * rate:
                read += len(receiver.recv(1 << 16))
            else:
                time.sleep(0.002)
            if read > whole / 2:
                on_the_way.append(sent - read)
        for sock in (sender, receiver):
            sock.shutdown(socket.SHUT_RDWR)

    async with asyncio.timeout(60):
        await asyncio.gather(asyncio.to_thread(send), asyncio.to_thread(receive))
    assert statistics.median(on_the_way) < 3 << 19
    sender.close()
    receiver.close()
