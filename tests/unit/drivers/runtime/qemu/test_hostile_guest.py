"""A guest whose root speaks for its agent: whatever it sends, what its node holds of it and does for it has a bound."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.contracts.clock import SystemClock
from weft.contracts.driver.runtime import (
    DETACHED,
    BootDisk,
    ExecChunk,
    ExecRequest,
    GuestPlan,
    ProcessFacts,
    SessionMark,
)
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.runtime.qemu import guest as guests
from weft.drivers.runtime.qemu import guest_reports
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.guest_agent import connections
from weft.drivers.runtime.qemu.guest_agent.channel import UNTAKEN_BYTES, GuestChannel
from weft.drivers.runtime.qemu.guest_agent.connections import GuestAgents
from weft.drivers.runtime.qemu.guest_agent.frames import (
    MAGIC,
    NONCE_BYTES,
    STDERR,
    STDOUT,
    WINDOW_BYTES,
    WORD_LETTERS,
    FrameReader,
    encode_frame,
    encode_hello,
)
from weft.drivers.runtime.qemu.guest_agent.qemu_agent import LINE_BYTES, QemuAgent, connect_agent
from weft.drivers.runtime.qemu.guest_agent.session import MOST_PIECES, PIECE_BYTES, GuestSession
from weft.drivers.runtime.qemu.guest_agent.unread_output import Unread
from weft.drivers.runtime.qemu.qmp import LINE_BYTES as MONITOR_LINE_BYTES
from weft.drivers.runtime.qemu.qmp import connect_qmp
from weft.drivers.runtime.qemu.record import GuestRecord, read_record, write_record
from weft.drivers.runtime.qemu.translate import GuestPaths
from weft.objects.errors import Unavailable

PLAN = GuestPlan("abcdefghij", "uid-1", "web", 1, "q35", 1.0, 1, 1 << 20, BootDisk(), [], [])


class Line(asyncio.Transport):
    """The socket to a guest, as the channel sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.reads, self.aborted = True, False

    def write(self, data: Any) -> None:
        self.sent += data

    def get_write_buffer_size(self) -> int:
        return len(self.sent)

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class Hostile:
    """A guest and its channel. ``say`` sends frames; ``greet`` answers the newest HELLO."""

    def __init__(self, unread: Unread | None = None, name: str = "web", **more: Callable[..., None]) -> None:
        self.hellos: list[Any] = []
        self.unread = unread or Unread()
        self.channel = GuestChannel(self.hellos.append, lambda: None, unread=self.unread, guest=name, **more)
        self.line = Line()
        self.channel.connection_made(self.line)
        self.greet()

    def greet(self, words: bytes = b"boot\0host\0run\0") -> None:
        at = self.line.sent.rfind(MAGIC) + len(MAGIC)
        nonce = bytes(self.line.sent[at : at + NONCE_BYTES])
        self.line.sent.clear()
        self.say(encode_frame("H", payload=MAGIC + nonce + b"\x02" + words))

    def say(self, *frames: bytes) -> None:
        self.channel.data_received(b"".join(frames))

    def heard(self) -> list[str]:
        """The kinds of frames that it was sent since."""
        reader = FrameReader(bytes(NONCE_BYTES))
        reader.feed(encode_frame("H", payload=MAGIC + bytes(NONCE_BYTES) + b"\x02a\0b\0c\0"))
        return [frame.kind for frame in reader.feed(bytes(self.line.sent))]

    async def exec(self, *, kept: bool = False) -> GuestSession:
        mark = SessionMark(os.urandom(16).hex())
        request = ExecRequest(["cat"])
        return await (self.channel.exec_kept(request, mark) if kept else self.channel.exec(request))


def data(session: int, size: int, channel: int = STDOUT) -> bytes:
    return encode_frame("D", channel=channel, session=session, payload=b"x" * size)


def number(kind: str, session: int, value: int, channel: int = 0) -> bytes:
    return encode_frame(kind, channel=channel, session=session, payload=value.to_bytes(4, "little"))


