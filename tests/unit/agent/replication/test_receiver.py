"""What a node makes of points that come: complete ones are kept, on the point before; all else leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.drivers.volume.test_volume_layers import make_driver

from weft.agent.replication.receiver import Receiver
from weft.agent.stream.connection import Stream
from weft.agent.volume.pools import Pools
from weft.backup.process.nbd import NbdClient
from weft.contracts.clock import Clock, SystemClock
from weft.contracts.driver.layers import KeptDisk, KeptSnapshot
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.kinds.allocation import LOCAL
from weft.kinds.fields.replication.work import ReceiveOrder
from weft.kinds.parts.stream_verbs import ReceiveInput, SentDisk
from weft.objects.errors import WeftError
from weft.objects.identity import short_id
from weft.protocol.claims import Claims
from weft.protocol.frames import FrameType, encode_data, encode_frame
from weft.protocol.points import DATA, SECTOR, ZERO, encode_head

BLOCK = 65536
SIZE = 16 * BLOCK
CLAIMS = Claims(node_uid="n1", verb="receive", guest_id="replica-1")


def make_order(number: int, parent: int = 0, **changes: Any) -> ReceiveOrder:
    fields: dict[str, Any] = {
        "uid": "replica-1",
        "node_uid": "n1",
        "generation": 1,
        "origin": "replication-1",
        "number": number,
        "snapshot": f"here-{number}",
        "pool": LOCAL,
        "parent": f"here-{parent}" if parent else "",
        "parent_source": f"there-{parent}" if parent else "",
        "disks": {"root": SIZE, "store": SIZE},
    }
    return ReceiveOrder(**{**fields, **changes})


def make_point(number: int, parent: int = 0, **changes: Any) -> ReceiveInput:
    fields: dict[str, Any] = {
        "origin": "replication-1",
        "generation": 1,
        "source": f"there-{number}",
        "parent": f"there-{parent}" if parent else "",
        "disks": {
            "root": SentDisk(key="root", size=SIZE, whole=not parent),
            "store": SentDisk(key="v1", size=SIZE, whole=not parent),
        },
        "taken_at": 1000.0 + number,
        "consistency": "crash",
        "age_seconds": 2.0,
    }
    return ReceiveInput(**{**fields, **changes})


def piece(disk: int, block: int, letter: str) -> bytes:
    if letter == "0":
        return encode_head(ZERO, disk, block * BLOCK, BLOCK)
    return encode_head(DATA, disk, block * BLOCK, BLOCK) + letter.encode() * BLOCK


class Lab:
    def __init__(self, place: Path) -> None:
        self.driver = make_driver(place)
        self.begin()

    def begin(self, clock: Clock | None = None) -> None:
        """As an agent made anew."""
        clock = clock or SystemClock()
        self.receiver = Receiver(Pools(self.driver, {}, clock, asyncio.Event()), clock, lambda: None, lambda: None)

    async def send(self, point: ReceiveInput, stream: bytes, *, end: bool = True) -> int:
        """The point's number. Raises the refusal."""
        async with self.open() as (_, writer, served):
            task = asyncio.ensure_future(self.receiver.serve(served, CLAIMS, point))
            for frame in encode_data(FrameType.DATA_IN, stream):
                writer.write(frame)
            if end:
                writer.write(encode_frame(FrameType.END_IN))
            else:
                writer.close()
            return await task

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Stream]]:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        served = Stream(*await asyncio.open_unix_connection(sock=theirs))
        try:
            yield reader, writer, served
        finally:
            writer.close()
            await served.close()

    async def show(self, number: int) -> tuple[str, str]:
        found = []
        for key in ("root", "v1"):
            ids = [one.id for one in await self.driver.layers.list_kept() if one.uid == f"here-{number}"]
            async with self.driver.copies.read(ids[0], key, base=None, base_format="raw") as served:
                data = await asyncio.to_thread(read_all, served.socket)
            found.append("".join(chr(data[at]) if data[at] else "." for at in range(0, SIZE, BLOCK)).rstrip("."))
        return found[0], found[1]


def read_all(path: str) -> bytes:
    with NbdClient(path) as client:
        return client.read(0, client.size)


@pytest.fixture
async def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


