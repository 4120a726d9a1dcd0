"""When an object matches its spec, and why it won't: what commands wait for. Pure.

A kind declares its goals, by verb, and its failures; here is what several kinds share, and what workloads do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weft.kinds.fields.cells import dig
from weft.kinds.fields.lease import LEASE_CONFLICT, LEASE_ENDED
from weft.kinds.record import Goal, Object
from weft.objects.errors import DriverFailed, Unplaceable, WeftError

UNPLACEABLE = ("noAvailableAgents", "insufficientResources", "agentServiceUnavailable")
COMPLETED = "completed"  # the first process of a container has ended with exit code 0
NOT_STARTED = "stopped"  # it shall not run, and has no node
POWERED_OFF = "guestPoweredOff"  # a machine has ended by itself, and rests unless it always starts again
# Reasons of a workload whose node hasn't taken up its last start: whatever else its status says is of the run before.
STARTING, RESTARTING = "starting", "restarting"
FAILED_SOURCE = "snapshotFailed"  # what it begins from will never be there
WRONG_IMAGE = "wrongImage"  # a disk for VMs where a container's image belongs, or the other way round
# Reasons that don't depend on which nodes there are.
STUCK = (
    "volumeInUse",
    "volumesApart",
    "volumeOrphaned",
    "snapshotMissing",
    FAILED_SOURCE,
    "imageFailed",
    WRONG_IMAGE,
    "orphanRunning",
    "policyNotFound",
    "constraintNotReady",
    "gangTooLarge",
    "reservationFull",
    "reservationOver",
    "reservationRefused",
)
# Reasons for which a workload rests that should run, unless it always starts again: in words, and what to do.
_RESTS = {
    POWERED_OFF: ("shut itself down", "weft logs {0} shows why; weft start {0}"),
    COMPLETED: ("has ended: its command completed with exit code 0", "weft logs {0} shows its output; weft start {0}"),
    LEASE_ENDED: ("has ended with its lease", "weft lease list shows leases; weft describe {0}"),
}
_ALONE = "gangIncomplete"  # the other members may be part of the same wait
_HELD = ("guestHolds", "restartNeeded", "driverFailed", "noSpace")  # a running guest can't be changed for now
_FAILS_TO_REST = ("driverFailed", "noSpace")  # of these, what a stop or a suspension may end with
_ON_THE_WAY = ("Prolog", "Boot", "Stopped", "Failed")
_REFUSED = ("tooLittleMemory", "invalidInput", "unsupported", "notServed")  # nor by this spec


REFUSED_HINT = (
    "create it again with a later time or fewer resources, or delete it (weft delete {}); "
    "weft calendar shows who holds what"
)
GONE = Goal(lambda obj: obj is None, "gone", wants_gone=True, asked="delete")


def reaches(*phases: str, **more: Any) -> Goal:
    """One of these phases, named by the first."""
    return Goal(lambda obj: read_phase(obj) in phases, phases[0], **more)


def read_phase(obj: Object | None) -> str:
    return str(dig(obj, "status.phase", "")) if obj is not None else ""


def is_settled(obj: Object | None) -> bool:
    """Whether its status reflects its present spec."""
    return obj is not None and dig(obj, "status.observed_generation", 0) >= obj.get("generation", 0)


def is_stuck(reason: str) -> bool:
    """Whether waiting is pointless for a workload that isn't placed for this reason."""
    return reason in (*UNPLACEABLE, *STUCK, _ALONE)


def find_condition(obj: Object | None, type_: str) -> Object | None:
    return next((one for one in (obj or {}).get("conditions") or () if one["type"] == type_), None)


def find_failed(obj: Object, what: str, goal: Goal) -> WeftError | None:
    """The failure of an object whose phase is Failed."""
    is_current = "observed_generation" not in (obj.get("status") or {}) or is_settled(obj)
    if not goal.ends_failed or read_phase(obj) != "Failed" or not is_current:
        return None
    reason, message = dig(obj, "status.reason", ""), dig(obj, "status.message", "")
    why = f"{reason}: {message}" if reason and message else reason or message or "no reason given"
    return DriverFailed(f"{what} failed: {why}", reason=reason or None, hint=_name_next(what, reason))


