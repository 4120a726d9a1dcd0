"""Judges which nodes are ready or quarantined, and sums what is allocated on each.

Reads nodes, allocations, and the nodes' leases (their heartbeats); writes node.status and the conditions Ready and, where they are
not true, Fits (more is allocated than there is: the ratio of overcommitment was lowered, or the node shrank), ConnectionsFit and
StartsGuests. Woken by nodes and once a second. A node is Ready while its lease lives and it has reported its capacity, unless its
machine is known to be off. A silent one is Autonomous for as long as its spec allows, then NotReady. Leases die with the store's
process, so after a start every node has a full lease's time to send a heartbeat before it counts as lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from weft.client.server.version_skew import find_oldest, is_newer
from weft.contracts.clock import Clock
from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.controllers.node.cpu_baseline import Cpus
from weft.controllers.node.quarantine import Evidence, describe_end, describe_quarantine, fold_quarantine
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.loss.renewals import PROMPT_SECONDS, Renewals
from weft.informer.pool.claims import Claims, list_claims, list_claims_of_node, list_claims_of_volume
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.allocation import (
    ALLOCATIONS_BY_NODE,
    AllocationReport,
    AllocationSpec,
    account,
    has_ended_for_good,
    is_lost,
    is_reservation,
)
from weft.kinds.node import (
    NODES_BY_UID,
    NodeActions,
    NodeMarks,
    NodeReport,
    NodeSpec,
    NodeStatus,
    find_autonomy_end,
    is_quarantined,
)
from weft.kinds.parts.node.power import is_off
from weft.kinds.server import ServerStatus
from weft.kinds.volume import VOLUMES_BY_HOME, VolumeStatus
from weft.objects.envelope import Condition, Envelope, merge_part, set_condition
from weft.objects.quantity import format_bytes, format_cpu, format_time

GRACE_SECONDS = 30.0
CHECK_EVERY_SECONDS = 1.0
SUMS_AT_ONCE = 200  # nodes whose sums are written in one round: placements fail when a node's revision changes
LATEST_SECONDS = 10.0  # sums wait for so long while more allocations than SUMS_AT_ONCE change in a round
TICK = ""  # the key that stands for "check the leases"
LONGEST_SECONDS = 3600.0  # until sums are made again for a lease that begins later; the clock may be set meanwhile
SOURCE = "nodes"


class Nodes:
    name = "nodes"
    kinds = ("node", "allocation", "volume", "server")

    def __init__(self, renewals: Renewals, clock: Clock) -> None:
        self._renewals = renewals
        self._clock = clock
        self._began_at = clock.elapsed()
        self._live: frozenset[str] = frozenset()
        self._off: frozenset[str] = frozenset()  # whose machines are off, though their leases live
        self._judged_live: frozenset[str] = frozenset()
        self._seen: set[str] = set()  # nodes that have been live since this began
        self._graced = True
        self._unsummed: dict[str, None] = {}
        self._cpus = Cpus()
        self._changes = 0  # of allocations since the last round
        self._summed_at = self._began_at

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "node":
            alike = self._cpus.note(change)
            is_news = change.old is None or has_changed(change, _read_off)
            return (change.key, *alike, TICK) if is_news else (change.key, *alike)
        if change.kind == "server":
            if not has_changed(change, _read_release):
                return ()
            return tuple(view.of_kind("node"))
        if change.kind == "volume":
            if has_changed(change, list_claims_of_volume):
                homes = [item.status(VolumeStatus).node_uid for item in (change.old, change.new) if item is not None]
                self._unsummed.update(dict.fromkeys(uid for uid in homes if uid))
            return ()
        self._unsummed[change.item.spec(AllocationSpec).node_uid] = None
        self._changes += 1
        return ()

    async def observe(self) -> None:
        """Read which leases live; if that can't be known, nothing changes."""
        await self._renewals.observe()
        self._live = self._renewals.live - self._off
        self._seen |= self._live

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        nodes = {key: node for key in keys if (node := view.get(key)) is not None}
        if TICK in keys:
            plan.later[TICK] = CHECK_EVERY_SECONDS
            self._off = frozenset(uid for uid in self._renewals.list_silent(PROMPT_SECONDS) if self._is_off(view, uid))
            self._live = self._renewals.live - self._off
            for node in self._find_changed(view):
                nodes[node.key] = node
            for uid in self._take_unsummed():
                nodes.update((node.key, node) for node in view.find(NODES_BY_UID, uid))
        evidence, oldest = Evidence(view), find_oldest(map(_read_release, view.of_kind("server").values()))
        for node in nodes.values():
            next_start = min(find_next_start(view, node.uid, now), find_next_end(node, now))
            if next_start < math.inf:
                plan.later[node.key] = max(CHECK_EVERY_SECONDS, min(next_start - now, LONGEST_SECONDS))
            commit = plan_node(view, node, self._judge(node), self._cpus.common(node.key), now, evidence, oldest)
            if commit is not None:
                plan.commits.append(commit)
        return plan

    def _take_unsummed(self) -> list[str]:
        """The nodes whose sums to write now; none while allocations change too fast."""
        elapsed, changes = self._clock.elapsed(), self._changes
        self._changes = 0
        if changes > SUMS_AT_ONCE and elapsed - self._summed_at < LATEST_SECONDS:
            return []
        self._summed_at = elapsed
        uids = [uid for uid, _ in zip(self._unsummed, range(SUMS_AT_ONCE), strict=False)]
        for uid in uids:
            del self._unsummed[uid]
        return uids

    def _find_changed(self, view: View) -> list[Item]:
        """The nodes whose lease came or went since the last round; all of them when the time of grace ends."""
        uids = sorted(self._live ^ self._judged_live)
        self._judged_live = self._live
        if self._graced and self._clock.elapsed() - self._began_at >= GRACE_SECONDS:
            self._graced = False
            return list(view.of_kind("node").values())
        return [node for uid in uids for node in view.find(NODES_BY_UID, uid)]

    def _judge(self, node: Item) -> bool | None:
        """Whether the node is alive; None while that can't be known yet."""
        if node.uid in self._live:
            return True
        if self._graced and node.uid not in self._seen:
            return None
        return False

    def _is_off(self, view: View, uid: str) -> bool:
        """Whether the machine of a node that isn't heard is known to be off: its lease needn't run out."""
        return any(_read_off(one) and self._renewals.is_suspect(view, one) for one in view.find(NODES_BY_UID, uid))