async def test_points_come_one_on_the_other_and_are_reported(lab: Lab) -> None:
    lab.receiver.put_orders([make_order(1)])
    assert await lab.send(make_point(1), piece(0, 0, "a") + piece(0, 1, "a") + piece(1, 0, "x")) == 1
    [report] = lab.receiver.report()
    assert (report.phase, report.source, report.snapshot, report.bytes) == ("done", "there-1", "here-1", 3 * BLOCK)
    assert {name: disk.key for name, disk in report.disks.items()} == {"root": "root", "store": "v1"}
    assert report.taken_at == 1001.0 and report.age_seconds >= 2.0
    lab.receiver.put_orders([make_order(2, 1)])
    assert lab.receiver.report() == []
    assert await lab.send(make_point(2, 1), piece(0, 1, "0") + piece(1, 2, "y")) == 2
    assert [await lab.show(number) for number in (1, 2)] == [("aa", "x"), ("a", "x.y")]
    layers = {one.uid: one.disks["root"].layers for one in await lab.driver.layers.list_kept()}
    assert layers["here-2"][:-1] == layers["here-1"]


async def test_a_point_that_is_cut_off_leaves_nothing_and_the_next_one_stands_on_the_same_parent(lab: Lab) -> None:
    lab.receiver.put_orders([make_order(1)])
    await lab.send(make_point(1), piece(0, 0, "a"))
    lab.receiver.put_orders([make_order(2, 1)])
    with pytest.raises(EOFError):
        await lab.send(make_point(2, 1), piece(0, 0, "b") + piece(0, 5, "b")[:-1], end=False)
    assert lab.receiver.report() == []
    assert [one.uid for one in await lab.driver.layers.list_kept()] == ["here-1"]
    await lab.send(make_point(3, 1), piece(0, 1, "c"))
    assert await lab.show(2) == ("ac", "")


async def test_a_point_that_is_there_already_is_said_to_be_and_changes_nothing(lab: Lab) -> None:
    lab.receiver.put_orders([make_order(1)])
    await lab.send(make_point(1), piece(0, 0, "a"))
    assert await lab.send(make_point(1), piece(0, 0, "b")) == 1, "the server has not heard of it yet"
    lab.receiver.put_orders([make_order(2, 1)])
    assert await lab.send(make_point(1), b"") == 1
    assert await lab.show(1) == ("a", "")


async def test_an_agent_made_anew_reports_the_point_that_came_before_it_died(lab: Lab) -> None:
    lab.receiver.put_orders([make_order(1)])
    await lab.send(make_point(1), piece(0, 0, "a"))
    before = lab.receiver.report()[0]
    lab.begin()
    lab.receiver.put_orders([make_order(1)])
    keeping = asyncio.ensure_future(lab.receiver.keep())
    async with asyncio.timeout(20):
        while not lab.receiver.report():
            await asyncio.sleep(0.01)
    keeping.cancel()
    [after] = lab.receiver.report()
    assert (after.phase, after.source, after.disks, after.taken_at) == (
        "done",
        before.source,
        before.disks,
        before.taken_at,
    )


async def test_a_whole_point_begins_a_chain_of_its_own(lab: Lab) -> None:
    lab.receiver.put_orders([make_order(1)])
    await lab.send(make_point(1), piece(0, 0, "a") + piece(1, 3, "x"))
    lab.receiver.put_orders([make_order(2, 1)])
    await lab.send(make_point(2), piece(0, 1, "b"))
    assert await lab.show(2) == (".b", "")
    [kept] = [one for one in await lab.driver.layers.list_kept() if one.uid == "here-2"]
    assert [len(disk.layers) for disk in kept.disks.values()] == [1, 1]


async def test_one_whole_disk_hides_what_it_stands_on(lab: Lab) -> None:
    lab.receiver.put_orders([make_order(1)])
    await lab.send(make_point(1), piece(0, 0, "a") + piece(1, 3, "x"))
    lab.receiver.put_orders([make_order(2, 1)])
    disks = {"root": SentDisk(key="root", size=SIZE), "store": SentDisk(key="v1", size=SIZE, whole=True)}
    await lab.send(make_point(2, 1, disks=disks), piece(1, 1, "y"))
    assert await lab.show(2) == ("a", ".y")


@pytest.mark.parametrize(
    ("changes", "token"),
    [
        ({"origin": "another"}, "otherOrigin"),
        ({"generation": 2}, "staleGeneration"),
        ({"parent": "there-7"}, "otherParent"),
        ({"disks": {"root": SentDisk(key="root", size=SIZE + SECTOR, whole=True)}}, "replicaTooSmall"),
        ({"disks": {"more": SentDisk(key="v2", size=SECTOR, whole=True)}}, "replicaTooSmall"),
        ({"data": 3 * SIZE}, "invalidInput"),
        (
            {
                "disks": {
                    "root": SentDisk(key="v1", size=SIZE, whole=True),
                    "store": SentDisk(key="v1", size=SIZE, whole=True),
                }
            },
            "invalidInput",
        ),
    ],
)
async def test_a_point_that_does_not_fit_is_refused_before_its_bytes_are_read(
    lab: Lab, changes: dict[str, Any], token: str
) -> None:
    lab.receiver.put_orders([make_order(1)])
    async with lab.open() as (_, _, served):
        with pytest.raises(WeftError) as caught:
            await lab.receiver.serve(served, CLAIMS, make_point(1, **changes))
    assert caught.value.token == token
    assert await lab.driver.layers.list_kept() == []


