"""Asks linked clusters how they are, every few seconds: one task for each, so that one which hangs delays no other.

Reads clusters and replications; writes cluster.status. Woken by the clock, and by a cluster's own changes. All that it keeps is
when each last answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from weft.client.cluster.peer import PeerLink, ask_hello
from weft.contracts.journal import Event
from weft.contracts.wakeup import Wake
from weft.controllers.cluster.facts import Reply, find_lag, read_link
from weft.controllers.cluster.plan import find_offset, plan_status
from weft.controllers.image.credentials import Unseal
from weft.informer.cache import whole
from weft.informer.commit import Draft
from weft.informer.leader_lease import LeaderLease, LeadershipLost
from weft.informer.view import Changed, Item, has_changed
from weft.kinds.cluster import CLUSTER, ClusterSpec, ClusterStatus
from weft.objects.errors import WeftError
from weft.protocol.link import HelloAnswer

ASK_SECONDS = 3.0
SOURCE = "clusters"
Ask = Callable[[PeerLink], Awaitable[HelloAnswer]]
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Clusters:
    """``run`` asks while ``leadership`` is held."""

    def __init__(self, leadership: LeaderLease, unseal: Unseal | None, ask: Ask | None = None) -> None:
        self._leadership, self._unseal, self._ask = leadership, unseal, ask or ask_in_thread
        self._clock = leadership.clock
        self._wakes: dict[str, Wake] = {}  # by uid
        self._answered_at: dict[str, float] = {}  # by uid, elapsed seconds: when it last answered, or was first asked

    async def run(self) -> None:
        """Raises LeadershipLost when the lease ends."""
        async with asyncio.TaskGroup() as group:

            def notice(changes: Sequence[Changed]) -> None:
                for change in changes:
                    item = change.item
                    if change.new is not None and item.uid not in self._wakes:
                        self._wakes[item.uid] = Wake(self._clock)
                        group.create_task(self._follow(item.key, item.uid))
                    elif item.uid in self._wakes and has_changed(change, lambda one: one.envelope.spec):
                        self._answered_at.pop(item.uid, None)  # it may be linked again
                        self._wakes[item.uid].ring()

            unsubscribe = self._leadership.cache.subscribe(notice, (CLUSTER.name,))
            try:
                notice(whole(self._leadership.cache.view, (CLUSTER.name,)))
                await asyncio.get_running_loop().create_future()  # until it is cancelled, or a task ends with an error
            finally:
                unsubscribe()

    def _find(self, key: str, uid: str) -> Item | None:
        item = self._leadership.cache.view.get(key)
        return item if item is not None and item.uid == uid and not item.deleting else None

    async def _follow(self, key: str, uid: str) -> None:
        """Ask this one until its object is deleted."""
        wake = self._wakes[uid]
        try:
            while (cluster := self._find(key, uid)) is not None:
                try:
                    reply = await self._inquire(cluster)
                    current = self._find(key, uid)
                    if current is not None and current.envelope.spec == cluster.envelope.spec:
                        await self._note(current, reply)
                except (LeadershipLost, asyncio.CancelledError):
                    raise
                except (
                    Exception
                ):  # a defect here must neither end the controllers nor keep other clusters from being asked
                    _log.exception("%s can't be asked", key)
                await wake.wait(ASK_SECONDS)
        finally:
            self._wakes.pop(uid, None)
            self._answered_at.pop(uid, None)

    async def _inquire(self, cluster: Item) -> Reply:
        began, asked = self._clock.elapsed(), self._clock.now()
        since = self._answered_at.setdefault(cluster.uid, began)
        try:
            link = read_link(cluster, self._unseal)
            hello = await self._ask(link)
        except WeftError as problem:
            return Reply(None, problem.token, problem.message, silent_seconds=self._clock.elapsed() - since)
        ended = self._answered_at[cluster.uid] = self._clock.elapsed()
        return Reply(hello, clock_offset_seconds=find_offset(hello.now, asked, ended - began))

    async def _note(self, cluster: Item, reply: Reply) -> None:
        former, name = cluster.status(ClusterStatus), cluster.envelope.name
        lag = find_lag(self._leadership.cache.view, name)
        status = plan_status(name, cluster.spec(ClusterSpec), former, reply, self._clock.now(), lag)
        if reply.hello is not None or status.phase != "Linked":  # a silence is borne for a while, by whatever spec
            status = msgspec.structs.replace(status, observed_generation=cluster.envelope.generation)
        if status == former:
            return
        draft = Draft()
        draft.change(cluster, status=status)
        if (commit := draft.commit(cluster.key, list_events(cluster, former, status))) is not None:
            await self._leadership.perform([commit])  # if someone else wrote it meanwhile, the next answer is noted


def list_events(cluster: Item, former: ClusterStatus, status: ClusterStatus) -> list[Event]:
    """The event of a new phase."""
    if status.phase == former.phase:
        return []
    good, name = status.phase == "Linked", cluster.envelope.name
    message = status.message or f"{name} answers"
    return [Event("Normal" if good else "Warning", status.phase, message, cluster.envelope.ref, SOURCE)]


async def ask_in_thread(link: PeerLink) -> HelloAnswer:
    """As ``ask_hello``, in a thread of its own."""
    return await in_thread(lambda: ask_hello(link))


async def in_thread(work: Callable[[], T]) -> T:
    """The result of ``work``, which blocks, in a thread that keeps no process from its end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[], None]) -> None:
        if not done.done():
            set_it()

    def run() -> None:
        try:
            result = work()
        except BaseException as problem:  # it is raised where it is awaited
            set_it = partial(done.set_exception, problem)
        else:
            set_it = partial(done.set_result, result)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, set_it)

    threading.Thread(target=run, name="weft-peer", daemon=True).start()
    return await done
