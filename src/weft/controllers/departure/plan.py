"""Next step of a Migration to another cluster: its allocation here, and what that cluster shows of its Arrival, in; the requests
there and the writes here out. Pure and without memory: after a crash the next process decides the same.

The order: it is noted that an Arrival may be asked for · the other cluster makes it, and its target listens · the source gets the
address, and sends · the other cluster says that the VM has arrived, so this one keeps but its name · nothing is left at the source.
Once the source has handed the guest over, only the other cluster's word that it never ran there lets it go on here; that cluster
not answering, or knowing nothing of it any more, is no such word.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from weft.controllers.departure.seen import MOST_TEXT, OLDER, ArrivalAct, SeenArrival, cut
from weft.controllers.migration.abort import HAND_OVER_PATIENCE_SECONDS
from weft.controllers.migration.facts import READY, MigrationEndpoint
from weft.controllers.migration.progress import compare, end_migration, measure, record_progress, time_left
from weft.kinds.allocation import AllocationSpec, come_back, has_left_cluster, set_desired
from weft.kinds.arrival import ARRIVED, CANCELLED, FAILED, OVER
from weft.kinds.fields.allocated_migration import AllocatedMigration, MigrationReport
from weft.kinds.migration import (
    ARRIVAL_MISSING,
    CLUSTER_UNREACHABLE,
    ENDED,
    WORKLOAD_DELETED,
    MigrationActions,
    MigrationArrival,
    MigrationSpec,
    MigrationStatus,
)
from weft.kinds.vm import VmSpec
from weft.objects.errors import Forbidden, NotFound, Unavailable, WeftError

NOT_GRANTED, REFUSED = "notGranted", "refused"
Ending = Literal["Failed", "Cancelled"]


class DepartureFacts(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    spec: MigrationSpec
    actions: MigrationActions
    status: MigrationStatus
    deleting: bool = False
    workload: VmSpec | None = None  # None: it doesn't exist, or is being deleted
    starts: int = 0  # its counter of starts
    guarded: bool = False  # its replica takes over automatically
    place: MigrationEndpoint | None = None  # the active allocation of the VM
    rival: str = ""
    source: MigrationEndpoint | None = None
    key: str = ""  # of this try
    arrival: str = ""  # what its Arrival is called there
    manifest: dict[str, Any] = {}  # of the Arrival
    lacks: tuple[str, ...] = ()  # what the VM has that another cluster can't have
    own_project: str = ""
    project: str = ""  # the link's, there; "": it has none for this one
    unlinked: str = ""  # why the other cluster can't be asked
    barred: tuple[str, str] = ("", "")  # reason and message, if only people mend the link
    gone: bool = False  # there is no link with it at all
    peer_ca: str = ""
    peer_uid: str = ""  # of that cluster
    seen: SeenArrival | WeftError | None = None  # None: that cluster surely has no such Arrival
    sure: bool = True  # no request that was sent before can still arrive there
    now: float = 0.0


class DeparturePlan(msgspec.Struct, kw_only=True):
    status: MigrationStatus
    act: ArrivalAct | None = None
    source: AllocationSpec | None = None  # to write
    leaves: bool = False  # the VM here keeps but its name, and its source goes


def plan_departure(facts: DepartureFacts) -> DeparturePlan:
    begun = {name: getattr(facts.status, name) for name in ("started_at", "handed_over_at")}
    # A time later than now is of a clock that was set back since: patience begins anew, or it would never end.
    mended = replace(facts.status, **{name: min(at, facts.now) for name, at in begun.items() if at is not None})
    facts = replace(facts, status=mended)
    if facts.status.phase in ENDED:
        return _settle(facts)
    if facts.status.phase == "Finishing":
        return _finish(facts)
    return _begin(facts) if facts.source is None else _lead(facts, facts.source)


def plan_refused(facts: DepartureFacts, plan: DeparturePlan, answer: WeftError) -> DeparturePlan:
    """The plan after the other cluster refused to make the Arrival."""
    cluster, status = facts.spec.cluster, plan.status
    if _is_ungranted(answer):
        return DeparturePlan(status=_end(status, "Failed", NOT_GRANTED, _explain_ungranted(facts), facts.now))
    if isinstance(answer, NotFound) and answer.token in ("notFound", "unknownKind") and "kind" not in answer.details:
        message = f"{cluster} is of an older release, and knows no migrations between clusters: update it"
        return DeparturePlan(status=_end(status, "Failed", OLDER, message, facts.now))
    reason = answer.token if answer.token == "cantTake" else REFUSED
    message = f"{cluster}: {cut(answer.message, MOST_TEXT)}"
    return DeparturePlan(status=_end(status, "Failed", reason, message, facts.now))


def _begin(facts: DepartureFacts) -> DeparturePlan:
    """No allocation is its source yet: the guest runs here, and nothing was sent."""
    spec, status, now, cluster = facts.spec, facts.status, facts.now, facts.spec.cluster
    if facts.place is not None:
        status = replace(status, source=facts.place.spec.node)
    if facts.place is not None and isinstance(facts.seen, SeenArrival) and facts.seen.phase == ARRIVED:
        return _find_restored(facts, facts.place, facts.seen, status)
    trouble = _find_early_trouble(facts)
    if trouble is not None:
        return DeparturePlan(status=_end(status, *trouble, now))
    if status.started_at is None:
        status = replace(status, started_at=now, tries=1)
    if facts.place is None or facts.place.report.state != "running" or facts.place.spec.migration is not None:
        state = facts.place.report.state if facts.place is not None else "on no node"
        return _wait(status, "notRunning", f"{spec.workload} is {state}")
    if facts.gone:
        return DeparturePlan(status=_end(status, "Failed", "notLinked", facts.unlinked, now))
    if status.arrival is None:
        if not facts.project:
            message = (
                f"the link with {cluster} has no project for this one: weft cluster set {cluster} --projects HERE=THERE"
            )
            return DeparturePlan(status=_end(status, "Failed", "noProject", message, now))
        if facts.barred[0]:
            return DeparturePlan(status=_end(status, "Failed", *facts.barred, now))
        status = replace(
            status, arrival=MigrationArrival(name=facts.arrival, project=facts.project, cluster_uid=facts.peer_uid)
        )
        return _wait(status, "", "")
    if facts.unlinked:
        return _wait(status, CLUSTER_UNREACHABLE, facts.unlinked)
    seen = facts.seen
    if isinstance(seen, WeftError):
        if _is_ungranted(seen):
            return DeparturePlan(status=_end(status, "Failed", NOT_GRANTED, _explain_ungranted(facts), now))
        if seen.token == OLDER:
            message = f"{cluster} can't take it: {seen.message}; update it"
            return DeparturePlan(status=_end(status, "Failed", OLDER, message, now))
        return _wait(status, CLUSTER_UNREACHABLE, f"{cluster} can't be asked: {cut(seen.message, MOST_TEXT)}")
    if seen is None and status.arrival.uid:
        message = f"{cluster} knows nothing of it any more; {spec.workload} runs on here"
        return DeparturePlan(status=_end(status, "Failed", "arrivalGone", message, now))
    if seen is None:
        act = ArrivalAct("create", status.arrival.name, status.arrival.project, facts.own_project, facts.manifest)
        return DeparturePlan(status=status, act=act)
    status = replace(status, arrival=replace(status.arrival, uid=seen.uid), target=_name_node(facts, seen))
    if seen.phase in OVER:
        return DeparturePlan(status=_end(status, *_read_end(facts, seen), now))
    if not (seen.address and seen.allocation and seen.node_uid):
        return _wait(status, seen.reason, f"{cluster}: {seen.message}" if seen.message else "")
    status = replace(status, phase="Preparing", reason="", message="")
    return DeparturePlan(status=status, source=make_source(facts, facts.place.spec, seen))


def _find_early_trouble(facts: DepartureFacts) -> tuple[Ending, str, str] | None:
    """Why nothing comes of it, while nothing was sent."""
    spec, status = facts.spec, facts.status
    if facts.deleting or facts.actions.cancel:
        return "Cancelled", "cancelled", "cancelled on request"
    if facts.workload is None:
        return "Cancelled", WORKLOAD_DELETED, f"{spec.workload} was deleted"
    if facts.rival and status.started_at is None:
        message = f"migration/{facts.rival} already migrates {spec.workload}; wait for it to end, or cancel it"
        return "Failed", "alreadyMigrating", message
    if facts.workload.run != "run":
        return "Failed", "notRunning", f"{spec.workload} is not running (run: {facts.workload.run}); start it first"
    if facts.lacks:
        return "Failed", "cantLeave", f"{spec.workload} can't migrate to another cluster: {'; '.join(facts.lacks)}"
    if time_left(spec, status, facts.now) <= 0:
        why = f": {status.message}" if status.message else ""
        return "Failed", status.reason or "timedOut", f"not begun within {spec.timeout_seconds:g} s{why}"
    return None


def _find_restored(
    facts: DepartureFacts, place: MigrationEndpoint, seen: SeenArrival, status: MigrationStatus
) -> DeparturePlan:
    """It has arrived there, though the store here, which was restored, knows of no source."""
    if has_left_cluster(place.report):
        status = replace(status, phase="Finishing", reason="", message="", target=_name_node(facts, seen))
        return DeparturePlan(status=status, leaves=True)
    message = f"{facts.spec.cluster} says that it has arrived; waits for the word of {place.spec.node}, which sent it"
    return _wait(status, "storeRestored", message)


def make_source(facts: DepartureFacts, place: AllocationSpec, seen: SeenArrival) -> AllocationSpec:
    """The allocation of the VM as the source of its migration."""
    migration = AllocatedMigration(
        key=facts.key,
        peer=_name_node(facts, seen),
        peer_uid=seen.node_uid,
        peer_allocation=seen.allocation,
        peer_ca=facts.peer_ca,
        address=seen.address,
        bytes_per_second=facts.spec.bytes_per_second,
        pause_ms=facts.spec.pause_ms,
    )
    return replace(place, role="source", migration=migration)


def _lead(facts: DepartureFacts, source: MigrationEndpoint) -> DeparturePlan:
    status, seen, migration = _show(facts, source), facts.seen, source.spec.migration
    assert migration is not None
    here = isinstance(seen, SeenArrival) and seen.allocation == migration.peer_allocation  # of this very target
    if isinstance(seen, SeenArrival) and here and seen.phase == ARRIVED:
        if not _runs_here(source):
            return _leave(facts, source, status, seen.pause_ms)
        # Its own node knows better whether it still runs: a report that comes late ends this soon.
        message = (
            f"{facts.spec.cluster} says that it has arrived; waits for the word of {source.spec.node}, which sent it"
        )
        status = status if status.ending else replace(status, reason="notHandedOver", message=message)
    if has_left_cluster(source.report):  # its node has the target's word for good
        return _leave(facts, source, status, 0)
    if isinstance(seen, SeenArrival) and here and seen.never_ran:
        ending, reason, message = _read_end(facts, seen)
        status = status if status.ending else replace(status, ending=ending, reason=reason, message=message)
        return _return(facts, source, status, certain=True)
    handed = source.reports("handedOver")
    missing = seen is None or (
        isinstance(seen, SeenArrival) and not here and bool(seen.allocation or seen.phase in OVER)
    )
    if handed and facts.actions.reclaim and (missing or (isinstance(seen, WeftError) and _is_overdue(facts))):
        message = "people let it go on here"
        return _return(facts, source, _ending(status, ("Failed", "reclaimed", message)), certain=True)
    if handed and missing:
        if facts.workload is None:  # people who found it there have deleted it here
            return _leave(facts, source, status, 0)
        return _wait(status, ARRIVAL_MISSING, _explain_missing(facts))
    trouble = _find_trouble(facts, source, status)
    if trouble is not None and not status.ending:
        status = _ending(status, trouble)
    if status.ending:
        return _abort(facts, source, status)
    if isinstance(seen, SeenArrival) and here and seen.address and seen.address != migration.address and not handed:
        now_at = replace(source.spec, migration=replace(migration, address=seen.address))
        return DeparturePlan(status=status, source=now_at)
    return DeparturePlan(status=status)


def _runs_here(source: MigrationEndpoint) -> bool:
    """Whether its node reports that it runs the guest, which it hasn't handed over."""
    runs = source.report.state == "running" and source.node_phase in READY
    return runs and not source.reports("handedOver")


