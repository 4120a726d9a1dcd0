"""Plan a RebalancePolicy's next step. Pure: the policy, the scheduler's answer and earlier plans in; a question or a plan out.

It acts only if a plan gains enough at two looks running, and only with migrations that gain in every hour of the forecasts; so it
doesn't oscillate. What the plans of the last hour took of the budget is gone. After people undid a plan
nothing begins until load is less even than it was when that plan was made: they wanted the workloads where they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.kinds.rebalance_plan import RebalancePlanSpec
from weft.kinds.rebalance_policy import RebalancePolicySpec, RebalancePolicyStatus, count_migrations
from weft.kinds.report import ReportSpec, ReportStatus
from weft.objects.quantity import format_bytes

LOOK_SECONDS = 600.0
UNDER_WAY = " is under way"
ANSWER_SECONDS = 120.0  # until a question counts as lost
HOUR_SECONDS = 3600.0
LEAST_POINTS = 1.0  # of a plan's gain, however small the score is


class Spent(msgspec.Struct, frozen=True):
    """Budget that a policy's plans of the last hour spent."""

    migrations: int = 0
    bytes: int = 0


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """``asked``: whether the open question is there; ``answer``: what the scheduler said, None: nothing yet."""

    asked: bool = False
    answer: ReportStatus | None = None
    other: str = ""  # a plan that is under way
    spent: Spent = Spent()
    undone: tuple[str, float] | None = None  # the newest of the policy's plans that people undid, and its score before


class RebalanceOutcome(msgspec.Struct, frozen=True, kw_only=True):
    status: RebalancePolicyStatus
    ask: ReportSpec | None = None  # make this Report, under the name in the status
    plan: RebalancePlanSpec | None = None  # make this plan, under the name in the status
    wait: float = LOOK_SECONDS


def count_spent(plans: Sequence[tuple[float, RebalancePlanSpec]], now: float) -> Spent:
    """``plans``: of one policy, with when each was made."""
    lately = [spec for at, spec in plans if now - HOUR_SECONDS < at]
    return Spent(sum(len(spec.steps) for spec in lately), sum(step.bytes for spec in lately for step in spec.steps))


def plan_automatic(
    name: str, spec: RebalancePolicySpec, status: RebalancePolicyStatus, seen: Seen, now: float
) -> RebalanceOutcome:
    """``name``: of its reports and plans, to which the number of the look is added."""
    if status.report and seen.asked and seen.answer is None and now - (status.looked_at or 0.0) < ANSWER_SECONDS:
        return RebalanceOutcome(status=status, wait=ANSWER_SECONDS)
    if status.report and seen.answer is not None:
        return _take(f"{name}-{status.looks}", spec, status, seen, seen.answer, now)
    status = msgspec.structs.replace(status, report="")
    why = find_policy_obstacle(spec, seen)
    if why:
        wait = LOOK_SECONDS if seen.other else HOUR_SECONDS / 6
        return RebalanceOutcome(status=msgspec.structs.replace(status, message=why, gains_since=None), wait=wait)
    if status.message.endswith(UNDER_WAY):  # that plan has ended since
        status = msgspec.structs.replace(status, message="")
    due = min(status.looked_at, now) + LOOK_SECONDS if status.looked_at is not None else now
    if due > now:
        return RebalanceOutcome(status=status, wait=due - now)
    looks = status.looks + 1
    asked = ReportSpec(
        subject="rebalance",
        migrations=spec.migrations_per_hour - seen.spent.migrations,
        bytes=max(1, spec.bytes_per_hour - seen.spent.bytes) if spec.bytes_per_hour else 0,
        hours=spec.hours,
    )
    status = msgspec.structs.replace(status, looks=looks, looked_at=now, report=f"{name}-{looks}")
    return RebalanceOutcome(status=status, ask=asked, wait=ANSWER_SECONDS)


def find_policy_obstacle(spec: RebalancePolicySpec, seen: Seen) -> str:
    """Why nothing may begin now; empty if it may."""
    if seen.other:
        return f"rebalanceplan/{seen.other}{UNDER_WAY}"
    if seen.spent.migrations >= spec.migrations_per_hour:
        return (
            f"the budget of this hour is spent: {seen.spent.migrations} of {count_migrations(spec.migrations_per_hour)}"
        )
    if spec.bytes_per_hour and seen.spent.bytes >= spec.bytes_per_hour:
        spent, most = format_bytes(seen.spent.bytes), format_bytes(spec.bytes_per_hour)
        return f"the budget of this hour is spent: {spent} of {most}"
    return ""


def _take(
    name: str,
    spec: RebalancePolicySpec,
    status: RebalancePolicyStatus,
    seen: Seen,
    answer: ReportStatus,
    now: float,
) -> RebalanceOutcome:
    """The answer to its question: a plan, if it gains enough for the second time running."""
    status = msgspec.structs.replace(status, report="")
    gain, before = answer.score_before - answer.score_after, answer.score_before
    notes = f"; {answer.message}" if answer.message else ""
    if not answer.steps or gain < max(LEAST_POINTS, spec.least_gain * before):
        said = (
            "no migration gains enough now and in the next hours"
            if not answer.steps
            else (f"a gain of {gain:.2f} of {before:.2f} is too small")
        )
        return RebalanceOutcome(status=msgspec.structs.replace(status, gains_since=None, message=f"{said}{notes}"))
    if seen.undone is not None and before <= seen.undone[1] + max(LEAST_POINTS, spec.least_gain * seen.undone[1]):
        name, score = seen.undone
        message = (
            f"{count_migrations(len(answer.steps))} would gain, but rebalanceplan/{name} was undone at score {score:.2f}, "
            f"and now it is {before:.2f}: nothing begins until load is less even than then, or for weft delete "
            f"rebalanceplan/{name}"
        )
        return RebalanceOutcome(status=msgspec.structs.replace(status, gains_since=None, message=message))
    found = f"{count_migrations(len(answer.steps))} would gain: score {before:.2f} → {answer.score_after:.2f}"
    if status.gains_since is None:
        message = f"{found}; they begin if that is still so at the next look{notes}"
        return RebalanceOutcome(status=msgspec.structs.replace(status, gains_since=now, message=message))
    if why := find_policy_obstacle(spec, seen):
        return RebalanceOutcome(status=msgspec.structs.replace(status, message=f"{found}, but {why}"))
    plan = RebalancePlanSpec(
        steps=answer.steps,
        score_before=answer.score_before,
        score_after=answer.score_after,
        loads=answer.loads,
        concurrent=spec.concurrent,
    )
    message = f"{found}: rebalanceplan/{name}{notes}"
    return RebalanceOutcome(
        status=msgspec.structs.replace(status, gains_since=None, plan=name, message=message), plan=plan
    )
