"""Failovers under kills, in virtual time: two clusters, a node, its guard and a witness, one drawn history after the other.

The decisions are the product's own; processes are killed, machines lose power or freeze, lines are cut, files are lost, stores are
restored from backups, people turn things on and off. Guests must never run at both clusters. A run that is interrupted goes on
where it was; ``WEFT_SOAK_SEED`` begins with the same seed again, and ``tests.simulation.two_sites.World(seed, CLUSTERS)`` replays
one.
"""

from __future__ import annotations

import os
import time

import msgspec
from tests.simulation.two_sites import World

from benchmarks.measurement import ROOT, Figure, Measurement
from benchmarks.soak.progress import read_progress
from weft.failover.timing import CLUSTERS

RUNS = int(os.environ.get("WEFT_SOAK_FAILOVERS", "6000"))
SECONDS = 400.0  # of a run
REMEMBER_EVERY = 100
PROGRESS = ROOT / ".weft" / "soak-failovers.json"


class Progress(msgspec.Struct):
    """What was done from ``seed`` on."""

    seed: int
    runs: int = 0
    taken: int = 0  # runs in which the other cluster took over
    restored: int = 0  # stores
    given_back: int = 0  # grants
    split: list[int] = []  # seeds of runs in which guests ran at both clusters


def run(progress: Progress, runs: int) -> None:
    """``runs`` more histories, which ``progress`` counts."""
    for _ in range(runs):
        seed = progress.seed + progress.runs
        world = World(seed, CLUSTERS)
        if world.run(SECONDS) > 0:
            progress.split.append(seed)
            print(f"  guests ran at both clusters: World({seed}, CLUSTERS).run({SECONDS:g})", flush=True)
        progress.runs += 1
        progress.taken += world.taken_at is not None
        progress.restored += world.restored
        progress.given_back += world.given_back


def measure() -> Measurement:
    progress = read_progress(PROGRESS, Progress, lambda kept: kept.runs < RUNS)
    print(f"failovers: from seed {progress.seed}; {progress.runs} of {RUNS} runs are done", flush=True)
    PROGRESS.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    while progress.runs < RUNS:
        run(progress, min(REMEMBER_EVERY, RUNS - progress.runs))
        PROGRESS.write_bytes(msgspec.json.encode(progress))
    PROGRESS.unlink(missing_ok=True)
    return describe(progress, time.monotonic() - began)


def describe(done: Progress, seconds: float) -> Measurement:
    summary = (
        f"Seeds {done.seed} to {done.seed + done.runs - 1}, {SECONDS:g} s of two clusters' time each, the last of them in "
        f"{seconds:.0f} s of ours; {done.restored} stores were put back, {done.given_back} grants given back."
    )
    split = f"{len(done.split)} of {done.runs}"
    figures = [
        Figure("runs in which guests ran at both clusters", split, goal="0", kept=not done.split),
        Figure("take-overs", str(done.taken)),
    ]
    return Measurement("Failovers under kills, simulated", summary, figures)