def _read_off(node: Item) -> bool:
    return is_off(node.marks(NodeMarks).power_reading, node.report(NodeReport).contact, node.spec(NodeSpec).power)


def plan_node(
    view: View, node: Item, live: bool | None, cpu_model: str, now: float, evidence: Evidence, oldest: str = ""
) -> Commit | None:
    """Write the node's status and its conditions if they change; ``cpu_model`` is the one that it has in common with others,
    ``oldest`` the oldest server's release."""
    former = node.status(NodeStatus)
    sums = sum_allocations(view, node.uid, now)
    status = fold_node(former, node.report(NodeReport), sums, live, now, node.spec(NodeSpec).autonomy_seconds)
    status.cpu_model = cpu_model
    status.quarantine, failed = fold_quarantine(view, node, evidence, now, live=bool(live))
    status.newer_than = oldest if is_newer(node.report(NodeReport).version, oldest) else ""
    ready = Condition(
        "Ready",
        "True" if status.phase == "Ready" else "False",
        status.phase,
        status.message,
        now,
        node.envelope.generation,
    )
    envelope = edit(node)
    changed = set_condition(envelope, ready)
    report = node.report(NodeReport)
    over, crowded = describe_over(status, report, node.spec(NodeSpec)), describe_connections(report)
    reason = "overAllocated" if over else ""
    changed |= _set_rare(envelope, Condition("Fits", "False" if over else "True", reason, over, now))
    reason = "connectionsHigh" if crowded else ""
    changed |= _set_rare(envelope, Condition("ConnectionsFit", "False" if crowded else "True", reason, crowded, now))
    events = []
    held = status.quarantine
    if failed and held is not None:
        message = describe_quarantine(held, failed, node.envelope.name)
        changed |= _set_rare(envelope, Condition("StartsGuests", "False", "quarantined", message, now))
        events.append(Event("Warning", "NodeQuarantined", message, node.envelope.ref, SOURCE))
    elif former.quarantine is not None and is_quarantined(former) and not is_quarantined(status):
        message = describe_end(former.quarantine, held, node.actions(NodeActions).uncordoned_at)
        changed |= _set_rare(envelope, Condition("StartsGuests", "True", "", "", now))
        events.append(Event("Normal", "NodeQuarantineEnded", message, node.envelope.ref, SOURCE))
    if status.newer_than and not former.newer_than:
        message = describe_newer(node.envelope.name, report.version, status.newer_than)
        events.append(Event("Warning", "NodeNewer", message, node.envelope.ref, SOURCE))
    was, fit = (one.condition("ConnectionsFit") for one in (node.envelope, envelope))
    if (was and was.status) != (fit and fit.status):
        events.append(_report_connections(node, crowded))
    if status == former and not changed:
        return None
    envelope.status = merge_part(envelope.status, status)
    if status.phase != former.phase:
        lost = status.phase == "NotReady"
        message = status.message or f"node {node.envelope.name} is ready"
        if former.phase == "Autonomous" and lost:
            message = f"{message}: its autonomy has ended"
        events.append(Event("Warning" if lost else "Normal", f"Node{status.phase}", message, node.envelope.ref, SOURCE))
    return Commit(node.key, [put(envelope)], [unchanged(node)], events)


