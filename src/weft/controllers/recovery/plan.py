"""How a recovery plan is carried out: what is next, when it is over, and what was measured. Pure.

``status.run`` is written in the commit that makes what a step needs, and cleared once nothing is left of it: a process that dies at
any moment goes on where it was. The result is written first, then what a rehearsal has made is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from weft.controllers.recovery.facts import RecoveryFacts
from weft.kinds.fields.recovery.run import (
    FAILED,
    FAILOVER,
    PASSED,
    REFUSED,
    REHEARSE,
    CheckResult,
    RecoveryOutcome,
    RecoveryRun,
    RunCheck,
    RunMember,
    RunResult,
    VmResult,
)
from weft.kinds.recovery_plan import MOST_MEMBERS, RecoveryPlanStatus
from weft.objects.errors import shorten
from weft.objects.lifecycle import Phase, describe_phase
from weft.objects.quantity import format_duration

_ENDED = (Phase.STOPPED, Phase.SUSPENDED, Phase.FAILED)
_PROBLEMS_SHOWN = 3
STORE_REFUSED = "storeRefused"
MOST_NETWORKS = 40  # a rehearsal makes them in one commit
MOST_SAID, MOST_REASON = 160, 1000  # bytes of what a check, and a result, say: it may be a guest's or another cluster's


class RecoveryStep(msgspec.Struct, frozen=True):
    """The new status, and what the same commit makes or removes."""

    status: RecoveryPlanStatus
    act: Literal["", "begin", "make", "drop", "release"] = ""
    member: int = 0  # to make: index in ``run.members``
    sweep: bool = False  # remove what is left of earlier runs, too


def plan_recovery(facts: RecoveryFacts, now: float) -> RecoveryStep:
    step = _plan(facts, now)
    return replace(step, sweep=True) if facts.stale and step.act not in ("drop", "release") else step


def _plan(facts: RecoveryFacts, now: float) -> RecoveryStep:
    status, run = facts.status, facts.status.run
    if facts.deleting:
        act: Literal["drop", "release"] = "drop" if facts.leftovers else "release"
        return RecoveryStep(replace(status, phase="Deleting", reason="", message=""), act)
    if run is not None and run.is_over:
        return _finish(facts, run)
    asked = facts.actions.run_generation
    if run is not None and run.generation != asked:
        return _end(facts, run, now, FAILED, "superseded", "a failover was asked for, which ended it")
    if run is not None:
        return _advance(facts, run, now)
    if asked > status.ended_generation:
        return _begin(facts, now)
    return RecoveryStep(_describe(facts, status))


def _describe(facts: RecoveryFacts, status: RecoveryPlanStatus) -> RecoveryPlanStatus:
    """Status of a plan that is at rest."""
    if facts.candidates and all(one.is_promoted for one in facts.candidates):
        return replace(status, phase="Promoted", reason="", message="")
    problem = _find_problem(facts)
    return replace(
        status, phase="Pending" if problem else "Ready", reason="notRecoverable" if problem else "", message=problem
    )


def _find_problem(facts: RecoveryFacts) -> str:
    if not facts.candidates:
        return "there are no replicas to recover"
    if len(facts.candidates) > MOST_MEMBERS:
        return f"{len(facts.candidates)} replicas are too many for one plan: at most {MOST_MEMBERS}"
    problems = [one.problem for one in facts.candidates if one.problem]
    more = f"; and {len(problems) - _PROBLEMS_SHOWN} more" if len(problems) > _PROBLEMS_SHOWN else ""
    return "; ".join(_fit(problem, MOST_REASON // 4) for problem in problems[:_PROBLEMS_SHOWN]) + more


def _name_recoverable(facts: RecoveryFacts) -> str:
    """Name the members that the problems of others keep from being recovered."""
    able = [one.member.replica for one in facts.candidates if not one.problem and not one.is_promoted]
    if not able or len(facts.candidates) > MOST_MEMBERS:
        return ""
    more = f" and {len(able) - _PROBLEMS_SHOWN} more" if len(able) > _PROBLEMS_SHOWN else ""
    return f"; so nothing is begun, also not replica/{', replica/'.join(able[:_PROBLEMS_SHOWN])}{more}, which could be recovered"


def _begin(facts: RecoveryFacts, now: float) -> RecoveryStep:
    asked, status = facts.actions, facts.status
    if status.asked_generation != asked.run_generation:
        status = replace(status, asked_generation=asked.run_generation, asked_at=now)
    rehearses = asked.run_mode == REHEARSE
    if rehearses and facts.busy:  # a project rehearses one at a time, so that its measure is its own
        message = f"waits until {facts.busy} is over"
        return RecoveryStep(replace(status, phase="Pending", reason="isBusy", message=message))
    run = RecoveryRun(
        mode=asked.run_mode,
        generation=asked.run_generation,
        name=facts.fresh_name,
        began_at=now if rehearses else status.asked_at,  # a failover's time counts from when people asked for it
        members=[one.member for one in facts.candidates],
    )
    if problem := _find_problem(facts):
        message = f"{problem}{_name_recoverable(facts)}"
        return _end(replace(facts, status=status), run, now, REFUSED, "notRecoverable", message)
    if facts.excess:
        message = f"the VMs together need more than the quota leaves: {facts.excess}"
        return _end(replace(facts, status=status), run, now, REFUSED, "quotaExceeded", message)
    if facts.networks > MOST_NETWORKS:
        message = (
            f"the VMs are in {facts.networks} networks, which are too many for one rehearsal: at most {MOST_NETWORKS}"
        )
        return _end(replace(facts, status=status), run, now, REFUSED, "notRecoverable", message)
    if not rehearses and facts.answering and not asked.force:
        message = f"{', '.join(facts.answering)}, so the VMs may still run there, and two of each would write"
        return _end(replace(facts, status=status), run, now, REFUSED, "primaryAnswers", message)
    status = replace(status, phase="Rehearsing" if rehearses else "FailingOver", run=run, reason="", message="")
    return RecoveryStep(status, "begin")


def _advance(facts: RecoveryFacts, run: RecoveryRun, now: float) -> RecoveryStep:
    run = replace(run, members=[_refresh(facts, member, now) for member in run.members])
    facts = replace(facts, status=replace(facts.status, run=run))
    if not facts.isolated:
        return _end(facts, run, now, FAILED, "notIsolated", "a network of the rehearsal was changed, and may lead out")
    open_ = [(index, one) for index, one in enumerate(run.members) if not one.has_passed]
    if not open_:
        return _end(facts, run, now, PASSED)
    for _, member in open_:
        if member.begun_at and (trouble := _find_end(facts, member)):
            return _end(facts, run, now, FAILED, "vmFailed", trouble)
    if now - run.began_at > facts.spec.deadline:
        message = f"not done within {format_duration(facts.spec.deadline)}: {_find_waiting(facts, open_[0][1])}"
        return _end(facts, run, now, FAILED, "deadline", message)
    group = open_[0][1].group
    status = replace(facts.status, reason="", message=_find_waiting(facts, open_[0][1]))
    for index, member in open_:
        if member.group == group and not member.begun_at:
            return RecoveryStep(status, "make", index)
    return RecoveryStep(status)


def _refresh(facts: RecoveryFacts, member: RunMember, now: float) -> RunMember:
    """Renew the results of the member's checks. What has passed stays so."""
    if not member.begun_at or member.has_passed:
        return member
    return replace(member, checks=[_refresh_check(facts, member, check, now) for check in member.checks])


