"""Who may write what: one writer for each part of an object (decision 0011). Pure."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from weft.kinds.allocation import AllocationSpec, is_slot
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.registry import find_kind
from weft.objects.envelope import Condition, Envelope, decode_part

# Who may make, and who may remove, objects of a kind; who may write their spec. ``API server`` writes for people and nodes.
MAKERS = {
    "accountingrecord": {"accounting", "scheduler"},
    "allocation": {"scheduler", "workload"},
    "endpoint": {"addresses", "scheduler", "workload", "conversions", "deployments", "services"},
    "decision": {"scheduler"},
    "container": {"API server", "jobs", "deployments", "conversions"},
    "networktopology": {"topology"},
    "migration": {
        "API server",
        "scheduler",
        "rebalance",
        "plans ahead",
        "deployments",
    },  # the scheduler's for suspended VMs (0145)
    "report": {"API server", "rebalance policies", "plans ahead"},
    "rebalanceplan": {"API server", "rebalance policies"},
    "vm": {"API server", "deployments", "conversions"},
    "publishedport": {"API server", "conversions", "deployments"},
    "recommendation": {"API server", "conversions"},
    "server": {"servers"},
    "snapshot": {"API server", "restores"},  # that controller's keep what a restore in place replaces
}
REMOVERS = {
    "accountingrecord": {"accounting"},
    "allocation": {"workload", "loss"},
    "endpoint": {"addresses", "workload", "garbage"},
    "decision": {"workload", "garbage", "migrations"},
    "migration": {"migrations", "garbage"},
    "report": {"garbage"},
    "rebalanceplan": {"API server", "rebalance policies"},
    "conversion": {"conversions"},
    "recommendation": {"conversions", "garbage"},
    "reservation": {"scheduler"},
    "functionversion": {"API server", "garbage"},
    "publishedport": {"API server", "workload", "garbage"},
    "vm": {"workload"},
    "container": {"workload"},
    "job": {"jobs"},
    "deployment": {"deployments"},
    "snapshot": {"snapshots"},
}
SPEC_WRITERS = {
    "device": {"API server", "devices", "device rollouts"},
    "accountingrecord": {"accounting", "scheduler"},
    "allocation": {"workload", "scheduler", "migrations", "snapshots", "restores", "conversions", "loss"},
    "decision": {"scheduler", "migrations"},
    "endpoint": {"addresses", "deployments", "services"},
    "migration": {"API server", "rebalance", "plans ahead"},
    "container": {"API server", "jobs", "deployments", "conversions"},
    "vm": {"API server", "deployments", "conversions"},
    "publishedport": {"API server", "conversions", "deployments"},
}
STATUS_WRITERS = {
    "allocation": {"loss"},
    "accountingrecord": {"accounting", "scheduler"},
    "endpoint": {"addresses"},
    "publishedport": {"addresses", "conversions", "deployments", "services"},
    "recommendation": {"scheduler"},
    "report": {"scheduler"},
    "token": {"API server"},
}
MARKERS = {
    "container": {"API server", "jobs", "deployments", "conversions"},
    "vm": {"API server", "deployments", "conversions"},
    "conversion": {"API server", "garbage"},
    "allocation": {"workload", "migrations", "scheduler"},  # the scheduler of leases that begin elsewhere
    "migration": {"API server", "garbage"},
    "snapshot": {"API server", "snapshots"},  # one that was made for a clone goes once that has begun
    "volume": {"API server", "unbegun volumes"},  # one that was made for a clone that never began goes with it
}


# Controllers that are one in what they write.
ONE = {"unexplained snapshots": "snapshots", "made images": "images"}


def _gets_place(was: Envelope, now: Envelope) -> bool:
    return decode_part(now.status, WorkloadStatus).incarnation > decode_part(was.status, WorkloadStatus).incarnation


def _only(envelope: Envelope, *types: str) -> list[Condition]:
    return [condition for condition in envelope.conditions if condition.type in types]


def _without(envelope: Envelope, *types: str) -> list[Condition]:
    return [condition for condition in envelope.conditions if condition.type not in types]


def find_wrong_writers(writer: str, was: Envelope | None, now: Envelope | None, *, giving_up: bool) -> Iterator[str]:
    """What ``writer`` did in one change that isn't its own to do. While a node is ``giving_up``, API servers remove its places."""
    envelope, writer = now or was, ONE.get(writer, writer)
    assert envelope is not None
    kind, what = envelope.kind, f"{envelope.kind} {envelope.name}"
    if was is None or (now is not None and now.uid != was.uid):
        yield from _may(writer, MAKERS.get(kind, {"API server"}), f"{what} was made")
        return
    if now is None:
        default = {"API server", "workload", "volumes", "networks", "images"}
        removers = REMOVERS.get(kind, default) | ({"API server"} if giving_up and kind == "allocation" else set())
        if kind == "allocation" and is_slot(decode_part(was.spec, AllocationSpec)):
            removers = {"scheduler"}  # no node has anything of it
        yield from _may(writer, removers, f"{what} was removed")
        return
    found = find_kind(kind)
    if kind in ("vm", "container") and writer == "scheduler" and _gets_place(was, now):
        # The same commit says what the controller makes of it, in that controller's words (decision 0034).
        status, ready = decode_part(now.status, WorkloadStatus), now.condition("Ready")
        if (status.phase, ready and ready.reason) != ("Prolog", "Prolog"):
            yield f"{what} got a place and is told to be {status.phase}"
        told = ("Ready", "Current")
        was = replace(was, status=now.status, conditions=[*_without(was, *told), *_only(now, *told)])
    if kind in ("vm", "container") and writer == "scheduler":
        # Addresses come with the place; that one lacks is said with the wait for it (decision 0135).
        was = replace(was, conditions=[*_without(was, "Addressed"), *_only(now, "Addressed")])
    status_writers = STATUS_WRITERS.get(kind, {found.access.status_writer})
    changed = {
        "spec": (was.spec != now.spec or was.generation != now.generation, SPEC_WRITERS.get(kind, {"API server"})),
        "report": (was.report != now.report, {"API server"}),
        "status": (was.status != now.status, status_writers),
        "deletion mark": (was.deleting_since != now.deleting_since, MARKERS.get(kind, {"API server"})),
    }
    for part, (is_changed, writers) in changed.items():
        if is_changed:
            yield from _may(writer, writers, f"{part} of {what} was changed")
    for condition in now.conditions:
        if was.condition(condition.type) != condition:
            owner = found.access.condition_writers.get(condition.type, "nobody")
            yield from _may(writer, {owner}, f"condition {condition.type} of {what} was changed")


def _may(writer: str, writers: set[str], what: str) -> Iterator[str]:
    if writer not in writers:
        yield f"{what} by {writer}, not by {' or '.join(sorted(writers))}"
