"""The second proof of the soak: the control plane in virtual time, one drawn history after the other, until ``FAULTS`` faults
were met; and three servers over one etcd, until ``SERVER_FAULTS`` were.

Every soak draws fresh ones; ``WEFT_SOAK_SEED`` begins with the same seed again. A seed that breaks a promise is printed with
what it broke; ``run_history(seed)`` of ``tests.simulation.histories``, or ``run_history_of_servers(seed)``, replays it alone.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from tests.simulation.histories import run_history, run_history_of_servers
from tests.simulation.simulation import Trace

from benchmarks.measurement import Figure, Measurement

FAULTS = int(os.environ.get("WEFT_SOAK_FAULTS", "10000"))
SERVER_FAULTS = int(os.environ.get("WEFT_SOAK_FAULTS", "20000"))


class _Spent(NamedTuple):
    """Faults, wishes and migrations that were met, seeds that broke a promise, and what it took."""

    faults: Counter[str]
    wishes: Counter[str]
    moves: Counter[str]
    broken: list[str]
    seeds: range
    commits: int
    seconds: float  # of the fabric's time
    spent: float

    def describe(self) -> str:
        return (
            f"Seeds {self.seeds[0]} to {self.seeds[-1]}: {self.commits} commits in {self.seconds / 3600:.1f} hours of the fabric's "
            f"time, {self.spent:.0f} s of ours. Wishes: {_list(self.wishes)}. Moves that came to their end: "
            f"{self.moves['Succeeded']}; conversions handed over: {self.moves['HandingOver']}. Faults: {_list(self.faults)}."
            + (f" Broken: {'; '.join(self.broken)}." if self.broken else "")
        )

    def list_figures(self, what: str, most: int) -> list[Figure]:
        met = self.faults.total()
        return [
            Figure(f"faults met by {what}", str(met), goal=f"≥ {most}", kept=met >= most),
            Figure(
                "runs that broke a promise", f"{len(self.broken)} of {len(self.seeds)}", goal="0", kept=not self.broken
            ),
            Figure("faults per second", f"{met / self.spent:.0f}"),
        ]


def measure() -> Measurement:
    """Run until the faults are met; the figures say how many there were, and how many seeds broke a promise."""
    spent = _run(run_history, FAULTS)
    return Measurement(
        "Simulated bad days", spent.describe(), spent.list_figures("the simulated control plane", FAULTS)
    )


def measure_servers() -> Measurement:
    """As ``measure``, with three servers over one etcd."""
    spent = _run(run_history_of_servers, SERVER_FAULTS)
    return Measurement(
        "Bad days of three servers, simulated",
        spent.describe(),
        spent.list_figures("three simulated servers", SERVER_FAULTS),
    )


def _run(run: Callable[[int], Trace], most: int) -> _Spent:
    first = int(os.environ.get("WEFT_SOAK_SEED") or random.randrange(10**6))
    print(f"simulation: from seed {first}; the same again: WEFT_SOAK_SEED={first}", flush=True)
    logging.disable(logging.CRITICAL)
    faults: Counter[str] = Counter()
    wishes: Counter[str] = Counter()
    moves: Counter[str] = Counter()
    broken: list[str] = []
    seed, seconds, commits, began = first, 0.0, 0, time.monotonic()
    try:
        while faults.total() < most:
            trace = run(seed)
            faults.update(trace.faults)
            wishes.update(trace.wishes)
            moves.update(trace.migrations)
            seconds, commits = seconds + trace.seconds, commits + trace.commits
            if trace.violations:
                broken.append(f"seed {seed}: {trace.violations[0]}")
                print(f"  {broken[-1]}; replay: {run.__name__}({seed})", flush=True)
            seed += 1
    finally:
        logging.disable(logging.NOTSET)
    spent = time.monotonic() - began
    return _Spent(faults, wishes, moves, broken, range(first, seed), commits, seconds, spent)


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