def _is_overdue(facts: DepartureFacts) -> bool:
    at = facts.status.handed_over_at
    return at is not None and facts.now >= at + 2 * HAND_OVER_PATIENCE_SECONDS


def _explain_missing(facts: DepartureFacts) -> str:
    what, cluster = facts.spec.workload, facts.spec.cluster
    return (
        f"{what} was handed over to {cluster}, which knows nothing of that any more, as after a restore of its store. Look there: "
        f"if its guest runs, weft vm delete {what.partition('/')[2]} here; if it surely runs nowhere: "
        f"weft migration reclaim {facts.name}"
    )


def _find_trouble(
    facts: DepartureFacts, source: MigrationEndpoint, status: MigrationStatus
) -> tuple[Ending, str, str] | None:
    """Why it must be aborted; None if it can go on."""
    spec, workload, report = facts.spec, facts.workload, source.migration_report
    if facts.deleting or facts.actions.cancel:
        return "Cancelled", "cancelled", "cancelled on request"
    if workload is None:
        return "Cancelled", WORKLOAD_DELETED, f"{spec.workload} was deleted"
    if workload.run != source.spec.desired:
        return "Cancelled", "workloadChanged", f"{spec.workload} was asked to {workload.run} since"
    if facts.starts > source.spec.restart_generation:
        return "Cancelled", "workloadChanged", f"{spec.workload} was asked to restart since"
    if report is not None and report.phase == "failed":
        seen = facts.seen
        if isinstance(seen, SeenArrival) and seen.reason and seen.phase != ARRIVED:  # the source saw but its line end
            ending: Ending = "Cancelled" if seen.reason == "cancelled" else "Failed"
            return ending, seen.reason, f"{spec.cluster}: {seen.message or seen.reason}"
        why = report.message or report.reason or "failed"
        silent = f"; {spec.cluster} doesn't answer" if isinstance(seen, Unavailable) else ""
        way = "" if f"{spec.cluster}/" in why else f" couldn't send it to {spec.cluster}"
        return "Failed", report.reason or "failed", f"source {source.spec.node}{way}: {why}{silent}"
    if facts.guarded and not source.reports("handedOver"):
        return "Failed", "cantLeave", f"{spec.workload}: an automatic failover of it was prepared since"
    if facts.gone and not source.reports("handedOver"):
        return "Failed", "notLinked", facts.unlinked
    if source.node_phase not in READY:
        return "Failed", "nodeLost", f"source {source.spec.node} sends no heartbeat"
    if _is_overdue(facts):
        return "Failed", "notTakenOver", f"{spec.cluster} has not confirmed that it took over"
    if time_left(spec, status, facts.now) <= 0:
        return "Failed", "timedOut", f"not finished within {spec.timeout_seconds:g} s"
    return None


