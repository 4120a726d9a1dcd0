"""A history of 50,000 requests of clients at three API servers over three etcd members, which are killed, frozen and cut off
meanwhile: registers and names are linearizable, no acknowledged change is lost or done twice, no quota is passed."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

from tests.history.run import run_history

from benchmarks.measurement import Figure, Measurement

ASKS = int(os.environ.get("WEFT_SOAK_REQUESTS", "50000"))
SERVERS, CLIENTS, MOST_SECONDS = 3, 10, 4.0


def measure() -> Measurement:
    seed = int(os.environ.get("WEFT_SOAK_SEED") or random.randrange(10**6))
    print(f"histories: seed {seed}; the same outages again: WEFT_SOAK_SEED={seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="weft-histories-") as folder:
        done = run_history(Path(folder), seed, servers=SERVERS, clients=CLIENTS, asks=ASKS, most_seconds=MOST_SECONDS)
    for text in (*done.broken, *done.wrong):
        print(text, flush=True)
    outages = ", ".join(f"{name} {count}" for name, count in sorted(done.outages.items()))
    summary = (
        f"Seed {seed}, {CLIENTS} clients, {SERVERS} API servers, 3 etcd members, {done.seconds:.0f} s: {done.operations} "
        f"operations on registers and names were put in order, {done.commits} commits of the store's log looked through; of "
        f"{done.unknown} changes nobody knows whether they were done. Outages, of up to {MOST_SECONDS:g} s each: {outages}."
    )
    figures = [
        Figure("requests answered", str(done.asked), goal=f"≥ {ASKS}", kept=done.asked >= ASKS),
        Figure("objects whose history has no order", str(len(done.broken)), goal="0", kept=not done.broken),
        Figure(
            "changes lost, doubled or refused and done, quotas passed",
            str(len(done.wrong)),
            goal="0",
            kept=not done.wrong,
        ),
    ]
    return Measurement("Histories of three servers", summary, figures)
