"""How orders to send are done: points of this node's workloads go to their replicas at other clusters, or at other nodes.

Reads disks through the pools, and a link's address and token from the server for each point. Nothing is kept: a restarted agent
sends again, and the replica says so if it has the point.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from weft.agent.image.cache import ImageCache
from weft.agent.orders.executor import Handler
from weft.agent.replication.failure import make_failure
from weft.agent.server.client import Server
from weft.agent.snapshot.reading import read_disks
from weft.agent.volume.pools import Pools
from weft.contracts.clock import Clock
from weft.contracts.driver.layers import HasLayers, ServedDisk
from weft.kinds.fields.replication.work import SendOrder, SendReport
from weft.kinds.parts.stream_verbs import ReceiveInput, SentDisk
from weft.objects.errors import IllegalTransition, NotFound, Unavailable, WeftError

if TYPE_CHECKING:  # a node that replicates nothing loads none of this
    from weft.agent.replication.peer import Peer

PROGRESS_SECONDS = 2.0
READY_SECONDS, AGAIN_SECONDS = 60.0, 0.5  # how long, and how often, a replica that isn't ready yet is asked
OTHER_PARENTS = 2  # how often a replica may name another point than was thought, for one order

log = logging.getLogger("weft.agent")


class Sender(Handler[SendOrder, SendReport]):
    def __init__(self, node: str, server: Server, pools: Pools, images: ImageCache, clock: Clock) -> None:
        self._node, self._server, self._pools, self._images, self._clock = node, server, pools, images, clock

    def begin(self, order: SendOrder, former: SendReport | None) -> SendReport:
        return SendReport(uid=order.uid, attempt=order.attempt)

    async def do(self, order: SendOrder, show: Callable[[SendReport], None]) -> SendReport:
        return await self._send(order, show)

    def fail(self, order: SendOrder, problem: Exception) -> tuple[SendReport, None]:
        return make_failure(order, problem), None

    async def _send(self, order: SendOrder, show: Callable[[SendReport], None]) -> SendReport:
        """Raises WeftError, OSError."""
        asked_at = self._clock.elapsed()
        late = importlib.import_module("weft.agent.replication.peer")  # see above
        if order.cluster:
            link = await asyncio.to_thread(self._server.read_link, self._node, order.cluster)
            context, age = late.make_context(link), order.age_seconds
            if link.now and order.begun_at:  # the server's own clock counts also how long the order was on its way
                age = max(age, link.now - order.begun_at)
            order = msgspec.structs.replace(order, age_seconds=age)
        else:
            context = self._server.context
        peer = late.Peer(context, order.project, order.own_project)
        try:
            if order.cluster:  # the controllers keep one of this cluster
                await asyncio.to_thread(put_replica, peer, order)
            since = parent = order.since
            for _ in range(OTHER_PARENTS):
                try:
                    return await self._send_since(peer, order, since, parent, asked_at, show)
                except IllegalTransition as problem:
                    if problem.token != "otherParent":
                        raise
                    parent = str(problem.details.get("parent", ""))
                    since = await self._find_common(order, parent)
                    parent = parent if since else ""
            return await self._send_since(peer, order, "", "", asked_at, show)
        finally:
            peer.close()

    async def _find_common(self, order: SendOrder, there: str) -> str:
        """The uid here of the point that the replica has: it was sent from here, or it came from there while that side was the
        one that wrote. "": it is not here."""
        for _, driver in self._pools.named():
            if there and isinstance(driver, HasLayers):
                for one in await driver.layers.list_kept():
                    if there in (one.uid, one.source) and one.uid != order.snapshot:
                        return one.uid
        return ""

    async def _send_since(
        self,
        peer: Peer,
        order: SendOrder,
        since: str,
        parent: str,
        given_at: float,
        show: Callable[[SendReport], None],
    ) -> SendReport:
        reading = read_disks(
            *(self._pools, self._images, order.snapshot, order.disks), image_sha256=order.image_sha256, since=since
        )
        async with reading as found:
            disks = order_disks(found)
            deadline = self._clock.elapsed() + READY_SECONDS
            while True:
                point = self._describe(order, parent, disks, given_at)
                try:
                    return await self._stream(peer, order, point, list(disks.values()), show)
                except Unavailable as problem:
                    if problem.token != "replicaNotReady" or self._clock.elapsed() >= deadline:
                        raise
                await self._clock.sleep(AGAIN_SECONDS)

    def _describe(
        self, order: SendOrder, parent: str, disks: Mapping[str, ServedDisk], given_at: float
    ) -> ReceiveInput:
        late = importlib.import_module("weft.agent.replication.peer")  # see above
        return ReceiveInput(
            origin=order.uid,
            generation=order.generation,
            source=order.snapshot,
            parent=parent,
            disks={
                name: SentDisk(
                    key=disk.since or order.disks[name],
                    size=disk.size_bytes,
                    whole=disk.is_whole,
                    former=disk.since_name,
                )
                for name, disk in disks.items()
            },
            data=sum(map(late.count_data, disks.values())),
            taken_at=order.taken_at,
            consistency=order.consistency,
            age_seconds=max(0.0, order.age_seconds) + self._clock.elapsed() - given_at,
            final=order.final,
        )

    async def _stream(
        self,
        peer: Peer,
        order: SendOrder,
        point: ReceiveInput,
        disks: Sequence[ServedDisk],
        show: Callable[[SendReport], None],
    ) -> SendReport:
        began, loop, noted = self._clock.elapsed(), asyncio.get_running_loop(), [self._clock.elapsed()]
        report = SendReport(
            uid=order.uid,
            attempt=order.attempt,
            total=point.data,
            is_whole=any(disk.whole for disk in point.disks.values()),
        )
        total = [0]

        def note(count: int) -> None:
            total[0] = count
            now = self._clock.elapsed()
            if now - noted[0] >= PROGRESS_SECONDS:
                noted[0] = now
                loop.call_soon_threadsafe(show, msgspec.structs.replace(report, bytes=count, seconds=now - began))

        sending = asyncio.ensure_future(asyncio.to_thread(peer.send, order.replica, point, disks, note))
        try:
            number = await asyncio.shield(sending)
        except asyncio.CancelledError:
            peer.close()  # the thread finds out with its next piece
            with contextlib.suppress(WeftError, OSError):
                await sending
            raise
        if (
            order.final or order.confirms
        ):  # a promotion from it claims that nothing is lost, or no promotion claims that any more
            await asyncio.to_thread(peer.await_point, order.replica, order.snapshot, as_standby=order.confirms)
        seconds = self._clock.elapsed() - began
        return msgspec.structs.replace(report, phase="done", number=number, bytes=total[0], seconds=seconds)


def put_replica(peer: Peer, order: SendOrder) -> None:
    """Raises WeftError. What isn't there for it is named with the other cluster: here it may be."""
    try:
        peer.put_replica(order.replica, order.manifest, has_points=order.has_points)
    except NotFound as missing:
        hint = f"there: {missing.hint}" if missing.hint else None
        raise NotFound(f"{missing.message} at {order.cluster}", reason=missing.token, hint=hint) from missing


def order_disks(disks: Mapping[str, ServedDisk]) -> dict[str, ServedDisk]:
    """Order the disks by name, which is the order that the replica's node reads them in: the ticket, by which it knows them, sorts
    its claims."""
    return dict(sorted(disks.items()))