def _abort(facts: DepartureFacts, source: MigrationEndpoint, status: MigrationStatus) -> DeparturePlan:
    """Have the other cluster take nothing in; the guest goes on here for good once that says so, or once it can't be handed over
    any more."""
    seen, cluster = facts.seen, facts.spec.cluster
    stays = source.reports("failed") and source.report.state == "running" and source.node_phase in READY
    if stays and not (isinstance(seen, SeenArrival) and seen.phase not in OVER and not facts.gone):
        return _return(facts, source, status, certain=False)
    if isinstance(seen, SeenArrival) and status.arrival is not None and seen.phase not in OVER:
        return DeparturePlan(
            status=status, act=ArrivalAct("cancel", status.arrival.name, status.arrival.project, facts.own_project)
        )
    what = "the guest runs there, or nowhere"
    if not source.reports("handedOver"):
        sent = source.spec.migration is not None and source.spec.migration.address and not source.reports("failed")
        what = "the guest runs on here" + (", unless it is handed over before" if sent else "")
    why = facts.unlinked or _explain_seen(seen)
    message = f"{_first(status.message)}; waits for {cluster} to say that it never ran there ({why}); {what}"
    if source.reports("handedOver") and isinstance(seen, WeftError):
        message += f". {_explain_reclaim(facts)}"
    return DeparturePlan(status=replace(status, message=message))


