"""One guest of the fake runtime as its file has it, and the facts that follow from it. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.contracts.driver.migration import MigrationStage
from weft.contracts.driver.runtime import GuestFacts, GuestPlan, GuestShape, GuestState
from weft.contracts.driver.snapshot import SnapshotFacts, SnapshotPlan

MOST_CPU, MOST_MEMORY_BYTES, FREE_SLOTS = 16, 1 << 36, 4  # of a guest while it runs


class FakeMigration(msgspec.Struct):
    """A migration that this node is or was the source or target of. ``to``: the target's file; the clock says how much was
    sent."""

    key: str
    role: Literal["source", "target"]
    phase: MigrationStage = "waiting"
    to: str = ""
    began_at: float = 0.0
    sent_before: float = 0.0
    bytes_per_second: int = 0


class FakeSnapshot(msgspec.Struct):
    """The snapshot that is or was being taken; its memory is whole at ``whole_at`` (elapsed seconds)."""

    plan: SnapshotPlan
    facts: SnapshotFacts
    whole_at: float = 0.0


class FakeMemory(msgspec.Struct):
    """The memory of a snapshot."""

    boot_id: str


class FakeGuest(msgspec.Struct):
    """One guest's file."""

    plan: GuestPlan
    state: GuestState
    boot_id: str
    started_at: float
    pid: int
    ready: bool = False
    reason: str | None = None
    migration: FakeMigration | None = None
    snapshot: FakeSnapshot | None = None


def describe_guest(guest: FakeGuest) -> GuestFacts:
    plan, running = guest.plan, guest.state == "running"
    return GuestFacts(
        id=plan.id,
        uid=plan.uid,
        name=plan.name,
        incarnation=plan.incarnation,
        state=guest.state,
        ready=guest.ready if plan.has_agent else None,
        boot_id=guest.boot_id,
        pid=guest.pid if running else None,
        started_at=guest.started_at,
        reason=None if running else guest.reason,
        accelerator="none",
        shape=_shape(plan) if running else None,
    )


def _shape(plan: GuestPlan) -> GuestShape:
    return GuestShape(
        cpu=plan.cpu,
        memory_bytes=plan.memory_bytes,
        disks={disk.serial: disk.size_bytes for disk in plan.disks},
        nics=[nic.mac for nic in plan.nics],
        most_cpu=MOST_CPU,
        most_memory_bytes=MOST_MEMORY_BYTES,
        has_slots=plan.machine == "q35",
        free_slots=FREE_SLOTS if plan.machine == "q35" else 0,
    )
