"""Takes the points of replicas in: each comes on a stream of its own, becomes a layer on the point before, and is complete in one
durable write.

Reads the stream's pieces, which are hostile; writes to the pool. Nothing is kept beside the pools' own records: a restarted agent
finds there whether the point that an order is about has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import msgspec

from weft.agent.volume.pools import Pools
from weft.backup.process.nbd import NbdClient
from weft.contracts.clock import Clock
from weft.contracts.driver.layers import MOST_LAYERS, CopiesDisks, HasLayers, KeptDisk, KeptSnapshot
from weft.contracts.driver.volume import HasPool
from weft.kinds.allocation import ROOT
from weft.kinds.fields.replication.work import ReceivedDisk, ReceiveOrder, ReceiveReport
from weft.kinds.orders import RECEIVE, find_report
from weft.kinds.parts.stream_verbs import ReceiveInput
from weft.objects.errors import (
    DriverFailed,
    Forbidden,
    IllegalTransition,
    InvalidInput,
    TimedOut,
    Unavailable,
    WeftError,
)
from weft.objects.identity import short_id
from weft.objects.quantity import format_bytes
from weft.protocol.claims import Claims
from weft.protocol.frames import Frame, FrameType
from weft.protocol.points import Piece, PieceReader

SILENCE_SECONDS = 30.0
SPELL_SECONDS, LEAST_BYTES = 60.0, 64 << 10  # so much has to come in each such time
BATCH_BYTES = 1 << 20
RESERVE_BYTES = 64 << 20  # of the pool, that a point leaves free

log = logging.getLogger("weft.agent")


class Incoming(Protocol):
    """A client's stream."""

    async def receive(self) -> Frame | None:
        """The next frame; None when the client has gone."""

    async def close(self) -> None: ...


class _Pool(HasLayers, CopiesDisks, Protocol):
    """A pool that takes points in."""