def _explain_seen(seen: SeenArrival | WeftError | None) -> str:
    if isinstance(seen, WeftError):
        return cut(seen.message, MOST_TEXT)
    return f"it says {seen.phase}" if seen is not None else "it knows nothing of it"


def _explain_reclaim(facts: DepartureFacts) -> str:
    """Advice to people who know that the other cluster is lost."""
    return f"If {facts.spec.cluster} is lost for good, and its guest surely runs nowhere: weft migration reclaim {facts.name}"


def _first(message: str) -> str:
    """The reason why it ended, without what it waited for before."""
    return message.partition("; waits for ")[0]


def _return(
    facts: DepartureFacts, source: MigrationEndpoint, status: MigrationStatus, *, certain: bool
) -> DeparturePlan:
    """The guest runs here for good: its place is the own one of the VM again. ``certain``: it never ran there, so that a source
    which has handed it over lets it go on first."""
    migration = source.spec.migration
    assert migration is not None
    if certain and not migration.never_ran:
        return DeparturePlan(status=status, source=replace(source.spec, migration=replace(migration, never_ran=True)))
    if source.reports("handedOver") and source.node_phase in READY:
        return DeparturePlan(status=status)
    phase: Ending = "Cancelled" if status.ending == "Cancelled" else "Failed"
    ended = _end(status, phase, status.reason, _first(status.message), facts.now)
    return DeparturePlan(status=ended, source=come_back(source.spec, migration.key))


def _leave(facts: DepartureFacts, source: MigrationEndpoint, status: MigrationStatus, pause_ms: int) -> DeparturePlan:
    """The guest runs there: of the VM here its name is left."""
    status = replace(status, phase="Finishing", ending="", reason="", message="")
    reports = [source.migration_report, MigrationReport(key=facts.key, phase="takenOver", pause_ms=pause_ms)]
    status.actual = measure(status, *reports)
    migration = source.spec.migration
    assert migration is not None
    gone = replace(set_desired(source.spec, "stop"), migration=replace(migration, taken_over=True))
    return DeparturePlan(status=status, source=gone, leaves=True)


