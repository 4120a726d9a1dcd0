"""The location of an allocation's guest, and what a node keeps of a guest that has left, for an older store that lists it again.
Pure."""

from __future__ import annotations

import msgspec

from weft.agent.state.allocation import Checkpoint, MigrationState
from weft.kinds.allocation import AllocationSpec
from weft.kinds.parts.node.orphan import GuestLocation


def find_departed(checkpoint: Checkpoint) -> MigrationState | None:
    """The migration by which it left for good, or came here; else None: it may start anew."""
    migration = checkpoint.migration
    if migration is None:
        return MigrationState(checkpoint.arrived_by, "target", "", taken=True) if checkpoint.arrived_by else None
    return migration if migration.taken and (migration.role == "target" or migration.over) else None


def recall_departed(checkpoint: Checkpoint, departed: MigrationState | None) -> Checkpoint:
    """The first ``checkpoint`` of an allocation whose departure was saved."""
    if departed is None or departed.role == "source":
        return msgspec.structs.replace(checkpoint, migration=departed)
    return msgspec.structs.replace(checkpoint, arrived_by=departed.key)


def recall_migration(checkpoint: Checkpoint, spec: AllocationSpec) -> MigrationState | None:
    """A migration that has ended, if ``spec``, of an older store, still has it. It is over if nothing of the guest is here any
    more."""
    migration, arrived_by = spec.migration, checkpoint.arrived_by
    if migration is None or spec.role != "target" or migration.key != arrived_by:
        return None
    cold, over = migration.mode == "cold", not checkpoint.made
    return MigrationState(
        arrived_by, "target", migration.peer_allocation, taken=True, over=over, node=migration.peer, cold=cold
    )


def is_back(spec: AllocationSpec, migration: MigrationState) -> bool:
    """Whether the server has confirmed that the target never ran the guest that this node sent."""
    if migration.key in spec.back_from or not migration.node:  # an older agent saved no names
        return True
    return spec.migration is not None and spec.migration.key == migration.key and spec.migration.never_ran


def locate_guest(checkpoint: Checkpoint, spec: AllocationSpec) -> GuestLocation:
    """Locate its guest, as far as this node knows."""
    migration = checkpoint.migration
    if migration is None:
        return "open" if spec.role == "target" else "here"
    if migration.role == "target" and migration.taken:
        return "left" if migration.over else "here"
    if migration.role == "target":
        return "abandoned" if migration.over else "open"
    return "left" if migration.taken else "open"


def last_migration(checkpoint: Checkpoint) -> str:
    """The key of its last migration that this node knows."""
    return checkpoint.migration.key if checkpoint.migration is not None else checkpoint.arrived_by