async def read_all(session: GuestSession) -> list[ExecChunk]:
    return [chunk async for chunk in session.output()]


@pytest.mark.parametrize("kept", [False, True])
async def test_more_output_than_was_granted_ends_the_session_and_only_that(kept: bool) -> None:
    hostile = Hostile()
    session, other = await hostile.exec(kept=kept), await hostile.exec()
    for _ in range(3 * WINDOW_BYTES // 16384):
        hostile.say(data(1, 16384))
    assert hostile.unread.total <= WINDOW_BYTES
    with pytest.raises(Unavailable, match="sent unrequested data") as told:
        await asyncio.wait_for(read_all(session), 60)
    assert told.value.token != DETACHED and hostile.unread.total == 0
    assert "K" in hostile.heard()  # the guest is told to end it
    hostile.say(data(2, 5), number("Q", 2, 0))
    assert [chunk.data for chunk in await read_all(other)] == [b"xxxxx", b""]


async def test_who_reads_grants_more_and_no_more_than_was_read() -> None:
    hostile = Hostile()
    session = await hostile.exec()
    output = session.output()
    for _ in range(5):
        for _ in range(WINDOW_BYTES // 16384):
            hostile.say(data(1, 16384))
        read = 0
        while read < WINDOW_BYTES:
            read += len((await anext(output)).data)
    hostile.say(data(1, 16384))
    await anext(output)
    for _ in range(WINDOW_BYTES // 16384):
        hostile.say(data(1, 16384))
    with pytest.raises(Unavailable, match="sent unrequested data"):
        await anext(output)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(number("W", 1, WINDOW_BYTES), id="credit for what was never sent"),
        pytest.param(number("W", 1, 0), id="no credit"),
        pytest.param(encode_frame("W", session=1, payload=b"\1" * 8000), id="credit of 8000 bytes"),
        pytest.param(encode_frame("D", channel=STDOUT, session=1), id="output of nothing"),
        pytest.param(data(1, 10, channel=0), id="output on stdin"),
        pytest.param(data(1, 10, channel=77), id="output on a channel that isn't"),
        pytest.param(number("Q", 1, 70_000), id="an exit code that isn't"),
        pytest.param(encode_frame("Q", session=1), id="an exit without a code"),
        pytest.param(encode_frame("P", session=1, payload=bytes(8)), id="a process of a session"),
    ],
)
async def test_a_frame_that_a_session_may_not_send_ends_it(frame: bytes) -> None:
    hostile = Hostile()
    session = await hostile.exec(kept=True)
    await session.write(b"abc")
    hostile.say(frame)
    with pytest.raises(Unavailable, match="sent unrequested data"):
        await asyncio.wait_for(read_all(session), 60)


async def test_a_flood_of_credit_is_told_once() -> None:
    hostile = Hostile()
    session = await hostile.exec(kept=True)
    await session.write(bytes(WINDOW_BYTES))
    hostile.say(*[number("W", 1, 1)] * 20_000)
    output = session.output()
    assert (await anext(output)).taken == 20_000
    hostile.say(number("Q", 1, 0))
    assert (await anext(output)).channel == "exit"


async def test_output_that_comes_by_the_letter_is_put_together() -> None:
    hostile = Hostile()
    session = await hostile.exec()
    for _ in range(50):
        hostile.say(*[data(1, 1, STDOUT), data(1, 1, STDERR)] * 1000)
    hostile.say(number("Q", 1, 0))
    chunks = await read_all(session)
    for channel in ("stdout", "stderr"):
        assert sum(len(chunk.data) for chunk in chunks if chunk.channel == channel) == 50_000
    assert len(chunks) <= MOST_PIECES + 2 * WINDOW_BYTES // PIECE_BYTES


async def test_of_all_guests_the_one_that_holds_most_unread_loses_a_command() -> None:
    unread = Unread(1 << 20)
    greedy, modest = Hostile(unread, "greedy"), Hostile(unread, "modest")
    kept = await modest.exec()
    modest.say(data(1, 16384))
    sessions = [await greedy.exec() for _ in range(8)]
    for command in range(1, 9):
        greedy.say(*[data(command, 16384)] * 15)
        assert unread.total <= 1 << 20
    greedy.channel.connection_lost(None)
    ends = []
    for session in sessions:
        with pytest.raises(Unavailable) as told:
            await read_all(session)
        ends.append("was not read" in told.value.message)
    assert 1 <= sum(ends) < 8
    modest.say(number("Q", 1, 0))
    assert len((await read_all(kept))[0].data) == 16384
    assert unread.total == 0


async def test_who_floods_is_read_slowly_and_then_again() -> None:
    hostile = Hostile()
    hostile.say(*[encode_frame("P", payload=bytes(8))] * 5000)
    assert not hostile.line.reads
    async with asyncio.timeout(20):
        while not hostile.line.reads:
            await asyncio.sleep(0.05)


async def test_full_frames_that_are_asked_for_are_read_as_fast_as_they_come() -> None:
    hostile = Hostile()
    session = await hostile.exec()
    output = session.output()
    for _ in range(2000):
        hostile.say(*[data(1, 16384)] * 4)
        await anext(output)
        assert hostile.line.reads


async def test_a_guest_that_takes_nothing_is_begun_no_command_in_and_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("weft.drivers.runtime.qemu.guest_agent.channel.STANDING_SECONDS", 0.01)
    hostile = Hostile()
    session = await hostile.exec()
    hostile.channel.pause_writing()
    with pytest.raises(Unavailable, match="doesn't accept input"):
        await hostile.exec()
    for _ in range(UNTAKEN_BYTES // 13 + 1):
        await session.resize(1, 1)
        if hostile.line.aborted:
            break
    assert hostile.line.aborted and len(hostile.line.sent) < UNTAKEN_BYTES + 100


async def test_a_guest_s_own_words_are_short_and_printable() -> None:
    hostile = Hostile()
    hostile.say(encode_frame("B"))
    hostile.greet(b"\x1b[31m" + b"b" * 9000 + b"\0" + b"\xff\nh" * 900 + b"\0" + b"r" * 900 + b"\0")
    hello = hostile.hellos[-1]
    assert len(hostile.hellos) == 2
    for word in (hello.boot_id, hello.hostname, hello.run_id):
        assert len(word) <= WORD_LETTERS and word.isprintable() and word.isascii()


def test_only_a_machine_that_is_there_for_a_process_is_listened_to_about_one(tmp_path: Path) -> None:
    async def play(has_process: bool) -> int:
        paths, heard = GuestPaths(run=tmp_path, state=tmp_path), []
        plan = msgspec.structs.replace(PLAN, has_process=has_process)
        ready = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            told = b""
            while MAGIC not in told or len(told) - told.find(MAGIC) < len(MAGIC) + NONCE_BYTES:
                told += await reader.read(65536)
            at = told.find(MAGIC) + len(MAGIC)
            writer.write(encode_frame("H", payload=MAGIC + told[at : at + NONCE_BYTES] + b"\x02boot\0host\0run\0"))
            writer.write(encode_frame("P", payload=(2).to_bytes(4, "little") + (7).to_bytes(4, "little")))
            writer.write(encode_frame("P", payload=(3).to_bytes(4, "little") + (700).to_bytes(4, "little")))
            await writer.drain()
            ready.set()

        server = await asyncio.start_unix_server(serve, str(paths.agent))
        both = GuestAgents(plan, paths, SystemClock(), lambda said: None, heard.append, Unread())
        keeping = [asyncio.ensure_future(loop) for loop in both.connect_loops()]
        await asyncio.wait_for(ready.wait(), 60)
        await asyncio.sleep(0.05)
        for keeper in keeping:
            keeper.cancel()
        both.close()
        server.close()
        return len(heard)

    assert asyncio.run(play(True)) == 1  # and of no exit code that isn't
    paths = GuestPaths(run=tmp_path, state=tmp_path)
    paths.agent.unlink(missing_ok=True)
    assert asyncio.run(play(False)) == 0


async def test_a_guest_that_never_introduces_itself_is_connected_to_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU's port may be stuck for good, until a host goes: see agents.py."""
    monkeypatch.setattr(connections, "SILENT_SECONDS", (0.02, 0.04))
    paths, came = GuestPaths(run=tmp_path, state=tmp_path), asyncio.Queue[bool]()
    plan = msgspec.structs.replace(PLAN, qemu_agent=True)

    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.put_nowait((await reader.read(1)) == b"\0")  # weft's own begins with zeros
        while await reader.read(65536):
            pass
        writer.close()

    servers = [await asyncio.start_unix_server(be_silent, str(path)) for path in (paths.agent, paths.qemu_agent)]
    both = GuestAgents(plan, paths, SystemClock(), lambda said: None, lambda told: None, Unread())
    keeping = [asyncio.ensure_future(loop) for loop in both.connect_loops()]
    async with asyncio.timeout(20):
        seen: list[bool] = []
        while min(seen.count(True), seen.count(False)) < 3:
            seen.append(await came.get())
    for keeper in keeping:
        keeper.cancel()
    both.close()
    for server in servers:
        server.close()


async def test_an_answer_that_a_busy_loop_reads_together_with_the_deadline_keeps_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SILENT_SECONDS", (0.3, 0.6))
    paths, heard = GuestPaths(run=tmp_path, state=tmp_path), list[str]()
    came, server = list[socket.socket](), socket.socket(socket.AF_UNIX)
    server.bind(str(paths.agent))
    server.listen()

    def answer() -> None:
        connection, _ = server.accept()
        came.append(connection)
        held = b""
        while len(held) < len(encode_hello(bytes(16))):
            held += connection.recv(65536)
        nonce = held[held.index(MAGIC) + len(MAGIC) :][:16]
        connection.sendall(encode_frame("H", payload=MAGIC + nonce + b"\x03boot\0name\0run\0"))

    guest = threading.Thread(target=answer)
    agents = GuestAgents(PLAN, paths, SystemClock(), heard.append, lambda told: None, Unread())
    keeping = [asyncio.ensure_future(loop) for loop in agents.connect_loops()]
    while agents._weft is None:
        await asyncio.sleep(0.001)
    guest.start()
    time.sleep(0.5)
    guest.join()
    await asyncio.sleep(0.1)
    assert agents.answer and heard == ["boot"]
    for keeper in keeping:
        keeper.cancel()
    agents.close()
    for one in (*came, server):
        one.close()


async def test_what_a_guest_says_of_its_process_a_million_times_is_written_down_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_reports, "REPORT_SECONDS", (0.2, 0.4))
    writes, news = [], []

    def count(paths: GuestPaths, record: GuestRecord, *, durable: bool) -> None:
        writes.append(record.process_report)
        write_record(paths, record, durable=durable)

    monkeypatch.setattr(guests, "write_record", count)
    paths = GuestPaths(run=tmp_path / "run", state=tmp_path / "state")
    guest = Guest(
        paths, GuestRecord(PLAN, "tcg", "b", 1.0), ControlGroups("weft-test"), SystemClock(), lambda: news.append(1)
    )
    for ends in range(100_000):
        guest._reports.take_process(ProcessFacts(False, ends, 1))
        guest._take_hello(f"boot-{ends}")
    assert guest.record.process_report == ProcessFacts(False, 0, 1)  # the first at once
    tasks = len(asyncio.all_tasks())
    async with asyncio.timeout(60):
        while guest.record.process_report != ProcessFacts(False, 99_999, 1):
            await asyncio.sleep(0.01)
    await guest.close()
    assert len(writes) <= 3 and len(news) <= 3 and tasks <= 4
    kept = read_record(paths)
    assert kept is not None and (kept.process_report, kept.boot_id) == (ProcessFacts(False, 99_999, 1), "boot-99999")


# What hypothesis draws: frames of all kinds, of sessions that are and aren't, well formed or not, and plain noise.
PAYLOADS = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 2**32 - 1).map(lambda value: value.to_bytes(4, "little")),
    st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 255)).map(
        lambda told: told[0].to_bytes(8, "little") + told[1].to_bytes(8, "little") + bytes([told[2]])
    ),
    st.sampled_from([b"x" * 16384, b"y" * 16384, b"\0" * 16384]),
)
SAID = st.one_of(
    st.builds(
        lambda kind, channel, session, payload, times: (
            encode_frame(kind, channel=channel, session=session, payload=payload) * times
        ),
        st.one_of(st.sampled_from("DDDWWNQPBH"), st.integers(0, 255).map(chr)),
        st.one_of(st.integers(0, 3), st.integers(0, 255)),
        st.one_of(st.integers(0, 6), st.integers(0, 2**32 - 1)),
        PAYLOADS,
        st.sampled_from([1, 1, 2, 40]),
    ),
    st.binary(max_size=200),
    st.just(bytes(3000)),
    st.just(b"greet"),
)