def _set_rare(envelope: Envelope, condition: Condition) -> bool:
    """Set a condition that is True of most nodes, which never need it; True if anything changed."""
    if condition.status == "True" and envelope.condition(condition.type) is None:
        return False
    return set_condition(envelope, msgspec.structs.replace(condition, generation=envelope.generation))


def describe_newer(node: str, release: str, oldest: str) -> str:
    """Message for people about an agent that is newer than the servers."""
    return (
        f"the agent of node {node} is weft {release}, newer than the servers ({oldest}): no new workloads are placed there; upgrade"
        f" the servers, or install weft {oldest} there"
    )


def _read_release(server: Item) -> str:
    """The release of a server that serves; "" of another."""
    status = server.status(ServerStatus)
    return status.release if status.phase == "Ready" else ""


def _report_connections(node: Item, problem: str) -> Event:
    if problem:
        return Event("Warning", "NodeConnectionsHigh", problem, node.envelope.ref, SOURCE)
    message = f"the table of connections of node {node.envelope.name} is less than 75 % full again"
    return Event("Normal", "NodeConnectionsFit", message, node.envelope.ref, SOURCE)


def describe_connections(report: NodeReport) -> str:
    """The fault of the node's table of connections; empty if there is none."""
    if not report.connections_percent:
        return ""
    return (
        f"the table of connections is {report.connections_percent} % full; once it is full, new connections of the node and of all"
        " its guests fail: find the guests that have most with weft network flows, or migrate some to other nodes"
    )


def describe_over(sums: NodeStatus, report: NodeReport, spec: NodeSpec) -> str:
    """The resources of which more is allocated than the overcommitment allows; empty if none."""
    parts: list[str] = []
    if not report.cpu:
        return ""  # it hasn't reported its capacity yet
    for name, given, there, show in (
        ("cpu", sums.allocated_cpu, report.cpu, format_cpu),
        ("memory", sums.allocated_memory, report.memory, format_bytes),
        ("disk", sums.allocated_disk, report.disk, format_bytes),
    ):
        most = there * spec.overcommit.get(name, 1.0)
        if given > most:
            parts.append(f"{show(given)} {name} allocated of {show(most)}")
    return f"{'; '.join(parts)}; no workload that requests more of it is placed here until that fits" if parts else ""


