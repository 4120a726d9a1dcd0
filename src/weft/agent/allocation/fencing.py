"""How the allocations of one node stand to each other: which incarnations of one workload meet here, and who writes to a volume
that another is to have. The workers are told."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from weft.agent.allocation.worker import Worker


def relate(workers: Iterable[Worker], superseded: Collection[str]) -> None:
    """``superseded``: uids of allocations with a later incarnation elsewhere."""
    by_workload: dict[str, list[Worker]] = {}
    writers: dict[str, list[Worker]] = {}  # by volume uid
    for worker in workers:
        spec = worker.wanted.spec
        if not worker.released and (spec.role == "active" or worker.memory.orphan):
            by_workload.setdefault(spec.workload.uid, []).append(worker)
            for volume in spec.volumes if worker.life.alive else ():
                writers.setdefault(volume.uid, []).append(worker)
        else:
            worker.relate(superseded=False, blocked="")
    for same in by_workload.values():
        if len(same) == 1:  # as nearly all are
            worker = same[0]
            worker.relate(superseded=worker.wanted.uid in superseded, blocked=_find_writer(worker, writers))
            continue
        for worker in same:
            mine = worker.wanted.spec.incarnation
            later = worker.wanted.uid in superseded
            later |= any(w.wanted.spec.incarnation > mine and not w.memory.orphan for w in same)
            # Of one number there are two when a restored server has forgotten the first.
            other = any(w.wanted.spec.incarnation <= mine and w.life.alive and w is not worker for w in same)
            blocked = "another incarnation of it still runs on this node" if other else ""
            worker.relate(superseded=later, blocked=blocked or _find_writer(worker, writers))


def _find_writer(worker: Worker, writers: dict[str, list[Worker]]) -> str:
    """A sentence on who else writes to a volume of the worker's, empty if nobody does."""
    for volume in worker.wanted.spec.volumes:
        for other in writers.get(volume.uid, ()):
            if other is not worker:
                unknown = ", which the server doesn't know," if other.memory.orphan else ""
                return f"{other.wanted.what}{unknown} still writes to volume {volume.name} on this node"
    return ""