class Receiver:
    """``changed`` is called when there is something to report; ``taken_in`` once a pool has got a snapshot."""

    is_asking = False  # its orders stand for long

    def __init__(self, pools: Pools, clock: Clock, changed: Callable[[], None], taken_in: Callable[[], None]) -> None:
        self._pools, self._clock, self._changed, self._taken_in = pools, clock, changed, taken_in
        self._orders: list[ReceiveOrder] = []
        self._reports: list[ReceiveReport] = []
        self._done_at: dict[str, float] = {}  # elapsed seconds, by uid of the point's snapshot here
        self._streams: dict[str, Incoming] = {}  # under way, by the replica's uid
        self._turns: dict[str, asyncio.Lock] = {}
        self._woken = asyncio.Event()

    def report(self) -> list[ReceiveReport]:
        """A point grows older until the server has heard of it."""
        now = self._clock.elapsed()
        waited = {
            one.snapshot: math.ceil(2 * (now - self._done_at.get(one.snapshot, now))) / 2 for one in self._reports
        }
        return [
            msgspec.structs.replace(one, age_seconds=one.age_seconds + waited[one.snapshot]) for one in self._reports
        ]

    def put_orders(self, orders: Sequence[ReceiveOrder]) -> None:
        """All that this node shall take in."""
        if list(orders) == self._orders:
            return
        self._orders = list(orders)
        self._reports = [one for one in self._reports if any(find_report([one], order) for order in orders)]
        self._turns = {uid: turn for uid, turn in self._turns.items() if uid in self._streams or turn.locked()}
        self._woken.set()

    async def keep(self) -> None:
        """Find the points that have come already, for ever."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            for order in self._orders:
                with contextlib.suppress(WeftError, OSError):
                    await self._recall(order)

    async def _recall(self, order: ReceiveOrder) -> None:
        if find_report(self._reports, order) is not None or order.uid in self._streams:
            return
        pool = await self._find_pool(order)
        for kept in await pool.layers.list_kept():
            if kept.uid == order.snapshot:
                self._note(order, describe(order, kept))

    def _note(self, order: ReceiveOrder, report: ReceiveReport) -> None:
        if any(find_report([report], one) for one in self._orders):
            self._reports = [*(one for one in self._reports if find_report([one], order) is None), report]
            self._changed()

    async def serve(self, stream: Incoming, claims: Claims, given: ReceiveInput) -> int:
        """Take one point in; the number that it got. Raises WeftError, EOFError if the client goes before the end: then nothing is
        kept."""
        order = next((one for one in self._orders if one.uid == claims.guest_id), None)
        if order is None:
            raise _not_ready("its node has not heard of it yet")
        if (former := self._streams.get(order.uid)) is not None:
            await former.close()  # its sender has begun again
        elif len(self._streams) >= RECEIVE.at_once:
            raise _not_ready(f"this node takes in {len(self._streams)} points of other replicas now")
        async with self._turns.setdefault(order.uid, asyncio.Lock()):
            order = next((one for one in self._orders if one.uid == claims.guest_id), order)
            self._streams[order.uid] = stream
            try:
                return await self._take(stream, order, given)
            finally:
                if self._streams.get(order.uid) is stream:
                    del self._streams[order.uid]

    async def _take(self, stream: Incoming, order: ReceiveOrder, given: ReceiveInput) -> int:
        """The number of the point."""
        check_sender(order, given)
        given = msgspec.structs.replace(given, disks=dict(sorted(given.disks.items())))
        done = find_report(self._reports, order)
        if done is not None and done.phase == "done":
            if done.source == given.source:
                return order.number
            raise _not_ready("the point before has just come")
        if given.source == order.parent_source:
            return order.number - 1
        check_point(order, given)
        pool = await self._find_pool(order)
        given = match_disks(given, await self._check_free(pool, order, given))
        self._note(order, ReceiveReport(uid=order.uid, snapshot=order.snapshot, source=given.source))
        try:
            report = await self._write(stream, pool, order, given)
        except BaseException:
            self._reports = [one for one in self._reports if find_report([one], order) is None]
            raise
        self._done_at = {order.snapshot: self._clock.elapsed(), **self._kept_times()}
        self._note(order, report)
        self._taken_in()
        return order.number

    def _kept_times(self) -> dict[str, float]:
        wanted = {one.snapshot for one in self._orders}
        return {uid: at for uid, at in self._done_at.items() if uid in wanted}

    async def _find_pool(self, order: ReceiveOrder) -> _Pool:
        driver = await self._pools.find(order.pool)
        if not isinstance(driver, HasLayers) or not isinstance(driver, CopiesDisks):
            raise DriverFailed(f"storage pool {order.pool} can't take replicas in", reason="unsupported")
        return cast(_Pool, driver)

    async def _check_free(self, pool: _Pool, order: ReceiveOrder, given: ReceiveInput) -> KeptSnapshot | None:
        """The point before. Raises Unavailable (``replicaNotReady``), IllegalTransition, DriverFailed (``noSpace``)."""
        parent = short_id(order.parent) if given.parent else ""
        kept = next((one for one in await pool.layers.list_kept() if one.id == parent), None)
        if parent and kept is None:
            raise _other_parent(order, given, "")
        if kept is not None and max(len(disk.layers) for disk in kept.disks.values()) >= MOST_LAYERS:
            raise _not_ready("earlier points are being merged first")
        if isinstance(pool, HasPool):
            free = (await asyncio.to_thread(pool.pool)).free_bytes
            if free < given.data + RESERVE_BYTES:
                raise DriverFailed(
                    f"storage pool {order.pool} has {format_bytes(free)} free; the point has {format_bytes(given.data)}",
                    reason="noSpace",
                    hint="free space there, or give the replica another pool",
                )
        return kept

    async def _write(self, stream: Incoming, pool: _Pool, order: ReceiveOrder, given: ReceiveInput) -> ReceiveReport:
        began, parent = self._clock.elapsed(), short_id(order.parent) if given.parent else ""
        layers = {name: short_id(f"{order.snapshot}/{disk.key}") for name, disk in given.disks.items()}
        try:
            async with contextlib.AsyncExitStack() as stack:
                sockets = []
                for name, disk in given.disks.items():
                    on = {} if disk.whole else {"on": parent, "disk": disk.key}
                    sockets.append(await stack.enter_async_context(pool.copies.write(layers[name], disk.size, **on)))
                writing = Writing(sockets, [disk.whole for disk in given.disks.values()])
                stack.callback(writing.close)
                async with WritingBehind(writing) as behind:
                    received = await self._receive(stream, order, given, behind)
                await asyncio.to_thread(writing.finish)
            disks = {
                disk.key: KeptDisk((layers[name],), disk.size, "" if disk.key == ROOT else name)
                for name, disk in given.disks.items()
            }
            kept = KeptSnapshot(
                *(short_id(order.snapshot), order.snapshot, disks),
                taken_at=given.taken_at,
                source=given.source,
                consistency=given.consistency,
                final=given.final,
            )
            self._check_still(order, given)
            await pool.copies.take_in(kept, on=parent)
        finally:
            await pool.copies.discard(layers.values())
        age = given.age_seconds + self._clock.elapsed() - began
        return msgspec.structs.replace(describe(order, kept), bytes=received, age_seconds=age)

    def _check_still(self, order: ReceiveOrder, given: ReceiveInput) -> None:
        """Check that the order still stands, or what came isn't kept: the replica may have been promoted since the stream began.
        Raises Unavailable (``replicaNotReady``), IllegalTransition (``staleGeneration``)."""
        now = next((one for one in self._orders if (one.uid, one.snapshot) == (order.uid, order.snapshot)), None)
        if now is None:
            raise _not_ready("its order changed while the point came")
        check_sender(now, given)

    async def _receive(self, stream: Incoming, order: ReceiveOrder, given: ReceiveInput, behind: WritingBehind) -> int:
        """Write what comes, while the order stands; how much that was. Raises EOFError, InvalidInput, Unavailable (``linkTooSlow``,
        ``replicaNotReady``), IllegalTransition."""
        reader, batch, waiting = PieceReader([disk.size for disk in given.disks.values()]), list[Piece](), 0
        spell, came = self._clock.elapsed(), 0
        while True:
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    frame = await stream.receive()
            except TimeoutError:
                raise TimedOut(f"the sender was silent for {SILENCE_SECONDS:g} s") from None
            if frame is None:
                raise EOFError("the sender has gone")
            if frame.type == FrameType.END_IN:
                break
            if frame.type != FrameType.DATA_IN:
                raise InvalidInput(f"a point may not have frames of type {frame.type}", reason="badPiece")
            came += len(frame.payload)
            if self._clock.elapsed() - spell >= SPELL_SECONDS:
                if came < LEAST_BYTES:
                    raise Unavailable(
                        f"the point came with {came} bytes in {SPELL_SECONDS:g} s",
                        reason="linkTooSlow",
                        hint="what came is dropped; the sender begins again",
                    )
                spell, came = self._clock.elapsed(), 0
            for piece in reader.feed(frame.payload):
                batch.append(piece)
                waiting += len(piece.data) + 1024
            if waiting >= BATCH_BYTES:
                self._check_still(order, given)  # so that the sender of a large point hears of a promotion early
                await behind.write(batch)
                batch, waiting = [], 0
        reader.end()
        await behind.write(batch)
        return reader.bytes


class Writing:
    """The disks of a point while it comes. Blocks. Raises DriverFailed, OSError."""

    def __init__(self, sockets: Sequence[str], whole: Sequence[bool]) -> None:
        self._sockets, self._whole = sockets, whole
        self._clients: dict[int, NbdClient] = {}

    def write(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            client = self._open(piece.disk)
            if piece.data:
                client.write(piece.offset, piece.data)
            else:
                client.write_zeroes(piece.offset, piece.length)

    def finish(self) -> None:
        """All of it is written."""
        for number in range(len(self._sockets)):
            self._open(number).flush()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def _open(self, number: int) -> NbdClient:
        if number not in self._clients:
            client = self._clients[number] = NbdClient(self._sockets[number])
            if self._whole[number]:
                client.write_zeroes(0, client.size)  # what no piece names is zero, whatever the disk is opened on
        return self._clients[number]


class WritingBehind:
    """Writes a batch in a thread while the next one comes; one at a time. The end of the context waits for the last one."""

    def __init__(self, writing: Writing) -> None:
        self._writing = writing
        self._under_way: asyncio.Future[None] | None = None

    async def write(self, batch: Sequence[Piece]) -> None:
        """Begin with it once the one before is written. Raises what that one met."""
        if self._under_way is not None:
            await self._under_way
        self._under_way = asyncio.ensure_future(asyncio.to_thread(self._writing.write, batch))

    async def __aenter__(self) -> WritingBehind:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._under_way is None:
            return
        if kind is None:
            await self._under_way
        else:
            await asyncio.gather(self._under_way, return_exceptions=True)


def check_sender(order: ReceiveOrder, given: ReceiveInput) -> None:
    """Raises Forbidden (``otherOrigin``), IllegalTransition (``staleGeneration``)."""
    if given.origin != order.origin:
        raise Forbidden(
            "the replica is of another replication",
            reason="otherOrigin",
            hint="give this one's replica another name, or delete the replica that has the name",
        )
    if given.generation != order.generation:
        raise IllegalTransition(
            f"the replica is at generation {order.generation}, not at {given.generation}",
            reason="staleGeneration",
            hint="its source is no longer the one that writes; see the replica at the other cluster",
            details={"generation": order.generation},
        )


def check_point(order: ReceiveOrder, given: ReceiveInput) -> None:
    """Raises IllegalTransition (``otherParent``), InvalidInput, TooLarge."""
    if given.parent and given.parent != order.parent_source:
        raise _other_parent(order, given, order.parent_source)
    keys = [disk.key for disk in given.disks.values()]
    if len(set(keys)) < len(keys):
        raise InvalidInput("input.disks: two disks have the same key", field="input.disks")
    for name, disk in given.disks.items():
        most = order.disks.get(name, 0)
        if disk.size > most:
            raise InvalidInput(
                f"disk {name[:80]} has {disk.size} bytes; the replica has place for {most}",
                reason="replicaTooSmall",
                hint="change spec.disks of the replica first",
            )
    total = sum(disk.size for disk in given.disks.values())
    if given.data > total:
        raise InvalidInput(f"input.data: {given.data} is more than the disks have: {total}", field="input.data")


def match_disks(given: ReceiveInput, former: KeptSnapshot | None) -> ReceiveInput:
    """The point with its disks' keys as the point before has them, which may have come from the other side: a disk with none of
    those keys is the one that had its former name, or has its name."""
    if former is None:
        return given
    keys = {disk.name or ROOT: key for key, disk in former.disks.items()}
    disks = {}
    for name, disk in given.disks.items():
        key = disk.key if disk.key in former.disks else keys.get(disk.former) or keys.get(name) or disk.key
        disks[name] = msgspec.structs.replace(disk, key=key)
    if len({disk.key for disk in disks.values()}) < len(disks):
        raise InvalidInput("input.disks: two disks continue the same one", field="input.disks")
    return msgspec.structs.replace(given, disks=disks)


def describe(order: ReceiveOrder, kept: KeptSnapshot) -> ReceiveReport:
    return ReceiveReport(
        uid=order.uid,
        snapshot=order.snapshot,
        phase="done",
        source=kept.source,
        disks={disk.name or ROOT: ReceivedDisk(key, disk.size_bytes) for key, disk in kept.disks.items()},
        taken_at=kept.taken_at,
        consistency=kept.consistency,
        final=kept.final,
    )


def _other_parent(order: ReceiveOrder, given: ReceiveInput, there: str) -> IllegalTransition:
    return IllegalTransition(
        f"the newest point of the replica is {there or 'none'}, not {given.parent}",
        reason="otherParent",
        hint="send what changed since that one, or all",
        details={"parent": there},
    )


def _not_ready(why: str) -> Unavailable:
    return Unavailable(f"the replica takes no point now: {why}", reason="replicaNotReady", retry_after_seconds=1.0)
