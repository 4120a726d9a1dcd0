"""Asks linked clusters how they are, every few seconds: a turn for each, so that one which hangs delays no other.

Reads clusters and replications; writes cluster.status. Woken by the clock, and by a cluster's own changes. All that it keeps is
when each last answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import msgspec

from weft.client.cluster.peer import PeerLink, ask_hello
from weft.contracts.journal import Event
from weft.controllers.asking import Asking, Later
from weft.controllers.cluster.facts import Reply, find_lag, read_link
from weft.controllers.cluster.plan import find_offset, plan_status
from weft.controllers.cluster.requests import in_thread
from weft.controllers.image.credentials import Unseal
from weft.informer.commit import Draft
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.cluster import CLUSTER, ClusterActions, ClusterMarks, ClusterStatus
from weft.objects.errors import WeftError
from weft.protocol.link import HelloAnswer

ASK_SECONDS = 3.0
SOURCE = "clusters"
Ask = Callable[[PeerLink], Awaitable[HelloAnswer]]


class Clusters(Asking):
    name = "clusters"
    kinds = (CLUSTER.name,)

    def __init__(self, leadership: LeaderLease, unseal: Unseal | None, ask: Ask | None = None) -> None:
        self._leadership, self._unseal, self._ask = leadership, unseal, ask or ask_in_thread
        self._clock = leadership.clock
        self._answered_at: dict[str, float] = {}  # by uid, elapsed seconds: when it last answered, or was first asked

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if not has_changed(change, _read_asked):
            return ()
        for item in (change.old, change.new):
            if item is not None:
                self._answered_at.pop(item.uid, None)  # it may be linked again
        return [change.key]

    async def take_turn(self, key: str) -> Later:
        cluster = self._find(key)
        if cluster is None:
            return {}
        reply = await self._inquire(cluster)
        current = self._find(key)
        if current is None or current.uid != cluster.uid:
            self._answered_at.pop(cluster.uid, None)
        elif _read_asked(current) == _read_asked(cluster):
            await self._note(current, reply)
        return {key: ASK_SECONDS}

    def _find(self, key: str) -> Item | None:
        item = self._leadership.cache.view.get(key)
        return item if item is not None and not item.deleting else None

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
        parts = cluster.marks(ClusterMarks), cluster.actions(ClusterActions)
        status = plan_status(name, *parts, former, reply, self._clock.now(), lag)
        if reply.hello is not None or status.phase != "Linked":  # a silence is borne for a while, by whatever spec
            status = msgspec.structs.replace(status, observed_generation=cluster.envelope.generation)
        if status == former:
            return
        draft = Draft()
        draft.change(cluster, status=status)
        if (commit := draft.commit(cluster.key, list_events(cluster, former, status))) is not None:
            await self._leadership.perform([commit])  # if someone else wrote it meanwhile, the next answer is noted


def _read_asked(cluster: Item) -> tuple[object, object]:
    """The fields of it that people set."""
    return cluster.envelope.spec, cluster.envelope.actions


def list_events(cluster: Item, former: ClusterStatus, status: ClusterStatus) -> list[Event]:
    """The event of a new phase."""
    if status.phase == former.phase:
        return []
    good, name = status.phase == "Linked", cluster.envelope.name
    message = status.message or f"{name} answers"
    return [Event("Normal" if good else "Warning", status.phase, message, cluster.envelope.ref, SOURCE)]


async def ask_in_thread(link: PeerLink) -> HelloAnswer:
    """Run ``ask_hello`` in a thread of its own."""
    return await in_thread(lambda: ask_hello(link))
