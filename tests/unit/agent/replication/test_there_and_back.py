"""Points between two nodes' pools, in both directions: after a promotion only what changed since comes back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from tests.conformance.points import PointsDriver
from tests.unit.drivers.volume.test_volume_layers import ID as VOLUME
from tests.unit.drivers.volume.test_volume_layers import list_files, make_driver, write, write_volume

from weft.agent.image.cache import ImageCache
from weft.agent.orders.executor import Executor
from weft.agent.replication import peer, sender
from weft.agent.replication.peer import list_pieces
from weft.agent.replication.receiver import Receiver
from weft.agent.replication.sender import Sender
from weft.agent.server.client import Server
from weft.agent.stream.connection import Stream
from weft.agent.volume.pools import Pools
from weft.backup.process.nbd import NbdClient
from weft.contracts.clock import SystemClock
from weft.contracts.driver.layers import KeptDisk, KeptSnapshot, ServedDisk
from weft.kinds.allocation import LOCAL, ROOT
from weft.kinds.fields.replication.work import ReceiveOrder, SendOrder, SendReport
from weft.kinds.orders import SEND
from weft.kinds.parts.stream_verbs import ReceiveInput
from weft.objects.identity import short_id
from weft.protocol.claims import Claims
from weft.protocol.frames import FrameType, encode_data, encode_frame
from weft.protocol.report import OpenedLink
from weft.trust.tickets import sign_ticket, verify_ticket

BLOCK, SIZE = 65536, 16 * 65536
CLAIMS = Claims(node_uid="n1", verb="receive", guest_id="replica-1")


class Node:
    def __init__(self, place: Path, driver: PointsDriver | None = None) -> None:
        """Its one pool is a folder, unless it is given."""
        place.mkdir()
        self.driver: Any = driver or make_driver(place)
        pools = Pools(self.driver, {}, SystemClock(), asyncio.Event())
        self.receiver = Receiver(pools, SystemClock(), lambda: None, lambda: None)
        server = cast(Server, _Server())
        images = cast(ImageCache, _Images(place / "image"))
        handler = Sender("n1", server, pools, images, SystemClock())
        self.sender = Executor(SEND, handler, str(place), SystemClock(), lambda: None)
        self.keeping = asyncio.ensure_future(self.sender.keep())

    async def take(self, uid: str, key: str, volume: str, name: str) -> None:
        """A snapshot of the volume."""
        layer = short_id(f"layer {uid}")
        await self.driver.layers.begin_layer(volume, layer)
        await self.driver.layers.finish_layer(volume, layer)
        chain = tuple(one.id for one in await self.driver.layers.list_layers(volume))
        await self.driver.layers.keep(KeptSnapshot(short_id(uid), uid, {key: KeptDisk(chain, SIZE, name)}))

    async def send(self, uid: str, key: str, name: str, since: str) -> SendReport:
        order = SendOrder(
            uid="replication",
            node_uid="n1",
            attempt=len(uid),
            cluster="west",
            project="default",
            replica="web",
            manifest={},
            snapshot=uid,
            since=since,
            disks={name: key},
            image_sha256="sha" if key == ROOT else "",
        )
        self.sender.put_orders([order])
        async with asyncio.timeout(30):
            while not (found := [one for one in self.sender.report() if one.phase != "working"]):
                await asyncio.sleep(0.01)
        assert found[0].phase == "done", found
        return found[0]

    async def show(self, uid: str, key: str, base: str | None = None) -> str:
        reading = self.driver.copies.read(short_id(uid), key, base=base, base_format="raw")
        async with reading as served:
            data = await asyncio.to_thread(_read_all, served.socket)
        return "".join(chr(data[at]) if data[at] else "." for at in range(0, SIZE, BLOCK)).rstrip(".")


class _Images:
    """Has one image, of b's."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"b" * SIZE)
        self.disk, self.disk_format = str(path), "raw"

    def find(self, sha256: str) -> _Images:
        return self


class _Server:
    def read_link(self, node: str, cluster: str) -> OpenedLink:
        return OpenedLink("", "", "")


def _read_all(path: str) -> bytes:
    with NbdClient(path) as client:
        return client.read(0, client.size)


def connect(patch: pytest.MonkeyPatch, there: Node) -> None:
    """What a sender sends goes to this node."""
    loop = asyncio.get_running_loop()

    class Line:
        def __init__(self, *_: object) -> None: ...

        def close(self) -> None: ...

        def put_replica(self, name: str, spec: Mapping[str, Any], *, has_points: bool) -> None: ...

        def send(self, name: str, point: ReceiveInput, disks: Sequence[ServedDisk], sent: Callable[[int], None]) -> int:
            pieces = list(list_pieces(disks, [disk.whole for disk in point.disks.values()]))
            sent(sum(len(data) for _, data in pieces))
            stream = b"".join(head + data for head, data in pieces)
            return asyncio.run_coroutine_threadsafe(take_in(there.receiver, point, stream), loop).result()

    patch.setattr(peer, "Peer", Line)


async def take_in(receiver: Receiver, point: ReceiveInput, stream: bytes) -> int:
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_unix_connection(sock=ours)
    served = Stream(*await asyncio.open_unix_connection(sock=theirs))
    try:
        task = asyncio.ensure_future(receiver.serve(served, CLAIMS, point))
        for frame in encode_data(FrameType.DATA_IN, stream):
            writer.write(frame)
        writer.write(encode_frame(FrameType.END_IN))
        return await task
    finally:
        writer.close()
        await served.close()