async def test_another_parent_is_named_so_that_the_sender_can_go_on_from_there(lab: Lab) -> None:
    lab.receiver.put_orders([make_order(8, 7)])
    async with lab.open() as (_, _, served):
        with pytest.raises(WeftError) as caught:
            await lab.receiver.serve(served, CLAIMS, make_point(9, 6))
        assert (caught.value.token, caught.value.details) == ("otherParent", {"parent": "there-7"})
        with pytest.raises(WeftError) as caught:  # the pool lost it
            await lab.receiver.serve(served, CLAIMS, make_point(9, 7))
        assert (caught.value.token, caught.value.details) == ("otherParent", {"parent": ""})


async def test_hostile_pieces_end_the_stream_and_leave_nothing(lab: Lab, tmp_path: Path) -> None:
    for stream in (
        piece(0, 3, "a") + piece(0, 3, "b"),
        piece(1, 0, "a") + piece(0, 0, "a"),
        encode_head(DATA, 0, SIZE - SECTOR, 2 * SECTOR),
        piece(0, 0, "a")[:-5],
    ):
        lab.receiver.put_orders([make_order(1)])
        with pytest.raises(WeftError) as caught:
            await lab.send(make_point(1), stream)
        assert caught.value.token == "badPiece"
        assert await lab.driver.layers.list_kept() == []
        assert not any("import" in path.name for path in tmp_path.rglob("*"))
    assert await lab.send(make_point(1), piece(0, 0, "a")) == 1


async def test_a_sender_that_begins_again_ends_its_former_stream(lab: Lab) -> None:
    lab.receiver.put_orders([make_order(1)])
    async with lab.open() as (_, writer, served):
        former = asyncio.ensure_future(lab.receiver.serve(served, CLAIMS, make_point(1)))
        for frame in encode_data(FrameType.DATA_IN, piece(0, 0, "a")):
            writer.write(frame)
        async with asyncio.timeout(20):
            while not lab.receiver.report():
                await asyncio.sleep(0.01)
        assert await lab.send(make_point(1), piece(0, 1, "b")) == 1
        with pytest.raises((EOFError, OSError)):
            await former
    assert await lab.show(1) == (".b", "")


async def test_without_an_order_nothing_is_taken_in(lab: Lab) -> None:
    async with lab.open() as (_, _, served):
        with pytest.raises(WeftError) as caught:
            await lab.receiver.serve(served, CLAIMS, make_point(1))
    assert (caught.value.token, caught.value.retry_after_seconds) == ("replicaNotReady", 1.0)


