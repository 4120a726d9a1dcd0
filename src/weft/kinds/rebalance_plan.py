"""RebalancePlan: migrations that make the load of the nodes even, with their price and a way back. People create one with what
the scheduler answered (a Report on rebalancing), start it, and may undo it; the controller ``rebalance`` carries it out as
Migrations, a few at a time. It stays, so it outlives every process."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, note, text
from weft.kinds.parts.goal import find_ended, reaches
from weft.kinds.record import Access, Admission, Column, Display, Goal, Kind, Lifetime, Object, Operation, Verb
from weft.objects.envelope import take_from_spec
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, WeftError
from weft.objects.schema import field

# Proposed: nothing has begun; Refused: the world had changed before it began; Undoing: all goes back.
RebalancePhase = Literal["Proposed", "Running", "Done", "Refused", "Undoing", "Undone"]
OVER = ("Done", "Refused", "Undone")
MOST_MIGRATIONS = 500  # of one plan
MOST_CONCURRENT = 16
MOST_LOADS = 64  # nodes whose load a plan shows
OUTDATED = "planOutdated"  # why a plan is refused
LABEL = "rebalance"  # of the Migrations that a plan has made: its name


class PlannedStep(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """The migration of one workload."""

    workload: Annotated[str, field("Workload: KIND/NAME", max_length=300)]
    project: Annotated[str, field("Its project", name=True)]
    uid: Annotated[str, field("Its uid: a later workload of that name isn't meant", max_length=64)]
    from_: Annotated[str, field("Node that it is on", name=True)]
    to: Annotated[str, field("Target node", name=True)]
    seconds: Annotated[float, field("How long it is expected to take", ge=0)] = 0.0
    bytes: Annotated[int, field("How much it transfers", ge=0)] = 0
    reason: Annotated[str, field("What it is good for", max_length=200)] = ""


class NodeLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of a node's cores and memory in use before and after a plan."""

    node: Annotated[str, field("Node", name=True)]
    cpu_before: Annotated[float, field("Share of its cores before", ge=0)] = 0.0
    cpu_after: Annotated[float, field("Share of its cores after", ge=0)] = 0.0
    memory_before: Annotated[float, field("Share of its memory before", ge=0)] = 0.0
    memory_after: Annotated[float, field("Share of its memory after", ge=0)] = 0.0


class RebalancePlanSpec(msgspec.Struct, kw_only=True):
    steps: Annotated[
        list[PlannedStep],
        field("The migrations, in the order in which they begin", change="never", max_length=MOST_MIGRATIONS),
    ]
    score_before: Annotated[float, field("Score of the fabric as it was", change="never")] = 0.0
    score_after: Annotated[float, field("Score that the plan leads to; lower is better", change="never")] = 0.0
    loads: Annotated[
        list[NodeLoad],
        field("The nodes' load before and after, of those that change most", change="never", max_length=MOST_LOADS),
    ] = []
    concurrent: Annotated[int, field("How many migrate at the same time", change="live", ge=1, le=MOST_CONCURRENT)] = 2
    per_hour: Annotated[
        int, field("How many begin within an hour; 0 means no limit", change="live", ge=0, le=MOST_MIGRATIONS)
    ] = 0


class RebalancePlanActions(msgspec.Struct, kw_only=True):
    start: Annotated[bool, field("Carry it out")] = False
    undo: Annotated[bool, field("Bring everything back")] = False


class StepState(msgspec.Struct, frozen=True, kw_only=True):
    """How far one migration of the plan is, by its number there."""

    # Skipped: it wasn't begun, because the workload is gone or elsewhere, or its target takes nothing; Back: it was undone.
    state: Literal["Waiting", "Migrating", "Done", "Failed", "Skipped", "Returning", "Back", "Stayed"] = "Waiting"
    migration: str = ""  # the newest that was made for it
    begun_at: float | None = None  # when the first was made
    message: str = ""


class RebalancePlanStatus(msgspec.Struct, kw_only=True):
    phase: RebalancePhase = "Proposed"
    reason: str = ""
    message: str = ""
    steps: list[StepState] = []  # as in the spec
    started_at: float | None = None
    ended_at: float | None = None


