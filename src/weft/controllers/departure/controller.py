"""Leads Migrations to linked clusters on: a turn for each cluster, so that one which hangs delays no other.

Reads Migrations, VMs, allocations, nodes, images, clusters; writes Migration.status, of a VM that migrates its allocation's role
and what it desires, and of one that has left its spec; deletes its volumes and published ports. Of VMs that people take back after
a restore it asks, too, and writes their condition Reclaimed. Woken by the clock, and by Migrations, VMs that are taken back, and
the allocations of both. All that it keeps is which requests had no answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from weft.client.cluster.peer import PeerLink
from weft.contracts.clock import SystemClock
from weft.contracts.journal import Event
from weft.controllers.asking import Asking, Later
from weft.controllers.cluster.facts import read_link
from weft.controllers.cluster.requests import Unanswered, in_thread
from weft.controllers.departure.facts import Departure, read_departure
from weft.controllers.departure.perform import DeparturePlace, Seen, find_seen, list_seen, perform_acts
from weft.controllers.departure.plan import DepartureFacts, DeparturePlan, plan_departure, plan_refused
from weft.controllers.departure.reclaim import Reclaim, ReclaimPlan, list_reclaims, plan_reclaim
from weft.controllers.departure.reclaim import plan_commit as plan_reclaim_commit
from weft.controllers.departure.seen import ArrivalAct, SeenArrival
from weft.controllers.image.credentials import Unseal
from weft.controllers.migration.controller import SOURCE, list_events
from weft.controllers.workload.departed import leave_name
from weft.informer.commit import Commit, Draft
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.cluster import CLUSTER, describe_unlinked
from weft.kinds.fields.allocated_migration import names_other_cluster
from weft.kinds.migration import ANY_CLUSTER, DEPARTURES, MIGRATION, MigrationSpec, MigrationStatus
from weft.kinds.vm import VM, VmActions
from weft.objects.errors import AlreadyExists, Unavailable, WeftError
from weft.objects.identity import object_key

ASK_SECONDS = 1.0
Ask = Callable[[PeerLink, Sequence[DeparturePlace]], Awaitable[list[Seen]]]
Perform = Callable[[PeerLink, Sequence[ArrivalAct]], Awaitable[list[SeenArrival | WeftError]]]


class Departures(Asking):
    name = "departures"
    kinds = (MIGRATION.name, "allocation", VM.name)

    def __init__(
        self,
        leadership: LeaderLease,
        unseal: Unseal | None,
        ask: Ask | None = None,
        perform: Perform | None = None,
        find: Ask | None = None,
    ) -> None:
        self._leadership, self._unseal = leadership, unseal
        self._find = find or find_in_thread
        self._ask, self._perform = ask or ask_in_thread, perform or perform_in_thread
        self._clock = leadership.clock
        self._unanswered = Unanswered(self._clock)  # by the Migration's key

    def route(self, view: View, change: Changed) -> Iterable[str]:
        return _list_clusters(view) if _concerns(change) else ()

    async def take_turn(self, key: str) -> Later:
        """``key``: the cluster's name."""
        led, taken = await self._lead(key), await self._take_back(key)
        if key not in _list_clusters(self._leadership.cache.view):
            return {}
        return {key: 0.0 if led or taken else ASK_SECONDS}

    async def _take_back(self, name: str) -> bool:
        """The VMs that people take back from cluster ``name``; whether there is more to do now."""
        view = self._leadership.cache.view
        found = [one for one in list_reclaims(view) if one.facts.cluster == name]
        if not found:
            return False
        link, problem = self._read_link(view, name)
        asked = [index for index, one in enumerate(found) if one.facts.asks]
        seen: dict[int, Seen] = dict.fromkeys(asked, problem)
        if link is not None and asked:
            places = [(one.project, one.found.key, one.own_project) for one in (found[index].facts for index in asked)]
            seen = dict(zip(asked, await self._find(link, places), strict=True))
        plans: list[tuple[Reclaim, ReclaimPlan]] = []
        for index, one in enumerate(found):
            plans.append((one, plan_reclaim(msgspec.structs.replace(one.facts, seen=seen.get(index)))))
        cancelled = [plan.act for _, plan in plans if plan.act is not None and plan.waits]
        if link is not None and cancelled:
            await self._perform(link, cancelled)
        now = self._clock.now()
        commits = [commit for one, plan in plans if (commit := plan_reclaim_commit(one, plan, now)) is not None]
        failed = {commit.key for commit in await self._leadership.perform(commits)} if commits else set()
        # Only once it is stored that it goes on here, the other cluster may forget that it never ran there.
        ended = [plan for one, plan in plans if plan.goes_on and one.workload.key not in failed]
        over = [plan.act for plan in ended if plan.act is not None]
        if link is not None and over:
            await self._perform(link, over)
        return link is not None and bool(cancelled)

    async def _lead(self, name: str) -> bool:
        """The migrations to cluster ``name``; whether there is more to do now."""
        view, now, read_at, again = self._leadership.cache.view, self._clock.now(), self._clock.elapsed(), False
        found = {item.key: read_departure(view, item, now) for item in view.find(DEPARTURES, name)}
        link, problem = self._read_link(view, name)
        places = {
            key: (arrival.project, arrival.name, one.facts.own_project)
            for key, one in found.items()
            if (arrival := one.facts.status.arrival) is not None and not arrival.settled
        }
        seen: dict[str, Seen] = dict.fromkeys(places, problem)
        seen |= {key: Unavailable(why) for key in places if (why := found[key].facts.unlinked)}
        asked = [key for key in places if not found[key].facts.unlinked] if link is not None else []
        if link is not None and asked:
            seen |= dict(zip(asked, await self._ask(link, [places[key] for key in asked]), strict=True))
        plans: dict[str, tuple[DepartureFacts, DeparturePlan]] = {}
        for key, one in found.items():
            whole = msgspec.structs.replace(one.facts, seen=seen.get(key), sure=self._unanswered.is_sure(key, read_at))
            plans[key] = whole, plan_departure(whole)
        acting = (
            [(key, plan.act) for key, (facts, plan) in plans.items() if plan.act is not None and not facts.unlinked]
            if link is not None
            else []
        )
        answers = await self._perform(link, [act for _, act in acting]) if link is not None and acting else []
        for (key, act), answer in zip(acting, answers, strict=True):
            facts, plan = plans[key]
            self._unanswered.note(key, answer)
            refused = isinstance(answer, WeftError) and not isinstance(answer, (Unavailable, AlreadyExists))
            if (
                act.what == "create" and isinstance(answer, WeftError) and refused
            ):  # an answer got lost if it exists already
                plans[key] = facts, plan_refused(facts, plan, answer)
            elif not isinstance(answer, WeftError):
                again = True  # what came of it is read now
        commits = []
        for key, one in found.items():
            commit = plan_commit(view, one, plans[key][1], self._clock.now())
            commits += [commit] if commit is not None else []
            # An Arrival that is noted as begun now is created in the next turn.
            again |= commit is not None and one.facts.status.arrival is None
        if commits:
            await self._leadership.perform(commits)  # what someone else wrote meanwhile is planned again
        return again

    def _read_link(self, view: View, name: str) -> tuple[PeerLink | None, WeftError]:
        """How that cluster is asked, or why it can't be."""
        cluster = view.get(object_key(CLUSTER.name, None, name))
        if cluster is None:
            return None, Unavailable(describe_unlinked(name))
        try:
            return read_link(cluster, self._unseal), Unavailable("the other cluster was not asked in this round")
        except WeftError as problem:
            return None, problem


