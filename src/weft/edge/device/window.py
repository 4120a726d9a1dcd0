"""Tumbling windows over a property's values: each begins at a multiple of its length, and gives its measures when it has ended.
Pure."""

from __future__ import annotations

import math

from weft.edge.device.model import SamplingWindow


class OpenWindow:
    """Adds values up, and forgets them. ``closed`` has the measures of the newest window that ended with a value, by name; those of
    a window that ended without one are gone: old measures never stand for new ones."""

    __slots__ = (
        "_before",
        "_began",
        "_count",
        "_ends",
        "_first",
        "_first_at",
        "_last",
        "_last_at",
        "_least",
        "_most",
        "_sum",
        "closed",
        "plan",
    )

    def __init__(self, plan: SamplingWindow) -> None:
        self.plan = plan
        self.closed: dict[str, float] = {}
        self._began = self._ends = -math.inf
        self._before: tuple[float, float] | None = None  # the last value of the window before, and when
        self._clear()

    def add(self, value: float, at: float) -> bool:
        """A value came at ``at`` (seconds, of whatever clock, that doesn't go back). Returns whether a window ended by it."""
        ended = self.close(at) if at >= self._ends else False
        if not self._count:
            self._first, self._first_at = value, at
            self._least = self._most = value
        self._count += 1
        self._sum += value
        self._last, self._last_at = value, at
        if value < self._least:
            self._least = value
        elif value > self._most:
            self._most = value
        return ended

    def close(self, at: float) -> bool:
        """Whether the window ended by ``at``: then ``closed`` is new."""
        began = math.floor(at / self.plan.seconds) * self.plan.seconds
        if began == self._began:
            return False
        first = self._began == -math.inf
        had = bool(self.closed)
        self.closed = self._measure() if self._count and began == self._began + self.plan.seconds else {}
        if self._count and began != self._began + self.plan.seconds:
            self._before = None  # a whole window without a value lies between
        self._began, self._ends = began, began + self.plan.seconds
        self._clear()
        return not first and (had or bool(self.closed))

    def _measure(self) -> dict[str, float]:
        since, since_at = self._before if self._before is not None else (self._first, self._first_at)
        passed = self._last_at - since_at
        found = {
            "mean": self._sum / self._count,
            "min": self._least,
            "max": self._most,
            "count": float(self._count),
            "last": self._last,
        }
        if passed > 0:
            found["rate"] = (self._last - since) / passed  # change a second, since the last value of the window before
        self._before = (self._last, self._last_at)
        return {name: value for name, value in found.items() if name in self.plan.of}

    def _clear(self) -> None:
        self._count, self._sum = 0, 0.0
        self._first = self._last = self._least = self._most = 0.0
        self._first_at = self._last_at = 0.0
