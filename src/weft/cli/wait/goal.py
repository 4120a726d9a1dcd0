"""Goals that ``weft wait --for`` names. Pure."""

from __future__ import annotations

from collections.abc import Callable

from weft.kinds.fields.cells import note
from weft.kinds.fields.path import read_path
from weft.kinds.parts.goal import GONE, find_condition, read_phase
from weft.kinds.record import Goal, Kind, Object
from weft.objects.errors import DriverFailed, InvalidInput, NotFound, WeftError
from weft.objects.schema import find_place, suggest
from weft.objects.selector import Fields

# Kinds whose objects stay as they ended until people do something, and conditions that only a guest that runs makes True.
_ENDING = ("vm", "container", "job", "migration", "conversion", "snapshot", "backup")
_GOES_ON = "Scheduled"  # a phase in which a job's operation has ended, and which others follow
_OF_GUESTS = ("Ready", "Healthy", "SetUp")
_PHASE = ("phase", "status.phase", "state")


def gone(what: str) -> WeftError:
    return NotFound(f"{what} was deleted while weft waited for it")


def is_past(what: str, obj: Object, goal: Goal) -> WeftError:
    why = f" ({said})" if (said := note(obj)) else ""
    return DriverFailed(
        f"{what} is {read_phase(obj)}{why}, so {goal.words} won't come any more", hint=f"weft describe {what}"
    )


READY = "ready"  # what --for calls the state that is waited for without it


def read_goal(text: str, kind: Kind) -> Goal:
    """Read what ``weft wait --for`` names: delete, condition=TYPE[=STATUS], FIELD=VALUE, jsonpath={.FIELD}=VALUE. Raises
    InvalidInput, also for a field, a value or a condition that objects of ``kind`` never have: the wait would be in vain. One that
    has ended for good ends the wait for its phase, or for a condition of its guest."""
    if text in ("delete", "deleted", "gone"):
        return GONE
    if text.startswith("condition="):
        return _read_condition(text, kind)
    path, sign, value = text.removeprefix("jsonpath=").rpartition("=")
    path = path.strip("{}'\" ").lstrip(".")
    if not sign or not path or (not value and path in _PHASE):
        raise InvalidInput(
            f"invalid --for expression {text!r}",
            field="for",
            hint=_suggest(text, kind) or "write ready, phase=Running, condition=Ready, status.node=n2 or delete",
        )
    path, place = read_path(kind, path)
    wanted = place.read(value.strip("'\""), path).lower()
    return Goal(
        lambda obj: obj is not None and Fields(obj).get(path, "").lower() == wanted,
        text,
        ends_failed=path in _PHASE and kind.name in _ENDING,
        ends_refused=False,
        asked=text,
        is_past=_plan_past(kind, wanted) if path in _PHASE and kind.name in _ENDING else None,
    )


def _suggest(text: str, kind: Kind) -> str:
    """The expression that a bare word stands for: a phase, or a condition; "": neither."""
    phases = find_place(kind.status, ["phase"]) if kind.status is not None else None
    for what, known in (("phase", phases.words if phases else ()), ("condition", tuple(kind.access.condition_writers))):
        if found := [one for one in known if one.lower() == text.lower()]:
            return f"did you mean {what}={found[0]}?"
    return ""


def _plan_past(kind: Kind, wanted: str) -> Callable[[Object], bool] | None:
    """Whether an object whose work has ended was to pass through the phase ``wanted`` before that; None: it can always come."""
    declared = kind.lifetime.operation
    ended = [phase for phase in declared.ended if phase != _GOES_ON] if declared is not None else []
    if not ended or wanted in (one.lower() for one in (*ended, _GOES_ON)):
        return None
    return lambda obj: read_phase(obj) in ended


def _read_condition(text: str, kind: Kind) -> Goal:
    type_, _, status = text.removeprefix("condition=").partition("=")
    types = {known.lower(): known for known in kind.access.condition_writers}
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
    wanted = types[type_.lower()], (status or "True").capitalize()

    def is_so(obj: Object | None) -> bool:
        found = find_condition(obj, wanted[0])
        return found is not None and (found["type"], found["status"]) == wanted

    words = "=".join(wanted).removesuffix("=True")
    ends = words in _OF_GUESTS and kind.name in _ENDING
    return Goal(is_so, words, ends_failed=ends, ends_refused=False, asked=f"condition={words}")
