"""Find the nodes that get no workloads for a while, since the starts of different workloads failed there and none succeeded. Pure.

All follows from the node's allocations and from its own status, so nothing is lost with this process. A failure counts if the node
may be its cause: it couldn't store an image, or make a disk, a network or a machine. A silent registry, or a disk in a pool that
other nodes share, says nothing of the node. Workloads with an image, or an owner, that runs on no other node count as one: that may
be what is broken.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from weft.informer.view import Item, View
from weft.kinds.allocation import ALLOCATIONS_BY_NODE, LOCAL, AllocationReport, AllocationSpec, image_of, list_disks
from weft.kinds.fields.deployment.instance import REVISION_LABEL
from weft.kinds.node import NodeActions, NodeStatus, Quarantine, find_cordon, is_quarantined
from weft.kinds.parts.workload import WORKLOADS_BY_IMAGE, WORKLOADS_BY_OWNER, WORKLOADS_BY_UID, WorkloadStatus
from weft.kinds.record import keys_of
from weft.objects.lifecycle import Phase
from weft.objects.quantity import format_time

NEEDED = 3  # different workloads whose starts failed
WINDOW_SECONDS = 600.0  # in which they were placed
FIRST_SECONDS, LONGEST_SECONDS = 600.0, 4 * 3600.0  # of a quarantine; each in a row is twice as long as the one before
MOST_PART = 3  # at most one in three of the nodes that take workloads is quarantined
_NODE_REASONS = ("driverFailed", "noSpace", "noMemory", "noPool", "containerdGone", "timedOut")
_NAMED = 5


class Failure(msgspec.Struct, frozen=True):
    """A placement whose start failed, for a reason that may be the node's."""

    begun_at: float
    workload: Item
    image: str  # as WORKLOADS_BY_IMAGE has it; a container's of a registry is in no index, so it runs nowhere as far as is known
    what: str  # disk: noSpace

    @property
    def name(self) -> str:
        of = self.workload.envelope
        return f"{of.kind}/{of.name} of project {of.project} ({self.what})"


class Evidence:
    """Evidence of all nodes together about one, read once for all that are judged together, and only if one may be quarantined."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._left: int | None = None
        self._runs_on: dict[tuple[str, ...], list[str]] = {}

    def may_quarantine(self) -> bool:
        """Whether enough other nodes take workloads."""
        if self._left is None:
            nodes = self._view.of_kind("node").values()
            quarantined = sum(is_quarantined(node.status(NodeStatus)) for node in nodes)
            self._left = (sum(map(_takes, nodes)) + quarantined) // MOST_PART - quarantined
        return self._left > 0

    def note_quarantine(self) -> None:
        assert self._left is not None
        self._left -= 1

    def count_causes(self, node: str, failures: Iterable[Failure]) -> int:
        """How many different things may be broken, if it isn't the node."""
        return len({self._name_cause(node, failure) for failure in failures})

    def _name_cause(self, node: str, failure: Failure) -> tuple[str, ...]:
        of = failure.workload.envelope
        shared = (of.owner.uid, of.labels.get(REVISION_LABEL, "")) if of.owner is not None else (failure.image,)
        if not shared[0] or any(name != node for name in self._find_nodes(shared)):
            return ("", failure.workload.uid)
        return shared

    def _find_nodes(self, shared: tuple[str, ...]) -> list[str]:
        """Nodes, two at most, on which something runs of an owner and its revision, or with an image."""
        if shared not in self._runs_on:
            word, *revision = shared
            items = self._view.find(WORKLOADS_BY_OWNER if revision else WORKLOADS_BY_IMAGE, word)
            alike = (one for one in items if not revision or one.envelope.labels.get(REVISION_LABEL, "") == revision[0])
            found = (one.status(WorkloadStatus) for one in alike)
            nodes = dict.fromkeys(one.node for one in found if one.phase == Phase.RUNNING and one.node)
            self._runs_on[shared] = list(nodes)[:2]
        return self._runs_on[shared]