def _refresh_check(facts: RecoveryFacts, member: RunMember, check: RunCheck, now: float) -> RunCheck:
    if check.passed_at:
        return check
    vm = facts.vms.get(member.vm)
    runs = vm is not None and vm.phase == Phase.RUNNING
    if check.type == "running":
        message = (
            ""
            if runs
            else f"it is {describe_phase(vm.phase)}{': ' * bool(vm.message)}{vm.message}"
            if vm is not None
            else "it is gone"
        )
        return replace(check, passed_at=now if runs else 0.0, message=_fit(message, MOST_SAID))
    found = facts.ready.get(check.service)
    if found is None:
        return replace(check, message="not checked yet")
    passed = runs and found.ready
    message = "" if passed else _fit(found.message, MOST_SAID) or "not checked yet"
    return replace(check, passed_at=now if passed else 0.0, message=message)


def note_refusal(status: RecoveryPlanStatus, run: RecoveryRun, index: int, why: str) -> RecoveryPlanStatus:
    """The status of a run whose member can't be made now; it is tried again until the deadline."""
    member, why = run.members[index], _fit(why, MOST_SAID)
    member = replace(member, checks=[replace(member.checks[0], message=why), *member.checks[1:]])
    members = [*run.members[:index], member, *run.members[index + 1 :]]
    return replace(status, run=replace(run, members=members), message=f"vm/{member.vm} can't be made: {why}")


def note_store_refusal(facts: RecoveryFacts, why: str) -> RecoveryStep:
    """The store refused the step that was planned: nothing of it is written, and the status says so before it is tried again."""
    message = _fit(f"the store refused the next step, which is tried again: {why}", MOST_REASON)
    return RecoveryStep(replace(facts.status, reason=STORE_REFUSED, message=message))


