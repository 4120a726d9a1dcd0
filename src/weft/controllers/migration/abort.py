"""Why a migration can't go on, if it can't: what people want by now, what either side or its node says, and for how long. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.controllers.migration.facts import READY, Facts, MigrationEndpoint, has_migrated_on
from weft.controllers.migration.progress import time_left
from weft.kinds.migration import MIGRATED_ON, MOST_TRIES, MigrationStatus

HAND_OVER_PATIENCE_SECONDS = 15.0  # for the target's word, once the source stands still for good
READY_PATIENCE_SECONDS = 10.0  # for a target that can't get ready: its node tries on meanwhile
_FOR_GOOD = (
    "invalidInput",
    "unsupported",
)  # what another try would meet again; a guest that restarts is another one then

Ending = Literal["Failed", "Cancelled", "Retry"]


class AbortReason(msgspec.Struct, frozen=True):
    """Why a migration is to be broken off, and what it comes to then."""

    ending: Ending
    reason: str
    message: str


def find_word(facts: Facts) -> AbortReason | None:
    """That people want it no more, or have its workload deleted."""
    if facts.deleting or facts.spec.cancel:
        return AbortReason("Cancelled", "cancelled", "cancelled on request")
    if facts.workload is None:
        return AbortReason("Cancelled", "workloadDeleted", f"{facts.spec.workload} was deleted")
    return None


def find_end(facts: Facts, status: MigrationStatus) -> AbortReason | None:
    """Why the migration of a disk is to be broken off: but for people, only its node knows of any trouble, and says so."""
    if (word := find_word(facts)) is not None:
        return word
    if time_left(facts.spec, status, facts.now) <= 0:
        return AbortReason("Failed", "timedOut", f"not finished within {facts.spec.timeout_seconds:g} s")
    return None


def find_abort_reason(facts: Facts) -> AbortReason | None:
    """Why it can't go on, if it can't."""
    spec, status, source, target = facts.spec, facts.status, facts.source, facts.target
    word = find_word(facts)
    if word is not None or facts.workload is None:
        return word
    if source is None:
        return AbortReason("Failed", "sourceLost", "the allocation at the source is gone")
    if has_migrated_on(source):
        return AbortReason("Failed", MIGRATED_ON, f"source {source.spec.node}: {source.report.message}")
    if facts.workload.run != source.spec.desired:
        return AbortReason(
            "Cancelled", "workloadChanged", f"{spec.workload} was asked to {facts.workload.run} meanwhile"
        )
    if facts.workload.restart_generation > source.spec.restart_generation:
        return AbortReason("Cancelled", "workloadChanged", f"{spec.workload} was asked to restart meanwhile")
    if (
        source.report.reason == "notSaved"
        and source.spec.migration is not None
        and source.spec.migration.saves == "must"
    ):
        return AbortReason("Failed", source.report.reason, f"source {source.spec.node}: {source.report.message}")
    for side, name in ((source, "source"), (target, "target")):
        if side is not None and side.says("failed", "abandoned"):
            assert side.heard is not None
            message = f"{name} {side.spec.node}: {side.heard.message or side.heard.reason or 'failed'}"
            return _try_again(facts, side.heard.reason or "failed", message)
    if target is None:
        return _try_again(facts, "targetLost", "the allocation at the target is gone")
    if is_stuck(target) and (_is_over_for(target.report.reason) or facts.now >= _read_since(facts)):
        return _try_again(facts, target.report.reason, describe_stuck(target))
    for side, name in ((source, "source"), (target, "target")):
        if side.node_phase not in READY:
            return _try_again(facts, "nodeLost", f"{name} {side.spec.node} sends no heartbeat")
    if status.handed_over_at is not None and facts.now >= status.handed_over_at + HAND_OVER_PATIENCE_SECONDS:
        return _try_again(facts, "notTakenOver", f"target {target.spec.node} has not confirmed that it took over")
    if time_left(spec, status, facts.now) <= 0:
        why = f": {describe_stuck(target)}" if is_stuck(target) else ""
        return AbortReason("Failed", "timedOut", f"not finished within {spec.timeout_seconds:g} s{why}")
    return None


def is_stuck(target: MigrationEndpoint) -> bool:
    """Whether its node says that it can't make ready what the guest needs there."""
    return target.report.state == "failed" and bool(target.report.reason) and target.says("preparing")


def _is_over_for(reason: str) -> bool:
    """Whether the node would only meet it again, for as long as anybody would wait."""
    return reason in (*_FOR_GOOD, "noSpace")


def _read_since(facts: Facts) -> float:
    """When patience with a target that can't get ready ends."""
    troubled_at = facts.status.troubled_at
    return (troubled_at if troubled_at is not None else facts.now) + READY_PATIENCE_SECONDS


def describe_stuck(target: MigrationEndpoint) -> str:
    return f"target {target.spec.node}: {target.report.message or target.report.reason}"


def _try_again(facts: Facts, reason: str, message: str) -> AbortReason:
    status = facts.status
    again = status.tries < MOST_TRIES and reason not in _FOR_GOOD and time_left(facts.spec, status, facts.now) > 0
    again = again and not (reason == "noSpace" and facts.spec.to)
    return AbortReason("Retry" if again else "Failed", reason, message)
