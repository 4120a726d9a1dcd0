"""How much of its time the scheduler searches for places of gangs: a tenth at most, so that others' turns come."""

from __future__ import annotations

_SHARE = 0.1


class Budget:
    """``owed``: keys of workloads whose gang was refused without a search, and is to be searched when there is time for it."""

    def __init__(self) -> None:
        self.owed: set[str] = set()
        self._from = 0.0

    def allows(self, elapsed: float) -> bool:
        return elapsed >= self._from

    def spend(self, began: float, ended: float) -> None:
        """A search took from ``began`` to ``ended``."""
        self._from = ended + (ended - began) * (1.0 / _SHARE - 1.0)

    def wait(self, elapsed: float) -> float | None:
        """Seconds until what is owed can be searched; None if nothing is."""
        return max(0.0, self._from - elapsed) if self.owed else None
