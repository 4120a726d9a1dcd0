"""Says to the witness of each link, every few seconds, which cluster is primary for each VM that is replicated over the link, and
notes what the witness knows.

Reads clusters, replications and replicas; writes the condition Witnessed of the latter two. Woken by the clock, and by one of
those that comes or changes, as by a promotion. It keeps the epoch of each witness."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from msgspec.structs import replace

from weft.client.cluster.witness import WitnessLink, ask_witness
from weft.contracts.journal import Event
from weft.contracts.wakeup import Wake
from weft.controllers.cluster.controller import in_thread
from weft.controllers.failover.facts import Group, list_groups, list_unwitnessed, make_request, read_witness
from weft.controllers.failover.plan import plan_condition, plan_unwitnessed
from weft.controllers.image.credentials import Unseal
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.leader_lease import LeaderLease, LeadershipLost
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.cluster import CLUSTER, ClusterSpec
from weft.kinds.fields.cluster.link import PRIMARY_SILENT, SUPERSEDED
from weft.kinds.replica import REPLICA
from weft.kinds.replication import REPLICATION
from weft.objects.envelope import Condition, set_condition
from weft.objects.errors import WeftError
from weft.protocol.failover.witness import WitnessAnswer, WitnessRequest

RENEW_SECONDS = 5.0
MOST_COMMITS = 50  # at once
MOST_THREADS, REQUESTS_OF_THREAD = 8, 50  # of one link
Heard = WitnessAnswer | WeftError
Ask = Callable[[WitnessLink, Sequence[WitnessRequest]], Awaitable[list[Heard]]]
_log = logging.getLogger(__name__)


class Witnesses:
    """``run`` asks while ``leadership`` is held."""

    name = "witnesses"

    def __init__(self, leadership: LeaderLease, unseal: Unseal | None, ask: Ask | None = None) -> None:
        self._leadership, self._unseal, self._ask = leadership, unseal, ask or ask_in_thread
        self._epochs: dict[str, str] = {}  # by the cluster's uid
        self._asking: dict[str, asyncio.Task[None]] = {}  # by the same
        self._missed = set[str]()  # those that were being asked when it was their turn again

    async def run(self) -> None:
        """Raises LeadershipLost when the lease ends."""
        wake = Wake(self._leadership.clock)

        def notice(changes: Sequence[Changed]) -> None:
            if any(has_changed(change, lambda item: item.envelope.spec) for change in changes):
                wake.ring()

        unsubscribe = self._leadership.cache.subscribe(notice, (REPLICATION.name, REPLICA.name))
        try:
            await self._follow(wake)
        finally:
            unsubscribe()

    async def _follow(self, wake: Wake) -> None:
        try:
            while True:
                try:
                    await self._note([(item, plan_unwitnessed()) for item in list_unwitnessed(self._begin(wake))])
                except (LeadershipLost, asyncio.CancelledError):
                    raise
                except Exception:  # a defect here must not end the other controllers
                    _log.exception("witnesses can't be asked")
                await wake.wait(RENEW_SECONDS)
        finally:
            for task in self._asking.values():
                task.cancel()

    def _begin(self, wake: Wake) -> View:
        """Ask each witness that isn't being asked now, by what is returned: a slow one delays no other's. Raises LeadershipLost."""
        view = self._leadership.cache.view
        clusters = list(view.of_kind(CLUSTER.name).values())
        self._epochs = {item.uid: self._epochs[item.uid] for item in clusters if item.uid in self._epochs}
        for uid in [uid for uid, task in self._asking.items() if task.done()]:
            self._asking.pop(uid).result()
        for item in clusters:
            if item.uid in self._asking:
                self._missed.add(item.uid)
            elif item.spec(ClusterSpec).witness is not None:
                self._asking[item.uid] = asyncio.create_task(self._take_turn(item, wake))
        return view

    async def _take_turn(self, cluster: Item, wake: Wake) -> None:
        """Raises LeadershipLost, for which the next turn looks."""
        try:
            await self._speak(cluster)
        except LeadershipLost:
            wake.ring()
            raise
        except Exception:  # a defect here must not end the other controllers
            _log.exception("the witness of cluster %s can't be asked", cluster.envelope.name)
        if cluster.uid in self._missed:  # it asks again now: something changed while it asked
            self._missed.discard(cluster.uid)
            wake.ring()

    async def _speak(self, cluster: Item) -> None:
        name, witness = cluster.envelope.name, cluster.spec(ClusterSpec).witness
        assert witness is not None
        groups: list[Group] = []
        try:
            link = read_witness(cluster, self._unseal)
            assert link is not None
            groups = list_groups(self._leadership.cache.view, name, link.token.site, witness.peer)
            epoch = self._epochs.get(cluster.uid, "")
            heard = await self._ask(link, [make_request(one, witness.peer, epoch) for one in groups]) if groups else []
        except WeftError as problem:
            groups = groups or list_groups(self._leadership.cache.view, name, "", witness.peer)
            heard = [problem] * len(groups)
        for answer in heard:
            if isinstance(answer, WitnessAnswer):
                self._epochs[cluster.uid] = answer.epoch
        await self._note([(one.item, plan_condition(one, said, name)) for one, said in zip(groups, heard, strict=True)])

    async def _note(self, found: Sequence[tuple[Item, Condition]]) -> None:
        commits = [commit for item, condition in found if (commit := self._plan_commit(item, condition)) is not None]
        for start in range(0, len(commits), MOST_COMMITS):
            # If one of them was written by somebody else in between, the next answer is noted.
            await self._leadership.perform(commits[start : start + MOST_COMMITS])

    def _plan_commit(self, former: Item, condition: Condition) -> Commit | None:
        item = self._leadership.cache.view.get(former.key)
        if item is None or item.uid != former.uid or item.envelope.spec != former.envelope.spec:
            return None  # what was asked is out of date
        envelope = edit(item)
        if not set_condition(envelope, replace(condition, since=self._leadership.clock.now())):
            return None
        events = [Event("Warning", condition.reason, condition.message, item.envelope.ref, self.name)]
        shown = condition.reason in (SUPERSEDED, PRIMARY_SILENT)
        return Commit(item.key, [put(envelope)], [unchanged(item)], events if shown else [])


async def ask_in_thread(link: WitnessLink, requests: Sequence[WitnessRequest]) -> list[Heard]:
    """As ``ask_witness``, in threads: one for so many requests, so that a far witness hears of each VM before a promise ends."""
    count = min(MOST_THREADS, -(-len(requests) // REQUESTS_OF_THREAD))
    parts = await asyncio.gather(
        *(in_thread(partial(ask_witness, link, requests[first::count])) for first in range(count))
    )
    return [parts[place % count][place // count] for place in range(len(requests))]
