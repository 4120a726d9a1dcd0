"""Free resources of a node over time: a step function for each.

A question is a search for its first step, then a look at the steps in between; steps that have become equal are one. Times are
seconds on the clock of the caller.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

Amounts = Sequence[float]  # of each resource, in the order of the capacity
_STEPS_A_CHECK = 16
_EQUAL = 1e-9  # of what is free: sums of fractions of cores differ by that much


class OutOfChecks(Exception):
    """A planner has looked at what is free as often as it may."""


class Checks:
    """How much planners may still look at: a check of one node is 1, and so are so many steps that are listed or copied."""

    def __init__(self, most: float = math.inf) -> None:
        self._left = most

    def take(self, checks: int, *, steps: int = 0) -> None:
        """Raises OutOfChecks."""
        self._left -= checks + steps / _STEPS_A_CHECK
        if self._left < 0:
            raise OutOfChecks


class Availability:
    """Free resources of one node. From ``-inf`` on all of ``capacity`` is free."""

    def __init__(self, capacity: Amounts) -> None:
        self._times = [-math.inf]
        self._free = [[float(amount)] for amount in capacity]  # of each resource, from each of the times on

    def take(self, start: float, end: float, amounts: Amounts) -> None:
        """Take ``amounts`` from ``start`` to ``end``; negative ones are given back."""
        if end <= start:
            return
        first, last = self._split(start), self._split(end)
        for free, amount in zip(self._free, amounts, strict=True):
            if amount:
                free[first:last] = [level - amount for level in free[first:last]]
        self._join(last)
        self._join(first)

    def fits(self, start: float, end: float, amounts: Amounts) -> bool:
        """Whether ``amounts`` are free all the time from ``start`` to ``end``."""
        first, last = bisect_right(self._times, start) - 1, bisect_left(self._times, end)
        return all(
            amount <= min(free[first:last]) + _EQUAL for free, amount in zip(self._free, amounts, strict=True) if amount
        )

    def __len__(self) -> int:
        """How many steps it has."""
        return len(self._times)

    def copy(self) -> Availability:
        made = Availability([0.0] * len(self._free))
        made._times, made._free = list(self._times), [list(levels) for levels in self._free]
        return made

    def shift(self, seconds: float) -> None:
        """All times are later by so many seconds."""
        self._times = [time + seconds for time in self._times]

    def least_free(self, start: float, end: float) -> list[float]:
        """The least that is free of each resource at any moment from ``start`` to ``end``."""
        first, last = bisect_right(self._times, start) - 1, bisect_left(self._times, end)
        return [min(free[first : max(last, first + 1)]) for free in self._free]

    def steps(self) -> tuple[list[float], list[list[float]]]:
        """When each step begins, and of each resource what is free from then on. Nobody changes them."""
        return self._times, self._free

    def free_at(self, time: float) -> list[float]:
        at = bisect_right(self._times, time) - 1
        return [free[at] for free in self._free]

    def free_until(self, start: float, amounts: Amounts) -> float:
        """Time until which ``amounts`` are free without a break, from ``start`` on; ``start`` if they aren't free then."""
        at = bisect_right(self._times, start) - 1
        for step in range(at, len(self._times)):
            if any(amount > free[step] + _EQUAL for free, amount in zip(self._free, amounts, strict=True) if amount):
                return max(start, self._times[step])
        return math.inf

    def changes(self, start: float, end: float) -> Iterator[float]:
        """The times after ``start`` and before ``end`` at which what is free changes."""
        yield from self._times[bisect_right(self._times, start) : bisect_left(self._times, end)]

    def forget(self, before: float) -> None:
        """Drop what was before ``before``."""
        passed = bisect_right(self._times, before) - 1
        if passed > 0:
            del self._times[1 : passed + 1]
            for free in self._free:
                free[0] = free[passed]
                del free[1 : passed + 1]

    def _split(self, time: float) -> int:
        """The index of the step that begins at ``time``, made if there is none."""
        at = bisect_left(self._times, time)
        if at == len(self._times) or self._times[at] != time:
            self._times.insert(at, time)
            for free in self._free:
                free.insert(at, free[at - 1])
        return at

    def _join(self, at: int) -> None:
        if 0 < at < len(self._times) and all(abs(free[at] - free[at - 1]) <= _EQUAL for free in self._free):
            del self._times[at]
            for free in self._free:
                del free[at]
