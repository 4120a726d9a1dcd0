"""Why a migration can't go on: people cancelled it, its workload changed, an endpoint or a node failed, or time is over. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.controllers.migration.facts import READY, MigrationEndpoint, MigrationPlanFacts, has_migrated_on
from weft.controllers.migration.progress import time_left
from weft.kinds.migration import MIGRATED_ON, MOST_TRIES, WORKLOAD_DELETED, MigrationStatus

HAND_OVER_PATIENCE_SECONDS = 15.0  # for the target's report after the source has handed over
READY_PATIENCE_SECONDS = 10.0  # for a target that can't get ready: its node keeps trying meanwhile
_FOR_GOOD = ("invalidInput", "unsupported")  # another try would fail in the same way

Ending = Literal["Failed", "Cancelled", "Retry"]


class AbortReason(msgspec.Struct, frozen=True):
    """Why a migration must be aborted."""

    ending: Ending  # what it comes to then
    reason: str
    message: str


def find_cancellation(facts: MigrationPlanFacts) -> AbortReason | None:
    """Whether people cancelled it or deleted its workload."""
    if facts.deleting or facts.actions.cancel:
        return AbortReason("Cancelled", "cancelled", "cancelled on request")
    if facts.workload is None:
        return AbortReason("Cancelled", WORKLOAD_DELETED, f"{facts.spec.workload} was deleted")
    return None


def find_end(facts: MigrationPlanFacts, status: MigrationStatus) -> AbortReason | None:
    """Why a disk relocation must be aborted: people cancelled it, or it timed out. Other trouble its node reports."""
    if (cancellation := find_cancellation(facts)) is not None:
        return cancellation
    if time_left(facts.spec, status, facts.now) <= 0:
        return AbortReason("Failed", "timedOut", f"not finished within {facts.spec.timeout_seconds:g} s")
    return None


def find_abort_reason(facts: MigrationPlanFacts) -> AbortReason | None:
    """Why it can't go on; None if it can."""
    spec, status, source, target = facts.spec, facts.status, facts.source, facts.target
    cancellation = find_cancellation(facts)
    if cancellation is not None or facts.workload is None:
        return cancellation
    if source is None:
        return AbortReason("Failed", "sourceLost", "the allocation at the source is gone")
    if has_migrated_on(source):
        return AbortReason("Failed", MIGRATED_ON, f"source {source.spec.node}: {source.report.message}")
    if facts.workload.run != source.spec.desired:
        return AbortReason(
            "Cancelled", "workloadChanged", f"{spec.workload} was asked to {facts.workload.run} meanwhile"
        )
    if facts.starts > source.spec.restart_generation:
        return AbortReason("Cancelled", "workloadChanged", f"{spec.workload} was asked to restart meanwhile")
    if (
        source.report.reason == "notSaved"
        and source.spec.migration is not None
        and source.spec.migration.saves == "must"
    ):
        return AbortReason("Failed", source.report.reason, f"source {source.spec.node}: {source.report.message}")
    for endpoint, name in ((source, "source"), (target, "target")):
        report = endpoint.migration_report if endpoint is not None else None
        if endpoint is not None and report is not None and report.phase in ("failed", "abandoned"):
            message = f"{name} {endpoint.spec.node}: {report.message or report.reason or 'failed'}"
            return _try_again(facts, report.reason or "failed", message)
    if target is None:
        return _try_again(facts, "targetLost", "the allocation at the target is gone")
    if is_stuck(target) and (_is_over_for(target.report.reason) or facts.now >= _read_since(facts)):
        return _try_again(facts, target.report.reason, describe_stuck(target))
    for endpoint, name in ((source, "source"), (target, "target")):
        if endpoint.node_phase not in READY:
            return _try_again(facts, "nodeLost", f"{name} {endpoint.spec.node} sends no heartbeat")
    if status.handed_over_at is not None and facts.now >= status.handed_over_at + HAND_OVER_PATIENCE_SECONDS:
        return _try_again(facts, "notTakenOver", f"target {target.spec.node} has not confirmed that it took over")
    if time_left(spec, status, facts.now) <= 0:
        why = f": {describe_stuck(target)}" if is_stuck(target) else ""
        return AbortReason("Failed", "timedOut", f"not finished within {spec.timeout_seconds:g} s{why}")
    return None


def is_stuck(target: MigrationEndpoint) -> bool:
    """Whether its node reports that it can't prepare what the guest needs there."""
    return target.report.state == "failed" and bool(target.report.reason) and target.reports("preparing")


def _is_over_for(reason: str) -> bool:
    """Whether waiting for the node would not help."""
    return reason in (*_FOR_GOOD, "noSpace")


def _read_since(facts: MigrationPlanFacts) -> float:
    """When patience with a target that can't get ready ends."""
    troubled_at = facts.status.troubled_at
    return (troubled_at if troubled_at is not None else facts.now) + READY_PATIENCE_SECONDS


def describe_stuck(target: MigrationEndpoint) -> str:
    return f"target {target.spec.node}: {target.report.message or target.report.reason}"


def _try_again(facts: MigrationPlanFacts, reason: str, message: str) -> AbortReason:
    status = facts.status
    again = status.tries < MOST_TRIES and reason not in _FOR_GOOD and time_left(facts.spec, status, facts.now) > 0
    again = again and not (reason == "noSpace" and facts.spec.to)
    return AbortReason("Retry" if again else "Failed", reason, message)