def _name_next(what: str, reason: str) -> str:
    """The next command for what has failed; what its image or spec rules out is never tried again."""
    if reason in ("noCloudInit", "unknownUserData"):
        return f"it never starts so: weft delete {what}, and create it again"
    return f"weft describe {what}"


def find_ended(phases: tuple[str, ...]) -> Callable[[Object, str, Goal], WeftError | None]:
    """The failure of an object that ends in one of ``phases``, whichever of them was waited for."""

    def find(obj: Object, what: str, goal: Goal) -> WeftError | None:
        failed = find_failed(obj, what, goal)
        if failed is not None or read_phase(obj) not in phases:
            return failed
        why = f"{read_phase(obj)}: {dig(obj, 'status.message', '')}".rstrip(": ")
        return DriverFailed(f"{what} has ended: {why}", hint=f"weft describe {what}")

    return find


def _is_as_specified(obj: Object | None) -> bool:
    """A spec may request a workload that is stopped, suspended or held; one that runs to its end, or
    to its lease's, may have ended."""
    if obj is None:
        return False
    phase = read_phase(obj)
    if dig(obj, "status.lease.state") == "Scheduled" and _begins_later(obj):
        return is_settled(obj)
    if dig(obj, "spec.hold"):
        return phase == "Hold" or (phase == "Running" and is_settled(obj))
    wanted = {"stop": "Stopped", "suspend": "Suspended"}.get(dig(obj, "spec.run"))
    if wanted is not None and _was_never_started(obj):
        return is_settled(obj)
    if wanted is None and phase == "Stopped" and dig(obj, "status.reason") in (COMPLETED, LEASE_ENDED):
        return is_settled(obj)
    return is_settled(obj) and phase == (wanted or "Running") and _is_current(obj)


def _was_never_started(obj: Object | None) -> bool:
    """Whether it has no node and needs none: it shall not run."""
    return obj is not None and read_phase(obj) == "Pending" and dig(obj, "status.reason") == NOT_STARTED


def _begins_later(obj: Object) -> bool:
    """Whether the start of its lease lay ahead when it was placed. One that begins now is Scheduled too, until its node begins."""
    start, placed = dig(obj, "status.lease.start"), find_condition(obj, "Placed")
    return start is not None and placed is not None and start > placed.get("since", 0.0)


def _is_current(obj: Object) -> bool:
    """Whether a running workload matches its spec, except for changes that wait for a restart."""
    current = find_condition(obj, "Current")
    return current is None or current["status"] == "True" or current.get("reason") == "RestartNeeded"


def _settles(phase: str) -> Goal:
    return Goal(lambda obj: is_settled(obj) and read_phase(obj) == phase, phase)


def _has_run(obj: Object | None) -> bool:
    """Whether it runs, or has run to its end since: that may be too short a time for anybody to see."""
    return is_settled(obj) and (read_phase(obj) == "Running" or _has_completed(obj))


def _has_completed(obj: Object | None) -> bool:
    return read_phase(obj) == "Stopped" and dig(obj or {}, "status.reason") == COMPLETED


def _has_restarted(obj: Object | None) -> bool:
    """Whether it runs as its spec says: a restart is there to bring what needs one."""
    return _has_run(obj) and not _find_unchanged(obj or {}, "")


def _describe_unchanged(obj: Object) -> str:
    """The part of its spec that a started workload requests and didn't get."""
    current = find_condition(obj, "Current")
    is_refused = current is not None and current["status"] == "False" and is_stuck(current.get("reason", ""))
    return str(current["message"]) if current is not None and is_refused else ""


def _rests(phase: str) -> Goal:
    return Goal(lambda obj: is_settled(obj) and (read_phase(obj) == phase or _was_never_started(obj)), phase)


def _boot(obj: Object) -> tuple[Any, ...]:
    return tuple(dig(obj, f"status.{part}") for part in ("boot_id", "started_at", "restarts"))


WORKLOAD_GOALS = {
    "create": Goal(_is_as_specified, "Running"),
    "start": Goal(_has_run, "Running", remark=_describe_unchanged),
    "restart": Goal(_has_restarted, "Running", changes=_boot),
    "resume": Goal(_has_run, "Running"),
    "release": Goal(_has_run, "Running"),
    "stop": _rests("Stopped"),
    "suspend": _settles("Suspended"),
    "hold": reaches("Hold", ends_refused=False),
}


