"""When is what someone asked for so? One small table from kind and verb to a test on the whole object. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from weft.kinds.conversion import ENDED as ENDS_OF_CONVERSIONS
from weft.kinds.fields.cells import dig
from weft.kinds.fields.path import read_path
from weft.kinds.job import ENDED as ENDS_OF_JOBS
from weft.kinds.migration import ENDED
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, is_workload
from weft.objects.errors import DriverFailed, InvalidInput, NotFound, Unplaceable, WeftError
from weft.objects.schema import suggest
from weft.objects.selector import Fields

Object = Mapping[str, Any]
Test = Callable[[Object | None], bool]
UNPLACEABLE = ("noAvailableAgents", "insufficientResources", "agentServiceUnavailable")
COMPLETED = "completed"  # a container's first process has ended with exit code 0
POWERED_OFF = "guestPoweredOff"  # so has a machine, which rests then unless it is to start again always
_HELD = ("guestHolds", "restartNeeded", "driverFailed", "noSpace")  # a running guest can't be changed just now
_REFUSED = ("tooLittleMemory", "invalidInput", "unsupported", "notServed")  # nor as long as the same is asked for
# No matter what nodes there are.
_STUCK = (
    "volumeInUse",
    "volumesApart",
    "imageFailed",
    "wrongImage",
    "orphanRunning",
    "policyNotFound",
    "constraintNotReady",
    "gangTooLarge",
)
_ALONE = "gangIncomplete"  # the others of it may be among those that are waited for


class Goal(msgspec.Struct, frozen=True):
    """``reached`` is asked for every state of the object (None: it is gone); ``words`` say what is waited for.
    ``ends_failed`` and ``ends_refused`` say that a failure, or no node that fits, ends the waiting; ``ends_alone`` that
    others it is to be placed with, and that aren't there, do. ``asked`` is what ``weft wait --for`` takes for it, where that
    isn't what it waits for by itself: that all is as create left it."""

    reached: Test
    words: str
    ends_failed: bool = True
    ends_refused: bool = True
    ends_alone: bool = True
    wants_gone: bool = False
    asked: str = ""


_GONE = Goal(lambda obj: obj is None, "gone", wants_gone=True, asked="delete")
_JUST_AS_WELL = {"Attached": "Available"}  # a volume that a VM took at once was available
_VERBS = {
    "start": "Running",
    "restart": "Running",
    "resume": "Running",
    "release": "Running",
    "stop": "Stopped",
    "suspend": "Suspended",
    "hold": "Hold",
    "pull": "Ready",
}


def plan_goal(kind: str, verb: str, before: Object | None = None) -> Goal | None:
    """What ``verb`` (create, update, delete, or one of the kind's own) leads to; None when it is so at once.

    ``before`` is the object as it was: a restart is done when its boot is another."""
    if verb == "delete":
        return _GONE
    goal = _plan_goal(kind, verb, before)
    if goal is None or goal.asked or verb in ("create", "update", "run"):
        return goal
    return msgspec.structs.replace(goal, asked=f"phase={goal.words}")


def _plan_goal(kind: str, verb: str, before: Object | None) -> Goal | None:
    if kind == "migration":
        words = "Cancelled" if verb == "cancel" else "Succeeded"
        return Goal(lambda obj: _phase(obj) == words, words, ends_refused=False)
    if kind == "conversion":
        phases = {"confirm": ("Confirmed",), "undo": ("Undone",)}.get(verb, ("AwaitingConfirmation", "Confirmed"))
        return Goal(lambda obj: _phase(obj) in phases, phases[0], ends_refused=False)
    if kind == "job":
        return _plan_job(verb)
    phase = BY_NAME[kind].ready_phase if verb in ("create", "update") else _VERBS.get(verb)
    if not phase:
        return None
    if kind == "function":
        return Goal(_serves_as_wished, phase)
    if not is_workload(kind):
        return Goal(lambda obj: _JUST_AS_WELL.get(_phase(obj), _phase(obj)) == phase, phase)
    if verb == "restart":
        old = _boot(before)
        return Goal(lambda obj: _settled(obj) and _phase(obj) == phase and _boot(obj) != old, phase)
    if verb == "hold":
        return Goal(lambda obj: _phase(obj) == phase, phase, ends_refused=False)
    if verb in ("create", "update"):
        return Goal(_is_as_wished, phase)
    return Goal(lambda obj: _settled(obj) and _phase(obj) == phase, phase)


def _plan_job(verb: str) -> Goal | None:
    if verb == "cancel":
        return Goal(lambda obj: _phase(obj) in ENDS_OF_JOBS, "over", False, False, asked="phase=Cancelled")
    if verb != "run":
        return None
    return Goal(lambda obj: _phase(obj) in ("Succeeded", "Scheduled"), "Succeeded", ends_refused=False)


