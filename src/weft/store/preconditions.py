"""Whether a commit may go through: the same answer on every engine. Pure but for what it is given to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weft.contracts.store import Absent, AtRevision, LeaseHeld, Precondition, PreconditionFailed, Present


def find_failed(
    preconditions: Sequence[Precondition],
    revision_of: Callable[[str], int | None],
    holds: Callable[[str, int], bool],
) -> PreconditionFailed | None:
    """The first precondition that does not hold, or None. ``revision_of`` gives None for a key that is absent."""
    for precondition in preconditions:
        if isinstance(precondition, LeaseHeld):
            if not holds(precondition.name, precondition.fence):
                return PreconditionFailed(precondition)
            continue
        revision = revision_of(precondition.key)
        match precondition:
            case AtRevision():
                held = revision == precondition.revision
            case Absent():
                held = revision is None
            case Present():
                held = revision is not None
        if not held:
            return PreconditionFailed(precondition, revision)
    return None