@settings(max_examples=examples(150))
@given(st.lists(SAID, max_size=25))
def test_whatever_a_guest_sends_is_borne_and_it_is_heard_again_when_it_speaks_well(said: list[bytes]) -> None:
    async def play() -> None:
        told: list[ProcessFacts] = []
        hostile = Hostile(on_process=told.append)
        sessions = [await hostile.exec(kept=kept) for kept in (False, True, True)]
        resumed = asyncio.ensure_future(
            hostile.channel.exec_kept(ExecRequest(["cat"]), SessionMark("ab" * 16, "run", 5, 5))
        )
        await asyncio.sleep(0)
        for piece in said:
            if piece == b"greet":
                hostile.greet()
            else:
                hostile.say(piece)
            assert hostile.unread.total <= 2 * WINDOW_BYTES * 4
            assert len(hostile.channel._reader._held) < 3 * 16384
            assert len(hostile.channel._sessions) <= 4
        for facts in told:
            assert facts.code is None or facts.code <= 255
        hostile.say(encode_frame("B"))
        hostile.line.sent.clear()
        hostile.channel._introduce()
        hostile.greet()
        assert hostile.channel.ready
        last = await hostile.exec()
        last_number = hostile.channel._last_session
        hostile.say(data(last_number, 7), number("Q", last_number, 3))
        assert [(chunk.channel, chunk.data, chunk.code) for chunk in await read_all(last)] == [
            ("stdout", b"x" * 7, None),
            ("exit", b"", 3),
        ]
        hostile.channel.connection_lost(None)
        for session in sessions:
            try:
                async with asyncio.timeout(60):
                    await read_all(session)
            except Unavailable:
                pass
            await session.close()
        resumed.cancel()
        await asyncio.gather(resumed, return_exceptions=True)
        assert hostile.unread.total == 0

    asyncio.run(play())