def _find_end(facts: RecoveryFacts, member: RunMember) -> str:
    """Why the VM of a member will never pass; "": it may."""
    vm = facts.vms.get(member.vm)
    if vm is None:
        return f"vm/{member.vm} was deleted"
    return f"vm/{member.vm} is {vm.phase}{': ' * bool(vm.message)}{vm.message}" if vm.phase in _ENDED else ""


def _find_waiting(facts: RecoveryFacts, member: RunMember) -> str:
    """Say for people what is waited for."""
    if not member.begun_at:
        why = member.checks[0].message if member.checks else ""
        return f"vm/{member.vm} can't be made: {why}" if why else f"vm/{member.vm} is not made yet"
    check = next((one for one in member.checks if not one.passed_at), None)
    if check is None:
        return ""
    what = f"vm/{member.vm}" if check.type == "running" else f"check {check.type} {check.target} of vm/{member.vm}"
    return f"{what}: {check.message}" if check.message else what


def _end(
    facts: RecoveryFacts,
    run: RecoveryRun,
    now: float,
    phase: RecoveryOutcome,
    reason: str = "",
    message: str = "",
) -> RecoveryStep:
    """Write the result. What was made for a rehearsal is removed after that."""
    result, run = make_result(run, now, phase, reason, message), replace(run, ended=True)
    status = replace(facts.status, run=run)
    status = replace(status, rehearsal=result) if run.mode == REHEARSE else replace(status, failover=result)
    return _finish(replace(facts, status=status), run)


def make_result(run: RecoveryRun, now: float, phase: RecoveryOutcome, reason: str, message: str) -> RunResult:
    ages = [one.age_seconds for one in run.members if one.age_seconds is not None]
    passed = [check.passed_at for member in run.members for check in member.checks]
    return RunResult(
        mode=run.mode,
        generation=run.generation,
        phase=phase,
        started_at=run.began_at,
        ended_at=now,
        rpo_seconds=round(max(ages), 1) if ages and phase != REFUSED else None,
        rto_seconds=round(max(passed) - run.began_at, 1) if passed and phase == PASSED else None,
        checks=[_report_check(run, member, check) for member in run.members for check in member.checks],
        vms=[
            VmResult(
                vm=one.vm,
                replica=one.replica,
                group=one.group + 1,
                point=one.point,
                age_seconds=_round(one.age_seconds),
            )
            for one in run.members
        ],
        reason=reason,
        message=_fit(message, MOST_REASON),
    )


def _fit(text: str, most: int) -> str:
    """``text``, shortened to so many bytes as JSON has it."""
    while len(msgspec.json.encode(text)) - 2 > most:
        text = shorten(text, min(len(text) * 9 // 10, most))
    return text


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _report_check(run: RecoveryRun, member: RunMember, check: RunCheck) -> CheckResult:
    return CheckResult(
        vm=member.vm,
        type=check.type,
        target=_fit(check.target, MOST_SAID),
        passed=bool(check.passed_at),
        seconds=round(check.passed_at - run.began_at, 1) if check.passed_at else None,
        message=check.message or ("" if member.begun_at else "the VM was not made"),
    )


def _finish(facts: RecoveryFacts, run: RecoveryRun) -> RecoveryStep:
    """Clear a run that is over once nothing is left of it. A failover doesn't wait for that: what is left of a rehearsal may be on
    a node that is lost."""
    status = facts.status
    phase = "Rehearsing" if run.mode == REHEARSE else "FailingOver"
    gives_way = (
        run.mode == REHEARSE and facts.actions.run_mode == FAILOVER and facts.actions.run_generation > run.generation
    )
    if facts.leftovers and not gives_way:
        message = "removes what was made for it"
        return RecoveryStep(replace(status, run=run, phase=phase, reason="", message=message), "drop")
    status = replace(status, run=None, ended_generation=max(run.generation, status.ended_generation), message="")
    return RecoveryStep(_describe(facts, status) if facts.candidates else status, "drop" if facts.leftovers else "")


def list_order(groups: Sequence[Sequence[str]], others: Sequence[str]) -> list[tuple[int, str]]:
    """Each replica with its group, in the order in which they are recovered; ``others`` are the last group."""
    found = [(number, name) for number, names in enumerate(groups) for name in names]
    named = {name for _, name in found}
    return [*found, *((len(groups), name) for name in sorted(set(others) - named))]


def is_under_way(status: RecoveryPlanStatus, asked: int) -> bool:
    return status.run is not None or asked > status.ended_generation


def is_rehearsing(status: RecoveryPlanStatus) -> bool:
    return status.run is not None and status.run.mode == REHEARSE and not status.run.is_over
