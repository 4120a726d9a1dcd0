"""How soon a bad afternoon is found, as tests/cluster/test_bad_afternoon.py plays it: on real guests, with metrics and rules every
two seconds. Each trouble counts from the moment in which it is there until an alert fires, or a line of a log says it."""

from __future__ import annotations

import re
import subprocess
import sys

from benchmarks.measurement import ROOT, Figure, Measurement

PLAY = "tests/cluster/test_bad_afternoon.py"
GOAL_SECONDS = 10.0
WHAT = {
    "guest-killed-for-memory": "a container eats memory: alert",
    "log": "a VM eats memory: its own kernel's line in `weft logs`",
    "node-disk-full": "a pool fills: alert",
    "guest-disk-failed": "…: alert of the guest that stands still",
    "link-lossy": "a link loses 3 of 10 packets: alert",
    "node-unreachable": "an agent hangs: alert",
}
_FOUND = re.compile(r"^\.?([a-z-]+): found after ([0-9.]+) s$", re.MULTILINE)


def measure() -> Measurement:
    argv = [sys.executable, "-m", "pytest", "-q", "-s", PLAY]
    played = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    found = {name: float(seconds) for name, seconds in _FOUND.findall(played.stdout)}
    missing = WHAT.keys() - found.keys()
    if played.returncode or missing:
        raise SystemExit(
            f"{played.stdout[-3000:]}\nnot found: {', '.join(sorted(missing)) or 'nothing, but a test failed'}"
        )
    return Measurement(
        "bad_afternoon",
        "Troubles of real guests, nodes and links, from the moment in which they are there until they are found. Metrics are"
        " recorded and rules evaluated every two seconds; with the defaults it is up to 20 s later.",
        [
            Figure(what, f"{found[name]:.1f} s", goal=f"≤ {GOAL_SECONDS:g} s", kept=found[name] <= GOAL_SECONDS)
            for name, what in WHAT.items()
        ],
    )