# A qemu-guest-agent that isn't one.


async def serve_agent(tmp_path: Path, answer: Callable[[dict[str, Any]], bytes]) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            request = json.loads(line.lstrip(b"\xff"))
            if request["execute"] == "guest-sync-delimited":
                said = b'\xff{"return": %d}\n' % request["arguments"]["id"]
            else:
                said = answer(request)
            writer.write(said)
            await writer.drain()

    return await asyncio.start_unix_server(serve, str(tmp_path / "agent.sock"))


async def test_an_answer_without_an_end_is_heard_no_further_than_a_line_is_long(tmp_path: Path) -> None:
    server = await serve_agent(tmp_path, lambda request: b"x" * (8 << 20))
    async with server:
        agent = await connect_agent(str(tmp_path / "agent.sock"), SystemClock(), lambda agent: None)
        with pytest.raises(Unavailable):
            await agent.boot_id()
        assert agent.lost.is_set()
        assert len(agent._reader._buffer) <= 4 * LINE_BYTES  # type: ignore[attr-defined]


async def test_a_guest_that_says_much_before_it_answers_is_left_for_a_while(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        while True:
            writer.write(b'{"return": 1}\n' * 1000)
            await writer.drain()

    async with await asyncio.start_unix_server(serve, str(tmp_path / "agent.sock")):
        held: list[QemuAgent] = []
        with pytest.raises(Unavailable, match="unrequested data"):
            await connect_agent(str(tmp_path / "agent.sock"), SystemClock(), held.append)
        held[0].close()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"[" * 50_000 + b"\n", id="deep"),
        pytest.param(b'{"return": ' + b"[" * 50_000 + b"\n", id="deep inside"),
        pytest.param(b'{"return": {"exited": true, "exitcode": %d}}\n' % 2**70, id="a code that isn't"),
        pytest.param(b'{"return": {"exited": true, "out-data": "abc"}}\n', id="output that isn't"),
    ],
)
async def test_an_answer_that_is_none_is_told_as_silence(tmp_path: Path, answer: bytes) -> None:
    def say(request: dict[str, Any]) -> bytes:
        return b'{"return": {"pid": 1}}\n' if request["execute"] == "guest-exec" else answer

    async with await serve_agent(tmp_path, say):
        agent = await connect_agent(str(tmp_path / "agent.sock"), SystemClock(), lambda agent: None)
        session = agent.exec(ExecRequest(["true"]))
        await session.close_stdin()
        with pytest.raises(Unavailable):
            async for _ in session.output():
                pass
        agent.close()


