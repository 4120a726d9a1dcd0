"""Flows are folded over time: nothing is counted twice or lost, whoever is killed; heavy ones stay; files stay small."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from tests.unit.agent.allocation.test_allocation_plan import make_spec

from weft.agent.flow.describe import Flow
from weft.agent.flow.files import MOST_PIECES, ArrivingFlows, Carried, FlowFiles, decode
from weft.agent.flow.folded import (
    DAY,
    HOUR,
    MINUTE,
    MOST_OF_HOUR,
    MOST_OF_MINUTE,
    OTHERS,
    FlowEntry,
    Fold,
    Interval,
    Key,
    choose,
    condense,
)
from weft.agent.flow.recorder import FlowRecorder, name_peer
from weft.agent.migration.history import FlowsTaker
from weft.agent.state.allocation import LocalAllocation
from weft.contracts.driver.network import Endpoint, SeenFlow
from weft.kinds.allocation import AllocatedNic
from weft.kinds.parts.stream_verbs import FlowsInput
from weft.objects.errors import InvalidInput
from weft.objects.identity import Ref, short_id
from weft.protocol.traffic import OTHER_PROJECT

NOW = 1_800_000_000.0  # the beginning of an hour
NET = short_id("net-1")


class HandClock:
    def __init__(self) -> None:
        self.time = NOW + 5

    def now(self) -> float:
        return self.time

    def elapsed(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


class Kernel:
    """A network driver as far as flows go."""

    name = "kernel"

    def __init__(self) -> None:
        self.open: list[SeenFlow] = []
        self.ended: list[SeenFlow] = []
        self.refused: list[SeenFlow] = []
        self.lost = False

    @property
    def seen(self) -> Kernel:
        return self

    async def read(self, at: Any = None) -> list[SeenFlow]:
        return list(self.open)

    async def read_ended(self) -> tuple[list[SeenFlow], bool]:
        ended, lost, self.ended, self.lost = self.ended, self.lost, [], False
        return ended, lost

    async def read_refused(self, port_ids: Any) -> list[SeenFlow]:
        return list(self.refused)


class Table:
    def __init__(self, *locals_: LocalAllocation) -> None:
        self._states = [msgspec.defstruct("State", [("local", LocalAllocation)])(local) for local in locals_]

    def __iter__(self) -> Any:
        return iter(self._states)


def make_nic(address: str, network: str = "default") -> AllocatedNic:
    places = {"vni": 1, "cidr": "10.0.0.0/24", "gateway": "10.0.0.1", "mtu": 1400, "domain": "d", "nat": True}
    return AllocatedNic(
        uid=f"e-{address}", network=network, network_uid="net-1", mac="02:00:00:00:00:01", address=address, **places
    )  # type: ignore[arg-type]


def make_local(name: str, address: str) -> LocalAllocation:
    spec = make_spec(workload=Ref("vm", name, f"u-{name}", "default"), nics=[make_nic(address)])
    return LocalAllocation(f"node-1.{name}", f"a-{name}", spec)


WEB, DB = make_local("web", "10.0.0.2"), make_local("db", "10.0.0.3")
NEIGHBOURS = {
    "net-1": {
        "10.0.0.2": Endpoint("02:00:00:00:00:02", "10.0.0.2", "web", ""),
        "10.0.0.3": Endpoint("02:00:00:00:00:03", "10.0.0.3", "db", ""),
        "10.0.0.9": Endpoint("02:00:00:00:00:09", "10.0.0.9", "spy.rival", ""),
    }
}


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder, self.kernel, self.clock = folder, Kernel(), HandClock()
        self.start()

    def start(self, *locals_: LocalAllocation) -> None:
        """An agent, after the one before was killed."""
        table: Any = Table(*(locals_ or (WEB, DB)))
        kernel: Any = self.kernel
        self.recorder = FlowRecorder(self.folder, "node-1", kernel, table, NEIGHBOURS, self.clock)
        self.recorder._load()

    def look(self) -> None:
        asyncio.run(self.recorder.refresh())

    def flows(self, local: LocalAllocation = WEB, since: float = 600.0, **asked: Any) -> list[Flow]:
        return asyncio.run(self.recorder.answer(local, FlowsInput(since=since, **asked))).flows


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = Lab(tmp_path)
    made.look()
    return made


def flow(
    id: int,
    sent: int,
    received: int,
    source: str = "10.0.0.2",
    destination: str = "10.0.0.3",
    port: int = 80,
    **more: Any,
) -> SeenFlow:
    packets = (sent // 100, received // 100)
    return SeenFlow(
        NET, id, "tcp", source, destination, 40_000 + id, port, packets[0], sent, packets[1], received, NOW + 6, **more
    )


def sums(flows: list[Flow]) -> set[tuple[str, str, int, int, int]]:
    return {(one.source, one.destination, one.destination_port, one.sent_bytes, one.received_bytes) for one in flows}


def test_flows_to_one_port_are_one_row_with_what_each_added_and_both_ends_have_theirs(lab: Lab) -> None:
    lab.kernel.open = [flow(1, 1000, 500), flow(2, 2000, 0)]
    lab.look()
    lab.kernel.open, lab.kernel.ended = (
        [flow(2, 2500, 700)],
        [flow(1, 1100, 900), flow(3, 400, 100)],
    )  # one between two looks
    lab.clock.time += 30
    lab.look()
    assert {one.verdict for one in lab.flows()} == {"allowed", "unanswered"}  # as the second one was at first
    assert sum(one.sent_bytes for one in lab.flows()) == 4000 and sum(one.received_bytes for one in lab.flows()) == 1700
    assert sum(one.received_bytes for one in lab.flows(DB)) == 4000
    (first, *_) = lab.flows(DB)
    assert (first.direction, first.source_name, first.destination_name) == ("in", "web", "db")
    assert first.began_at == NOW + 5 and first.last_at == NOW + 35 and first.source_port == 0


def test_the_flows_of_a_row_are_counted_each_once(lab: Lab) -> None:
    lab.kernel.open = [flow(1, 1000, 500), flow(2, 2000, 700)]
    lab.kernel.ended = [flow(3, 400, 100)]
    lab.look()
    lab.clock.time += 90  # another minute, for which one of them goes on
    lab.kernel.open = [flow(1, 1500, 600), flow(4, 100, 100)]
    lab.look()
    (row,) = lab.flows()
    assert row.flows == 4
    (newest,) = lab.flows(since=30.0)
    assert newest.flows == 1
    lab.start()
    lab.kernel.open = [flow(1, 1600, 600)]
    lab.clock.time += 90
    lab.look()
    (newest,) = lab.flows(since=30.0)
    assert newest.flows == 1, "what began before, and goes on, is one"
    (row,) = lab.flows()
    assert row.flows == 4


def test_an_agent_that_is_killed_counts_nothing_twice_and_loses_nothing(lab: Lab) -> None:
    total = 0
    for step in range(30):  # over several minutes, killed after each look
        total += 100
        lab.kernel.open = [flow(1, total, 0)]
        lab.look()
        if step % 3 == 0:
            lab.start()
        lab.clock.time += 17
    assert sum(one.sent_bytes for one in lab.flows(since=3600)) == total
    (whole,) = [path for path in lab.folder.glob("flows/*.flows") if path.stem == short_id("u-web")]
    data = whole.read_bytes()
    whole.write_bytes(data + data[-40:-9])  # killed in the middle of an append
    lab.start()
    lab.clock.time += 60
    lab.kernel.open = [flow(1, total + 50, 0)]
    lab.look()
    lab.clock.time += 60
    lab.look()
    lab.start()
    assert sum(one.sent_bytes for one in lab.flows(since=3600)) == total + 50


def test_what_was_open_before_anything_was_recorded_counts_from_then_on(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    old = msgspec.structs.replace(flow(1, 9_000_000, 0), began=NOW - 500)
    lab.kernel.open = [old]
    lab.look()
    assert lab.flows() == []
    lab.kernel.open = [msgspec.structs.replace(old, sent_bytes=9_000_100, sent_packets=90_001)]
    lab.look()
    assert [one.sent_bytes for one in lab.flows()] == [100]


def test_refused_flows_count_what_was_added_and_begin_again_with_the_set(lab: Lab) -> None:
    for count in (300, 500, 200):
        lab.kernel.refused = [flow(0, count, 0, "10.0.0.9", "10.0.0.2", 22, refused_by="p")]
        lab.look()
    (found,) = lab.flows()
    assert (found.verdict, found.received_bytes, found.source_name) == ("refused", 700, OTHER_PROJECT)


def test_protocol_and_ports_choose_and_what_is_older_is_left_out(lab: Lab) -> None:
    lab.kernel.open = [flow(1, 100, 100)]
    lab.look()
    lab.clock.time += 1200
    lab.kernel.open += [flow(2, 500, 500, port=443)]
    lab.look()
    assert sums(lab.flows(since=60)) == {("10.0.0.2", "10.0.0.3", 443, 500, 500)}
    assert len(lab.flows(since=3600)) == 2
    assert lab.flows(since=3600, protocol="udp") == []


def test_a_clock_that_steps_back_or_far_ahead_loses_no_flow(lab: Lab) -> None:
    total = 0
    for step in (0, 90, -50, 70, -100, 5000, 60, -4000, 60, 120):
        lab.clock.time += step
        total += 1000
        lab.kernel.open = [flow(1, total, 0)]
        lab.look()
    lab.clock.time += 8000
    assert sum(one.sent_bytes for one in lab.flows(since=DAY)) == total


def test_a_scan_leaves_the_heavy_flows_and_the_sum(lab: Lab) -> None:
    heavy = [flow(10_000 + n, 1_000_000 + n * 100, 0, port=1000 + n) for n in range(10)]
    lab.kernel.open = [*(flow(n, 100, 0, port=10_000 + n) for n in range(5000)), *heavy]
    lab.look()
    found = lab.flows()
    assert len(found) <= MOST_OF_MINUTE + 2 and {1000 + n for n in range(10)} <= {one.destination_port for one in found}
    assert sum(one.sent_bytes for one in found) == sum(one.sent_bytes for one in lab.kernel.open)
    (others,) = [one for one in found if one.destination == OTHERS]
    assert others.destination_name == "" and others.sent_bytes > 400_000


def test_a_day_is_hours_and_a_file_stays_small(lab: Lab) -> None:
    total = 0
    for _ in range(26 * 3):
        total += 5000
        lab.kernel.open = [flow(n, total, 0, port=n + 1) for n in range(40)]
        lab.look()
        lab.clock.time += 1200
    path = lab.folder / "flows" / f"{short_id('u-web')}.flows"
    kept = decode(path.read_bytes())
    assert path.stat().st_size < 400_000 and kept[0].start >= lab.clock.time - DAY - 3 * HOUR
    assert all(len(one.entries) <= MOST_OF_HOUR + 2 for one in kept)
    day = sum(one.sent_bytes for one in lab.flows(since=DAY))
    assert abs(day - 40 * 5000 * DAY / 1200) < 0.05 * day


def test_flows_follow_a_migration_and_what_both_nodes_saw_of_a_minute_is_added(lab: Lab, tmp_path: Path) -> None:
    for step in range(5):
        lab.kernel.open = [flow(1, 1000 * (step + 1), 0)]
        lab.look()
        lab.clock.time += 40
    pieces = lab.recorder.pack("u-web")
    (tmp_path / "there").mkdir()
    there = Lab(tmp_path / "there")
    there.recorder._node = "other"
    there.clock.time = lab.clock.time
    there.look()
    arriving = ArrivingFlows()
    (intervals,) = [found for piece in pieces if (found := arriving.take(piece, there.clock.now())) is not None]
    there.recorder.files.take("u-web", intervals, there.clock.now())
    there.kernel.open = [flow(7, 300, 0)]
    there.look()
    assert sum(one.sent_bytes for one in there.flows(since=3600)) == 5300
    back = there.recorder.pack("u-web")
    arriving = ArrivingFlows()
    (again,) = [found for piece in back if (found := arriving.take(piece, lab.clock.now())) is not None]
    lab.recorder.files.take("u-web", again, lab.clock.now())  # home again: its own aren't counted twice
    lab.kernel.open = []
    assert sum(one.sent_bytes for one in lab.flows(since=3600)) == 5300


def test_what_a_hostile_node_sends_of_a_workload_is_refused() -> None:
    good = Interval(
        int(NOW) // HOUR * HOUR,
        HOUR,
        "n",
        [FlowEntry(Key("in", "default", "10.0.0.3", "db", "tcp", 80, "allowed"), 1, 2, 3, 4, NOW, NOW)],
    )

    def send(interval: Interval) -> None:
        data = msgspec.msgpack.encode(interval)
        piece = Carried(len(data).to_bytes(4, "little") + data, last=True)
        assert ArrivingFlows().take(msgspec.msgpack.encode(piece), NOW) == [interval]

    send(good)
    change = msgspec.structs.replace
    entry = good.entries[0]
    for wrong in (
        change(good, start=good.start + 7),
        change(good, start=good.start + DAY),
        change(good, node="\x1b[2J"),
        change(good, entries=[entry] * 1000),
        *(
            change(good, entries=[bad])
            for bad in (
                change(entry, sent_bytes=-1),
                change(entry, key=entry.key._replace(name="<script>")),
                change(entry, key=entry.key._replace(address="10.0.0.3\x1b")),
                change(entry, key=entry.key._replace(verdict="fine")),
                change(entry, key=entry.key._replace(port=-1)),
                change(entry, last=float("nan")),
            )
        ),
    ):
        with pytest.raises(InvalidInput):
            send(wrong)
    arriving = ArrivingFlows()
    with pytest.raises(InvalidInput):
        for _ in range(MOST_PIECES + 1):
            arriving.take(msgspec.msgpack.encode(Carried(bytes(400_000), last=False)), NOW)
    with pytest.raises(InvalidInput):
        ArrivingFlows().take(b"\xff\xff", NOW)


def test_a_peer_of_another_project_has_no_name() -> None:
    own, shared = make_nic("10.0.0.2"), make_nic("10.0.0.2", "owner/net")
    web, spy = (Endpoint("", "", name, "") for name in ("web", "spy.rival"))
    assert name_peer(own, "default", web) == "web" and name_peer(own, "default", spy) == OTHER_PROJECT
    assert name_peer(shared, "rival", web) == OTHER_PROJECT and name_peer(shared, "rival", spy) == "spy"
    assert name_peer(shared, "owner", web) == "web" and name_peer(own, "default", None) == ""


def test_each_moment_is_covered_once_whether_by_minutes_or_by_hours() -> None:
    key = Key("out", "n", "10.0.0.3", "db", "tcp", 80, "allowed")
    hour = int(NOW) // HOUR * HOUR
    minutes = [Interval(hour + at * MINUTE, MINUTE, "n", [FlowEntry(key, 60)]) for at in range(-180, 30)]
    kept = condense(minutes, hour + 30 * MINUTE)
    assert condense(kept, hour + 30 * MINUTE) == kept
    for since, least in ((hour - 3 * HOUR, 210), (hour - 2 * HOUR, 150), (hour - 60 * MINUTE, 90), (hour, 30)):
        assert sum(one.entries[0].sent_bytes for one in choose(kept, since)) == least * 60
    fold = Fold(4, [FlowEntry(key._replace(port=n), n) for n in range(100)])
    assert sum(entry.sent_bytes for entry in fold.listed()) == sum(range(100)) and len(fold.listed()) == 5


def test_files_of_workloads_that_left_are_removed(tmp_path: Path) -> None:
    files = FlowFiles(tmp_path)
    for uid in ("a", "b"):
        files.append(uid, Interval(int(NOW) // 60 * 60, MINUTE, "n", []), NOW)
    files.sweep(["b"])
    assert not files.read("a") and files.read("b")


async def test_the_target_of_a_migration_takes_flows_once_and_only_after_it_took_over(lab: Lab, tmp_path: Path) -> None:
    lab.kernel.open = [flow(1, 4000, 0)]
    await lab.recorder.refresh()
    pieces = lab.recorder.pack("u-web")
    (tmp_path / "there").mkdir()
    there = Lab(tmp_path / "there")
    node: Any = SimpleNamespace(flows=there.recorder, clock=there.clock)
    taker = FlowsTaker(node, WEB)
    with pytest.raises(InvalidInput):
        await taker.take(pieces[0])
    taker.begin()
    for piece in pieces:
        await taker.take(piece)
    with pytest.raises(InvalidInput):
        await taker.take(pieces[0])
    found = await there.recorder.answer(WEB, FlowsInput(since=600.0))
    assert [(one.destination_name, one.sent_bytes) for one in found.flows] == [("db", 4000)]
