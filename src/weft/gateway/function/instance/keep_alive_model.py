"""How long an idle instance is worth its memory, learnt from how a function is invoked. Pure.

What is learnt is, by how long an instance has been idle, how likely it is to be needed next: a histogram of the gaps after which
one was needed, as in Shahrad et al., "Serverless in the Wild" (USENIX ATC 2020), and beside it those that still wait, which say
as much (Kaplan and Meier, 1958). From that, instead of the head and tail percentiles of that paper, follows the stretch of
idleness over which it pays: an avoided cold start counts as much as ``worth_seconds`` of an idle instance. So the same price
holds for all functions, which is what makes the fewest cold starts of the memory that is spent. While too little is known
a fixed time holds.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Protocol

import msgspec

WORTH_SECONDS = 4000.0  # with it, as much memory is spent as with ten minutes for all (benchmarks/keep_alive)
FIXED_SECONDS = 600.0  # while a function isn't known
LEAST_GAPS = 3.0  # then it is
HALF_LIFE_SECONDS = 6 * 3600.0
LEAST_PAUSE_SECONDS = 600.0  # an instance is ended and started anew ahead of need only over longer ones
MOST_SLOTS = 256
GROWTH = 1.25
EDGES = (0.0, *(GROWTH**step for step in range(44)))  # seconds: up to 4.1 hours
_WIDTHS = tuple(EDGES[i + 1] - EDGES[i] for i in range(len(EDGES) - 1))
_BINS = len(_WIDTHS)


class Choice(msgspec.Struct, frozen=True):
    """Keep an idle instance for ``idle_seconds``; and where ``warm_after`` > 0, have one ready again from so long after the last
    invocation on, until ``warm_until``."""

    idle_seconds: float = FIXED_SECONDS
    warm_after: float = 0.0
    warm_until: float = 0.0


class KeepAliveModel(Protocol):
    """What is told of each function: ``begin`` when an invocation begins, ``end`` when it has ended, ``choose`` for what is best
    now. Times in seconds, of a clock that never goes back."""

    def begin(self, now: float) -> None: ...
    def end(self, now: float) -> None: ...
    def choose(self, now: float) -> Choice: ...


class Learnt:
    """One function's. It imagines instances that are never ended, of which the one that was idle for the shortest time is taken."""

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
        left = 1.0  # the share of idle times that come this far
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
        """By how long an instance has been idle: how often one was needed then, and for how many seconds one was seen so."""
        # One gap of which nothing is known but that it is in EDGES, each order of magnitude as likely.
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
        """What is older counts less."""
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
    """The same for all functions and at all times."""

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