def check_plan(spec: RebalancePlanSpec) -> None:
    """Raises InvalidInput."""
    if not spec.steps:
        raise InvalidInput(
            "spec.steps: a plan without a migration does nothing", field="spec.steps", hint="weft rebalance plan"
        )
    seen = set[tuple[str, str]]()
    for number, step in enumerate(spec.steps):
        kind, _, name = step.workload.partition("/")
        if kind not in ("vm", "container") or not name or "/" in name:
            raise InvalidInput(
                f"spec.steps[{number}].workload: {step.workload[:60]!r} is not a workload that can migrate",
                field=f"spec.steps[{number}].workload",
                hint="write vm/web or container/web",
            )
        if step.from_ == step.to:
            raise InvalidInput(
                f"spec.steps[{number}].to: {step.workload} is on {step.to} already",
                field=f"spec.steps[{number}].to",
                hint="name another node",
            )
        if (step.project, step.workload) in seen:
            raise InvalidInput(
                f"spec.steps[{number}].workload: {step.workload} migrates twice",
                field=f"spec.steps[{number}].workload",
                hint="each workload migrates once in a plan",
            )
        seen.add((step.project, step.workload))


def _start(obj: Object, _: Any) -> dict[str, Any]:
    phase, what = dig(obj, "status.phase", "Proposed"), f"rebalanceplan/{obj['name']}"
    if dig(obj, "actions.undo") or phase in OVER:
        raise IllegalTransition(
            f"{what} is over ({phase}): it can't be applied again", hint="plan again: weft rebalance plan"
        )
    return {"start": True}


def _undo(obj: Object, _: Any) -> dict[str, Any]:
    if not dig(obj, "actions.start") or dig(obj, "status.phase", "Proposed") == "Refused":
        what = f"rebalanceplan/{obj['name']}"
        raise IllegalTransition(f"{what} has migrated nothing, so there is nothing to undo", hint="weft rebalance list")
    return {"undo": True}


def _count(obj: Object) -> str:
    states = [one.get("state") for one in dig(obj, "status.steps", [])]
    done = sum(state in ("Done", "Returning", "Stayed") for state in states)
    return f"{done}/{len(obj['spec'].get('steps', []))}"


def _find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    if dig(obj, "status.phase") == "Refused":
        return IllegalTransition(
            f"{what} is refused, and nothing has migrated: {dig(obj, 'status.message', '')}",
            reason=dig(obj, "status.reason", "") or OUTDATED,
            hint="weft rebalance plan",
        )
    if goal.words == "Done" and dig(obj, "status.phase") == "Done":  # not reached, so something failed
        hint = f"weft describe {what} shows each; weft rebalance undo {obj['name']} brings the others back"
        return DriverFailed(f"{what} is done, but some migrations failed: {dig(obj, 'status.message', '')}", hint=hint)
    return find_ended(("Undone",))(obj, what, goal)


def _has_migrated(obj: Object | None) -> bool:
    """Whether it is done and no migration failed; one that was left out didn't fail."""
    states = [one.get("state") for one in dig(obj or {}, "status.steps", [])]
    return dig(obj or {}, "status.phase") == "Done" and "Failed" not in states


def _summarise(obj: Object) -> str:
    """``Done: 2 migrated, 1 left out; n3 is cordoned``"""
    return f"{dig(obj, 'status.phase', '')}: {dig(obj, 'status.message', '')}".rstrip(": ")


_DONE = Goal(_has_migrated, "Done", ends_refused=False, answer=_summarise)


def _score(name: str) -> Any:
    return lambda obj: f"{float(dig(obj, name, 0.0)):.2f}"


REBALANCE_PLAN = Kind(
    name="rebalanceplan",
    plural="rebalanceplans",
    title="rebalance plan",
    summary="Migrations that make the load of the nodes even",
    scope="fabric",
    spec=RebalancePlanSpec,
    actions=RebalancePlanActions,
    status=RebalancePlanStatus,
    schema=2,
    upgrades=(take_from_spec(actions=RebalancePlanActions),),
    verbs=(
        Verb("start", "Carry the plan out, if it still holds", act=_start, needs="operate"),
        Verb("undo", "Bring back all that the plan migrated", act=_undo, needs="operate"),
    ),
    access=Access(
        readers="fabric", status_writer="rebalance", mark_writers={"start": (":start", "rebalance policies")}
    ),
    admission=Admission(check=check_plan),
    display=Display(
        topic="Work and answers",
        columns=(
            NAME,
            Column("PHASE", text("status.phase", "Proposed"), keep=True),
            Column("MIGRATED", _count, align="right"),
            Column("SCORE", _score("spec.score_before"), align="right"),
            Column("AFTER", _score("spec.score_after"), align="right"),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(
        goals={
            # One that has been started since is waited for until it is over.
            "create": reaches("Proposed", "Done", "Undone", ends_refused=False, answer=_summarise),
            "start": _DONE,
            "undo": reaches("Undone", ends_refused=False, answer=_summarise),
        },
        find_failure=_find_failure,
        operation=Operation(act="rebalance", cancel="undo", ended=("Proposed", *OVER)),
    ),
)