def _is_as_wished(obj: Object | None) -> bool:
    """A workload may be wished stopped, suspended or held as well as running; one that runs to an end may have come to it."""
    if obj is None:
        return False
    spec = "Hold" if dig(obj, "spec.hold") else {"stop": "Stopped", "suspend": "Suspended"}.get(dig(obj, "spec.run"))
    phase = _phase(obj)
    if spec == "Hold":
        return phase == spec or (phase == "Running" and _settled(obj))
    if spec is None and phase == "Stopped" and dig(obj, "status.reason") == COMPLETED:
        return _settled(obj)
    return _settled(obj) and phase == (spec or "Running") and _is_current(obj)


def _is_current(obj: Object) -> bool:
    """A running machine has what its spec asks for, but for what waits for a restart."""
    current = _find_condition(obj, "Current")
    return current is None or current["status"] == "True" or current.get("reason") == "RestartNeeded"


def _find_condition(obj: Object, type_: str) -> Object | None:
    return next((c for c in obj.get("conditions") or () if c["type"] == type_), None)


def _phase(obj: Object | None) -> str:
    return str(dig(obj, "status.phase", "")) if obj is not None else ""


def _settled(obj: Object | None) -> bool:
    """Status speaks of the spec as it is now."""
    return obj is not None and dig(obj, "status.observed_generation", 0) >= obj.get("generation", 0)


def _serves_as_wished(obj: Object | None) -> bool:
    """A function whose last change isn't ready serves what it was before, and says why."""
    return obj is not None and _phase(obj) == "Ready" and _settled(obj) and not dig(obj, "status.reason")


def _says_of_what(obj: Object) -> bool:
    """Whether its status tells which generation of it it speaks of."""
    return "observed_generation" in (obj.get("status") or {})


def _boot(obj: Object | None) -> tuple[Any, ...]:
    return tuple(dig(obj, f"status.{part}") for part in ("boot_id", "started_at", "restarts")) if obj else ()


def find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    """Why ``obj`` won't get to ``goal`` by itself: it failed, or no node fits."""
    at_once = dig(obj, "spec.type") == "serverless"
    if obj["kind"] == "function" and goal.ends_failed:
        return _find_failed_function(obj, what)
    if obj["kind"] == "job" and goal.ends_failed:
        asked_again = dig(obj, "spec.rounds", 0) > dig(obj, "status.round", 0)
        return _fail_job(obj, what) if _phase(obj) in ENDS_OF_JOBS and not asked_again else None
    if goal.ends_failed and dig(obj, "status.phase") == "Failed" and (not _says_of_what(obj) or _settled(obj)):
        reason, message = dig(obj, "status.reason", ""), dig(obj, "status.message", "")
        if at_once and reason in UNPLACEABLE:
            return _no_place(what, reason, at_once)
        said = f"{reason}: {message}" if reason and message else reason or message or "no reason given"
        return DriverFailed(
            f"{what} failed: {said}",
            reason=reason or None,
            hint=f"weft describe {what}" if obj["kind"] != "image" else None,
        )
    rests = _phase(obj) == "Stopped" and dig(obj, "status.reason") == POWERED_OFF
    if goal.ends_failed and rests and dig(obj, "spec.run") == "run" and _settled(obj):
        return DriverFailed(
            f"{what} shut itself down", reason=POWERED_OFF, hint=f"weft logs {what} shows why; weft start {what}"
        )
    if obj["kind"] == "migration" and dig(obj, "status.phase") in ENDED:
        why = dig(obj, "status.message", "")
        said = f"{dig(obj, 'status.phase')}: {why}" if why else dig(obj, "status.phase")
        return DriverFailed(f"{what} has ended: {said}", hint=f"weft describe {what}")
    if obj["kind"] == "conversion" and _phase(obj) in ENDS_OF_CONVERSIONS:
        said = f"{_phase(obj)}: {dig(obj, 'status.message', '')}".rstrip(": ")
        return DriverFailed(f"{what} has ended: {said}", hint=f"weft describe {what}")
    current = _find_condition(obj, "Current")
    if goal.ends_refused and current is not None and _settled(obj) and current["status"] == "False":
        reason, message = current.get("reason", ""), f"{what} is not changed for now: {current.get('message', '')}"
        if reason in (*UNPLACEABLE, *_STUCK):
            return Unplaceable(
                message, reason=reason, hint=f"The change is made when that is resolved.  weft describe {what}"
            )
        if reason in _HELD:
            return DriverFailed(message, reason=reason, hint=f"The change is tried again.  weft describe {what}")
        if reason in _REFUSED:
            return DriverFailed(message, reason=reason, hint=f"Change the spec.  weft describe {what}")
    for condition in obj.get("conditions") or () if goal.ends_refused else ():
        about_now = condition.get("generation", 0) in (0, obj.get("generation", 0))
        if condition["type"] == "Placed" and condition["status"] == "False" and about_now:
            if condition.get("reason") in UNPLACEABLE:
                return _no_place(what, condition["reason"], at_once)
            if condition.get("reason") in (*_STUCK, *([_ALONE] if goal.ends_alone else [])):
                return Unplaceable(
                    f"{what} can't be placed yet: {condition['reason']}: {condition.get('message', '')}",
                    reason=condition["reason"],
                    hint=f"It stays Pending and starts when that is resolved.  weft wait {what} | weft delete {what}",
                )
    return None


