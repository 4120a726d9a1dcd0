"""What a node keeps of an allocation when all else of it is forgotten, and makes of it when an older store lists it again. Pure."""

from __future__ import annotations

import msgspec

from weft.agent.state.allocation import AllocationState, MigrationState
from weft.kinds.allocation import AllocationSpec


def find_bygone(memory: AllocationState) -> MigrationState | None:
    """What has gone from here for good, or came here by a move; None of anything else: that may begin anew."""
    part = memory.part
    if part is None:
        return MigrationState(memory.took, "target", "", taken=True) if memory.took else None
    return part if part.taken and (part.side == "target" or part.over) else None


def recall_bygone(memory: AllocationState, bygone: MigrationState | None) -> AllocationState:
    """The ``memory`` that an allocation begins with of which this was kept."""
    if bygone is None or bygone.side == "source":
        return msgspec.structs.replace(memory, part=bygone)
    return msgspec.structs.replace(memory, took=bygone.key)


def recall_part(memory: AllocationState, spec: AllocationSpec) -> MigrationState | None:
    """What this node had in a move that has ended, if ``spec``, of an older store, says that it is under way. Over is what came
    by it if nothing of that is here any more."""
    move, took = spec.move, memory.took
    if move is None or spec.role != "target" or move.key != took:
        return None
    cold, over = move.mode == "cold", not memory.made
    return MigrationState(took, "target", move.peer_allocation, taken=True, over=over, node=move.peer, cold=cold)


def is_back(spec: AllocationSpec, part: MigrationState) -> bool:
    """Whether the word is here that the target never ran what this node has sent away."""
    if part.key in spec.back_from or not part.node:  # none of an agent that wrote no name down knew of such words
        return True
    return spec.move is not None and spec.move.key == part.key and spec.move.never_ran
