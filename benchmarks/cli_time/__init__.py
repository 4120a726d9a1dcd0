"""The command line's own time: ``--help`` under 150 ms, a ``get`` against a running server under 300 ms, whole processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measurement import ROOT, Figure, Measurement, spread

WEFT = str(Path(sys.executable).parent / "weft")
RUNS = 15


def time_process(argv: list[str]) -> float:
    begun = time.perf_counter()
    done = subprocess.run(argv, cwd=ROOT, capture_output=True)
    took = time.perf_counter() - begun
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)}: {done.stderr.decode()[-400:]}")
    return took


def measure() -> Measurement:
    bare = [sys.executable, "-c", "import click"]
    cases = [("weft --help", [WEFT, "--help"], 0.150), ("weft get vm", [WEFT, "get", "vm"], 0.300)]
    figures = []
    for what, argv, goal in cases:
        ours, peers = [], []
        for _ in range(RUNS + 1):
            ours.append(time_process(argv))
            peers.append(time_process(bare))
        ours, peers = ours[1:], peers[1:]
        ratio = statistics.median(ours) / statistics.median(peers)
        figures.append(
            Figure(
                what,
                spread(ours),
                "python -c 'import click' " + spread(peers),
                f"{ratio:.2f}×",
                f"< {goal * 1000:.0f} ms",
                statistics.median(ours) < goal,
            )
        )
    return Measurement(
        "cli_time",
        "Whole processes, in turn with a bare interpreter that imports click, against the local cluster.",
        figures,
    )