def _takes(node: Item) -> bool:
    asked, status = node.actions(NodeActions), node.status(NodeStatus)
    return status.phase == "Ready" and not (find_cordon(asked, status) or asked.maintenance)


def fold_quarantine(
    view: View, node: Item, evidence: Evidence, now: float, *, live: bool
) -> tuple[Quarantine | None, list[str]]:
    """The node's quarantine at ``now``; of one that begins, the workloads too."""
    held, uncordoned_at = node.status(NodeStatus).quarantine, node.actions(NodeActions).uncordoned_at or 0.0
    placed = [item for item in view.find(ALLOCATIONS_BY_NODE, node.uid) if item.spec(AllocationSpec).role == "active"]
    last_start = max(map(find_start, placed), default=0.0)
    if held is not None and held.since <= max(uncordoned_at, last_start):
        held = None
    if held is not None and now >= held.until and not held.on_probation:
        held = msgspec.structs.replace(held, on_probation=True)
    if not live or (held is not None and not held.on_probation):
        return held, []
    counts_from = max(now - WINDOW_SECONDS, uncordoned_at, last_start, held.until if held is not None else 0.0)
    found = (read_failure(view, item) for item in placed)
    failures = [one for one in found if one is not None and one.begun_at >= counts_from]
    enough = len(failures) >= NEEDED and evidence.may_quarantine()
    if not enough or evidence.count_causes(node.envelope.name, failures) < NEEDED:
        return held, []
    evidence.note_quarantine()
    times = held.times + 1 if held is not None else 1
    lasts = min(FIRST_SECONDS * 2.0 ** min(times - 1, 20), LONGEST_SECONDS)
    names = sorted(one.name for one in failures)
    return Quarantine(since=now, until=now + lasts, times=times, workloads=len(failures)), names


def find_start(item: Item) -> float:
    """When its node last showed that it could start it (seconds since 1970, at the earliest); 0 if it hasn't."""
    report = item.report(AllocationReport)
    if report.started_at is not None:
        return report.started_at
    return _begun_at(item) if report.restarts or report.exit_code is not None else 0.0


def _begun_at(item: Item) -> float:
    """When its node could begin to start it."""
    lease = item.spec(AllocationSpec).lease
    return max(item.envelope.created_at, lease.prepare_at if lease is not None else 0.0)


def read_failure(view: View, item: Item) -> Failure | None:
    """Why its node couldn't start it the last time, if that may be the node's."""
    spec, report = item.spec(AllocationSpec), item.report(AllocationReport)
    if report.state != "failed" or report.ended or report.reason not in _NODE_REASONS or find_start(item):
        return None
    stage = next((step.name for step in report.steps if step.state == "failed"), "")
    shared = any(pool != LOCAL for pool, _ in list_disks(spec).values())
    if not stage or (stage == "image" and report.reason == "timedOut") or (stage in ("image", "disk") and shared):
        return None
    workload = next(iter(view.find(WORKLOADS_BY_UID, spec.workload.uid)), None)
    if workload is None:
        return None
    images = keys_of("image", workload, filter(None, [image_of(spec)]))
    return Failure(_begun_at(item), workload, "".join(images), f"{stage}: {report.reason}")


def describe_quarantine(quarantine: Quarantine, names: list[str], node: str) -> str:
    """Message for people when it begins."""
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return (
        f"the starts of {len(names)} workloads failed here, and none succeeded: {shown}; no new workloads are placed here before"
        f" {format_time(quarantine.until)}; weft node uncordon {node} ends that"
    )


def describe_end(former: Quarantine, quarantine: Quarantine | None, uncordoned_at: float | None) -> str:
    """Why new workloads are placed there again."""
    if quarantine is not None:
        return "its quarantine is over: new workloads are placed here again, on probation"
    if (uncordoned_at or 0.0) >= former.since:
        return "its quarantine was ended by uncordon"
    return "a workload has started here: its quarantine is over"
