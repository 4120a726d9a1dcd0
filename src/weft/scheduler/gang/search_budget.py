"""Limits the time that the scheduler searches for places of gangs, and for plans of leases, to a tenth each, so that others get
their turn."""

from __future__ import annotations

_SHARE = 0.1


class Budget:
    """``owed``: keys of workloads whose gang was refused without a search, which follows when there is time."""

    def __init__(self) -> None:
        self.owed: set[str] = set()
        self._from = 0.0

    def allows(self, elapsed: float) -> bool:
        return elapsed >= self._from

    def spend(self, began: float, ended: float) -> None:
        """A search took from ``began`` to ``ended``."""
        self._from = ended + (ended - began) * (1.0 / _SHARE - 1.0)

    def wait(self, elapsed: float) -> float | None:
        """Seconds until an owed search may begin; None if there is none."""
        return max(0.0, self._from - elapsed) if self.owed else None


class ProjectsBudget:
    """A tenth that projects share: each that has searched lately waits the longer, the more of them there are. So one that
    searches all the time keeps no other from searching."""

    def __init__(self) -> None:
        self._from = dict[str, float]()

    def allows(self, project: str, elapsed: float) -> bool:
        return elapsed >= self._from.get(project, 0.0)

    def spend(self, project: str, began: float, ended: float) -> None:
        """A search for ``project`` took from ``began`` to ``ended``."""
        self._from = {other: at for other, at in self._from.items() if at > ended and other != project}
        self._from[project] = ended + (ended - began) * ((len(self._from) + 1) / _SHARE - 1.0)
