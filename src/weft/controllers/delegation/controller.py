"""Has linked clusters run what is delegated to them, and notes how it is there: a turn for each cluster, so that one which hangs
delays no other.

Reads delegations and clusters; writes delegation.status, and releases the finalizer "delegation" once the other cluster has the
workload no more. Woken by the clock, and by delegations that come or change. It keeps nothing: a leader that begins asks what is
there first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec

from weft.client.cluster.peer import PeerLink
from weft.contracts.clock import SystemClock
from weft.contracts.journal import Event
from weft.controllers.asking import Asking, Later
from weft.controllers.cluster.facts import read_link
from weft.controllers.cluster.requests import Unanswered, in_thread
from weft.controllers.delegation.perform import DelegationPlace, list_seen, perform_acts
from weft.controllers.delegation.plan import LINKED, Act, Delegated, DelegationTurn, Seen, plan_turn, plan_unreachable
from weft.controllers.image.credentials import Unseal
from weft.informer.commit import Commit, Draft, let_go, unchanged
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.cluster import CLUSTER, ClusterSpec, ClusterStatus
from weft.kinds.delegation import (
    DELEGATION,
    DELEGATIONS_BY_CLUSTER,
    GONE,
    DelegationActions,
    DelegationSpec,
    DelegationStatus,
)
from weft.kinds.fields.cluster.link import find_project_there
from weft.objects.errors import WeftError
from weft.objects.identity import object_key

ASK_SECONDS = 3.0
SILENCE_SECONDS = 10.0  # that lists fail before it is noted
MOST_COMMITS = 50  # at once
MOST_ACTS = 20  # of a turn
FINALIZER, SOURCE = "delegation", "delegations"
Listed = Mapping[DelegationPlace, dict[str, Seen] | WeftError]
Ask = Callable[[PeerLink, Sequence[DelegationPlace]], Awaitable[Listed]]
Perform = Callable[[PeerLink, Sequence[Act]], Awaitable[list[Seen | WeftError]]]


class Delegations(Asking):
    name = "delegations"
    kinds = (DELEGATION.name,)

    def __init__(
        self, leadership: LeaderLease, unseal: Unseal | None, ask: Ask | None = None, perform: Perform | None = None
    ) -> None:
        self._leadership, self._unseal = leadership, unseal
        self._ask, self._perform = ask or ask_in_thread, perform or perform_in_thread
        self._clock = leadership.clock
        self._failing: dict[str, float] = {}  # since when a cluster's lists fail
        self._unanswered = Unanswered(self._clock)

    def route(self, view: View, change: Changed) -> Iterable[str]:
        return [change.item.spec(DelegationSpec).cluster] if has_changed(change, _read_asked) else ()

    async def take_turn(self, key: str) -> Later:
        """``key``: the cluster's name."""
        again = await self._serve(key)
        if self._leadership.cache.view.count(DELEGATIONS_BY_CLUSTER, key):
            return {key: 0.0 if again else ASK_SECONDS}
        self._failing.pop(key, None)
        return {}

    async def _serve(self, name: str) -> bool:
        """Whether what was noted is acted upon now."""
        view = self._leadership.cache.view
        cluster = view.get(object_key(CLUSTER.name, None, name))
        by_key = {item.key: item for item in view.find(DELEGATIONS_BY_CLUSTER, name)}
        ones = list_delegated(by_key.values(), cluster)
        listed: Listed = {}
        link, asked_at = None, self._clock.elapsed()
        if cluster is not None and cluster.status(ClusterStatus).phase == LINKED:
            places = sorted({_place_of(one) for one in ones if one.project})
            try:
                link = read_link(cluster, self._unseal)
                listed = await self._ask(link, places) if places else {}
                self._failing.pop(name, None)
            except WeftError as problem:
                since = self._failing.setdefault(name, self._clock.elapsed())
                if self._clock.elapsed() - since < SILENCE_SECONDS:
                    return False  # the cluster's own status tells soon
                listed = dict.fromkeys(places, problem)
        if link is None:
            status = cluster.status(ClusterStatus) if cluster is not None else None
            await self._note([(by_key[one.key], plan_unreachable(one, status), one.is_over) for one in ones])
            return False
        turn = [plan_turn(one, listed.get(_place_of(one))) for one in ones]
        # What was refused, or had no answer, is tried again last.
        turn.sort(key=lambda one: (one.key in self._unanswered, one.one.status.refused == one.one.attempt))
        acting = [one for one in turn if one.act is not None][:MOST_ACTS]
        answers = dict(zip([one.key for one in acting], await self._act(link, acting), strict=True))
        planned = [
            (by_key[one.key], *one.end(answers.get(one.key), sure=self._unanswered.is_sure(one.key, asked_at)))
            for one in turn
        ]
        begun = any(status.begun and not by_key[item.key].status(DelegationStatus).begun for item, status, _ in planned)
        await self._note(planned)
        return begun

    async def _act(self, link: PeerLink, acting: Sequence[DelegationTurn]) -> list[Seen | WeftError]:
        acts = [one.act for one in acting if one.act is not None]
        answers = await self._perform(link, acts) if acts else []
        for one, answer in zip(acting, answers, strict=True):
            self._unanswered.note(one.key, answer)
        return answers

    async def _note(self, planned: Sequence[tuple[Item, DelegationStatus, bool]]) -> None:
        commits = [commit for item, status, over in planned if (commit := plan_commit(item, status, over)) is not None]
        for begin in range(0, len(commits), MOST_COMMITS):
            # If someone else wrote one meanwhile, the next turn notes it.
            await self._leadership.perform(commits[begin : begin + MOST_COMMITS])