def find_workload_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    """Why a workload won't get there by itself: it failed, or no node fits."""
    serverless = dig(obj, "spec.type") == "serverless"
    failed = find_failed(obj, what, goal) if not _is_to_start(obj) else None
    if failed is not None:
        return _no_node(what, failed.token, serverless) if serverless and failed.token in UNPLACEABLE else failed
    reason = dig(obj, "status.reason")
    rests = read_phase(obj) == "Stopped" and reason in _RESTS and dig(obj, "spec.run") == "run" and is_settled(obj)
    if goal.ends_failed and rests:
        words, hint = _RESTS[reason]
        if dig(obj, "spec.once"):  # nobody can start it again
            hint = hint.partition("; weft start")[0]
        return DriverFailed(f"{what} {words}", reason=reason, hint=hint.format(what))
    if not goal.ends_refused and not (goal.ends_failed and read_phase(obj) == "Rejected"):
        return None
    return _find_unchanged(obj, what) or _find_unplaced(obj, what, goal, serverless)


def _is_to_start(obj: Object) -> bool:
    return dig(obj, "status.reason") in (STARTING, RESTARTING)


def _find_unchanged(obj: Object, what: str) -> WeftError | None:
    """Reason that keeps a workload that runs from having what its spec says; of one on its way there, nobody knows yet."""
    current = find_condition(obj, "Current")
    if current is None or not is_settled(obj) or current["status"] != "False":
        return None
    if _is_to_start(obj) or read_phase(obj) in _ON_THE_WAY or current.get("generation", 0) < obj.get("generation", 0):
        return None
    reason, message = current.get("reason", ""), f"{what} is not changed for now: {current.get('message', '')}"
    if dig(obj, "spec.run") in ("stop", "suspend") and reason not in (*_FAILS_TO_REST, *_REFUSED):
        return None  # it stops all the same
    if reason in (*UNPLACEABLE, *STUCK):
        hint = f"The change is made when that is resolved.  weft describe {what}"
        return Unplaceable(message, reason=reason, hint=hint)
    if reason in _HELD:
        return DriverFailed(message, reason=reason, hint=f"The change is tried again.  weft describe {what}")
    if reason in _REFUSED:
        return DriverFailed(message, reason=reason, hint=f"Change the spec.  weft describe {what}")
    return None


def _find_unplaced(obj: Object, what: str, goal: Goal, serverless: bool) -> WeftError | None:
    placed = find_condition(obj, "Placed")
    if (
        placed is None
        or placed["status"] != "False"
        or placed.get("generation", 0) not in (0, obj.get("generation", 0))
    ):
        return None
    reason = placed.get("reason", "")
    if reason == LEASE_CONFLICT:
        return Unplaceable(
            f"{what} is refused: {placed.get('message', '')}",
            reason="leaseConflict",
            hint=REFUSED_HINT.format(what),
        )
    if reason in UNPLACEABLE:
        return _no_node(what, reason, serverless)
    if reason == FAILED_SOURCE:
        return Unplaceable(
            f"{what} can't begin: {placed.get('message', '')}",
            reason=reason,
            hint=f"delete it, and restore it again once that is resolved: weft delete {what}",
        )
    if reason == WRONG_IMAGE:  # what an image is never changes
        return Unplaceable(
            f"{what} can't be placed: {reason}: {placed.get('message', '')}",
            reason=reason,
            hint=f"it never starts with this image: weft delete {what}, and create it again with another",
        )
    if reason in STUCK or (reason == _ALONE and goal.ends_alone):
        return Unplaceable(
            f"{what} can't be placed yet: {reason}: {placed.get('message', '')}",
            reason=reason,
            hint=f"It stays Pending and starts when that is resolved.  weft wait {what} | weft delete {what}",
        )
    return None


def _no_node(what: str, reason: str, serverless: bool) -> Unplaceable:
    hint = f"A serverless workload is not queued.  weft start {what} | weft explain {what} | weft delete {what}"
    return Unplaceable(f"{what} fits on no node: {reason}", reason=reason, hint=hint if serverless else None)
