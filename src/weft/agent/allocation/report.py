"""What an agent reports of one allocation, from its plan, its guest's facts and what it remembers, or of a failed step. Pure."""

from __future__ import annotations

import errno

from weft.agent.allocation.plan import BRING_UP, Plan, Step, is_alive, pause_after
from weft.agent.state.allocation import AllocationState, LocalAllocation, StepFailure
from weft.agent.workload import shape
from weft.agent.workload.health import Health
from weft.contracts.driver.runtime import GuestFacts, ProcessFacts
from weft.kinds.allocation import AllocationPhase, AllocationReport, MigrationReport
from weft.kinds.allocation import Step as ReportedStep
from weft.objects.errors import Forbidden, InvalidInput, WeftError


def state_of(plan: Plan, current: Step | None) -> AllocationPhase:
    """What to call it while ``current`` is being done."""
    if current is Step.START:
        return "starting"
    return "preparing" if current in BRING_UP and plan.state == "stopping" else plan.state


def failure_of(problem: Exception, before: StepFailure | None, now: float) -> StepFailure:
    """A step failed, ``now`` (elapsed seconds): it is tried again after a pause, unless only another wish can mend it."""
    tries = (before.tries if before is not None else 0) + 1
    heals = not isinstance(problem, (InvalidInput, Forbidden))
    full = isinstance(problem, OSError) and problem.errno == errno.ENOSPC
    reason = problem.token if isinstance(problem, WeftError) else "noSpace" if full else "driverFailed"
    message = problem.message if isinstance(problem, WeftError) else str(problem) or type(problem).__name__
    return StepFailure(reason, message, tries, now + pause_after(tries) if heals else None)


def make_report(
    wanted: LocalAllocation,
    memory: AllocationState,
    plan: Plan,
    state: AllocationPhase,
    guest: GuestFacts | None,
    steps: list[ReportedStep],
    move: MigrationReport | None,
    health: Health,
) -> AllocationReport:
    """``guest`` None: there is none to tell of."""
    alive = guest if guest is not None and is_alive(guest) else None
    process = alive.process if alive is not None else None
    health = health_of(process) if process is not None and not health.state else health
    kept = guest if guest is not None and (alive is not None or guest.state == "suspended") else None
    return AllocationReport(
        incarnation=wanted.spec.incarnation,
        state=state,
        desired_count=wanted.spec.desired_count,
        restart_generation=memory.restart_generation,
        ready=alive.ready if alive is not None else None,
        boot_id=kept.boot_id if kept is not None else None,
        accelerator=kept.accelerator if kept is not None else None,
        started_at=kept.started_at if kept is not None else None,
        restarts=memory.restarts + (process.ends if process is not None else 0),
        has=shape.resources_of(alive, wanted.spec) if alive is not None else None,
        room=shape.find_resize_limits(alive, wanted.spec) if alive is not None else None,
        fitted=_fitted(wanted, alive) if alive is not None else 0,
        image=memory.image,
        reason=plan.reason,
        message=plan.message,
        health=health.state if alive is not None else "",
        health_message=health.message if alive is not None else "",
        steps=steps,
        move=move,
        ended=(ended := has_ended(wanted, memory, plan, guest)),
        exit_code=guest.exit_code if ended and guest is not None else None,
    )


def health_of(process: ProcessFacts) -> Health:
    """A machine is as well as the process that it is there for; one that ended for good takes the machine with it."""
    if process.runs:
        return Health("healthy")
    return Health("unhealthy", process.ends, f"its process ended with exit code {process.code} and is restarting")


def has_ended(wanted: LocalAllocation, memory: AllocationState, plan: Plan, guest: GuestFacts | None) -> bool:
    """Whether what ran here has ended, by itself or as it was wished, and nothing is about to start it; or is wished not to run,
    and never did."""
    rests = plan.state in ("stopped", "failed") and not plan.steps and plan.look_at is None
    over = memory.run in ("ended", "down") or wanted.spec.desired == "stop"
    return rests and over and (guest is None or not is_alive(guest))


def _fitted(wanted: LocalAllocation, guest: GuestFacts) -> int:
    fits = guest.shape is None or shape.is_shaped(wanted.spec, guest.shape)
    return wanted.generation if fits else 0
