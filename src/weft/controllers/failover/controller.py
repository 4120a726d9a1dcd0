"""Says to the witness of each link, every few seconds, which cluster is primary for each VM that is replicated over the link, and
notes what the witness knows.

Nodes that hold guests of a replication get their stamps back once the witness, or else the other cluster, has promised to help
nobody else. A replica that takes over automatically is promoted here, once the witness grants it.

Reads clusters, replications, replicas, allocations and nodes' heartbeats; writes the condition Witnessed, stamps beside leases, and
what a promotion makes. Woken by the clock, and by one of those that comes or changes, as by a promotion. It keeps the
epoch of each witness, and for how long each replica's source has been silent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial

from msgspec.structs import replace

from weft.client.cluster.hold import Hold, renew_holds
from weft.client.cluster.peer import PeerLink
from weft.client.cluster.witness import WitnessLink, ask_witness
from weft.contracts.clock import read_boot_time
from weft.contracts.journal import Event
from weft.controllers.asking import Asking, Later
from weft.controllers.cluster.facts import read_link
from weft.controllers.cluster.requests import ask_in_parts
from weft.controllers.failover import facts
from weft.controllers.failover.automatic import Arm, Automatics, Read
from weft.controllers.failover.facts import Group, list_groups, list_unwitnessed, make_request, read_witness
from weft.controllers.failover.hold import (
    HeldGuest,
    list_guarded,
    list_held,
    list_unconfirmed,
    merge_stamps,
    note_asked,
    sort_by_turn,
)
from weft.controllers.failover.plan import plan_condition, plan_unwitnessed
from weft.controllers.failover.take_over import plan_disarming, plan_return, plan_take_over
from weft.controllers.image.credentials import Unseal
from weft.failover.standby import Silence, WitnessQuestion, find_taken, follow_renewals, may_ask
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.leader_lease import LeaderLease, LeadershipLost
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.cluster import CLUSTER, ClusterSpec, ClusterStatus, may_take_over
from weft.kinds.fields.cluster.link import PRIMARY_SILENT, SUPERSEDED
from weft.kinds.replica import PRIMARY, REPLICA, ReplicaMarks
from weft.kinds.replication import REPLICATION, REPLICATIONS_BY_CLUSTER
from weft.objects.envelope import Condition, set_condition
from weft.objects.errors import Unavailable, WeftError
from weft.protocol.failover.confirmed import CONFIRMED_PREFIX, CONFIRMED_SECONDS, HOLDER, write_confirmed
from weft.protocol.failover.witness import WitnessAnswer, WitnessRequest
from weft.protocol.heartbeat import LEASE_PREFIX, read_digest

RENEW_SECONDS = 5.0
REVIEW, UNWITNESSED = "review ", "unwitnessed"
PATIENCE_SECONDS = 10.0  # a grant that took longer is asked for again
MOST_COMMITS = 50  # at once
MOST_THREADS, REQUESTS_OF_THREAD = 8, 50  # of one link
WitnessResponse = WitnessAnswer | WeftError
Ask = Callable[[WitnessLink, Sequence[WitnessRequest]], Awaitable[list[WitnessResponse]]]
Renew = Callable[[PeerLink, Sequence[Hold]], Awaitable[list[bool | None]]]
_log = logging.getLogger(__name__)


class Witnesses(Asking):
    """Keys are those of clusters; with ``REVIEW`` before one, what takes long while nodes get their stamps; and ``UNWITNESSED``,
    what no witness is asked about."""

    name = "witnesses"
    kinds = (CLUSTER.name, REPLICATION.name, REPLICA.name)
    always = (UNWITNESSED,)

    def __init__(
        self,
        leadership: LeaderLease,
        unseal: Unseal | None,
        ask: Ask | None = None,
        renew: Renew | None = None,
        arm: Arm | None = None,
        read: Read | None = None,
    ) -> None:
        self._automatics = Automatics(leadership, unseal, self.name, arm, read)
        self._renew = renew or renew_in_thread
        self._leadership, self._unseal, self._ask = leadership, unseal, ask or ask_in_thread
        self._epochs: dict[str, str] = {}  # by the cluster's uid
        self._heard: dict[
            str, tuple[list[Group], list[WitnessResponse]]
        ] = {}  # for the next review, by the cluster's key
        self._silences: dict[str, Silence] = {}  # by the replica's uid
        self._mute = set[str]()  # clusters whose witness confirmed nothing when it was last asked, by uid
        self._asked: dict[str, dict[str, float]] = {}  # when the other cluster was asked, by its uid and the group
        self._stamps: dict[str, dict[str, str]] = {}  # that nodes get back, by the node's uid and the workload's

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if not has_changed(change, _read_asked):
            return ()
        if change.kind == CLUSTER.name:
            return [change.key]
        return [UNWITNESSED, *view.of_kind(CLUSTER.name)]

    async def take_turn(self, key: str) -> Later:
        view, began = self._leadership.cache.view, self._leadership.clock.elapsed()
        if key == UNWITNESSED:
            there = {item.uid for item in view.of_kind(CLUSTER.name).values()}
            self._epochs = {uid: epoch for uid, epoch in self._epochs.items() if uid in there}
            self._asked = {uid: asked for uid, asked in self._asked.items() if uid in there}
            await self._note([(item, plan_unwitnessed()) for item in list_unwitnessed(view)])
            return {key: RENEW_SECONDS}
        cluster = view.get(key.removeprefix(REVIEW))
        if cluster is None:
            self._heard.pop(key.removeprefix(REVIEW), None)
            return {}
        if key.startswith(REVIEW):
            if (heard := self._heard.pop(cluster.key, None)) is not None:
                await self._automatics.review(cluster, *heard)
            return {}
        if cluster.spec(ClusterSpec).witness is None and not view.count(REPLICATIONS_BY_CLUSTER, cluster.envelope.name):
            return {}
        self._heard[key] = await self._speak(cluster)
        return {
            f"{REVIEW}{key}": 0.0,
            key: max(0.0, RENEW_SECONDS - (self._leadership.clock.elapsed() - began)),
        }

    async def _speak(self, cluster: Item) -> tuple[list[Group], list[WitnessResponse]]:
        """Ask the witness: the groups, and its answer to each."""
        name, witness = cluster.envelope.name, cluster.spec(ClusterSpec).witness
        peer = witness.peer if witness is not None else ""
        groups: list[Group] = []
        site = ""
        held: list[HeldGuest] = []
        early: asyncio.Task[list[bool]] | None = None
        questions: dict[str, WitnessQuestion] = {}
        asked_at = 0.0
        try:
            link = read_witness(cluster, self._unseal)
            site, epoch = link.token.site if link is not None else "", self._epochs.get(cluster.uid, "")
            groups = list_groups(self._leadership.cache.view, name, site, peer)
            held = await self._list_held(cluster, groups)  # with stamps from before anything is asked
            early = asyncio.create_task(self._hold_there(cluster, held)) if cluster.uid in self._mute and held else None
            if link is None:
                raise Unavailable("the link has no witness")
            questions = self._list_questions(cluster, groups, site)
            asked_at = read_boot_time()
            requests = [make_request(one, peer, epoch, asks=one.name in questions) for one in groups]
            heard = await self._ask(link, requests) if groups else []
        except WeftError as problem:
            groups = groups or list_groups(self._leadership.cache.view, name, "", peer)
            heard = [problem] * len(groups)
            questions = {}
        await self._confirm(cluster, held, list_unconfirmed(held, groups, heard), early)
        view = self._leadership.cache.view
        await self._perform(plan_disarming(view, view.get(cluster.key) or cluster, groups, self.name))
        failed = dict[str, str]()
        if questions and read_boot_time() - asked_at < PATIENCE_SECONDS:
            failed = await self._take_over(cluster, groups, heard, questions)
        await self._give_up_grants(groups, heard, questions, site)
        for answer in heard:
            if isinstance(answer, WitnessAnswer):
                self._epochs[cluster.uid] = answer.epoch
        if witness is not None:
            answered = zip(groups, heard, strict=True)
            notes = [(one.item, plan_condition(one, said, name, failed.get(one.name, ""))) for one, said in answered]
            await self._note(notes)
        return groups, heard

    async def _list_held(self, cluster: Item, groups: Sequence[Group]) -> list[HeldGuest]:
        if not (guarded := list_guarded(self._leadership.cache.view, groups)):
            return []
        leases = await self._leadership.store.leases(LEASE_PREFIX, digests=True)
        digests = {lease.name.removeprefix(LEASE_PREFIX): read_digest(lease.digest) for lease in leases}
        stamps = {uid: digest.stamp for uid, digest in digests.items() if digest is not None and digest.stamp}
        return list_held(cluster, guarded, stamps)

    async def _hold_there(self, cluster: Item, held: Sequence[HeldGuest]) -> list[bool]:
        """Whether the other cluster promises to take over nothing, of each."""
        asked = self._asked.get(cluster.uid, {})
        turns = sort_by_turn(held, asked)
        try:
            answers = await self._renew(read_link(cluster, self._unseal), [one.hold for one in turns])
        except WeftError:
            return [False] * len(held)
        self._asked[cluster.uid] = note_asked(turns, answers, asked, read_boot_time())
        renewed = {one.group for one, said in zip(turns, answers, strict=True) if said}
        return [one.group in renewed for one in held]

    async def _confirm(
        self, cluster: Item, held: Sequence[HeldGuest], left: list[HeldGuest], early: asyncio.Task[list[bool]] | None
    ) -> None:
        """Give nodes their stamps back, of what the witness confirms, and of what the other cluster does instead. ``early``: that
        one was asked of all at once, since the witness was mute the last time."""
        await self._give_back([one for one in held if one not in left])
        if early is not None:
            renewed = await early
            await self._give_back([one for one, is_so in zip(held, renewed, strict=True) if is_so and one in left])
        elif left:
            renewed = await self._hold_there(cluster, left)
            await self._give_back([one for one, is_so in zip(left, renewed, strict=True) if is_so])
        (self._mute.add if left else self._mute.discard)(cluster.uid)

    async def _give_back(self, confirmed: Sequence[HeldGuest]) -> None:
        for node, stamps in merge_stamps(self._stamps, confirmed).items():
            self._stamps[node] = stamps
            written = write_confirmed(stamps)
            await self._leadership.store.grant(f"{CONFIRMED_PREFIX}{node}", HOLDER, CONFIRMED_SECONDS, written)

    def _list_questions(self, cluster: Item, groups: Sequence[Group], site: str) -> dict[str, WitnessQuestion]:
        """Questions, by the group's name, about the replicas that take over automatically whose source has been silent for a whole
        promise.
        """
        now, found = read_boot_time(), dict[str, WitnessQuestion]()
        there = {item.uid for item in self._leadership.cache.view.of_kind(REPLICA.name).values()}
        self._silences = {uid: one for uid, one in self._silences.items() if uid in there}
        # Only if the source doesn't answer this cluster either: one that answers can tell a replica of a restored store that
        # nothing takes over any more; one that is Suspect doesn't know itself what it had said.
        may_be_lost = cluster.status(ClusterStatus).phase == "Unreachable"
        for group in groups:
            if not group.is_standby or not (marks := group.item.marks(ReplicaMarks)).automatic:
                continue
            known = self._silences.get(group.item.uid)
            silence = self._silences[group.item.uid] = follow_renewals(
                known, marks.renewals, facts.PROMISE_SECONDS, now
            )
            granted = may_take_over(cluster.spec(ClusterSpec), group.item.envelope.project)
            if may_be_lost and may_ask(silence, now) and granted:
                found[group.name] = WitnessQuestion(marks.renewals, group.claim, site)
        return found

    async def _take_over(
        self,
        cluster: Item,
        groups: Sequence[Group],
        answers: Sequence[WitnessResponse],
        questions: Mapping[str, WitnessQuestion],
    ) -> dict[str, str]:
        """Why what was granted couldn't be done, by the group's name."""
        failed = dict[str, str]()
        view, now = self._leadership.cache.view, self._leadership.clock.now()
        link = view.get(cluster.key)
        if link is None or link.uid != cluster.uid:
            return failed
        for group, said in zip(groups, answers, strict=True):
            asked, item = questions.get(group.name), view.get(group.item.key)
            if asked is None or not isinstance(said, WitnessAnswer) or item is None or item.uid != group.item.uid:
                continue
            marks = item.marks(ReplicaMarks)
            claim = find_taken(asked, marks.renewals, said.answer, marks.returned)
            if claim is None or marks.role == PRIMARY or not marks.automatic or item.deleting:
                continue
            if not may_take_over(link.spec(ClusterSpec), item.envelope.project):
                continue
            try:
                await self._leadership.perform([plan_take_over(view, item, link, claim, now, self.name)])
            except LeadershipLost:
                raise
            except WeftError as problem:  # the witness repeats its grant
                failed[group.name] = problem.message
                _log.warning("replica %s can't take over: %s", item.envelope.name, problem.message)
        return failed

    async def _give_up_grants(
        self,
        groups: Sequence[Group],
        answers: Sequence[WitnessResponse],
        asked: Mapping[str, WitnessQuestion],
        site: str,
    ) -> None:
        """Those that nothing here uses now: the source was heard again, or nothing takes over any more."""
        view = self._leadership.cache.view
        found = [
            plan_return(view, group, site, said, self.name)
            for group, said in zip(groups, answers, strict=True)
            if group.is_standby and group.name not in asked and isinstance(said, WitnessAnswer)
        ]
        await self._perform([one for one in found if one is not None])

    async def _note(self, found: Sequence[tuple[Item, Condition]]) -> None:
        # If one of them was written by somebody else in between, the next answer is noted.
        await self._perform(
            [one for item, condition in found if (one := self._plan_commit(item, condition)) is not None]
        )

    async def _perform(self, commits: Sequence[Commit]) -> None:
        for start in range(0, len(commits), MOST_COMMITS):
            await self._leadership.perform(commits[start : start + MOST_COMMITS])

    def _plan_commit(self, former: Item, condition: Condition) -> Commit | None:
        item = self._leadership.cache.view.get(former.key)
        if item is None or item.uid != former.uid or _read_asked(item) != _read_asked(former):
            return None  # what was asked is out of date
        envelope = edit(item)
        if not set_condition(envelope, replace(condition, since=self._leadership.clock.now())):
            return None
        events = [Event("Warning", condition.reason, condition.message, item.envelope.ref, self.name)]
        shown = condition.reason in (SUPERSEDED, PRIMARY_SILENT)
        return Commit(item.key, [put(envelope)], [unchanged(item)], events if shown else [])


async def renew_in_thread(link: PeerLink, holds: Sequence[Hold]) -> list[bool | None]:
    """Run ``renew_holds`` in threads: each begins with the first of its own."""
    return await ask_in_parts(holds, partial(renew_holds, link), MOST_THREADS, REQUESTS_OF_THREAD)


async def ask_in_thread(link: WitnessLink, requests: Sequence[WitnessRequest]) -> list[WitnessResponse]:
    """Run ``ask_witness`` in threads, so that a far witness hears of each VM before a promise ends."""
    return await ask_in_parts(requests, partial(ask_witness, link), MOST_THREADS, REQUESTS_OF_THREAD)


def _read_asked(item: Item) -> tuple[object, ...]:
    """The fields that the witness and the other cluster are asked about."""
    return item.envelope.spec, item.envelope.actions, item.envelope.marks
