"""What guests print, gathered by their nodes, asked for through a real gateway, and carried along when a guest migrates."""

from __future__ import annotations

import asyncio
import json
import logging
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from tests.scenario.agent_lab import NODE_UID, Lab
from tests.scenario.gateway.test_gateway_logs import OTHER_UID, THERE, WEB, Node
from tests.scenario.gateway_lab import Client, GatewayLab

from weft.agent.logs import collector
from weft.agent.logs.carry import Arriving, Carried, pack_log
from weft.agent.logs.collector import LogCollector
from weft.agent.migration import history
from weft.agent.migration.history import LogTaker, mark_log
from weft.agent.state.allocation import LocalAllocation, read_allocation
from weft.agent.stream.collected_log import Collected, follow_collected
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import SystemClock
from weft.drivers.runtime.qemu.console.log import shorten
from weft.kinds.parts.stream_verbs import LogsInput
from weft.objects.errors import InvalidInput
from weft.objects.identity import short_id
from weft.protocol.frames import FrameType, encode_frame, encode_json
from weft.telemetry.logs.query import Range, read_lines
from weft.telemetry.logs.segment import Lines, encode_segment
from weft.telemetry.logs.store import LogStore

UID = read_allocation(WEB).spec.workload.uid


class Table:
    """The allocations that the node has, all with a guest."""

    def __init__(self, known: dict[str, LocalAllocation]) -> None:
        self.known = known

    def __iter__(self) -> Iterator[SimpleNamespace]:
        return iter([SimpleNamespace(local=local, guest=object()) for local in self.known.values()])


def make_collector(folder: Path, node: Node, known: dict[str, LocalAllocation], uid: str = NODE_UID) -> LogCollector:
    store = LogStore(folder / "logs", SystemClock())
    return LogCollector(store, Runtimes({"vm": node}), Table(known), "n1", uid, SystemClock())  # type: ignore[arg-type]


@asynccontextmanager
async def gathering(of: LogCollector) -> AsyncIterator[LogCollector]:
    keeping = asyncio.ensure_future(of.keep())
    try:
        yield of
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


@asynccontextmanager
async def one_node(tmp_path: Path) -> AsyncIterator[tuple[GatewayLab, Node, LogCollector]]:
    node = Node(tmp_path / "n1", Lab(tmp_path / "lab-n1").host)
    collected = make_collector(tmp_path / "n1", node, {})
    async with (
        gathering(collected),
        GatewayLab(tmp_path).serving() as lab,
        lab.node(NODE_UID, node, [WEB], collected) as known,
    ):
        node.hold(short_id(WEB.uid), known)
        collected._table.known = known  # type: ignore[attr-defined]
        yield lab, node, collected
    await node.close()


def messages(logs: LogCollector) -> list[str]:
    return [line.text.decode() for lines in read_lines(logs.store, Range(UID), None) for line in lines]


async def test_lines_that_a_guest_sends_stand_among_those_that_it_prints(tmp_path: Path) -> None:
    async with one_node(tmp_path) as (_lab, _node, logs):
        logs.inbox.put(UID, "vm/default/web", b"syslog err app: sent\n")
        assert (await until_gathered(logs, "syslog err app: sent"))[-1:] == ["syslog err app: sent"]
        assert logs.store.sources()[UID] == "vm/default/web"


async def until_gathered(logs: LogCollector, last: str) -> list[str]:
    for _ in range(1000):
        if (found := messages(logs))[-1:] == [last]:
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"never gathered: {messages(logs)[-3:]}")


async def ask(lab: GatewayLab, allocation: Any = WEB, **given: Any) -> list[dict[str, str]]:
    client = await lab.connect(lab.ticket(allocation, "logs", {"aggregate": True, **given}))
    out, _, end = await client.rest()
    assert end is not None
    if end.type == FrameType.ERROR:
        raise end.error()
    return [json.loads(line) for line in out.splitlines()]


async def follow(client: Client, last: str) -> list[str]:
    out = b""
    while not out.endswith(f'"{last}"}}\n'.encode()):
        frame = await client.receive()
        assert frame is not None and frame.type == FrameType.DATA_OUT, frame and frame.payload
        out += frame.payload
    return [json.loads(line)["message"] for line in out.splitlines()]


