"""The facts from which one allocation is decided, and the decision. Values."""

from __future__ import annotations

import msgspec

from weft.agent.allocation.steps.names import StepName
from weft.agent.state.allocation import Checkpoint, Health, LocalAllocation, SetUp, StepFailure
from weft.agent.state.lease import Stage
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.allocation import AllocationPhase
from weft.kinds.fields.service.readiness import ReadinessReport

_ALIVE = ("starting", "running", "paused")


class PlanInput(msgspec.Struct, frozen=True, kw_only=True):
    """All facts for a decision about one allocation and for its report, read at one moment."""

    local: LocalAllocation
    checkpoint: Checkpoint = Checkpoint()
    guest: GuestFacts
    health: Health = Health()
    set_up: SetUp = SetUp()
    readiness: dict[str, ReadinessReport] = {}  # by service uid
    now: float = 0.0  # elapsed seconds
    failure: StepFailure | None = None  # of the last step
    superseded: bool = False  # a higher incarnation of the workload is placed here, or was placed elsewhere
    stale_volumes: bool = False  # the data of all its volumes is on another node by now
    blocked: str = ""  # the workload that must end before it may start
    unheld: str = ""  # why it may not start: it may run elsewhere
    unconfirmed: bool = False  # read from a checkpoint, and not confirmed by the server yet
    asks_until: float = (
        0.0  # so long its cluster may find out that its copy at another one was promoted (elapsed seconds)
    )
    can_suspend: bool = True
    can_adjust: bool = True
    restart_at: float = 0.0  # when a guest that ended by itself is restarted (elapsed seconds)
    migrating: bool = False  # this process leads the migration of its spec
    relocating: bool = False  # one of its disks is being relocated
    unwell: str = ""  # why its health check ends it
    stage: Stage = "active"  # of its lease
    postponed: bool = False  # the server must confirm that its lease may begin, or be prepared, now
    in_contact: bool = True  # the server hears this node
    soon: bool = False  # its preparation begins within FETCH_AHEAD_SECONDS
    fetched: bool = False  # its image was fetched ahead
    prepared: bool = False  # all but the start is done
    can_hold: bool = False
    held_until: float = 0.0  # it stands still for a group's snapshot until then (elapsed seconds); 0: it doesn't
    snapshot_at: float = 0.0  # when to go on with the snapshot that is being taken (elapsed seconds)


class Plan(msgspec.Struct, frozen=True):
    """The steps now, and the report meanwhile."""

    steps: tuple[StepName, ...]
    state: AllocationPhase
    reason: str = ""
    message: str = ""
    review_at: float | None = None  # when to plan again, even without an event (elapsed seconds)


def is_alive(guest: GuestFacts) -> bool:
    return guest.state in _ALIVE