def fold_node(
    former: NodeStatus, report: NodeReport, sums: NodeStatus, live: bool | None, now: float, autonomy: float = 0.0
) -> NodeStatus:
    """A node's status from its heartbeat, its report, and what is allocated there (in ``sums``). A silent node is Autonomous for
    ``autonomy`` seconds, then NotReady."""
    phase, message, lost_at, lost_contact = former.phase, former.message, former.lost_at, former.lost_contact
    until = former.autonomous_until
    if live and report.cpu > 0:
        phase, message, lost_at, lost_contact, until = "Ready", "", None, "", None
    elif live is False and former.phase != "Joining":
        if former.phase == "Ready":
            lost_at, lost_contact = now, report.contact
        elif lost_at is None:
            lost_at = former.since  # an older weft wrote it
        ends = lost_at + autonomy
        phase, message = ("Autonomous", f"no heartbeat; autonomous until {format_time(ends)}")
        if now >= ends:
            phase, message = "NotReady", "no heartbeat"
        else:
            until = ends
    return msgspec.structs.replace(
        sums,
        phase=phase,
        message=message,
        since=former.since if phase == former.phase else now,
        lost_contact=lost_contact,
        lost_at=lost_at,
        autonomous_until=until,
    )


def find_next_end(node: Item, now: float) -> float:
    """When the autonomy of a silent node ends, or the node's quarantine (seconds since 1970); infinite if neither does."""
    status = node.status(NodeStatus)
    quarantine_ends = status.quarantine.until if status.quarantine is not None else None
    ends = find_autonomy_end(node.spec(NodeSpec), status), quarantine_ends
    return min((end for end in ends if end is not None and end > now), default=math.inf)


def find_next_start(view: View, node_uid: str, now: float) -> float:
    """When the next lease on a node begins to take its capacity (seconds since 1970); infinite if none does."""
    leases = [item.spec(AllocationSpec).lease for item in view.find(ALLOCATIONS_BY_NODE, node_uid)]
    return min((lease.prepare_at for lease in leases if lease is not None and lease.prepare_at > now), default=math.inf)


def sum_allocations(view: View, node_uid: str, now: float) -> NodeStatus:
    """The sums of what is allocated on a node at ``now``, in an otherwise empty status; what has ended for good counts as nothing,
    and a lease that begins later takes only its disk."""
    read = [
        (item.spec(AllocationSpec), item.report(AllocationReport), item)
        for item in view.find(ALLOCATIONS_BY_NODE, node_uid)
    ]
    found = [(spec, report, item) for spec, report, item in read if not has_ended_for_good(spec, report)]
    holding = [account(spec, report) for spec, report, _ in found if not _begins_later(spec, now)]
    later = [
        (spec.lease.prepare_at, spec.lease.end or math.inf, account(spec, report))
        for spec, report, _ in found
        if spec.lease is not None and _begins_later(spec, now)
    ]
    return NodeStatus(
        allocated_cpu=round(sum(r.cpu for r in holding), 3),
        allocated_memory=sum(r.memory for r in holding),
        allocated_disk=sum_disk(view, node_uid, [spec for spec, _, _ in found]),
        promised_cpu=round(_find_most((begin, end, need.cpu) for begin, end, need in later), 3),
        promised_memory=int(_find_most((begin, end, need.memory) for begin, end, need in later)),
        allocations_later=len(later),
        allocations=sum(not (is_reservation(item) or is_lost(spec)) for spec, _, item in found),
    )


def sum_disk(view: View, node_uid: str, specs: Sequence[AllocationSpec]) -> int:
    """Bytes that a node's own pool has promised: root disks and volumes, attached or not, and what snapshots take up."""
    claims = Claims()
    for spec in specs:
        claims.hold(list_claims(spec))
    for volume in view.find(VOLUMES_BY_HOME, node_uid):
        claims.hold(list_claims_of_volume(volume))
    for node in view.find(NODES_BY_UID, node_uid):
        claims.hold(list_claims_of_node(node))
    return claims.given.get(node_uid, 0)


def _find_most(held: Iterable[tuple[float, float, float]]) -> float:
    """The most that is held at one time, of (begin, end, amount)."""
    now = most = 0.0
    # What ends at a moment leaves before what begins then comes: its change is negative.
    for _, change in sorted(each for begin, end, amount in held for each in ((begin, amount), (end, -amount))):
        now += change
        most = max(most, now)
    return most


def _begins_later(spec: AllocationSpec, now: float) -> bool:
    return spec.lease is not None and spec.lease.prepare_at > now
