"""What an agent reports of one allocation, from its plan, its guest's facts and what it remembers. Pure."""

from __future__ import annotations

from weft.agent import shape
from weft.agent.known import Memory, Wanted
from weft.agent.plan import BRING_UP, Plan, Step, is_alive
from weft.contracts.runtime import GuestFacts
from weft.kinds.allocation import AllocationReport, AllocationState, MoveReport
from weft.kinds.allocation import Step as ReportedStep


def tell_state(plan: Plan, current: Step | None) -> AllocationState:
    """What to call it while ``current`` is being done."""
    if current is Step.START:
        return "starting"
    return "preparing" if current in BRING_UP and plan.state == "stopping" else plan.state


def make_report(
    wanted: Wanted,
    memory: Memory,
    plan: Plan,
    state: AllocationState,
    guest: GuestFacts | None,
    steps: list[ReportedStep],
    move: MoveReport | None,
) -> AllocationReport:
    """``guest`` None: there is none to tell of."""
    alive = guest if guest is not None and is_alive(guest) else None
    kept = guest if guest is not None and (alive is not None or guest.state == "suspended") else None
    return AllocationReport(
        incarnation=wanted.spec.incarnation,
        state=state,
        boots=memory.boots,
        ready=alive.ready if alive is not None else None,
        boot_id=kept.boot_id if kept is not None else None,
        accelerator=kept.accelerator if kept is not None else None,
        started_at=kept.started_at if kept is not None else None,
        restarts=memory.restarts,
        has=shape.tell_has(alive, wanted.spec) if alive is not None else None,
        room=shape.tell_room(alive, wanted.spec) if alive is not None else None,
        fitted=_fitted(wanted, alive) if alive is not None else 0,
        reason=plan.reason,
        message=plan.message,
        steps=steps,
        move=move,
    )


def _fitted(wanted: Wanted, guest: GuestFacts) -> int:
    fits = guest.shape is None or shape.is_shaped(wanted.spec, guest.shape)
    return wanted.generation if fits else 0