async def test_lines_come_with_their_times_and_their_source_and_only_those_that_are_asked_for(tmp_path: Path) -> None:
    async with one_node(tmp_path) as (lab, node, logs):
        for number in range(50):
            node.say(f"{'ERROR' if number % 10 == 7 else 'fine'} {number}\r\n".encode())
        await until_gathered(logs, "fine 49")
        found = await ask(lab)
        assert [line["message"] for line in found][-2:] == ["fine 48", "fine 49"]
        assert set(found[0]) == {"time", "source", "message"}
        assert found[0]["source"] == "vm/web" and found[0]["time"].endswith("Z")
        assert [line["message"] for line in await ask(lab, filter="ERROR", tail=2)] == ["ERROR 37", "ERROR 47"]
        assert [line["message"] for line in await ask(lab, regex="^ERROR [12]7$")] == ["ERROR 17", "ERROR 27"]
        assert await ask(lab, until=3600) == []
        assert len(await ask(lab, since=3600)) == 50


async def test_a_killed_agent_loses_no_line_and_repeats_none(tmp_path: Path) -> None:
    node = Node(tmp_path, Lab(tmp_path / "lab").host)
    known = {"web": read_allocation(WEB)}
    node.hold(short_id(WEB.uid), known)
    printed = 0
    for life in range(6):
        logs = make_collector(tmp_path, node, known)  # the one before is not closed: it was killed
        for _ in range(40):
            node.say(b"".join(b"line %d\n" % (printed + n) for n in range(37)))
            printed += 37
            if life % 2:
                node.say(b"line %d\n" % printed)
                printed += 1
            await asyncio.to_thread(logs._gather, logs._find_workloads(), None, keeps=False)
        node.say(b"line %d\nli" % printed)  # half a line when it dies
        await asyncio.to_thread(logs._gather, logs._find_workloads(), None, keeps=False)
        node.say(b"ne %d\n" % (printed + 1))
        printed += 2
    last = make_collector(tmp_path, node, known)
    await asyncio.to_thread(last._gather, last._find_workloads(), None, keeps=False)
    assert messages(last) == [f"line {number}" for number in range(printed)]
    await node.close()


async def test_what_was_gone_before_it_was_read_is_marked(tmp_path: Path) -> None:
    async with one_node(tmp_path) as (_, node, logs):
        node.say(b"first\n")
        await until_gathered(logs, "first")
        node.known.clear()  # nothing is gathered now
        node.say(b"x" * 999 + b"\n" + b"kept\n")
        shorten(node.paths(node.guest_id), 5)
        node.known["web"] = read_allocation(WEB)
        assert await until_gathered(logs, "kept") == [
            "first",
            "[weft: 1000 bytes that it printed are missing here: they were gone before they could be read]",
            "kept",
        ]


async def test_a_log_is_followed_and_a_prompt_without_an_end_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "REST_SECONDS", 0.3)
    async with one_node(tmp_path) as (lab, node, logs):
        node.say(b"before\n")
        await until_gathered(logs, "before")
        client = await lab.connect(lab.ticket(WEB, "logs", {"aggregate": True, "follow": True, "filter": "e"}))
        assert await follow(client, "before") == ["before"]
        node.say(b"nothing\nafter\nname: ")
        assert await follow(client, "name: ") == ["after", "name: "]
        client.close()


