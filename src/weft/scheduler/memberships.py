"""Which workloads of each group lie on which node. Fed by the snapshot; names are for explanations only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weft.scheduler.facts import Load


class Memberships:
    """``regrouped`` collects the groups that gained or lost a member."""

    def __init__(self) -> None:
        self.regrouped: set[str] = set()
        self._names: dict[str, dict[str, list[str]]] = {}  # group → node uid → workloads

    def add(self, node_uid: str, load: Load) -> None:
        for group in load.groups:
            self._names.setdefault(group, {}).setdefault(node_uid, []).append(load.workload)
        self.regrouped.update(load.groups)

    def remove(self, node_uid: str, load: Load) -> None:
        for group in load.groups:
            where = self._names[group]
            where[node_uid].remove(load.workload)
            if not where[node_uid]:
                del where[node_uid]
            if not where:
                del self._names[group]
        self.regrouped.update(load.groups)

    def find(self, group: str) -> Mapping[str, Sequence[str]]:
        """Node uid → the workloads of this group there."""
        return self._names.get(group, {})

    def on(self, node_uid: str) -> dict[str, int]:
        """Group → how many of it lie on this node."""
        return {group: len(where[node_uid]) for group, where in self._names.items() if node_uid in where}
