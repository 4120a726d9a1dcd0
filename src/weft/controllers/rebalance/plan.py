"""Plan a RebalancePlan's next step. Pure: what was read in, the new status and the migrations to make out.

A plan that isn't started does nothing. At its start it is refused as a whole if one of its workloads or nodes isn't as it was
planned for; later such a migration is left out, alone. Undo cancels what waits for capacity, waits for what migrates, and brings
back what is still where it went.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from weft.kinds.migration import ENDED
from weft.kinds.rebalance_plan import (
    OUTDATED,
    PlannedStep,
    RebalancePlanActions,
    RebalancePlanSpec,
    RebalancePlanStatus,
    StepState,
)

HOUR_SECONDS = 3600.0
_NAMED = 3


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """The view's facts about one migration of a plan."""

    node: str = ""  # where the workload is; "": it is gone, or on no node
    busy: str = ""  # the migration that it has of others
    trouble: str = ""  # why its node of destination takes nothing
    migration: str = ""  # the name that a migration for it has, there or back
    phase: str = ""  # of that one; "": there is none
    cancelled: bool = False  # somebody wants that one to end
    message: str = ""


class Begin(msgspec.Struct, frozen=True):
    """Make the migration ``name`` of the plan's number to a node."""

    number: int
    name: str
    to: str


class Decision(msgspec.Struct, frozen=True):
    """``cancel``: numbers of those whose migration is ended, because it hasn't begun."""

    status: RebalancePlanStatus
    begin: list[Begin]
    cancel: list[int] = []


def plan_rebalance(
    spec: RebalancePlanSpec,
    asked: RebalancePlanActions,
    status: RebalancePlanStatus,
    seen: Sequence[Situation],
    other: str,
    now: float,
) -> Decision:
    """``asked``: what people want of it; ``seen``: of each of the plan's migrations, in the direction in which the plan goes;
    ``other``: a plan that is under way."""
    if status.phase in ("Refused", "Undone") or not asked.start or (status.phase == "Done" and not asked.undo):
        return Decision(status, [])
    states = list(status.steps)
    if status.started_at is None:
        problems = [text for step, one in zip(spec.steps, seen, strict=True) if (text := find_change(step, one))]
        if other or problems:
            message = f"rebalanceplan/{other} is under way" if other else _list(problems)
            refused = RebalancePlanStatus(phase="Refused", reason=OUTDATED, message=message, ended_at=now)
            return Decision(refused, [])
        states = [StepState() for _ in spec.steps]
        status = msgspec.structs.replace(status, started_at=now)
    arriving = any(state.state == "Migrating" for state in states)  # seen on its way there, not back
    cancel = [number for number, one in enumerate(seen) if asked.undo and is_waiting(states[number], one)]
    states = [follow(state, one) for state, one in zip(states, seen, strict=True)]
    if asked.undo:
        states = [_leave_out(state, one) for state, one in zip(states, seen, strict=True)]
    begun_lately = sum(state.begun_at is not None and now - HOUR_SECONDS < state.begun_at <= now for state in states)
    going = sum(state.state in ("Migrating", "Returning") for state in states)
    begin = list[Begin]()
    returning = asked.undo and not arriving
    order = range(len(states) - 1, -1, -1) if asked.undo else range(len(states))
    for number in order:
        step, state, one = spec.steps[number], states[number], seen[number]
        if asked.undo and state.state == "Waiting":
            states[number] = StepState(state="Skipped", message="the plan was undone before")
        elif state.state == "Waiting" or (returning and state.state == "Done"):
            here, to = (step.to, step.from_) if asked.undo else (step.from_, step.to)
            if one.busy:
                continue  # its own migration ends first
            if one.node != here or one.trouble:
                where = one.trouble or (f"it is on {one.node}" if one.node else "it is gone, or on no node")
                states[number] = msgspec.structs.replace(
                    state, state="Stayed" if asked.undo else "Skipped", message=where
                )
            elif going < spec.concurrent and (asked.undo or not spec.per_hour or begun_lately < spec.per_hour):
                going += 1
                begun_lately += 1
                begin.append(Begin(number, one.migration, to))
                word: Literal["Returning", "Migrating"] = "Returning" if asked.undo else "Migrating"
                begun_at = now if state.begun_at is None else state.begun_at
                states[number] = StepState(state=word, migration=one.migration, begun_at=begun_at)
    return Decision(_conclude(status, states, asked, now), begin, cancel)


def is_waiting(state: StepState, one: Situation) -> bool:
    """Whether its migration is there, has no target yet, and nobody has cancelled it."""
    return state.state == "Migrating" and one.phase in ("Planned", "Pending") and not one.cancelled


def _leave_out(state: StepState, one: Situation) -> StepState:
    """Leave out a step of a plan that is undone, cancelled before it began: it hasn't failed."""
    if state.state == "Failed" and one.phase == "Cancelled" and state.migration == one.migration:
        return msgspec.structs.replace(state, state="Skipped", message="the plan was undone before")
    return state


def follow(state: StepState, one: Situation) -> StepState:
    """The state once its migration has ended."""
    if state.state not in ("Migrating", "Returning") or (one.phase and one.phase not in ENDED):
        return state
    back = state.state == "Returning"
    if one.phase == "Succeeded":
        return msgspec.structs.replace(state, state="Back" if back else "Done", message="")
    why = one.message or ("its migration was cancelled" if one.phase else "its migration was deleted")
    return msgspec.structs.replace(state, state="Stayed" if back else "Failed", message=why[:200])


def find_change(step: PlannedStep, one: Situation) -> str:
    """Why a migration that hasn't begun doesn't hold any more; empty if it does."""
    if not one.node:
        return f"{step.workload} is gone, or on no node"
    if one.node != step.from_:
        return f"{step.workload} is on {one.node}, not on {step.from_}"
    if one.busy:
        return f"{step.workload} is migrating: migration/{one.busy}"
    return one.trouble


def _conclude(
    status: RebalancePlanStatus, states: list[StepState], asked: RebalancePlanActions, now: float
) -> RebalancePlanStatus:
    left = sum(state.state in ("Waiting", "Migrating", "Returning") for state in states)
    left += sum(state.state == "Done" for state in states) if asked.undo else 0
    counts = {
        name: sum(state.state == name for state in states) for name in ("Done", "Failed", "Skipped", "Back", "Stayed")
    }
    words = {"Done": "migrated", "Failed": "failed", "Skipped": "left out", "Back": "back", "Stayed": "stayed"}
    parts = [f"{count} {words[name]}" for name, count in counts.items() if count]
    why = next(
        (state.message for state in states if state.message and state.state in ("Failed", "Stayed", "Skipped")), ""
    )
    message = ", ".join([*parts, *([f"{left} to go"] if left else [])]) + (f"; {why}" if why and not left else "")
    phase: Literal["Undoing", "Running", "Undone", "Done"] = "Undone" if asked.undo else "Done"
    if left:
        phase = "Undoing" if asked.undo else "Running"
    ended = None if left else (status.ended_at if status.phase == phase else now)
    return msgspec.structs.replace(status, phase=phase, steps=states, message=message, reason="", ended_at=ended)


def _list(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    return f"the fabric has changed: {'; '.join(problems[:_NAMED])}{more}; plan again"
