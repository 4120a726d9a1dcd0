"""Operations: what goes on for longer than a request, as a view of the objects that it is about. Pure.

Nothing is kept of them beside those: Migrations, Conversions and Jobs are operations, and so is a drain, a deletion, an image that
is fetched, and every object that is not yet as it was asked for. An operation's id is ``KIND/NAME@GENERATION``: the object, and
which of its changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from weft.cli.command.target import Target
from weft.cli.wait.goal import Goal, find_failure, plan_goal
from weft.kinds.conversion import ENDED as ENDS_OF_CONVERSIONS
from weft.kinds.fields.cells import dig
from weft.kinds.job import ENDED as ENDS_OF_JOBS
from weft.kinds.migration import ENDED as ENDS_OF_MIGRATIONS
from weft.kinds.registry import KINDS, find_kind
from weft.objects.errors import InvalidInput

Object = Mapping[str, Any]
_ID = re.compile(r"([^/@]+)/([^/@]+)(?:@(\d+))?")
_ENDS: dict[str, tuple[str, ...]] = {
    "migration": tuple(ENDS_OF_MIGRATIONS),
    "conversion": tuple(ENDS_OF_CONVERSIONS),
    "job": (*ENDS_OF_JOBS, "Scheduled"),
}
_ACTS = {"migration": "migrate", "conversion": "convert", "job": "run", "image": "fetch"}
# What ends an operation before its time: the verb of its own object that does it.
CANCELS = {"migrate": "cancel", "convert": "undo", "run": "cancel", "drain": "uncordon"}


def kinds_with_operations() -> list[str]:
    """The kinds of objects that can take a while to become as they were asked for."""
    return [kind.name for kind in KINDS if kind.name == "node" or plan_goal(kind.name, "create") is not None]


def is_carried(obj: Object) -> bool:
    """Whether what goes on with ``obj`` is another object's operation: its move, or its conversion."""
    return bool(dig(obj, "status.migration") or dig(obj, "status.conversion"))


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """``act`` is what is done to ``object``; ``state`` is running, done or failed; ``since`` unix seconds, 0 where nobody knows."""

    id: str
    act: str
    object: str
    project: str
    state: str
    phase: str
    since: float
    message: str


def name_operation(obj: Object) -> str:
    """The id of the newest operation on ``obj``."""
    return f"{obj['kind']}/{obj['name']}@{obj.get('generation', 1)}"


def read_id(text: str) -> tuple[Target, int | None]:
    """The object of an operation, and the generation, if its id says one. Raises InvalidInput, NotFound for an unknown kind."""
    match = _ID.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"{text[:80]!r} is not an operation",
            field="id",
            hint="write KIND/NAME@GENERATION: weft operation list shows them",
        )
    return Target(find_kind(match[1]), match[2]), int(match[3]) if match[3] else None


def read_operation(obj: Object) -> Operation:
    """The newest operation on ``obj``, whether it goes on or not."""
    what = f"{obj['kind']}/{obj['name']}"
    act, goal = find_act(obj), find_goal(obj)
    failed = find_failure(obj, what, goal) if not obj.get("deleting_since") else None
    reached = goal.reached(obj)
    over = dig(obj, "status.phase", "") in _ENDS.get(obj["kind"], ()) and act != "delete"
    state = (
        "done"
        if reached
        else "failed"
        if over or (failed is not None and goal.ends_failed and act != "drain")
        else "running"
    )
    return Operation(
        id=name_operation(obj),
        act=act,
        object=str(dig(obj, "spec.workload", what)) if obj["kind"] == "migration" else what,
        project=obj.get("project") or "",
        state=state,
        phase=_phase(obj),
        since=float(_find_since(obj, act)),
        message=_find_message(obj, failed.message if failed is not None and state == "failed" else ""),
    )


def find_act(obj: Object) -> str:
    if obj.get("deleting_since"):
        return "delete"
    if obj["kind"] == "node":
        return "drain" if dig(obj, "spec.drain") else "change"
    return _ACTS.get(obj["kind"]) or ("create" if obj.get("generation", 1) == 1 else "change")


def find_goal(obj: Object) -> Goal:
    """When the operation on ``obj`` is done."""
    if obj.get("deleting_since"):
        return Goal(lambda now: now is None, "gone", wants_gone=True)
    if obj["kind"] == "node" and dig(obj, "spec.drain"):
        return Goal(_is_drained, "drained", ends_failed=False, ends_refused=False)
    goal = plan_goal(obj["kind"], "run" if obj["kind"] == "job" else "create")
    if goal is None:
        return Goal(lambda now: now is not None, "there")
    return msgspec.structs.replace(goal, ends_refused=False)


def _is_drained(obj: Object | None) -> bool:
    told = next((one for one in (obj or {}).get("conditions") or () if one["type"] == "Drained"), None)
    return not dig(obj or {}, "spec.drain") or (told is not None and told["status"] == "True")


def _phase(obj: Object) -> str:
    return "Deleting" if obj.get("deleting_since") else str(dig(obj, "status.phase", "Pending"))


def _find_since(obj: Object, act: str) -> float:
    if act == "delete":
        return float(obj["deleting_since"])
    if act == "drain":
        told = next((one for one in obj.get("conditions") or () if one["type"] == "Drained"), None)
        return float(told["since"]) if told else 0.0
    first = act in ("create", "migrate", "convert", "run", "fetch")
    return float(dig(obj, "status.started_at", 0.0) if act in ("migrate", "run") else 0.0) or (
        float(obj.get("created_at", 0.0)) if first else 0.0
    )


def _find_message(obj: Object, failure: str) -> str:
    told = next((one for one in obj.get("conditions") or () if one["type"] == "Drained"), None)
    if obj["kind"] == "node":
        return str(told["message"]) if told else ""
    reason, message = dig(obj, "status.reason", ""), dig(obj, "status.message", "")
    said = f"{reason}: {message}" if reason and message else str(reason or message)
    waiting = [
        c for c in obj.get("conditions") or () if c["status"] == "False" and (c.get("message") or c.get("reason"))
    ]
    return said or failure or next((str(c.get("message") or c["reason"]) for c in waiting), "")
