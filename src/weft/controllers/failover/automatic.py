"""Carries out what ``arming`` plans: tells the other cluster whether it may take over, and notes how far that is.

What the other cluster has answered is kept in this process alone: one that starts tells it again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from msgspec.structs import replace

from weft.client.cluster.hold import ArmingAnswer, Hold, arm_replica, read_arming
from weft.client.cluster.peer import PeerLink
from weft.contracts.clock import read_boot_time
from weft.contracts.journal import Event
from weft.controllers.cluster.facts import read_link
from weft.controllers.cluster.requests import in_thread
from weft.controllers.failover.arming import ArmingPlan, plan_arming, plan_step, read_arming_facts
from weft.controllers.failover.facts import Group
from weft.controllers.failover.hold import read_hold
from weft.controllers.image.credentials import Unseal
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Item
from weft.kinds.cluster import ClusterStatus
from weft.kinds.fields.cluster.link import ARMED, AUTOMATIC
from weft.kinds.replication import REPLICATIONS_BY_CLUSTER, ReplicationMarks, ReplicationStatus
from weft.objects.envelope import Condition, set_condition
from weft.objects.errors import WeftError
from weft.protocol.failover.claim import Claim, Generation
from weft.protocol.failover.witness import WitnessAnswer

AGAIN_SECONDS = (
    60.0  # after which a replica is told again that it may take over, or is read again: it may have been restored
)
ROUND_SECONDS = 8.0  # after which a review asks the other cluster nothing more: the next one goes on
MOST_STEPS = 5  # of one replication in a turn, with those that somebody else's write came before
Answered = WitnessAnswer | WeftError
Arm = Callable[[PeerLink, Hold, bool, int], Awaitable[ArmingAnswer]]
Read = Callable[[PeerLink, Hold], Awaitable[ArmingAnswer]]
ReplicationTurn = tuple[str, str, int]  # of a replication: its uid, its ``guard`` and which turn that is


class Automatics:
    def __init__(
        self,
        leadership: LeaderLease,
        unseal: Unseal | None,
        source: str,
        arm: Arm | None = None,
        read: Read | None = None,
    ) -> None:
        self._leadership, self._unseal, self._source = leadership, unseal, source
        self._arm, self._read = arm or arm_in_thread, read or read_in_thread
        self._answers: dict[ReplicationTurn, tuple[ArmingAnswer, float]] = {}
        self._asked: dict[str, float] = {}  # when the other cluster was last asked, by the replication's uid

    async def review(self, cluster: Item, groups: Sequence[Group], answers: Sequence[Answered]) -> None:
        """Takes a while where the other cluster is slow: nothing that a guest needs waits for it. Raises LeadershipLost."""
        known = {
            group.name: (group, condition) for group, condition in zip(groups, answers, strict=True) if group.is_source
        }
        until = read_boot_time() + ROUND_SECONDS
        found = self._leadership.cache.view.find(REPLICATIONS_BY_CLUSTER, cluster.envelope.name)
        for item in sorted(found, key=lambda one: self._asked.get(one.uid, 0.0)):
            for _ in range(MOST_STEPS):
                if not await self._step(cluster, item, known, until):
                    break
        there = {one.uid for one in self._leadership.cache.view.of_kind("replication").values()}
        self._answers = {turn: answer for turn, answer in self._answers.items() if turn[0] in there}
        self._asked = {uid: at for uid, at in self._asked.items() if uid in there}

    async def _step(
        self, cluster: Item, known_as: Item, known: Mapping[str, tuple[Group, Answered]], until: float
    ) -> bool:
        """Whether there may be another step now. ``until``: by CLOCK_BOOTTIME; the other cluster is asked nothing after it."""
        view = self._leadership.cache.view
        item = view.get(known_as.key)
        if item is None or item.uid != known_as.uid:
            return False
        group, condition = known.get(item.uid, (None, None))
        if group is None:
            group = Group(item, item.uid, Claim(Generation(1, item.uid), ""), is_standby=False, is_source=True)
        marks = item.marks(ReplicationMarks)
        turn: ReplicationTurn = (item.uid, marks.guard, marks.arming)
        answer = self._recall(turn)
        may_ask = read_boot_time() < until
        if answer is None and may_ask and not marks.guard and _may_know_more(cluster, item):
            answer = await self._inspect(cluster, item, turn)
        asked_as = known[item.uid][0].item if item.uid in known else None
        read = partial(
            read_arming_facts, cluster=cluster, group=replace(group, item=item), answered=condition, asked_as=asked_as
        )
        facts = read(view, answer=answer)
        plan = plan_arming(facts)
        if plan.step in ("on", "off"):
            if not may_ask:
                return False  # what people read stays as it is
            answer = await self._send(cluster, item, turn, automatic=plan.step == "on")
            facts = read(self._leadership.cache.view, answer=answer)
            after = plan_arming(facts)
            # What was told and refused is told again in the next turn.
            plan = replace(after, step="") if after.step in ("on", "off") else after
        is_settled = facts.retired == "yes"
        commit = plan_step(self._leadership.cache.view, item, plan, answer, self._source, is_settled=is_settled)
        if commit is not None:
            failed = await self._leadership.perform([commit])
            return bool(failed) or plan.step != "hold"  # after a hold the nodes have to answer first
        noted = self._plan_note(item, plan)
        return noted is not None and bool(await self._leadership.perform([noted]))

    def _recall(self, turn: ReplicationTurn) -> ArmingAnswer | None:
        answer, at = self._answers.get(turn, (None, 0.0))
        if answer is None or (turn[1] in ("", "hold") and read_boot_time() - at > AGAIN_SECONDS):
            return None
        return answer

    async def _inspect(self, cluster: Item, item: Item, turn: ReplicationTurn) -> ArmingAnswer | None:
        """Nothing takes over by this cluster's own word, which may be of an older store than what the other one was told."""
        self._asked[item.uid] = read_boot_time()
        try:
            answer = await self._read(read_link(cluster, self._unseal), read_hold(cluster, item))
        except WeftError:
            return None
        if answer.outcome in ("done", "promoted"):
            self._answers[turn] = answer, read_boot_time()
        return answer if answer.outcome in ("done", "promoted") else None

    async def _send(self, cluster: Item, item: Item, turn: ReplicationTurn, *, automatic: bool) -> ArmingAnswer:
        hold, self._asked[item.uid] = read_hold(cluster, item), read_boot_time()
        try:
            link = read_link(cluster, self._unseal)
            answer = await self._arm(link, hold, automatic, turn[2])
            if answer.outcome == "overtaken":
                answer = replace(answer, arming=(await self._read(link, hold)).arming)
            if answer.outcome == "refused" and automatic:  # an earlier word of this turn may have counted
                await self._arm(link, hold, False, turn[2])
        except WeftError as problem:
            answer = ArmingAnswer("silent", problem.message)
        if answer.outcome not in ("silent", "refused"):
            self._answers[turn] = answer, read_boot_time()
        return answer

    def _plan_note(self, former: Item, plan: ArmingPlan) -> Commit | None:
        item, condition = self._leadership.cache.view.get(former.key), plan.condition
        if condition is None or item is None or item.uid != former.uid or _read_parts(item) != _read_parts(former):
            return None
        envelope, was = edit(item), item.envelope.condition(AUTOMATIC)
        if not condition.reason:
            envelope.conditions = [one for one in envelope.conditions if one.type != AUTOMATIC]
            changed = was is not None
        else:
            changed = set_condition(envelope, replace(condition, since=self._leadership.clock.now()))
        if not changed:
            return None
        return Commit(item.key, [put(envelope)], [unchanged(item)], _list_events(item, was, condition, self._source))


def _read_parts(item: Item) -> tuple[object, ...]:
    """The parts by which a step was planned."""
    return item.envelope.spec, item.envelope.actions, item.envelope.marks


def _may_know_more(cluster: Item, item: Item) -> bool:
    return cluster.status(ClusterStatus).phase == "Linked" and item.status(ReplicationStatus).point is not None


def _list_events(item: Item, was: Condition | None, condition: Condition, source: str) -> list[Event]:
    """When the VM begins to be protected so, and when that ends."""
    before, now = was is not None and was.reason == ARMED, condition.reason == ARMED
    if before == now:
        return []
    what = "Armed" if now else "NotArmed"
    return [Event("Normal" if now else "Warning", what, condition.message or "turned off", item.envelope.ref, source)]


async def arm_in_thread(link: PeerLink, hold: Hold, automatic: bool, arming: int) -> ArmingAnswer:
    return await in_thread(partial(arm_replica, link, hold, automatic=automatic, arming=arming))


async def read_in_thread(link: PeerLink, hold: Hold) -> ArmingAnswer:
    return await in_thread(partial(read_arming, link, hold))
