"""GPU packing by the protocol published with the openb trace (Weng et al., ATC 2023): every strategy on the same arrivals, on
the half of the trace that is in the shared data. The published figures are of the whole trace."""

from __future__ import annotations

import csv
import gzip
import os
import statistics
import sys
import time
from fractions import Fraction
from pathlib import Path

from benchmarks.measurement import Figure, Measurement
from weft.contracts.clock import SystemClock
from weft.scheduler.simulate.input import Input, read_input
from weft.scheduler.simulate.run import FabricState, Plan, Simulation

DATA = Path(os.environ.get("WEFT_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "openb"
MIXES = ("default", "gpushare100", "multigpu50", "gpuspec33", "cpu250")
STRATEGIES = ("fragmentation", "fgd", "best_fit", "random")
PUBLISHED = {"fgd": "06-FGD", "best_fit": "05-BestFit", "random": "01-Random"}
SEEDS = range(1, 11)
LEAST_GAIN = 0.5  # points, on the default mix

Runs = dict[str, list[dict[float, FabricState]]]  # by strategy, one entry a seed: by arrived percent


def read_mix(mix: str, strategy: str) -> Input:
    nodes, pods = DATA / "openb_node_list_all_node.csv.gz", DATA / f"openb_pod_list_{mix}.csv.gz"
    return read_input(nodes, pods, "openb", strategy)


def run(mix: str, strategy: str, seed: int) -> dict[float, FabricState]:
    """The states at the checkpoints, up to 100 % arrived."""
    found = read_mix(mix, strategy)
    plan = Plan("shuffled", seed, Fraction(1))
    outcome = Simulation(found.nodes, found.workloads, plan, SystemClock()).run(lambda *_: None)
    return {state.arrived_percent: state for state in outcome.checkpoints}


def read_published(mix: str, strategy: str) -> str:
    """The published mean of GPU allocation at 100 % arrived, as text."""
    with gzip.open(DATA / "published_allo.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            if (row["workload"], row["policy"]) == (f"openb_pod_list_{mix}", PUBLISHED.get(strategy)):
                if float(row["arrived_pct_of_gpu_capacity"]) == 100:
                    return f"{float(row['mean']):.2f} %"
    return "–"


def measure() -> Measurement:
    figures: list[Figure] = []
    began = time.process_time()
    for mix in MIXES:
        runs: Runs = {}
        for strategy in STRATEGIES:
            runs[strategy] = [run(mix, strategy, seed) for seed in SEEDS]
            print(f"{mix} {strategy}: {_tell(runs[strategy])}", file=sys.stderr, flush=True)
        figures += compare(mix, runs)
    seconds = time.process_time() - began
    return Measurement(
        "packing",
        f"Of all GPUs those allocated when 100 % of them were asked for, and those fragmented at 90 %; mean of seeds 1–{len(SEEDS)}"
        " (range), half of the trace. The peer is fgd in the same run, as published with best-fit among equals; best_fit and "
        f"random stand beside what was published for them, on the whole trace. {seconds:.0f} s of CPU time in all.",
        figures,
    )


def compare(mix: str, runs: Runs) -> list[Figure]:
    """The rows of one mix."""
    ours, peer = (_allocated(runs[name]) for name in ("fragmentation", "fgd"))
    gain = statistics.mean(ours) - statistics.mean(peer)
    least = LEAST_GAIN if mix == "default" else 0.0
    lost, peer_lost = (_fragmented(runs[name]) for name in ("fragmentation", "fgd"))
    better = sum(one > other for one, other in zip(ours, peer, strict=True))
    figures = [
        Figure(
            f"{mix}: GPUs allocated",
            _spread(ours),
            f"fgd {_spread(peer)}; published {read_published(mix, 'fgd')}",
            f"{gain:+.2f} points, {better} of {len(ours)} seeds",
            f"≥ +{least} points" if least else "above fgd",
            gain >= least and gain > 0,
        ),
        Figure(
            f"{mix}: GPUs fragmented at 90 %",
            _spread(lost),
            f"fgd {_spread(peer_lost)}",
            f"{statistics.mean(lost) - statistics.mean(peer_lost):+.2f} points",
            "≤ fgd",
            statistics.mean(lost) <= statistics.mean(peer_lost),
        ),
    ]
    for strategy in ("best_fit", "random"):
        published = f"published {read_published(mix, strategy)}"
        figures.append(Figure(f"{mix}: GPUs allocated by {strategy}", _spread(_allocated(runs[strategy])), published))
    return figures


def _allocated(states: list[dict[float, FabricState]]) -> list[float]:
    return [state[100.0].allocation_percent["gpu"] for state in states]


def _fragmented(states: list[dict[float, FabricState]]) -> list[float]:
    return [state[90.0].fragmented_gpu_percent for state in states]


def _tell(states: list[dict[float, FabricState]]) -> str:
    return f"{_spread(_allocated(states))} allocated, {_spread(_fragmented(states))} fragmented at 90 %"


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} % ({min(values):.2f}–{max(values):.2f})"