async def test_long_output_that_nobody_reads_is_given_up_for_other_guests(tmp_path: Path) -> None:
    printed = base64.b64encode(b"z" * 300_000).decode()

    def say(request: dict[str, Any]) -> bytes:
        if request["execute"] == "guest-exec":
            return b'{"return": {"pid": 1}}\n'
        return json.dumps({"return": {"exited": True, "exitcode": 0, "out-data": printed}}).encode() + b"\n"

    unread = Unread(400_000)
    async with await serve_agent(tmp_path, say):
        outputs = []
        for name in ("first", "second"):
            agent = await connect_agent(str(tmp_path / "agent.sock"), SystemClock(), lambda agent: None, unread, name)
            session = agent.exec(ExecRequest(["true"]))
            await session.close_stdin()
            outputs.append(session.output())
            await anext(outputs[-1])
            assert unread.total <= 400_000
        ends = []
        for output in outputs:
            try:
                ends.append(str([chunk.code async for chunk in output][-1]))
            except Unavailable as problem:
                ends.append(problem.message)
        assert [("was not read" in end, end == "0") for end in ends] in (
            [(True, False), (False, True)],
            [(False, True), (True, False)],
        )
        assert unread.total == 0


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"x" * (MONITOR_LINE_BYTES + 10), id="a line without an end"),
        pytest.param(b"[" * 100_000 + b"\n", id="deep"),
        pytest.param(b"17\n", id="a number"),
        pytest.param(b'{"id": [], "return": 1}\n', id="an id that isn't"),
        pytest.param(b'{"event": 5}\n', id="an event that isn't"),
    ],
)
async def test_a_qemu_that_talks_nonsense_is_a_lost_one(tmp_path: Path, said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"QMP": {}}\n')
        request = json.loads(await reader.readline())
        writer.write(json.dumps({"return": {}, "id": request["id"]}).encode() + b"\n")
        await reader.readline()
        writer.write(said)
        await writer.drain()

    async with await asyncio.start_unix_server(serve, str(tmp_path / "qmp.sock")):
        monitor = await connect_qmp(str(tmp_path / "qmp.sock"))
        with pytest.raises(Unavailable):
            await monitor.execute("query-status")
        assert monitor.closed.is_set()