def order(snapshot: str, number: int, parent: str, parent_source: str) -> ReceiveOrder:
    return ReceiveOrder(
        uid="replica-1",
        node_uid="n1",
        generation=1,
        origin="replication",
        number=number,
        snapshot=snapshot,
        pool=LOCAL,
        parent=parent,
        parent_source=parent_source,
        disks={"root": SIZE, "data": SIZE, "web-data": SIZE},
    )


async def test_only_what_changed_comes_back_though_volumes_are_called_otherwise_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    east, west = Node(tmp_path / "east"), Node(tmp_path / "west")
    await east.driver.ensure(VOLUME, size_bytes=SIZE)
    for block, letter in enumerate("abc"):
        await write_volume(east.driver, letter, block)
    await east.take("s1", "v-east", VOLUME, "data")
    connect(monkeypatch, west)
    west.receiver.put_orders([order("p1", 1, "", "")])
    assert (await east.send("s1", "v-east", "data", "")).bytes >= 3 * BLOCK
    assert await west.show("p1", "v-east") == "abc"

    await west.driver.layers.clone("made", short_id("p1"), "v-east")  # it was promoted
    await write_volume(west.driver, "x", 1, "made")
    await west.take("q1", "v-west", "made", "web-data")
    await write_volume(east.driver, "z", 5)  # by the guest that was cut off
    connect(monkeypatch, east)
    for uid, number, parent, source, since, blocks in (
        ("q1", 2, "s1", "s1", "p1", 1),
        ("q22", 3, "e-q1", "q1", "q1", 1),
        ("q333", 4, "e-q22", "q22", "q22", 0),
    ):
        if uid != "q1":
            await west.take(uid, "v-west", "made", "web-data")
        east.receiver.put_orders([order(f"e-{uid}", number, parent, source)])
        report = await west.send(uid, "v-west", "web-data", since)
        assert (report.number, report.bytes, report.is_whole) == (number, blocks * BLOCK, False)
        if uid == "q1":
            await write_volume(west.driver, "y", 3, "made")
    assert [await east.show(uid, "v-east") for uid in ("s1", "e-q1", "e-q22")] == ["abc", "axc", "axcy"]
    await east.driver.layers.clone(
        "home", short_id("e-q333"), "v-east"
    )  # it was promoted, and goes there a second time
    await write_volume(east.driver, "w", 6, "home")
    await east.take("t4444", "v-east", "home", "data")
    connect(monkeypatch, west)
    west.receiver.put_orders([order("w5", 5, "q333", "q333")])
    report = await east.send("t4444", "v-east", "data", "e-q333")
    assert (report.bytes, report.is_whole) == (BLOCK, False)
    assert await west.show("w5", "v-west") == "axcy..w"
    for node in (east, west):
        node.keeping.cancel()
        await asyncio.gather(node.keeping, return_exceptions=True)


async def test_what_comes_back_to_a_disk_on_an_image_leaves_the_image_s_part_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    east, west = Node(tmp_path / "east"), Node(tmp_path / "west")
    image = str(tmp_path / "east" / "image")
    await east.driver.ensure(VOLUME, base=image, base_format="raw", size_bytes=SIZE)
    path = await list_files(east.driver)
    write(path, "a", 0, 4096, base=image)  # a part of a cluster: the rest of it is the image's
    await east.take("s1", ROOT, VOLUME, "")
    connect(monkeypatch, west)
    west.receiver.put_orders([order("p1", 1, "", "")])
    await east.send("s1", ROOT, ROOT, "")
    assert await west.show("p1", ROOT) == "a" + "b" * 15

    await west.driver.layers.clone("made", short_id("p1"), ROOT)
    write(await list_files(west.driver, "made"), "x", 2 * BLOCK + 4096, 4096)
    await west.take("q1", ROOT, "made", "")
    connect(monkeypatch, east)
    east.receiver.put_orders([order("e1", 2, "s1", "s1")])
    report = await west.send("q1", ROOT, ROOT, "p1")
    assert (report.bytes, report.is_whole) == (BLOCK, False)
    assert await east.show("e1", ROOT, image) == "a" + "b" * 15
    reading = east.driver.copies.read(short_id("e1"), ROOT, base=image, base_format="raw")
    async with reading as served:
        data = await asyncio.to_thread(_read_all, served.socket)
    expected = bytearray(b"b" * SIZE)
    expected[:4096], expected[2 * BLOCK + 4096 : 2 * BLOCK + 8192] = b"a" * 4096, b"x" * 4096
    assert data == bytes(expected)
    for node in (east, west):
        node.keeping.cancel()
        await asyncio.gather(node.keeping, return_exceptions=True)


def test_disks_are_sent_in_the_order_in_which_a_ticket_names_them() -> None:
    """Also one that comes before root by its name."""
    disks = {name: ServedDisk("s", SIZE, [], True) for name in ("root", "data", "z")}
    ticket = sign_ticket(b"k" * 32, {"expires": 10.0, "input": {"disks": {name: {} for name in disks}}})
    read = verify_ticket(b"k" * 32, ticket, 0.0)["input"]["disks"]
    assert list(sender.order_disks(disks)) == list(read) == ["data", "root", "z"]
