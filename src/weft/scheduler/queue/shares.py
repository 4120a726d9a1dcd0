"""How large each project's share of the cluster is: dominant resource fairness (Ghodsi et al., NSDI 2011).

A project's share is the largest of its shares of cores, memory and GPUs, divided by its weight. Of the projects whose work waits at
one level, the one with the smallest share comes first. Pure but for the snapshot, which counts what has changed.
"""

from __future__ import annotations

from weft.informer.view import View
from weft.informer.workloads import spec_of
from weft.kinds.project import ProjectSpec
from weft.objects.identity import object_key
from weft.scheduler.table.project_usage import NOTHING, SHARED, Held
from weft.scheduler.table.snapshot import Snapshot
from weft.scheduler.workload.request import read_gpus


class Shares:
    """Current shares: a workload placed during a pass counts immediately."""

    def __init__(self, view: View, snapshot: Snapshot) -> None:
        snapshot.projects.refresh(view)
        cpu, memory = (int(amount) for amount in snapshot.capacity[:2].sum(axis=1))
        self._view = view
        self._used = snapshot.projects.used
        self._total: Held = cpu, memory, sum(1000 * len(facts.gpus) for facts in snapshot.facts)
        self._weights: dict[str, float] = {}
        self._more: dict[str, Held] = {}

    def used(self, project: str) -> Held:
        used, more = self._used.get(project, NOTHING), self._more.get(project, NOTHING)
        return used[0] + more[0], used[1] + more[1], used[2] + more[2]

    def dominant(self, project: str) -> tuple[float, str]:
        """The largest share that it has of a resource (0 to 1), and of which; of none: 0."""
        amounts = zip(self.used(project), self._total, SHARED, strict=True)
        return max(((used / total, name) for used, total, name in amounts if used and total), default=(0.0, ""))

    def weight(self, project: str) -> float:
        weight = self._weights.get(project)
        if weight is None:
            item = self._view.get(object_key("project", None, project))
            weight = self._weights[project] = item.spec(ProjectSpec).weight if item is not None else 1.0
        return weight

    def weighted(self, project: str) -> float:
        return self.dominant(project)[0] / self.weight(project)

    def suppose(self, key: str) -> None:
        """Count a workload as if it had its place."""
        workload = self._view.get(key)
        if workload is None:
            return
        spec, project = spec_of(workload), workload.envelope.project or ""
        ask, more = read_gpus(spec), self._more.get(project, NOTHING)
        gpus = ask.count * ask.share if ask is not None else 0
        self._more[project] = more[0] + round(1000 * spec.cpu), more[1] + spec.memory, more[2] + gpus