def _list_clusters(view: View) -> set[str]:
    """Those to which something migrates, or from which people take VMs back, by name."""
    departing = {item.spec(MigrationSpec).cluster or "" for item in view.find(DEPARTURES, ANY_CLUSTER)}
    return departing | {one.facts.cluster for one in list_reclaims(view)}


def _concerns(change: Changed) -> bool:
    if change.kind == MIGRATION.name:
        return bool(change.item.spec(MigrationSpec).cluster) and has_changed(
            change, lambda item: (item.envelope.spec, item.envelope.actions, item.deleting)
        )
    if change.kind == VM.name:
        return bool(change.item.actions(VmActions).reclaim)
    migration, report = change.item.spec(AllocationSpec).migration, change.item.report(AllocationReport)
    lost = migration is None and report.migration is not None and names_other_cluster(report.migration.peer)
    return lost or (migration is not None and bool(migration.peer_ca))


def plan_commit(view: View, read: Departure, plan: DeparturePlan, now: float) -> Commit | None:
    """One commit for the whole plan; None if nothing changes, or if the VM or its allocation is another one since it was read: the
    next turn plans again."""
    item = read.item
    former, status = item.status(MigrationStatus), plan.status
    draft, events = Draft(item), list[Event]()
    if plan.source is not None or plan.leaves:
        # Its node may have reported since; what was planned holds for the same spec.
        place = view.get(read.place.key) if read.place is not None else None
        if place is None or read.place is None or place.spec(AllocationSpec) != read.place.spec(AllocationSpec):
            return None
        if plan.source is not None and plan.source.role == "active" and _read_phase(place) != _read_phase(read.place):
            return None  # that the guest stays rests on what its node reported
        draft.change(place, spec=plan.source, deleting_since=now if plan.leaves else None)
    if plan.leaves and read.workload is not None:
        workload = view.get(read.workload.key)
        if workload is None or workload.uid != read.workload.uid:
            return None
        went = read.place.spec(AllocationSpec).volumes if read.place is not None else ()
        leave_name(view, draft, workload, went, _find_where(workload, read), now)
        told = f"it migrated to {_find_where(workload, read)}: its name is left here"
        events.append(Event("Normal", "Departed", told, workload.envelope.ref, SOURCE))
    if status != former:
        draft.change(item, status=status)
    return draft.commit(item.key, [*list_events(item, former, status), *events])


def _find_where(workload: Item, read: Departure) -> str:
    arrival = read.facts.status.arrival
    return f"{read.facts.spec.cluster}/{arrival.project if arrival is not None else '?'}/{workload.envelope.name}"


def _read_phase(place: Item) -> tuple[str, str]:
    report = place.report(AllocationReport)
    return report.state, report.migration.phase if report.migration is not None else ""


async def ask_in_thread(link: PeerLink, places: Sequence[DeparturePlace]) -> list[Seen]:
    """Run ``list_seen`` in a thread of its own."""
    return await in_thread(lambda: list_seen(link, places, SystemClock()))


async def find_in_thread(link: PeerLink, places: Sequence[DeparturePlace]) -> list[Seen]:
    """Run ``find_seen`` in a thread of its own."""
    return await in_thread(lambda: find_seen(link, places, SystemClock()))


async def perform_in_thread(link: PeerLink, acts: Sequence[ArrivalAct]) -> list[SeenArrival | WeftError]:
    """Run ``perform_acts`` in a thread of its own."""
    return await in_thread(lambda: perform_acts(link, acts, SystemClock()))
