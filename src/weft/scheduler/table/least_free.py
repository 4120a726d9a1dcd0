"""The least that is free of each resource on any node: whether a request fits on all of them."""

from __future__ import annotations

from weft.contracts.policy import Amounts
from weft.scheduler.table.snapshot import Snapshot


class LeastFree:
    """Least free amounts for ``snapshot``; kept by the changes in its log, and computed again only where these might change an
    answer."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._epoch = -1
        self._position = 0
        self._amounts: Amounts = (0, 0, 0)  # no node has less free, though all may have more

    def holds(self, amounts: Amounts) -> bool:
        """Whether every node has ``amounts`` free."""
        snapshot = self._snapshot
        log, position = snapshot.log, self._position
        if self._epoch != snapshot.epoch or len(log) - position > len(snapshot):
            return self._refresh(amounts)
        if position < len(log):
            cpu, memory, disk = self._amounts
            free_cpu, free_memory, free_disk = snapshot.cells
            for row in log[position:]:
                cpu, memory, disk = min(cpu, free_cpu[row]), min(memory, free_memory[row]), min(disk, free_disk[row])
            self._amounts, self._position = (cpu, memory, disk), len(log)
        return _covers(self._amounts, amounts) or self._refresh(amounts)

    def _refresh(self, amounts: Amounts) -> bool:
        """Compute it anew from all nodes."""
        snapshot = self._snapshot
        if not len(snapshot):
            return True
        cpu, memory, disk = snapshot.free.min(axis=1).tolist()
        self._amounts, self._epoch, self._position = (cpu, memory, disk), snapshot.epoch, len(snapshot.log)
        return _covers(self._amounts, amounts)


def _covers(least: Amounts, amounts: Amounts) -> bool:
    return least[0] >= amounts[0] and least[1] >= amounts[1] and least[2] >= amounts[2]
