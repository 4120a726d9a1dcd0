"""How the allocations of one node relate: incarnations of the same workload, and writers of a volume that another waits for."""

from __future__ import annotations

from collections.abc import Iterable

from weft.agent.state.allocation_state import AllocationState


def relate(states: Iterable[AllocationState]) -> None:
    by_workload: dict[str, list[AllocationState]] = {}
    writers: dict[str, list[AllocationState]] = {}  # by volume uid
    for state in states:
        spec = state.local.spec
        if not state.released and (spec.role == "active" or state.checkpoint.orphan):
            by_workload.setdefault(spec.workload.uid, []).append(state)
            for volume in spec.volumes if state.alive else ():
                writers.setdefault(volume.uid, []).append(state)
        else:
            state.relate(superseded=False, blocked="")
    for same in by_workload.values():
        if len(same) == 1:  # nearly always
            state = same[0]
            state.relate(superseded=state.replaced, blocked=_find_writer(state, writers))
            continue
        for state in same:
            mine = state.local.spec.incarnation
            later = any(s.local.spec.incarnation > mine and not s.checkpoint.orphan for s in same)
            # A restored server that has forgotten an incarnation gives its number again.
            other = any(s.local.spec.incarnation <= mine and s.alive and s is not state for s in same)
            blocked = "another incarnation of it still runs on this node" if other else ""
            state.relate(superseded=state.replaced or later, blocked=blocked or _find_writer(state, writers))


def _find_writer(state: AllocationState, writers: dict[str, list[AllocationState]]) -> str:
    """The message about another workload that writes to one of its volumes, or ""."""
    for volume in state.local.spec.volumes:
        for other in writers.get(volume.uid, ()):
            if other is not state:
                unknown = ", which the server doesn't know," if other.checkpoint.orphan else ""
                return f"{other.local.what}{unknown} still writes to volume {volume.name} on this node"
    return ""
