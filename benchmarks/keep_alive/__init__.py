"""Cold starts with keep-alive as it is learnt, against ten fixed minutes, for the same memory: simulated on real arrivals.

The arrivals of the Azure LLM trace (half an hour) are dealt by a seed to functions with Zipf shares. An invocation takes
0.2 s, or with its tokens: 0.2 s and 20 ms for each. An instance serves one at a time, the one that was idle for the shortest
time first, and ends when it was idle for as long as it is kept. Memory counts as seconds that instances exist, busy or idle, all
of one size. To make it equal, what an avoided cold start is worth to the learnt one is raised or lowered until it spends no more
than the fixed one does; nothing else is set.
"""

from __future__ import annotations

import csv
import gzip
import heapq
import os
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from benchmarks.measurement import Figure, Measurement
from weft.gateway.function.instance.keep_alive_model import (
    FIXED_SECONDS,
    WORTH_SECONDS,
    Choice,
    Fixed,
    KeepAliveModel,
    Learnt,
)

DATA = Path(os.environ.get("WEFT_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "azure-llm"
SPLITS = ((50, 1.0), (100, 1.0), (200, 1.2))  # functions, and the exponent of their shares
SEEDS = (1, 2, 3, 4, 5)
LOOK_SECONDS = 10.0  # as the gateway does
HALVINGS = 14


class Request(msgspec.Struct, frozen=True):
    """When it came (seconds from the first), and how many tokens it generated."""

    at: float
    tokens: int


class Arrival(msgspec.Struct, frozen=True):
    at: float
    function: int
    seconds: float


class Spent(msgspec.Struct, frozen=True):
    """``cold`` starts, ``started`` ahead of demand, and the seconds that instances existed."""

    cold: int
    started: int
    memory: float


def read_trace() -> list[Request]:
    """All requests in their order."""
    found = []
    for name in ("code", "conv"):
        with gzip.open(DATA / f"{name}.part1.csv.gz", "rt") as file:
            for row in csv.DictReader(file):
                at = datetime.strptime(row["TIMESTAMP"][:26], "%Y-%m-%d %H:%M:%S.%f")
                found.append(Request(at.timestamp(), int(row["GeneratedTokens"])))
    found.sort(key=lambda request: request.at)
    return [Request(request.at - found[0].at, request.tokens) for request in found]


def deal(
    requests: Sequence[Request], functions: int, exponent: float, seed: int, take: Callable[[int], float]
) -> list[Arrival]:
    """Who gets which; ``take`` gives an invocation's seconds from its tokens."""
    shares = [1.0 / (rank + 1) ** exponent for rank in range(functions)]
    chosen = random.Random(seed).choices(range(functions), shares, k=len(requests))
    return [Arrival(r.at, function, take(r.tokens)) for r, function in zip(requests, chosen, strict=True)]


class _Pool:
    """The instances of one function."""

    def __init__(self, policy: KeepAliveModel) -> None:
        self.policy = policy
        self.idle: list[float] = []  # since when, the longest first
        self.ended_at = 0.0  # the last invocation
        self.choice = Choice()
        self.chosen_at = -LOOK_SECONDS
        self.warmed = False  # since the last invocation

    def look(self, now: float, spent: _Sum) -> None:
        """End what was idle for too long, start what is due ahead of demand."""
        if now - self.chosen_at >= LOOK_SECONDS:
            self.choice, self.chosen_at = self.policy.choose(now), now
        choice, since = self.choice, now - self.ended_at
        if choice.warm_after and self.ended_at and not self.warmed and choice.warm_after <= since < choice.warm_until:
            self.warmed = True
            if not self.idle:
                spent.started += 1
                self.idle.append(now)
        keep = max(choice.idle_seconds, choice.warm_until - choice.warm_after if self.warmed else 0.0)
        while self.idle and now - self.idle[0] > keep:
            spent.memory += keep
            del self.idle[0]


class _Sum:
    def __init__(self) -> None:
        self.cold = self.started = 0
        self.memory = 0.0


def simulate(arrivals: Sequence[Arrival], make: Callable[[], KeepAliveModel]) -> Spent:
    """What ``make``'s policy, one for each function, would have spent."""
    pools = [_Pool(make()) for _ in range(1 + max(arrival.function for arrival in arrivals))]
    spent, ends, looked_at = _Sum(), list[tuple[float, int]](), 0.0
    for arrival in arrivals:
        while True:
            ended_at = ends[0][0] if ends else float("inf")
            if looked_at <= min(ended_at, arrival.at):
                for pool in pools:
                    pool.look(looked_at, spent)
                looked_at += LOOK_SECONDS
            elif ended_at <= arrival.at:
                _, function = heapq.heappop(ends)
                pool = pools[function]
                pool.policy.end(ended_at)
                pool.idle.append(ended_at)
                pool.ended_at, pool.warmed = ended_at, False
            else:
                break
        pool = pools[arrival.function]
        pool.look(arrival.at, spent)
        pool.policy.begin(arrival.at)
        if pool.idle:
            spent.memory += arrival.at - pool.idle.pop()
        else:
            spent.cold += 1
        spent.memory += arrival.seconds
        heapq.heappush(ends, (arrival.at + arrival.seconds, arrival.function))
    end = arrivals[-1].at
    spent.memory += sum(end - since for pool in pools for since in pool.idle)
    return Spent(spent.cold, spent.started, spent.memory)


def match(arrivals: Sequence[Arrival], memory: float) -> tuple[float, Spent]:
    """The learnt policy at the highest worth that spends no more than ``memory``, and what it spends."""
    low, high = 1.0, 1e6
    best = simulate(arrivals, lambda: Learnt(low))
    for _ in range(HALVINGS):
        worth = (low * high) ** 0.5
        spent = simulate(arrivals, lambda worth=worth: Learnt(worth))  # type: ignore[misc]
        if spent.memory <= memory:
            low, best = worth, spent
        else:
            high = worth
    return low, best


TAKES: dict[str, Callable[[int], float]] = {
    "0.2 s each": lambda tokens: 0.2,
    "0.2 s and 20 ms a token": lambda tokens: 0.2 + 0.02 * tokens,
}


def measure() -> Measurement:
    requests, figures = read_trace(), []
    for functions, exponent in SPLITS:
        for told, take in TAKES.items():
            fixed_sum = learnt_sum = endless_sum = 0
            worths, better, as_is = [], 0, []
            for seed in SEEDS:
                arrivals = deal(requests, functions, exponent, seed, take)
                fixed = simulate(arrivals, Fixed)
                worth, learnt = match(arrivals, fixed.memory)
                default = simulate(arrivals, Learnt)
                endless = simulate(arrivals, lambda: Fixed(1e9))
                fixed_sum, learnt_sum = fixed_sum + fixed.cold, learnt_sum + learnt.cold
                endless_sum += endless.cold
                better += learnt.cold < fixed.cold
                worths.append(worth)
                as_is.append((default.cold / fixed.cold, default.memory / fixed.memory))
            spread = f"worth {min(worths):.0f}–{max(worths):.0f} s"
            endless_told = f"{_mean(endless_sum)} if none ever ended"
            figures.append(
                Figure(
                    f"{functions} functions, shares 1/rank^{exponent:g}, {told}: cold starts for the same memory",
                    f"{_mean(learnt_sum)} (fewer with {better} of {len(SEEDS)} seeds; {spread})",
                    f"{_mean(fixed_sum)} with {FIXED_SECONDS / 60:g} minutes; {endless_told}",
                    f"{learnt_sum / fixed_sum:.3f}×",
                    "< 1×",
                    learnt_sum < fixed_sum,
                )
            )
            cold, memory = (sum(ratio[i] for ratio in as_is) / len(as_is) for i in (0, 1))
            figures.append(
                Figure(
                    f"the same as shipped (worth {WORTH_SECONDS:g} s)",
                    f"{cold:.3f}× cold starts",
                    "1",
                    f"{memory:.3f}× memory",
                )
            )
    return Measurement(
        "keep_alive",
        f"{len(requests):,} arrivals of the Azure LLM trace 2023 (first half) dealt to functions by seeds {SEEDS[0]}–{SEEDS[-1]}, "
        "simulated. The learnt policy spends at most the memory that ten fixed minutes spend: its one parameter, what an avoided "
        "cold start is worth, is set to that. Most of the fixed one's cold starts can't be avoided: first calls, and more at once "
        "than ever before.",
        figures,
    )


def _mean(total: int) -> str:
    return f"{total / len(SEEDS):.1f}"
