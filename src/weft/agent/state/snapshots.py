"""The snapshots that an allocation needs: those being taken of it, and the one that it begins from or goes back to. Pure."""

from __future__ import annotations

from weft.agent.state.allocation import Checkpoint, LocalAllocation


def find_snapshots(local: LocalAllocation, checkpoint: Checkpoint) -> set[str]:
    """The uids of these snapshots."""
    origin, found = local.spec.origin, {one.uid for one in local.spec.snapshots}
    if origin is None:
        return found
    if origin.generation == 0:
        begun = checkpoint.run not in ("new", "starting")
    else:
        begun = local.report.restored == origin.generation
    if not begun:
        found.add(origin.snapshot)
        found.update({origin.keeps.uid} if origin.keeps is not None else ())
    return found
