"""Operations: work that takes longer than a request, as a view of the objects that it changes, and what it leads to. Pure.

They are not stored: Migrations, Conversions and Jobs are operations, and so are drains, deletions, fetches of images, and objects
that don't match their spec yet. An operation's id is ``KIND/NAME@GENERATION``: the object, and which of its changes."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from weft.kinds.fields.cells import dig, note
from weft.kinds.parts.goal import GONE, find_condition, find_failed, read_phase
from weft.kinds.record import Goal, Object
from weft.kinds.record import Operation as Declared
from weft.kinds.registry import BY_NAME, KINDS
from weft.objects.errors import WeftError

REJECTED = "Rejected"  # by the scheduler, for good
_AS_CREATED = ("create", "update", "wait")  # verbs that lead to the state in the spec


def kinds_with_operations() -> list[str]:
    """The kinds of objects that can take a while to match their spec."""
    return [
        kind.name for kind in KINDS if kind.lifetime.operation is not None or plan_goal(kind.name, "wait") is not None
    ]


def list_running(kind: str, objects: Iterable[Object], *, ended: bool = False) -> list[Operation]:
    """The operations on objects of a kind, and the creations that were refused, whose objects stay; with ``ended`` also those that
    are over, of kinds whose objects are operations."""
    declared = BY_NAME[kind].lifetime.operation
    keeps = ended and declared is not None and bool(declared.ended)
    found = [read_operation(obj) for obj in objects if not is_carried(obj) and _is_under_way(declared, obj)]
    return [one for one in found if one.state == "running" or keeps or one.phase == REJECTED]


def find_cancel(obj: Object) -> str | None:
    """The verb that ends the operation on ``obj``: one of its own, or ``delete`` for its creation; None if nothing does."""
    declared, act = BY_NAME[obj["kind"]].lifetime.operation, find_act(obj)
    if declared is not None and act == declared.act:
        return declared.cancel or "delete"
    return "delete" if act == "create" else None


def is_carried(obj: Object) -> bool:
    """Whether the work on ``obj`` is another object's operation: its migration, or its conversion."""
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


def read_operation(obj: Object) -> Operation:
    """The newest operation on ``obj``, whether it goes on or not."""
    what = f"{obj['kind']}/{obj['name']}"
    declared, act, goal, phase = BY_NAME[obj["kind"]].lifetime.operation, find_act(obj), find_goal(obj), read_phase(obj)
    failed = find_failure(obj, what, goal) if act != "delete" else None
    refused = act != "delete" and REJECTED in (phase, dig(obj, "status.state"))
    over = refused or (declared is not None and phase in declared.ended and act != "delete")
    state = "running"
    if goal.reached(obj):
        state = "done"
    elif over or (failed is not None and goal.ends_failed):
        state = "failed"
    return Operation(
        id=name_operation(obj),
        act=act,
        object=str(dig(obj, declared.subject, what)) if declared is not None and declared.subject else what,
        project=obj.get("project") or "",
        state=state,
        phase="Deleting" if act == "delete" else REJECTED if refused else phase or "Pending",
        since=float(_find_since(obj, act)),
        message=_find_message(obj, failed.message if failed is not None and state == "failed" and not refused else ""),
    )


def find_act(obj: Object) -> str:
    declared = BY_NAME[obj["kind"]].lifetime.operation
    if obj.get("deleting_since"):
        return "delete"
    if declared is not None and _is_under_way(declared, obj):
        return declared.act
    return "create" if obj.get("generation", 1) == 1 else "change"


def find_goal(obj: Object) -> Goal:
    """When the operation on ``obj`` is done."""
    if obj.get("deleting_since"):
        return GONE
    goal = plan_goal(obj["kind"], find_act(obj)) or plan_goal(obj["kind"], "wait")
    if goal is None:
        return Goal(lambda now: now is not None, "there")
    return msgspec.structs.replace(goal, ends_refused=False)


def _is_under_way(declared: Declared | None, obj: Object) -> bool:
    return declared is None or not declared.while_ or bool(dig(obj, declared.while_))


def _find_since(obj: Object, act: str) -> float:
    declared = BY_NAME[obj["kind"]].lifetime.operation
    if act == "delete":
        return float(obj["deleting_since"])
    if declared is not None and act == declared.act:
        if declared.condition:
            condition = find_condition(obj, declared.condition)
            return float(condition["since"]) if condition is not None else 0.0
        started = float(dig(obj, declared.started, 0.0)) if declared.started else 0.0
        return started or float(obj.get("created_at", 0.0))
    return float(obj.get("created_at", 0.0)) if act == "create" else 0.0


def _find_message(obj: Object, failure: str) -> str:
    declared = BY_NAME[obj["kind"]].lifetime.operation
    if declared is not None and declared.condition:
        condition = find_condition(obj, declared.condition)
        return str(condition["message"]) if condition is not None else ""
    waiting = (
        str(one.get("message") or one.get("reason") or "")
        for one in obj.get("conditions") or ()
        if one["status"] == "False"
    )
    return note(obj) or failure or next(filter(None, waiting), "")


def plan_goal(kind: str, verb: str, before: Object | None = None) -> Goal | None:
    """Goal of ``verb``: create, update, delete, ``wait`` (as ``weft wait``), or one of the kind's own; None when that is reached
    immediately. ``before`` is the object as it was: a restart is done when its boot is another."""
    if verb == "delete":
        return GONE
    goals = BY_NAME[kind].lifetime.goals
    goal = goals.get(verb) or (goals.get("create") if verb in _AS_CREATED else None)
    if goal is None:
        return None
    if not goal.asked and verb not in (*_AS_CREATED, "run"):
        goal = msgspec.structs.replace(goal, asked=f"phase={goal.words}")
    return _after(goal, before) if goal.changes is not None and before is not None else goal


def _after(goal: Goal, before: Object) -> Goal:
    reached, changes = goal.reached, goal.changes
    assert changes is not None
    old = changes(before)
    return msgspec.structs.replace(goal, reached=lambda obj: reached(obj) and obj is not None and changes(obj) != old)


def find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    """Why ``obj`` won't get to ``goal`` by itself."""
    return (BY_NAME[obj["kind"]].lifetime.find_failure or find_failed)(obj, what, goal)
