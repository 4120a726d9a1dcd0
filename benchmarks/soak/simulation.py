"""The second proof of the soak: the control plane in virtual time, one drawn history after the other, until ``FAULTS`` faults
were met.

Every soak draws fresh ones; ``WEFT_SOAK_SEED`` begins with the same seed again. A seed that breaks a promise is printed with
what it broke; ``tests.simulation.histories.run_history(seed)`` replays it alone.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter

from tests.simulation.histories import run_history

from benchmarks.measurement import Figure, Measurement

FAULTS = int(os.environ.get("WEFT_SOAK_FAULTS", "10000"))


def measure() -> Measurement:
    """Run until the faults are met; the figures say how many there were, and how many seeds broke a promise."""
    first = int(os.environ.get("WEFT_SOAK_SEED") or random.randrange(10**6))
    print(f"simulation: from seed {first}; the same again: WEFT_SOAK_SEED={first}", flush=True)
    logging.disable(logging.CRITICAL)
    faults: Counter[str] = Counter()
    wishes: Counter[str] = Counter()
    moves: Counter[str] = Counter()
    broken: list[str] = []
    seed, seconds, commits, began = first, 0.0, 0, time.monotonic()
    try:
        while faults.total() < FAULTS:
            trace = run_history(seed)
            faults.update(trace.faults)
            wishes.update(trace.wishes)
            moves.update(trace.migrations)
            seconds, commits = seconds + trace.seconds, commits + trace.commits
            if trace.violations:
                broken.append(f"seed {seed}: {trace.violations[0]}")
                print(f"  {broken[-1]}; replay: run_history({seed})", flush=True)
            seed += 1
    finally:
        logging.disable(logging.NOTSET)
    spent = time.monotonic() - began
    runs = seed - first
    summary = (
        f"Seeds {first} to {seed - 1}: {commits} commits in {seconds / 3600:.1f} hours of the fabric's time, "
        f"{spent:.0f} s of ours. Wishes: {_list(wishes)}. Moves that came to their end: {moves['Succeeded']}; conversions "
        f"handed over: {moves['HandingOver']}. Faults: {_list(faults)}."
        + (f" Broken: {'; '.join(broken)}." if broken else "")
    )
    met = faults.total()
    figures = [
        Figure("faults met by the simulated control plane", str(met), goal=f"≥ {FAULTS}", kept=met >= FAULTS),
        Figure("runs that broke a promise", f"{len(broken)} of {runs}", goal="0", kept=not broken),
        Figure("faults per second", f"{met / spent:.0f}"),
    ]
    return Measurement("Simulated bad days", summary, figures)


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