def _finish(facts: DepartureFacts) -> DeparturePlan:
    """End once nothing is left at the source."""
    status = replace(facts.status)
    if facts.source is not None:
        status.actual = measure(status, facts.source.migration_report)
        return DeparturePlan(status=status)
    status.error = compare(status)
    return DeparturePlan(status=end_migration(status, "Succeeded", "", "", facts.now))


def _settle(facts: DepartureFacts) -> DeparturePlan:
    """It is over here: the other cluster clears what is left, and may forget it."""
    status, seen = facts.status, facts.seen
    arrival = status.arrival
    if arrival is None or arrival.settled:
        return DeparturePlan(status=status)
    if facts.gone:
        return DeparturePlan(status=replace(status, arrival=replace(arrival, settled=True)))
    if isinstance(seen, SeenArrival) and arrival.uid in ("", seen.uid):
        what: Literal["settle", "cancel"] = "settle" if seen.phase in OVER else "cancel"
        known = replace(status, arrival=replace(arrival, uid=seen.uid))
        return DeparturePlan(status=known, act=ArrivalAct(what, arrival.name, arrival.project, facts.own_project))
    never_there = isinstance(seen, WeftError) and (seen.token == OLDER or _is_ungranted(seen)) and not arrival.uid
    if (seen is None or isinstance(seen, SeenArrival) or never_there) and (facts.sure or arrival.uid):
        return DeparturePlan(status=replace(status, arrival=replace(arrival, settled=True)))
    return DeparturePlan(status=status)


def _show(facts: DepartureFacts, source: MigrationEndpoint) -> MigrationStatus:
    """The status with the newest reports."""
    status, report = replace(facts.status), source.migration_report
    status.source = source.spec.node
    if isinstance(facts.seen, SeenArrival) and facts.seen.node:
        status.target = _name_node(facts, facts.seen)
    if not status.ending:
        status.reason = status.message = ""
    if report is None:
        status.phase = "Preparing" if status.phase == "Pending" else status.phase
    else:
        status = record_progress(status, report, facts.now)
    handed = report is not None and report.phase == "handedOver"
    if status.ending or not isinstance(facts.seen, WeftError) or (status.handed_over_at is not None and not handed):
        return status
    why = facts.unlinked or cut(facts.seen.message, MOST_TEXT)
    if not handed:
        return replace(
            status, reason=CLUSTER_UNREACHABLE, message=f"waits for the answer of {facts.spec.cluster}: {why}"
        )
    message = (
        f"handed over; {facts.spec.cluster} can't be asked ({why}), so it isn't known yet whether the guest runs there. It goes on "
        f"here only once that cluster says that it never did. {_explain_reclaim(facts)}"
    )
    return replace(status, reason=CLUSTER_UNREACHABLE, message=message)


def _read_end(facts: DepartureFacts, seen: SeenArrival) -> tuple[Ending, str, str]:
    """How the other cluster ended it."""
    cluster = facts.spec.cluster
    if seen.phase == CANCELLED:
        return "Cancelled", seen.reason or "cancelled", f"{cluster}: {seen.message or 'cancelled there'}"
    return "Failed", seen.reason or FAILED.lower(), f"{cluster}: {seen.message or 'it failed there'}"


def _name_node(facts: DepartureFacts, seen: SeenArrival) -> str:
    return f"{facts.spec.cluster}/{seen.node}" if seen.node else facts.status.target


def _ending(status: MigrationStatus, trouble: tuple[Ending, str, str]) -> MigrationStatus:
    return replace(status, ending=trouble[0], reason=trouble[1], message=trouble[2])


def _end(status: MigrationStatus, phase: Ending, reason: str, message: str, now: float) -> MigrationStatus:
    return end_migration(status, phase, reason, message, now)


def _wait(status: MigrationStatus, reason: str, message: str) -> DeparturePlan:
    return DeparturePlan(status=replace(status, reason=reason, message=message))


def _is_ungranted(problem: WeftError) -> bool:
    """A quota or a limit there is Forbidden, too."""
    return isinstance(problem, Forbidden) and "permission" in problem.details


def _explain_ungranted(facts: DepartureFacts) -> str:
    cluster = facts.spec.cluster
    how = "an administrator there grants migrate: weft cluster set NAME --grants …"
    return f"{cluster} doesn't let VMs of this cluster migrate there: {how}"
