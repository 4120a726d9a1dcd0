"""The placement engine by itself, one core, CPU time, all filters on: against a bare heap, nova's loop and ganeti's hail.

A decision is filters, choice, and the bookkeeping that lets the next one see it. What needs a process of its own (memory,
warm and cold starts) has one; peers that can't be had are left out, with the reason.
"""

from __future__ import annotations

import csv
import gc
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fabric_server import WEFT
from benchmarks.measurement import ROOT, Figure, Measurement
from benchmarks.placement import peers
from benchmarks.placement.load import make_requests, make_snapshot, make_wishes
from weft.contracts.policy import Request
from weft.launch.entry import SELDOM
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.table.snapshot import Snapshot

RUNS = 3
FRESH = 20_000
TURNS = 20_000
GROWTH_TURNS = 100_000
NOVA_SECONDS = 10.0
COLD_NODES, COLD_VMS = 1_000, 5_000
MEMORY_NODES, MEMORY_ALLOCATIONS = 10_000, 100_000


def decide_all(snapshot: Snapshot, requests: Sequence[Request]) -> float:
    """CPU seconds."""
    engine = Engine(snapshot)
    names = [f"a{number}" for number in range(len(requests))]
    begun = time.process_time()
    for request, name in zip(requests, names, strict=True):
        engine.place(request, name, name)
    return time.process_time() - begun


def decide_each(snapshot: Snapshot, requests: Sequence[Request]) -> list[float]:
    """CPU seconds of each decision, sorted."""
    engine, took = Engine(snapshot), []
    for number, request in enumerate(requests):
        begun = time.process_time()
        engine.place(request, "x", f"a{number}")
        took.append(time.process_time() - begun)
    return sorted(took)