def list_delegated(items: Iterable[Item], cluster: Item | None) -> list[Delegated]:
    """Delegations with what their link makes of them, the oldest first: it has a name that two have there."""
    found: list[Delegated] = []
    holders: dict[tuple[str, str, str], str] = {}
    for item in sorted(
        items, key=lambda item: (not item.status(DelegationStatus).begun, item.envelope.created_at, item.key)
    ):
        one = read_delegated(item, cluster)
        holder = holders.setdefault((one.spec.workload, one.project, one.name), item.key)
        found.append(one if holder == item.key else msgspec.structs.replace(one, rival="another delegation"))
    return found


def _place_of(one: Delegated) -> DelegationPlace:
    return one.spec.workload, one.project, one.own_project


def read_delegated(item: Item, cluster: Item | None) -> Delegated:
    """A delegation with what its link makes of it."""
    spec, status = item.spec(DelegationSpec), item.status(DelegationStatus)
    own = item.envelope.project or ""
    linked = find_project_there(cluster.spec(ClusterSpec).projects, own) if cluster is not None else ""
    return Delegated(
        key=item.key,
        uid=item.uid,
        name=item.envelope.name,
        deleting=item.deleting,
        labels=item.envelope.labels,
        spec=spec,
        actions=item.actions(DelegationActions),
        status=status,
        project=linked and (status.project or linked),
        own_project=own,
    )


def plan_commit(item: Item, status: DelegationStatus, over: bool) -> Commit | None:
    """The new status, or the end of the finalizer; None if nothing changes."""
    if item.deleting and over:
        return Commit(item.key, [let_go(item, FINALIZER)], [unchanged(item)])
    former = item.status(DelegationStatus)
    if status == former:
        return None
    draft = Draft()
    draft.change(item, status=status)
    return draft.commit(item.key, list_events(item, former, status))


def list_events(item: Item, former: DelegationStatus, status: DelegationStatus) -> list[Event]:
    """The event of a new phase."""
    if status.phase == former.phase:
        return []
    good = status.phase not in ("Failed", GONE, "Unknown")
    message = status.message or f"{item.spec(DelegationSpec).cluster} reports {status.phase_there or status.phase}"
    return [Event("Normal" if good else "Warning", status.phase, message, item.envelope.ref, SOURCE)]


async def ask_in_thread(link: PeerLink, places: Sequence[DelegationPlace]) -> Listed:
    """Run ``list_seen`` in a thread of its own."""
    return await in_thread(lambda: list_seen(link, places, SystemClock()))


async def perform_in_thread(link: PeerLink, acts: Sequence[Act]) -> list[Seen | WeftError]:
    """Run ``perform_acts`` in a thread of its own."""
    return await in_thread(lambda: perform_acts(link, acts, SystemClock()))


def _read_asked(item: Item) -> tuple[object, object, bool]:
    """The fields of it that people set."""
    return item.envelope.spec, item.envelope.actions, item.deleting
