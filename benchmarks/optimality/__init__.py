"""How near to the best: nodes used for 200 VMs, online and repacked, against CP-SAT; and single decisions against all nodes."""

from __future__ import annotations

import math
import random
import statistics
import sys
import time

import numpy as np

from benchmarks.measurement import Figure, Measurement
from benchmarks.optimality.check import check_decisions
from weft.contracts.policy import Amounts, Request
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.packing import solver
from weft.scheduler.packing.local_search import Problem
from weft.scheduler.packing.repack import Placed, repack
from weft.scheduler.table.snapshot import NodeFacts, Snapshot

SEEDS = range(1, 21)
VMS, NODES = 200, 60
GIB = 1024**3
NODE: Amounts = (64_000, 256 * GIB, 0)
SOLVER_SECONDS = 30.0
ONLINE_GOAL, REPACK_GOAL = 0.05, 0.01
ONLINE = ("fragmentation", "best_fit", "least_loaded")
CHECKS = (1, 2, 3, 4)
CHECKED_NODES, CHECKED_DECISIONS = 300, 2000


def draw_vms(seed: int) -> list[Amounts]:
    draw = random.Random(seed)
    vms = []
    for _ in range(VMS):
        cpu = draw.choices((1, 2, 4, 8, 16, 24), (15, 25, 25, 20, 10, 5))[0]
        vms.append((cpu * 1000, int(cpu * draw.choice((1, 2, 4, 8)) * draw.uniform(0.75, 1.25) * GIB), 0))
    return vms


def find_bound(vms: list[Amounts]) -> int:
    """The sum of what is wanted needs as many nodes."""
    return max(math.ceil(sum(vm[resource] for vm in vms) / NODE[resource]) for resource in (0, 1))


def pack_large_first(vms: list[Amounts]) -> list[int]:
    """First fit, by decreasing size: where the solver begins."""
    size = [vm[0] / NODE[0] + vm[1] / NODE[1] for vm in vms]
    free: list[list[int]] = []
    bins = [0] * len(vms)
    for item in sorted(range(len(vms)), key=lambda i: -size[i]):
        place = next(
            (b for b, f in enumerate(free) if all(w <= r for w, r in zip(vms[item], f, strict=True))), len(free)
        )
        if place == len(free):
            free.append(list(NODE))
        free[place] = [r - w for r, w in zip(free[place], vms[item], strict=True)]
        bins[item] = place
    return bins


def solve(vms: list[Amounts]) -> tuple[int, bool]:
    """CP-SAT's best in the time it has, and whether it is proven."""
    start = pack_large_first(vms)
    count = max(start) + 1
    problem = Problem(
        np.array(vms, dtype=np.int64), np.array([NODE] * count), np.ones((len(vms), count), dtype=np.bool_)
    )
    answer = solver.find_fewest(problem, np.zeros(count, dtype=np.bool_), np.array(start), SOLVER_SECONDS)
    return (count if answer.bins is None else len(set(answer.bins.tolist()))), answer.proven


def place(vms: list[Amounts], strategy: str) -> tuple[Engine, list[Placed]]:
    """Each once, in order, nothing moved afterwards."""
    snapshot = Snapshot()
    for number in range(NODES):
        snapshot.put_node(NodeFacts(f"u{number:02}", f"n{number:02}", NODE, True, False, frozenset({"q35"})))
    engine = Engine(snapshot)
    placed = []
    for number, vm in enumerate(vms):
        request = Request(vm, "q35", strategy)
        row = engine.place(request, f"vm{number}", f"a{number}")
        if row is None:
            raise SystemExit(f"vm{number} fits nowhere")
        placed.append(Placed(request, row))
    return engine, placed


def measure() -> Measurement:
    loads = [draw_vms(seed) for seed in SEEDS]
    used: dict[str, list[int]] = {strategy: [] for strategy in ONLINE}
    packed: list[int] = []
    seconds: list[float] = []
    for vms in loads:
        for strategy in ONLINE:
            engine, placed = place(vms, strategy)
            used[strategy].append(len({each.row for each in placed}))
            if strategy == ONLINE[0]:
                began = time.process_time()
                packed.append(repack(engine, placed, solver_seconds=0).nodes_used)
                seconds.append(time.process_time() - began)
    bounds = [find_bound(vms) for vms in loads]
    best, proven = list(bounds), 0
    if solver.is_installed():
        best = []
        for seed, vms in zip(SEEDS, loads, strict=True):
            count, is_proven = solve(vms)
            best.append(count)
            proven += is_proven
            print(f"  seed {seed}: CP-SAT {count}{' proven' if is_proven else ''}", file=sys.stderr, flush=True)
    peer = (
        f"CP-SAT in {SOLVER_SECONDS:g} s: {statistics.mean(best):.2f} (proven for {proven} of {len(best)})"
        if solver.is_installed()
        else f"the sum of what is wanted: {statistics.mean(best):.2f}; no solver is installed"
    )

    def compare(what: str, counts: list[int], goal: float | None) -> Figure:
        more = statistics.mean(c / b for c, b in zip(counts, best, strict=True)) - 1
        return Figure(
            what,
            f"{statistics.mean(counts):.2f} nodes",
            peer,
            f"{100 * more:+.2f} %",
            f"≤ {100 * goal:+.0f} %" if goal is not None else "–",
            more <= goal if goal is not None else None,
        )

    checks = [check_decisions(CHECKED_NODES, CHECKED_DECISIONS, seed) for seed in CHECKS]
    decided, wrong = sum(c.decided + c.refused for c in checks), sum(len(c.wrong) for c in checks)
    return Measurement(
        "optimality",
        f"{VMS} VMs on {NODES} nodes of 64 cores and 256 GiB, seeds {SEEDS[0]} to {SEEDS[-1]}; the ratio is the mean over "
        f"seeds. Online: each once, in order, nothing moved afterwards. Repacking is by our own search alone, "
        f"{statistics.median(seconds):.2f} s of CPU time (median). Single decisions are held against every node by a reference "
        "in plain Python: five strategies, constraints, taints, GPUs, declared resources, overcommitment, departures.",
        [
            compare(f"online, `{ONLINE[0]}`", used[ONLINE[0]], ONLINE_GOAL),
            *(compare(f"online, `{strategy}`", used[strategy], None) for strategy in ONLINE[1:]),
            compare("`--repack`", packed, REPACK_GOAL),
            Figure("the sum of what is wanted", f"{statistics.mean(bounds):.2f} nodes"),
            Figure(
                "single decisions that are the best under their own score",
                f"{100 * (1 - wrong / decided):.2f} % of {decided:,}",
                f"{sum(c.looked_at for c in checks):,} nodes looked at one by one",
                goal="100 %",
                kept=wrong == 0,
            ),
        ],
    )