async def test_a_pool_without_room_refuses_before_the_bytes_come(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = lab.driver.pool()
    monkeypatch.setattr(DirectoryVolumes, "pool", lambda self: type(facts)(facts.id, facts.total_bytes, SIZE))
    lab.receiver.put_orders([make_order(1)])
    async with lab.open() as (_, _, served):
        with pytest.raises(WeftError) as caught:
            await lab.receiver.serve(served, CLAIMS, make_point(1, data=SIZE))
    assert caught.value.token == "noSpace" and caught.value.hint


class SetClock(SystemClock):
    """Time that the test moves."""

    time = 0.0

    def elapsed(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


async def test_a_sender_that_trickles_is_let_go(lab: Lab) -> None:
    clock = SetClock()
    lab.begin(clock)
    lab.receiver.put_orders([make_order(1)])
    async with lab.open() as (_, writer, served):
        task = asyncio.ensure_future(lab.receiver.serve(served, CLAIMS, make_point(1)))
        while not lab.receiver.report():
            await asyncio.sleep(0.01)
        with pytest.raises(WeftError) as caught:
            for byte in piece(0, 0, "a"):
                writer.write(encode_frame(FrameType.DATA_IN, bytes([byte])))
                clock.time += 20.0
                done, _ = await asyncio.wait([task], timeout=0.05)
                if done:
                    await task
    assert caught.value.token == "linkTooSlow"


async def test_a_volume_made_from_a_point_is_read_as_what_changed_since_under_the_point_s_own_name(lab: Lab) -> None:
    lab.receiver.put_orders([make_order(1)])
    await lab.send(make_point(1), piece(0, 0, "a") + piece(1, 0, "x"))
    layers = lab.driver.layers
    await layers.clone("made", short_id("here-1"), "v1")
    await layers.begin_layer("made", "frozen")
    await layers.finish_layer("made", "frozen")
    chain = tuple(one.id for one in await layers.list_layers("made"))
    await layers.keep(KeptSnapshot("snap", "mine", {"w9": KeptDisk(chain, SIZE, "web-data")}))
    reading = lab.driver.copies.read("snap", "w9", base=None, base_format="raw", since=short_id("here-1"))
    async with reading as served:
        assert (served.since, served.is_whole) == ("v1", False)
        assert not [one for one in served.extents if not one[2]]
    reading = lab.driver.copies.read("snap", "w9", base=None, base_format="raw", since="another")
    async with reading as served:
        assert served.is_whole


async def test_points_of_the_other_side_s_volumes_continue_the_disks_by_their_names(lab: Lab) -> None:
    lab.receiver.put_orders([make_order(1)])
    await lab.send(make_point(1), piece(1, 0, "x"))
    for number, key in ((2, "v1"), (3, "w9")):  # the sender knows the key here at first only
        lab.receiver.put_orders([make_order(number, number - 1)])
        disks = {"root": SentDisk(key="root", size=SIZE), "store": SentDisk(key=key, size=SIZE)}
        await lab.send(make_point(number, number - 1, disks=disks, final=True), piece(1, number, "y"))
        [report] = lab.receiver.report()
        assert (report.disks["store"].key, report.final) == ("v1", True)
    assert await lab.show(3) == ("", "x.yy")


async def test_pieces_count_disks_by_their_names_whatever_order_they_came_in(lab: Lab) -> None:
    lab.receiver.put_orders([make_order(1, disks={"root": SIZE, "data": 2 * SIZE})])
    disks = {
        "root": SentDisk(key="root", size=SIZE, whole=True),
        "data": SentDisk(key="v1", size=2 * SIZE, whole=True),
    }
    await lab.send(make_point(1, disks=disks), piece(0, 17, "x") + piece(1, 0, "a"))
    assert await lab.show(1) == ("a", "")  # of the second one only what the first has place for is shown
    [report] = lab.receiver.report()
    assert report.bytes == 2 * BLOCK


@pytest.mark.parametrize(
    ("orders", "reason"),
    [
        ([make_order(1, generation=2)], "staleGeneration"),
        ([make_order(2)], "replicaNotReady"),
        ([], "replicaNotReady"),
    ],
)
async def test_a_point_whose_replica_was_promoted_while_it_came_is_not_kept(
    lab: Lab, orders: list[ReceiveOrder], reason: str
) -> None:
    lab.receiver.put_orders([make_order(1)])
    async with lab.open() as (_, writer, served):
        task = asyncio.ensure_future(lab.receiver.serve(served, CLAIMS, make_point(1)))
        for frame in encode_data(FrameType.DATA_IN, piece(0, 0, "a")):
            writer.write(frame)
        async with asyncio.timeout(30):
            while not lab.receiver.report():
                await asyncio.sleep(0.01)
        lab.receiver.put_orders(orders)
        writer.write(encode_frame(FrameType.END_IN))
        with pytest.raises(WeftError) as told:
            await task
    assert told.value.token == reason
    assert await lab.driver.layers.list_kept() == [] and lab.receiver.report() == []


async def test_the_sender_of_a_large_point_hears_of_a_promotion_before_its_end(lab: Lab) -> None:
    lab.receiver.put_orders([make_order(1)])
    async with lab.open() as (_, writer, served):
        task = asyncio.ensure_future(lab.receiver.serve(served, CLAIMS, make_point(1)))
        writer.write(b"".join(encode_data(FrameType.DATA_IN, piece(0, 0, "a"))))
        async with asyncio.timeout(30):
            while not lab.receiver.report():
                await asyncio.sleep(0.01)
        lab.receiver.put_orders([make_order(1, generation=2)])
        more = b"".join(piece(disk, block, "b") for disk, first in ((0, 1), (1, 0)) for block in range(first, 16))
        writer.write(b"".join(encode_data(FrameType.DATA_IN, more)))  # and no end
        async with asyncio.timeout(30):
            with pytest.raises(WeftError) as told:
                await task
    assert told.value.token == "staleGeneration"