def draw_turns(classes: int, count: int) -> list[int]:
    draw = random.Random(5)
    return [draw.randrange(classes) for _ in range(count)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def measure_fresh() -> tuple[list[Figure], float]:
    requests = make_requests(FRESH)
    seconds = median([decide_all(make_snapshot(1_000), requests) for _ in range(RUNS)])
    rate = FRESH / seconds
    wishes = make_wishes(FRESH)
    wishing = FRESH / median([decide_all(make_snapshot(1_000), wishes) for _ in range(RUNS)])
    ours = make_requests(5_000)
    took = decide_each(make_snapshot(10_000), ours)
    p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
    large = len(ours) / median([decide_all(make_snapshot(10_000), ours) for _ in range(RUNS)])
    return [
        Figure(
            f"1,000 nodes, {FRESH:,} requests all different",
            f"{rate:,.0f}/s ({1e6 / rate:.0f} µs)",
            goal="≥ 20,000/s",
            kept=rate >= 20_000,
        ),
        Figure(
            f"1,000 nodes, {FRESH:,} requests all different, with all kinds of wishes mixed",
            f"{wishing:,.0f}/s ({1e6 / wishing:.0f} µs)",
            goal="≥ 20,000/s",
            kept=wishing >= 20_000,
        ),
        Figure(
            "10,000 nodes, a decision of a class never seen: p50, p99",
            f"{p50 * 1e3:.3f} ms, {p99 * 1e3:.3f} ms",
            goal="p99 ≤ 1 ms",
            kept=p99 <= 1e-3,
        ),
        *measure_nova(rate, large),
    ], rate


def measure_nova(small: float, large: float) -> list[Figure]:
    reason = peers.provide_nova()
    if reason:
        return [Figure("nova's filter and weigher loop", "–", f"left out: {reason}")]
    figures = []
    for nodes, rate, goal in ((1_000, small, 1_000), (10_000, large, 10_000)):
        theirs = 1.0 / peers.run_nova(nodes, NOVA_SECONDS)
        figures.append(
            Figure(
                f"{nodes:,} nodes, requests all different, beside nova's filter and weigher loop",
                f"{rate:,.0f}/s",
                f"nova {theirs:.2f}/s",
                f"{rate / theirs:,.0f}×",
                f"≥ {goal:,}×",
                rate / theirs >= goal,
            )
        )
    return figures


def measure_heaps() -> list[Figure]:
    figures = []
    for count in (8, 1_000):
        classes, turns = make_requests(count, plain=True), draw_turns(count, TURNS)
        requests = [classes[turn] for turn in turns]
        ours, bare = [], []
        for _ in range(RUNS):
            ours.append(decide_all(make_snapshot(1_000), requests) / TURNS)
            bare.append(peers.run_bare_heaps(make_snapshot(1_000), classes, turns) / TURNS)
        share = median(bare) / median(ours)
        figures.append(
            Figure(
                f"1,000 nodes, {count:,} classes in turn",
                f"{1 / median(ours):,.0f}/s",
                f"a bare heap per class {1 / median(bare):,.0f}/s",
                f"{share:.0%}",
                "≥ 50 %",
                share >= 0.5,
            )
        )
    return figures


def measure_growth() -> Figure:
    turns = draw_turns(8, GROWTH_TURNS)
    classes = make_requests(8, plain=True)
    requests = [classes[turn] for turn in turns]
    snapshots = {10_000: [], 100_000: []}  # type: dict[int, list[float]]
    for _ in range(RUNS):
        for nodes, took in snapshots.items():
            took.append(decide_all(make_snapshot(nodes), requests) / GROWTH_TURNS)
    small, large = (median(took) for took in snapshots.values())
    return Figure(
        f"100,000 nodes against 10,000, mean of {GROWTH_TURNS:,} decisions in 8 classes",
        f"{large * 1e6:.2f} µs",
        f"{small * 1e6:.2f} µs at 10,000",
        f"{large / small - 1:+.1%}",
        "≤ +10 %",
        large / small <= 1.10,
    )


def check_choices() -> Figure:
    """Each choice against a look at every node's score."""
    snapshot = make_snapshot(1_000)
    engine, right = Engine(snapshot), 0
    requests = make_requests(1_000) + make_requests(500, "best_fit") + make_wishes(1_000)
    for number, request in enumerate(requests):
        scores = Engine(snapshot).scores(request, "x")
        best = min(zip(-scores, snapshot.names, strict=True))
        row = engine.place(request, "x", f"a{number}")
        right += (snapshot.names[row] == best[1]) if row is not None else (best[0] > 0)
    return Figure(
        f"{len(requests):,} choices that are the best under their own score, ties to the first by name",
        f"{right:,}",
        goal="all",
        kept=right == len(requests),
    )


def run_scale(*words: str) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.placement.scale", *words], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(done.stderr[-600:])
    return float(done.stdout or 0)


def measure_scale(folder: Path) -> list[Figure]:
    taken = run_scale("memory", str(MEMORY_NODES), str(MEMORY_ALLOCATIONS))
    file = folder / "store.db"
    run_scale("fill", str(file), str(MEMORY_NODES), str(MEMORY_ALLOCATIONS))
    warm = median([run_scale("warm", str(file), str(MEMORY_ALLOCATIONS)) for _ in range(RUNS)])
    what = f"{MEMORY_NODES:,} nodes and {MEMORY_ALLOCATIONS:,} allocations"
    return [
        Figure(f"a snapshot of {what}", f"{taken / 1e6:.0f} MB", goal="< 300 MB", kept=taken < 300e6),
        Figure(
            f"warm start of the scheduler, {what}: read and counted", f"{warm:.2f} s", goal="< 5 s", kept=warm < 5.0
        ),
    ]


def measure_cold(folder: Path) -> list[Figure]:
    nodes, workloads, request = folder / "nodes.csv", folder / "workloads.csv", folder / "hail.json"
    draw = random.Random(3)
    with nodes.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "cpu", "memory", "disk"])
        rows.writerows([f"n{number:04}", 64, 256 << 30, 4000 << 30] for number in range(COLD_NODES))
    with workloads.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "cpu", "memory", "disk", "node"])
        rows.writerows(
            [f"vm{number:05}", 1, 2 << 30, 20 << 30, f"n{draw.randrange(COLD_NODES):04}"] for number in range(COLD_VMS)
        )
        rows.writerow(["wished", 2, 4 << 30, 20 << 30, ""])
    ours = [WEFT, "simulate", "placement", "--nodes", str(nodes), "--workloads", str(workloads), "-o", "json"]
    hail = peers.find_hail()
    mine, theirs = [], []
    peers.make_hail_request(request, COLD_NODES, COLD_VMS)
    for _ in range(RUNS + 2):
        mine.append(time_process(ours))
        if hail is not None:
            theirs.append(time_process([hail, "--no-capacity-checks", str(request)]))
    what = f"one request cold, {COLD_NODES:,} nodes and {COLD_VMS:,} VMs: the process's CPU time"
    if hail is None:
        return [Figure(what, f"{median(mine) * 1e3:.0f} ms", "left out: no hail (apt install ganeti-htools)")]
    ratio = median(theirs) / median(mine)
    return [
        Figure(
            what,
            f"{median(mine) * 1e3:.0f} ms",
            f"hail --no-capacity-checks {median(theirs) * 1e3:.0f} ms",
            f"{ratio:.1f}×",
            "≥ 5×",
            ratio >= 5,
        )
    ]


def time_process(words: Sequence[str]) -> float:
    """CPU seconds of a whole process."""
    before = os.times()
    done = subprocess.run(words, capture_output=True, cwd=ROOT)
    after = os.times()
    if done.returncode:
        raise SystemExit(f"{words[0]}: {done.stderr.decode()[-600:]}")
    return after.children_user + after.children_system - before.children_user - before.children_system


def measure() -> Measurement:
    gc.set_threshold(*SELDOM)  # as the processes in which the engine runs
    base = ROOT / ".weft"
    base.mkdir(exist_ok=True)
    fresh, _ = measure_fresh()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as name:
        figures = [
            *fresh,
            *measure_heaps(),
            measure_growth(),
            check_choices(),
            *measure_cold(Path(name)),
            *measure_scale(Path(name)),
        ]
    return Measurement(
        "placement",
        "The engine by itself, one core, CPU time, all filters on, least_loaded; nodes of 15 sizes, a tenth of them with GPUs, "
        "some tainted or cordoned; of requests a quarter has a constraint, a twentieth wants a share of a GPU.",
        figures,
    )