class Sent:
    """The side of a stream that the agent writes to, of a client that stays."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()

    async def send(self, frame: bytes) -> None:
        await self.frames.put(frame)

    async def send_data(self, type_: int, data: bytes) -> None:
        await self.frames.put(encode_frame(type_, data))

    async def receive(self) -> None:
        await asyncio.Event().wait()


async def test_a_log_that_was_followed_before_anything_was_printed_is_taken_up_again(tmp_path: Path) -> None:
    async with one_node(tmp_path) as (_, node, logs):
        node.say(b"printed while the agent was away\n")
        await until_gathered(logs, "printed while the agent was away")
        sent, of = Sent(), Collected(logs, UID, "vm/web")
        following = asyncio.ensure_future(
            follow_collected(sent, of, LogsInput(follow=True), 0, SystemClock(), "ann")  # type: ignore[arg-type]
        )
        assert await sent.frames.get() == encode_json(
            FrameType.SESSION, {"printed": 0}
        )  # the gateway waits for this first
        assert b"printed while the agent was away" in await sent.frames.get()
        following.cancel()


@asynccontextmanager
async def followed_to_another_node(
    tmp_path: Path,
) -> AsyncIterator[tuple[LogCollector, LogCollector, Callable[[], Awaitable[None]]]]:
    """The logs here and there of a guest that has printed a thousand lines and is followed, and what lets it go there and print
    one more. At the end each line has come once, and there is each line."""
    async with one_node(tmp_path) as (lab, here, logs):
        there = Node(tmp_path / "n2", Lab(tmp_path / "lab-n2").host)
        there_logs = make_collector(tmp_path / "n2", there, {}, OTHER_UID)
        async with gathering(there_logs), lab.node(OTHER_UID, there, [THERE], there_logs) as known:
            there.hold(short_id(THERE.uid), known)
            await here.listen()
            here.say(b"".join(b"line %d\n" % n for n in range(1000)))
            await until_gathered(logs, "line 999")
            client = await lab.connect(lab.ticket(WEB, "logs", {"aggregate": True, "follow": True, "tail": 1}))
            assert await follow(client, "line 999") == ["line 999"]

            async def go() -> None:
                there_logs._table.known = known  # type: ignore[attr-defined]
                await here.give_to(there)
                there.say(b"line 1000\n")

            yield logs, there_logs, go
            assert await follow(client, "line 1000") == ["<on its way>", "line 1000"]
            client.close()
            whole = [line["message"] for line in await ask(lab, THERE)]
            assert whole == [*(f"line {number}" for number in range(1000)), "<on its way>", "line 1000"]
        await there.close()


async def test_a_followed_log_goes_on_at_the_next_node_with_all_that_was_before(tmp_path: Path) -> None:
    async with followed_to_another_node(tmp_path) as (logs, there_logs, go):
        there_logs.expect(UID, 10.0)
        await go()
        await logs.drain(read_allocation(WEB))
        arriving = Arriving(there_logs.store, UID)
        assert [arriving.take(piece) for piece in pack_log(logs.store, UID)][-1]
        there_logs.expect_no_more(UID)


async def test_a_node_s_own_log_is_there_as_well(tmp_path: Path) -> None:
    async with one_node(tmp_path) as (lab, _, _logs):
        logging.getLogger("weft.agent").warning("the disk of %s is slow", "n1")
        found: list[dict[str, str]] = []
        while not found:
            ticket = lab.ticket(WEB, "logs", {"filter": "is slow"}, allocation="", guest_id="")
            out, _, _end = await (await lab.connect(ticket)).rest()
            found = [json.loads(line) for line in out.splitlines()]
        assert (found[0]["source"], found[0]["message"]) == ("node/n1", "WARNING the disk of n1 is slow")


async def test_a_hostile_pattern_is_refused_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with one_node(tmp_path) as (lab, node, logs):
        node.say(b"a" * 60 + b"!\n")
        await until_gathered(logs, "a" * 60 + "!")
        with pytest.raises(InvalidInput, match="regex takes more than 5 s"):
            await ask(lab, regex="^(a+)+$")
        with pytest.raises(InvalidInput, match="regex is not a regular expression"):
            await ask(lab, regex="(")
        with pytest.raises(InvalidInput, match="follow"):
            await ask(lab, follow=True, until=5)
        with pytest.raises(InvalidInput, match="tail"):
            await ask(lab, tail=10**9)


def test_a_hostile_node_gives_no_log_of_another_workload_nor_one_without_bounds(tmp_path: Path) -> None:
    store = LogStore(tmp_path, SystemClock())
    store.open()
    bomb = encode_segment([Lines(UID, 1, array("q", [1]), b"x" * (40 << 20) + b"\n")])[1]
    other = encode_segment([Lines("another", 1, array("q", [1]), b"x\n")])[1]
    unlike = encode_segment([Lines(UID, 1, array("q", [1, 2]), b"x\n")])[1]
    for data in (bomb, other, unlike, b"nonsense", other[:-3]):
        arriving = Arriving(store, UID)
        with pytest.raises(InvalidInput):
            arriving.take(msgspec.msgpack.encode(Carried(data, last=True, next=5)))
    with pytest.raises(InvalidInput):
        Arriving(store, UID).take(b"\xc1")
    with pytest.raises(InvalidInput):
        Arriving(store, UID).take(msgspec.msgpack.encode(Carried(b"", last=True, next=1 << 63)))
    assert store.find(UID) == (None, [], [])


async def test_a_followed_log_repeats_nothing_where_what_was_before_comes_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with followed_to_another_node(tmp_path) as (logs, there_logs, go):
        monkeypatch.setattr(history, "LOG_SECONDS", 0.5)
        web, node = read_allocation(WEB), SimpleNamespace(logs=there_logs, clock=SystemClock())
        taker = LogTaker(node, web)  # type: ignore[arg-type]
        taker.mark = await mark_log(SimpleNamespace(logs=logs), web)  # type: ignore[arg-type]
        taker.begin()
        await go()
        await until_gathered(there_logs, "line 1000")
        for number, piece in enumerate(pack_log(logs.store, UID), 1):
            await taker.take(piece, number)
        assert there_logs.store.find(UID)[0] is not None, "it is kept all the same"
