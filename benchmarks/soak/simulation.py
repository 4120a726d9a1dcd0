"""The second proof of the soak: the control plane in virtual time, seed after seed, until ``FAULTS`` faults were met.

A seed that breaks a promise is printed with what it broke; ``run_simulation(seed, FAULTS_PER_RUN, store, moves=...)``
replays it; odd seeds run on SQLite, even ones in memory; in two of four guests move as well.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter

from tests.simulation.simulation import Store, run_simulation

from benchmarks.measurement import Figure, Measurement

FAULTS = int(os.environ.get("WEFT_SOAK_FAULTS", "10000"))
FAULTS_PER_RUN = 300
FIRST_SEED = int(os.environ.get("WEFT_SOAK_SEED", "1000"))


def measure() -> Measurement:
    """Run until the faults are met; the figures say how many there were, and how many seeds broke a promise."""
    logging.disable(logging.CRITICAL)
    faults: Counter[str] = Counter()
    wishes: Counter[str] = Counter()
    broken: list[str] = []
    seed, seconds, commits, moved, began = FIRST_SEED, 0.0, 0, 0, time.monotonic()
    try:
        while faults.total() < FAULTS:
            store: Store = "sqlite" if seed % 2 else "memory"
            moves = seed % 4 > 1
            trace = run_simulation(seed, FAULTS_PER_RUN, store, moves=moves)
            faults.update(trace.faults)
            wishes.update(trace.wishes)
            moved += trace.moves.get("Succeeded", 0)
            seconds, commits = seconds + trace.seconds, commits + trace.commits
            if trace.violations:
                broken.append(f"seed {seed}: {trace.violations[0]}")
                print(
                    f"  {broken[-1]}; replay: run_simulation({seed}, {FAULTS_PER_RUN}, {store!r}, moves={moves})",
                    flush=True,
                )
            seed += 1
    finally:
        logging.disable(logging.NOTSET)
    spent = time.monotonic() - began
    runs = seed - FIRST_SEED
    summary = (
        f"Seeds {FIRST_SEED} to {seed - 1}: {commits} commits in {seconds / 3600:.1f} hours of the fabric's time, "
        f"{spent:.0f} s of ours. Wishes: {_list(wishes)}. Moves that came to their end: {moved}. Faults: {_list(faults)}."
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
