"""How long an idle instance is worth its memory, learnt from a function's invocations. Pure.

It learns how likely an instance that has been idle for some time is needed: a histogram of the gaps after which one was needed,
as in Shahrad et al., "Serverless in the Wild" (USENIX ATC 2020), and those that still wait, which count as well (Kaplan and Meier,
1958). From these, instead of the head and tail percentiles of that paper, follows the stretch of idleness over which an instance
pays: an avoided cold start is worth ``worth_seconds`` of an idle instance. The price is the same for all functions, so the memory
that is spent avoids the most cold starts. With too few gaps a fixed time applies.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Protocol

import msgspec

WORTH_SECONDS = 4000.0  # spends as much memory as ten minutes for all would (benchmarks/keep_alive)
FIXED_SECONDS = 600.0  # for a function with fewer than LEAST_GAPS
LEAST_GAPS = 3.0
HALF_LIFE_SECONDS = 6 * 3600.0
LEAST_PAUSE_SECONDS = 600.0  # an instance is ended and started anew ahead of need only over longer ones
MOST_SLOTS = 256
GROWTH = 1.25
EDGES = (0.0, *(GROWTH**step for step in range(44)))  # seconds: up to 4.1 hours
_WIDTHS = tuple(EDGES[i + 1] - EDGES[i] for i in range(len(EDGES) - 1))
_BINS = len(_WIDTHS)


class Choice(msgspec.Struct, frozen=True):
    """Keep an idle instance for ``idle_seconds``; if ``warm_after`` > 0, have one ready again from so many seconds after the last
    invocation until ``warm_until``."""

    idle_seconds: float = FIXED_SECONDS
    warm_after: float = 0.0
    warm_until: float = 0.0


class KeepAliveModel(Protocol):
    """The model of one function: ``begin`` and ``end`` are called for each invocation; ``choose`` gives what is best now. Times in
    seconds, of the monotonic clock."""

    def begin(self, now: float) -> None: ...
    def end(self, now: float) -> None: ...
    def choose(self, now: float) -> Choice: ...


class Learnt:
    """Imagines instances that never end; an invocation takes the one that was idle for the shortest time."""

    __slots__ = ("_aged_at", "_counts", "_idle", "_sums", "_unused", "worth_seconds")

    def __init__(self, worth_seconds: float = WORTH_SECONDS) -> None:
        self.worth_seconds = worth_seconds
        self._idle: list[float] = []  # since when each is, the longest first
        self._counts = [0.0] * _BINS  # gaps after which one was needed
        self._sums = [0.0] * _BINS  # of these gaps
        self._unused = 0.0  # instances that weren't needed within all of EDGES
        self._aged_at: float | None = None

    def begin(self, now: float) -> None:
        if self._aged_at is None:
            self._aged_at = now
        if self._idle:
            gap = now - self._idle.pop()
            found = min(_BINS - 1, bisect_right(EDGES, gap) - 1)
            self._counts[found] += 1.0
            self._sums[found] += min(gap, EDGES[-1])

    def end(self, now: float) -> None:
        self._idle.append(now)
        if len(self._idle) > MOST_SLOTS:
            del self._idle[0]

    def choose(self, now: float) -> Choice:
        self._age(now)
        if sum(self._counts) < LEAST_GAPS:
            return Choice()
        needed, seen = self._count_needed(now)
        best = Choice(0.0)
        most = whole = start = 0.0
        left = 1.0  # the share of idle times that are at least so long
        for number, width in enumerate(_WIDTHS):
            hazard = needed[number] / seen[number] if seen[number] > 0 else 0.0
            likely = -math.expm1(-hazard * width)
            idle = likely / hazard if hazard > 0 else width
            whole += left * (self.worth_seconds * likely - idle)
            left *= 1.0 - likely
            if whole > most:
                most = whole
                until = EDGES[number + 1]
                best = Choice(until) if start < LEAST_PAUSE_SECONDS else Choice(0.0, start, until)
            if whole < 0.0 and EDGES[number + 1] >= LEAST_PAUSE_SECONDS:
                whole, start = 0.0, EDGES[number + 1]
        return best

    def _count_needed(self, now: float) -> tuple[list[float], list[float]]:
        """Count, for each length of idleness: how often an instance was needed then, and how many seconds instances were so long
        idle."""
        # One gap of unknown length within EDGES, each order of magnitude as likely.
        needed, seen = list(_PRIOR_NEEDED), list(_PRIOR_SEEN)
        waiting = [0.0] * _BINS
        sums = list(self._sums)
        for since in self._idle:
            age = now - since
            found = min(_BINS - 1, bisect_right(EDGES, age) - 1)
            waiting[found] += 1.0
            sums[found] += min(age, EDGES[-1])
        beyond = self._unused
        for number in reversed(range(_BINS)):
            there = self._counts[number] + waiting[number]
            needed[number] += self._counts[number]
            seen[number] += sums[number] - there * EDGES[number] + beyond * _WIDTHS[number]
            beyond += there
        return needed, seen

    def _age(self, now: float) -> None:
        """Let older gaps count less."""
        if self._aged_at is None or now - self._aged_at < HALF_LIFE_SECONDS / 64:
            return
        share = 0.5 ** ((now - self._aged_at) / HALF_LIFE_SECONDS)
        self._aged_at = now
        self._counts = [count * share for count in self._counts]
        self._sums = [total * share for total in self._sums]
        self._unused *= share
        while self._idle and now - self._idle[0] > EDGES[-1]:
            del self._idle[0]
            self._unused += 1.0


class Fixed:
    """The same for all functions at all times."""

    def __init__(self, seconds: float = FIXED_SECONDS) -> None:
        self._choice = Choice(seconds)

    def begin(self, now: float) -> None: ...

    def end(self, now: float) -> None: ...

    def choose(self, now: float) -> Choice:
        return self._choice


def _make_prior() -> tuple[tuple[float, ...], tuple[float, ...]]:
    span = math.log(EDGES[-1])
    shares = [math.log(EDGES[i + 1] / max(1.0, EDGES[i])) / span for i in range(_BINS)]
    left, seen = 1.0, []
    for share, width in zip(shares, _WIDTHS, strict=True):
        seen.append((left - share / 2) * width)
        left -= share
    return tuple(shares), tuple(seen)


_PRIOR_NEEDED, _PRIOR_SEEN = _make_prior()
