"""What a guest prints, and its console, through a real gateway while the guest changes its node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from tests.scenario.agent_lab import NODE_UID, Lab, change, make_allocation
from tests.scenario.gateway_lab import Client, ConsoleRuntime, GatewayLab

from weft.agent.state.allocation import LocalAllocation, read_allocation
from weft.agent.workload.console_log import CARRIED_BYTES, PrintedLog, read_console, take_printed
from weft.contracts.clock import SystemClock
from weft.contracts.driver.runtime import GuestFacts, GuestState, Printed, PrintedBy
from weft.drivers.runtime.qemu.console.log import shorten
from weft.drivers.runtime.qemu.console.output import PrintedHere
from weft.drivers.runtime.qemu.console.timestamps import MOST_TIMES
from weft.gateway.stream import reconnect
from weft.kinds.allocation import allocation_name
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.objects.identity import short_id
from weft.protocol.frames import FrameType

OTHER_UID = "22222222-2222-4222-8222-222222222222"
WEB = make_allocation("web")
THERE = msgspec.structs.replace(
    change(WEB, node_uid=OTHER_UID), uid="alloc-there", name=allocation_name(OTHER_UID, "alloc-there")
)
MOVE = AllocatedMigration(key="k", peer="n2", peer_uid=OTHER_UID, peer_allocation=THERE.name)
FOLLOW = {"follow": True}
GOING = change(WEB, role="source", migration=MOVE)


class Node(ConsoleRuntime):
    """A node with one guest, which echoes what is typed; ``state`` and ``reason`` are what its driver says of it."""

    state: GuestState = "running"
    reason: str | None = None

    def hold(self, guest_id: str, known: dict[str, LocalAllocation]) -> None:
        self.guest_id, self.known, self.typed = guest_id, known, bytearray()
        self._lines: set[asyncio.StreamWriter] = set()

    async def inspect(self, guest_id: str) -> GuestFacts:
        return GuestFacts(guest_id, "uid", "web", 1, self.state, reason=self.reason)

    def say(self, text: bytes) -> None:
        self.print(self.guest_id, text)
        for line in self._lines:
            line.write(text)

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.console_socket(self.guest_id))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lines.add(writer)
        while data := await reader.read(1000):
            self.typed += data
            self.say(data)
        self._lines.discard(writer)
        writer.close()

    def end(self) -> None:
        self.state, self.reason = "stopped", "migrated"
        self._server.close()
        for line in self._lines:
            line.close()

    async def give_to(self, there: Node, clear: bool = False) -> None:
        """As agents move a guest: some of what it printed goes beforehand, the rest while it stands still."""
        before = read_console(self, self.guest_id)
        assert before is not None
        take_printed(there, there.guest_id, before)
        self.say(b"<on its way>\n")
        take_printed(there, there.guest_id, read_console(self, self.guest_id, after=before.start + len(before.data)))
        self.known[WEB.name] = read_allocation(GOING)
        there.state, there.reason = "running", None
        self.end()
        if clear:
            Path(self.console_log(self.guest_id)).unlink()
            await asyncio.sleep(1)  # it takes a node a moment to hear that it is to forget the guest
            del self.known[WEB.name]


@asynccontextmanager
async def two_nodes(tmp_path: Path) -> AsyncIterator[tuple[GatewayLab, Node, Node]]:
    nodes = [Node(tmp_path / name, Lab(tmp_path / f"lab-{name}").host) for name in ("n1", "n2")]
    async with (
        GatewayLab(tmp_path).serving() as lab,
        lab.node(NODE_UID, nodes[0], [WEB]) as here,
        lab.node(OTHER_UID, nodes[1], [THERE]) as there,
    ):
        nodes[0].hold(short_id(WEB.uid), here)
        nodes[1].hold(short_id(THERE.uid), there)
        for node in nodes:
            await node.listen()
        yield lab, nodes[0], nodes[1]
    for node in nodes:
        await node.close()


async def until(client: Client, wanted: bytes, type_: int = FrameType.DATA_OUT) -> bytes:
    out = bytearray()
    while wanted not in out:
        frame = await client.receive()
        assert frame is not None and frame.type in (FrameType.DATA_OUT, FrameType.STDERR), frame and frame.payload
        if frame.type == type_:
            out += frame.payload
    return bytes(out)


@pytest.mark.parametrize("clear", [False, True])
async def test_logs_go_on_at_the_next_node_with_every_byte_once(tmp_path: Path, clear: bool) -> None:
    async with two_nodes(tmp_path) as (lab, here, there):
        here.say(b"".join(b"line %d\n" % n for n in range(1000)))
        client = await lab.connect(lab.ticket(WEB, "logs", {"tail": 2, "follow": True}))
        seen = await until(client, b"line 999\n")
        here.say(b"a\n")
        seen += await until(client, b"a\n")
        await here.give_to(there, clear)
        there.say(b"b\n")
        seen += await until(client, b"b\n")
        assert seen == b"line 998\nline 999\na\n<on its way>\nb\n"
        whole = await lab.connect(lab.ticket(THERE, "logs", {"tail": -1}))
        out, _, end = await whole.rest()
        assert out.startswith(b"line 0\nline 1\n") and out.endswith(b"line 999\na\n<on its way>\nb\n")
        assert end is not None and end.type == FrameType.EXIT
        client.close()


@pytest.mark.parametrize("clear", [False, True])
async def test_a_console_goes_on_at_the_next_node_and_says_so(tmp_path: Path, clear: bool) -> None:
    async with two_nodes(tmp_path) as (lab, here, there):
        here.say(b"login: ")
        ticket = lab.ticket(WEB, "console", workload={"kind": "vm", "name": "web", "uid": "u", "project": "default"})
        client = await lab.connect(ticket)
        assert await until(client, b"login: ") == b"login: "
        await client.send(FrameType.DATA_IN, b"ann\n")
        assert await until(client, b"ann\n") == b"ann\n"
        await here.give_to(there, clear)
        assert await until(client, b"n2]\r\n", FrameType.STDERR) == b"\r\n[web has migrated to node n2]\r\n"
        there.say(b"$ ")
        await client.send(FrameType.DATA_IN, b"ls\n")
        assert (await until(client, b"ls\n")).endswith(b"$ ls\n")
        assert (bytes(here.typed), bytes(there.typed)) == (b"ann\n", b"ls\n")
        client.close()


async def test_a_guest_that_powers_off_ends_its_console_and_one_that_is_deleted_its_logs(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (lab, here, _):
        here.say(b"bye\n")
        console = await lab.connect(lab.ticket(WEB, "console"))
        logs = await lab.connect(lab.ticket(WEB, "logs", {"follow": True}))
        await until(console, b"bye\n")
        await until(logs, b"bye\n")
        here.end()
        _, _, end = await console.rest()
        assert end is not None and end.type == FrameType.EXIT
        here.say(b"last\n")
        here.known.clear()
        out, _, end = await logs.rest()
        assert (out, end and end.type) == (b"last\n", FrameType.EXIT)


@pytest.mark.parametrize("taken_over", [False, True], ids=["handed over", "taken over"])
async def test_a_guest_that_leaves_for_another_cluster_ends_its_streams_with_where_it_went(
    tmp_path: Path, taken_over: bool
) -> None:
    async with two_nodes(tmp_path) as (lab, here, _):
        here.say(b"here\n")
        streams = [
            await lab.connect(lab.ticket(WEB, verb, given)) for verb, given in (("console", {}), ("logs", FOLLOW))
        ]
        for stream in streams:
            await until(stream, b"here\n")
        move = msgspec.structs.replace(MOVE, peer="west/w1", peer_ca="PEM", taken_over=taken_over)
        here.known[WEB.name] = read_allocation(change(WEB, role="source", migration=move))
        here.end()
        for stream in streams:
            _, _, end = await asyncio.wait_for(stream.rest(), 30)
            assert end is not None and end.type == FrameType.ERROR and end.error().token == "departed"
            assert end.error().message == "vm/web migrated to cluster west: nothing of it is left here"


async def test_a_console_that_nobody_has_any_more_ends_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnect, "FIND_SECONDS", 1.0)
    async with two_nodes(tmp_path) as (lab, here, there):
        client = await lab.connect(lab.ticket(WEB, "console"))
        here.say(b"here\n")
        await until(client, b"here\n")
        there.known.clear()
        await here.give_to(there)
        _, _, end = await client.rest()
        assert end is not None and end.error().token == "streamLost" and "its console" in end.error().message


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path, Lab(tmp_path / "lab").host)
    node.hold("g", {})
    return node


def test_a_log_that_was_shortened_keeps_its_count(node: Node) -> None:
    node.say(b"".join(b"%04d\n" % n for n in range(1000)))
    log = PrintedLog(node, "g")
    shorten(node.paths("g"), 1000)
    node.say(b"more\n")
    assert (log.start, log.end) == (4000, 5005)
    assert log.read(4995) == Printed(4995, b"0999\nmore\n")
    assert log.read(0, 5) == Printed(4000, b"0800\n")
    assert log.read(log.find_tail(2)).data == b"0999\nmore\n"


def test_what_was_told_twice_is_kept_once(node: Node, tmp_path: Path) -> None:
    there = Node(tmp_path / "there", Lab(tmp_path / "lab2").host)
    for told in (Printed(100, b"abc"), Printed(100, b"abcd"), Printed(99, b"-abcd"), Printed(104, b"e")):
        there.printed.add("g", told)
    log = PrintedLog(there, "g")
    assert (log.start, log.read(0)) == (100, Printed(100, b"abcde"))
    there.printed.add("g", Printed(200, b"later"))  # what lies between is lost
    assert log.read(0) == Printed(200, b"later")


@pytest.mark.parametrize(
    ("size", "expected"), [(10, Printed(0, b"x" * 10)), (CARRIED_BYTES + 7, Printed(7, b"x" * CARRIED_BYTES))]
)
def test_of_a_long_log_the_end_goes_along(node: Node, size: int, expected: Printed) -> None:
    node.say(b"x" * size)
    assert read_console(node, "g") == expected
    assert read_console(node, "g", after=size) is None


async def test_logs_since_some_minutes_leave_out_what_a_console_printed_before_also_after_a_move(
    tmp_path: Path,
) -> None:
    async with two_nodes(tmp_path) as (lab, here, there):
        now = SystemClock().now()
        for text, seconds_ago in ((b"an hour ago\n", 3600), (b"ten minutes ago\n", 600), (b"a minute ago\n", 60)):
            here.say(text)
            here.printed.note(here.guest_id, now - seconds_ago)
        client = await lab.connect(lab.ticket(WEB, "logs", {"since": 300}))
        assert (await client.rest())[0] == b"a minute ago\n"
        client = await lab.connect(lab.ticket(WEB, "logs", {"since": 1200, "tail": 1}))
        assert (await client.rest())[0] == b"a minute ago\n"
        client = await lab.connect(lab.ticket(WEB, "logs", {"since": 30, "follow": True}))
        here.say(b"now\n")
        assert await until(client, b"now\n") == b"now\n"
        client.close()
        await here.give_to(there)
        client = await lab.connect(lab.ticket(THERE, "logs", {"since": 1200}))
        assert (await client.rest())[0] == b"ten minutes ago\na minute ago\nnow\n<on its way>\n"


def test_what_a_console_printed_since_a_time_begins_with_a_whole_line_and_never_leaves_one_out(node: Node) -> None:
    node.say(b"old\nhalf of ")
    node.printed.note("g", 100.0)
    node.say(b"a line\n")
    log = PrintedLog(node, "g")
    assert log.read(log.find_since(150.0)).data == b"half of a line\n"
    assert log.read(log.find_since(50.0)).data == b"old\nhalf of a line\n"
    node.printed.note("g", 200.0)
    assert log.read(log.find_since(250.0)).data == b""
    shorten(node.paths("g"), 7)
    assert log.read(log.find_since(150.0)).data == b"a line\n"
    with open(log.path.with_suffix(".times"), "ab") as torn:
        torn.write(b"00000000000000000099 000")  # the machine lost its power
    again = PrintedHere(node.paths)  # as after a restart of the agent
    again.note("g", 300.0)
    node.say(b"more\n")
    again.note("g", 400.0)
    assert again.times("g")[-2:] == [PrintedBy(19, 300.0), PrintedBy(24, 400.0)]


def test_times_of_a_guest_that_prints_for_ever_stay_few_and_reach_back(node: Node) -> None:
    for second in range(MOST_TIMES * 4):
        node.say(b"x\n")
        node.printed.note("g", float(second))
    log = PrintedLog(node, "g")
    assert log.path.with_suffix(".times").stat().st_size <= MOST_TIMES * 40
    times = node.printed.times("g")
    assert times[-1] == PrintedBy(MOST_TIMES * 8, MOST_TIMES * 4 - 1.0)
    assert times[0].at < MOST_TIMES * 2, "half of all that time is still known"
    assert all(one.printed == (one.at + 1) * 2 for one in times)
    carried = read_console(node, "g")
    assert carried is not None and len(carried.times) <= 256