def _find_failed_function(obj: Object, what: str) -> WeftError | None:
    reason, message = str(dig(obj, "status.reason", "")), str(dig(obj, "status.message", ""))
    phase = _phase(obj)
    if phase == "Pending" and reason in UNPLACEABLE:
        return Unplaceable(
            f"{what} fits on no node: {message or reason}",
            reason=reason,
            hint=f"It is prepared when that is resolved.  weft wait {what} | weft delete {what}",
        )
    if reason in _STUCK:
        return Unplaceable(
            f"{what} can't be prepared yet: {message or reason}",
            reason=reason,
            hint=f"It is prepared when that is resolved.  weft wait {what} | weft delete {what}",
        )
    if not reason or phase not in ("Failed", "Ready") or not _settled(obj):
        return None
    trace = dig(obj, "status.trace", [])
    said = "\n".join([f"{reason}: {message}" if message else reason, *map(str, trace)])
    if phase == "Ready":
        return DriverFailed(
            f"{what} still serves its previous code: {said}", reason=reason, hint=f"weft describe {what}"
        )
    return DriverFailed(f"{what} failed: {said}", reason=reason, hint=f"weft describe {what}")


def _fail_job(obj: Object, what: str) -> WeftError:
    failed, total = dig(obj, "status.failed", 0), dig(obj, "status.tasks", 0)
    why, reason = dig(obj, "status.message", ""), dig(obj, "status.reason", "")
    of = f", {failed} of {total} tasks failed" if failed else ""
    first = str(dig(obj, "status.failed_indexes", "")).partition(",")[0].partition("-")[0]
    look = f"weft job logs {obj['name']} --task {first}   " if first else ""
    return DriverFailed(
        f"{what} is {dig(obj, 'status.phase')}{of}" + (f": {why}" if why else ""),
        reason=reason or None,
        hint=f"{look}weft job retry {obj['name']}",
    )


def _no_place(what: str, reason: str, at_once: bool) -> Unplaceable:
    hint = f"A serverless workload is not queued.  weft start {what} | weft explain {what} | weft delete {what}"
    return Unplaceable(f"{what} fits on no node: {reason}", reason=reason, hint=hint if at_once else None)


def is_stuck(reason: str) -> bool:
    """Whether what isn't placed for this reason isn't waited for."""
    return reason in (*UNPLACEABLE, *_STUCK, _ALONE)


def gone(what: str) -> WeftError:
    return NotFound(f"{what} was deleted while weft waited for it")


def read_goal(text: str, kind: Kind) -> Goal:
    """What ``weft wait --for`` names: delete, condition=TYPE[=STATUS], FIELD=VALUE, jsonpath={.FIELD}=VALUE. Raises InvalidInput,
    also for a field, a value or a condition that objects of ``kind`` never have: it would be waited for in vain."""
    if text in ("delete", "deleted", "gone"):
        return _GONE
    if text.startswith("condition="):
        return _read_condition(text, kind)
    path, sign, value = text.removeprefix("jsonpath=").rpartition("=")
    path = path.strip("{}'\" ").lstrip(".")
    if not sign or not path:
        raise InvalidInput(
            f"invalid --for expression {text!r}",
            field="for",
            hint="write phase=Running, condition=Ready, status.node=n2 or delete",
        )
    path, place = read_path(kind, path)
    wanted = place.read(value.strip("'\""), path).lower()
    return Goal(
        lambda obj: obj is not None and Fields(obj).get(path, "").lower() == wanted, text, False, False, asked=text
    )


def _read_condition(text: str, kind: Kind) -> Goal:
    type_, _, status = text.removeprefix("condition=").partition("=")
    types = {known.lower(): known for known in kind.conditions}
    for word, known, what in (
        (type_, list(types.values()), f"a condition of {kind.plural}"),
        (status or "True", ["True", "False", "Unknown"], "a status of a condition"),
    ):
        if word.lower() not in (one.lower() for one in known):
            meant = suggest(word.capitalize(), known)
            raise InvalidInput(
                f"--for {text[:80]}: {word[:40]!r} is not {what}: {', '.join(known) or 'it has none'}",
                field="for",
                hint=f"did you mean {meant}?" if meant else None,
            )
    return Goal(lambda obj: _condition(obj, type_) == (status or "true").lower(), text, False, False, asked=text)


def _condition(obj: Object | None, type_: str) -> str:
    for condition in (obj or {}).get("conditions") or ():
        if condition["type"].lower() == type_.lower():
            return str(condition["status"]).lower()
    return ""
