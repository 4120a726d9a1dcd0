"""One step of an agent for an allocation: all that the worker, the checkpoint and the people who watch need to know of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec

from weft.agent.allocation.steps.names import StepName
from weft.agent.migration.executor import MigrationExecutor
from weft.agent.network.executor import NetworkExecutor
from weft.agent.snapshot.inventory import KeptSnapshots
from weft.agent.state.allocation import Checkpoint, DiskRelocation, LocalAllocation, MigrationState
from weft.agent.state.allocation_state import AllocationState
from weft.agent.workload.kind import NodeParts, Prepared, Show
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.kinds.allocation import AllocatedNic, AllocationSpec
from weft.protocol.report import EventType


class Work(Prepared, kw_only=True):
    """One turn's work on an allocation: the input of its steps, and the results of each for the next ones."""

    state: AllocationState
    local: LocalAllocation
    migration: MigrationState | None
    relocation: DiskRelocation | None
    leftover: list[AllocatedNic]

    @property
    def begun_migration(self) -> MigrationState:
        assert self.migration is not None
        return self.migration


class StepParts(msgspec.Struct, frozen=True):
    """The parts of the node on which the steps act."""

    runtimes: Runtimes
    network: NetworkExecutor
    migrations: MigrationExecutor
    node: NodeParts
    snapshots: KeptSnapshots
    seeds: Path  # folder of the seed disks


class Moment(msgspec.Struct, frozen=True):
    """The facts on which a checkpoint's change depends, besides the checkpoint."""

    spec: AllocationSpec
    migration: MigrationState | None = None  # of the spec: this node's state of it
    relocation: DiskRelocation | None = None  # the current one, or the one that would begin
    alive: bool = False  # the guest runs
    resumes: bool = False  # the guest's memory is saved
    taken_over: bool = False  # the server has confirmed that the migration's target runs the guest
    detail: str = ""  # what the step returned


class StepContext(Protocol):
    """The worker that takes a step."""

    @property
    def state(self) -> AllocationState: ...

    @property
    def clock(self) -> Clock: ...

    def put_event(self, type_: EventType, reason: str, message: str) -> None: ...

    def relate(self) -> None:
        """Relate all the allocations of the node anew."""

    def release(self) -> None:
        """Nothing of the allocation is left on the node."""


async def _ignore_begin(turn: StepContext, before: Checkpoint) -> None:
    return


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a step. ``before`` and ``after`` are pure. A step may be cut off anywhere and is repeated then, from its
    beginning."""

    step: StepName
    # Returns a detail for people, if any; results for later steps are put into the work. Raises WeftError or OSError.
    perform: Callable[[StepParts, Work, Show], Awaitable[str | None]]
    before: Callable[[Checkpoint, Moment], Checkpoint] = lambda checkpoint, moment: checkpoint  # it may have begun
    after: Callable[[Checkpoint, Moment], Checkpoint] = lambda checkpoint, moment: checkpoint
    durable: bool = False  # it doesn't begin unless ``before`` is saved; others go on even if the disk is full
    makes: bool = False  # something of the allocation may be on the node from now on
    gives_way: bool = False  # it is cut off when the spec changes
    on_begin: Callable[[StepContext, Checkpoint], Awaitable[None]] = (
        _ignore_begin  # once it is saved; with the checkpoint until then
    )
    on_end: Callable[[StepContext, Moment], None] = lambda turn, moment: None  # after ``after``
    stage: str = ""  # of a start, as people watch it; "": it isn't part of one
    opens: bool = False  # the first of all stages
    ends_stage: bool = False
