"""Places of each group's workloads, by node. Fed by the snapshot; names are for explanations only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weft.scheduler.table.facts import Load


class Memberships:
    def __init__(self) -> None:
        self._names: dict[str, dict[str, list[str]]] = {}  # group → node uid → workloads
        self._changed: dict[tuple[str, str], int] = {}  # group, node uid → members more than when it was last asked

    def add(self, node_uid: str, load: Load) -> None:
        for group in load.groups:
            self._names.setdefault(group, {}).setdefault(node_uid, []).append(load.workload)
            self._count(group, node_uid, 1)

    def remove(self, node_uid: str, load: Load) -> None:
        for group in load.groups:
            where = self._names[group]
            where[node_uid].remove(load.workload)
            if not where[node_uid]:
                del where[node_uid]
            if not where:
                del self._names[group]
            self._count(group, node_uid, -1)

    def find(self, group: str) -> Mapping[str, Sequence[str]]:
        """Node uid → the workloads of this group there."""
        return self._names.get(group, {})

    def on(self, node_uid: str) -> dict[str, int]:
        """Group → how many of its members are on this node."""
        return {group: len(where[node_uid]) for group, where in self._names.items() if node_uid in where}

    def take_changed(self) -> set[str]:
        """The groups whose members have changed nodes since the last call. A trial that was removed again changes nothing."""
        changed = {group for group, _ in self._changed}
        self._changed.clear()
        return changed

    def _count(self, group: str, node_uid: str, by: int) -> None:
        changed = self._changed.get((group, node_uid), 0) + by
        if changed:
            self._changed[group, node_uid] = changed
        else:
            self._changed.pop((group, node_uid), None)
