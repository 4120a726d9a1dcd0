"""The report of one allocation from its facts and its plan, and of a failed step. Pure."""

from __future__ import annotations

from weft.agent.allocation.facts import Plan, PlanInput, is_alive
from weft.agent.allocation.plan import BRING_UP, pause_after
from weft.agent.allocation.snapshots import report_snapshots
from weft.agent.allocation.steps.names import StepName
from weft.agent.problem import describe_problem
from weft.agent.state.allocation import Health, StepFailure
from weft.agent.state.snapshots import find_beginning
from weft.agent.workload.kinds import kind_of
from weft.contracts.driver.runtime import ProcessFacts
from weft.kinds.allocation import AllocationPhase, AllocationReport, Resources
from weft.kinds.allocation import Step as ReportedStep
from weft.kinds.fields.allocated_migration import MigrationReport
from weft.objects.errors import Forbidden, InvalidInput


def state_of(plan: Plan, current: StepName | None) -> AllocationPhase:
    """The phase while ``current`` is being done."""
    if current is StepName.START:
        return "starting"
    return "preparing" if current in BRING_UP and plan.state == "stopping" else plan.state


def failure_of(problem: Exception, before: StepFailure | None, now: float) -> StepFailure:
    """A step failed at ``now`` (elapsed seconds): it is retried after a pause, unless only another spec can help."""
    tries = (before.tries if before is not None else 0) + 1
    if isinstance(problem, (InvalidInput, Forbidden)):
        reason, message = describe_problem(problem)
        return StepFailure(reason, "; ".join(filter(None, [message, problem.hint])), tries, None)
    return StepFailure(*describe_problem(problem), tries, now + pause_after(tries))


def make_report(
    facts: PlanInput,
    plan: Plan,
    state: AllocationPhase,
    steps: list[ReportedStep],
    migration: MigrationReport | None,
) -> AllocationReport:
    """``state`` is its phase now, ``steps`` the progress of its start."""
    checkpoint, spec, guest = facts.checkpoint, facts.local.spec, facts.guest
    alive = guest if is_alive(guest) else None
    process = alive.process if alive is not None else None
    health = health_of(process) if process is not None and not facts.health.state else facts.health
    kept = guest if alive is not None or guest.state == "suspended" else None
    shape, kind = alive.shape if alive is not None else None, kind_of(spec)
    limits = kind.find_resize_limits(shape) if shape is not None else {}
    ended = has_ended(facts, plan)
    return AllocationReport(
        incarnation=spec.incarnation,
        state=state,
        desired_count=spec.desired_count,
        generation=facts.local.generation,
        restart_generation=checkpoint.restart_generation,
        ready=alive.ready if alive is not None else None,
        boot_id=kept.boot_id if kept is not None else None,
        accelerator=kept.accelerator if kept is not None else None,
        started_at=kept.started_at if kept is not None else None,
        restarts=checkpoint.restarts + (process.ends if process is not None else 0),
        has=Resources(cpu=shape.cpu, memory=shape.memory_bytes, disk=spec.resources.disk)
        if shape is not None
        else None,
        resize_limits=limits if alive is not None else None,
        fitted=facts.local.generation if alive is not None and (shape is None or kind.is_shaped(spec, shape)) else 0,
        live_bar=alive.live_bar if alive is not None else "",
        outdated=alive is not None and alive.outdated,
        image=checkpoint.image,
        reason=plan.reason,
        message=plan.message,
        health=health.state if alive is not None else "",
        health_message=health.message if alive is not None else "",
        set_up=facts.set_up.state if alive is not None else "",
        set_up_message=facts.set_up.message if alive is not None else "",
        readiness=facts.readiness if alive is not None else {},
        steps=steps,
        migration=migration,
        ended=ended,
        exit_code=guest.exit_code if ended else None,
        snapshots=report_snapshots(facts, plan),
        restored=checkpoint.restored,
        guarded=checkpoint.guarded,
        to_begin=(origin := find_beginning(spec, checkpoint)) is not None and origin.generation == 0,
    )


def health_of(process: ProcessFacts) -> Health:
    """A machine's health is that of its process; a process that ended for good ends the machine."""
    if process.runs:
        return Health("healthy")
    return Health("unhealthy", process.ends, f"its process ended with exit code {process.code} and is restarting")


def has_ended(facts: PlanInput, plan: Plan) -> bool:
    """Whether the workload has ended, by itself or by its spec, and isn't about to restart; or its spec desires stop and it never
    ran."""
    rests = plan.state in ("stopped", "failed") and not plan.steps and plan.review_at is None
    over = facts.checkpoint.run in ("ended", "down") or facts.local.spec.desired == "stop" or facts.stage == "over"
    return rests and over and not is_alive(facts.guest)
