"""How long whoever changes weft waits: ``make check``, and with ``WHOLE=1`` in the environment ``make test`` too.

Each is a command of its own, as people give it; what there was to install is installed before.
"""

from __future__ import annotations

import os
import re
import subprocess
import time

from benchmarks.measurement import ROOT, Figure, Measurement, spread

ROUNDS = 3
CHECK_SECONDS = 60
TEST_SECONDS = 15 * 60
_TOLD = re.compile(r"\d+ (?:passed|failed|error\w*|skipped)")


def run(target: str) -> tuple[float, str]:
    """Seconds that it took, and what pytest counted. Its failures are told, and are no reason to stop."""
    begun = time.perf_counter()
    done = subprocess.run(["make", target], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    seconds = time.perf_counter() - begun
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    counted = ", ".join(_TOLD.findall("".join(last)))
    return seconds, counted or f"exit code {done.returncode}"


def measure() -> Measurement:
    subprocess.run(["make", "install"], cwd=ROOT, check=True, capture_output=True)
    checks = [run("check") for _ in range(ROUNDS)]
    times = [seconds for seconds, _ in checks]
    figures = [
        Figure(
            "`make check`",
            spread(times, "s", 1.0),
            checks[-1][1],
            goal=f"< {CHECK_SECONDS} s",
            kept=sorted(times)[ROUNDS // 2] < CHECK_SECONDS,
        )
    ]
    if os.environ.get("WHOLE"):
        seconds, counted = run("test")
        figures.append(
            Figure("`make test`", f"{seconds:.0f} s", counted, goal=f"≤ {TEST_SECONDS} s", kept=seconds <= TEST_SECONDS)
        )
    return Measurement("checks", "What whoever changes weft waits for.", figures)
