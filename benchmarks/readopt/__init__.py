"""An agent is killed with kill -9 while it cares for twenty guests: how soon has the next one taken hold of them all?

The guests run on one node of the local cluster. The clock starts at the kill and ends when the new agent, which the node
starts by itself, says that it has them; then each guest must answer, with the boot id it had. Their agent's memory is
looked at on the way.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.agent_memory import agents, kilobytes
from benchmarks.measurement import ROOT, Figure, Measurement, spread
from weft.launch.local.init import SETTLED_SECONDS

WEFT = str(Path(sys.executable).parent / "weft")
NODE = "n1"
GUESTS = int(os.environ.get("GUESTS", "20"))
KILLS = 3
LOG = ROOT / ".weft" / "log" / f"agent-{NODE}.log"
PATIENCE_SECONDS = 60.0
TAKEN = re.compile(rb"node \S+ has \d+ allocations and (\d+) running guests")


def weft(*words: str) -> str:
    done = subprocess.run([WEFT, *words], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"weft {' '.join(words)}: {done.stderr[-600:]}")
    return done.stdout


def names() -> list[str]:
    return [f"herd-{number}" for number in range(GUESTS)]


def boot_ids() -> dict[str, Any]:
    items = json.loads(weft("get", "vm", "-l", "bench=readopt", "-o", "json"))["items"]
    return {item["name"]: item["status"]["boot_id"] for item in items}


def agent_of_node() -> int:
    for pid in agents():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if words[words.index("agent") + 1] == NODE:
            return pid
    raise SystemExit(f"no agent of {NODE} runs: make up first")


def kill_and_wait() -> float:
    """Seconds from the kill until the next agent has them all."""
    pid, read = agent_of_node(), LOG.stat().st_size
    begun = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while time.perf_counter() - begun < PATIENCE_SECONDS:
        with LOG.open("rb") as log:
            log.seek(read)
            found = TAKEN.search(log.read())
        if found is not None:
            took = time.perf_counter() - begun
            if int(found[1]) < GUESTS:
                raise SystemExit(f"only {int(found[1])} of {GUESTS} guests were taken hold of")
            return took
        time.sleep(0.005)
    raise SystemExit(f"no agent of {NODE} came back")


def measure() -> Measurement:
    try:
        with ThreadPoolExecutor(4) as pool:
            create = ("vm", "create", "--image", "tiny", "--memory", "128M", "--cpu", "0.25", "--node", NODE)
            list(pool.map(lambda name: weft(*create, "--label", "bench=readopt", "--timeout", "300s", name), names()))
        before = boot_ids()
        took = []
        for _ in range(KILLS):
            took.append(kill_and_wait())
            for name in names():
                weft("vm", "exec", name, "--", "true")
            if boot_ids() != before:
                raise SystemExit("a guest was started again")
            time.sleep(SETTLED_SECONDS + 1)  # such an agent is started again at once
        resident = kilobytes(agent_of_node(), "Rss") / 1024
    finally:
        subprocess.run([WEFT, "vm", "delete", "-l", "bench=readopt", "--yes"], cwd=ROOT, capture_output=True)
    return Measurement(
        "readopt",
        f"{GUESTS} guests of image tiny on one node; its agent is killed {KILLS} times. All kept their boot id and answered.",
        [
            Figure(
                "kill -9 → the next agent has all guests",
                spread(took),
                goal="< 2 s",
                kept=max(took) < 2.0,
            ),
            Figure(f"agent with {GUESTS} guests", f"{resident:.1f} MB resident", goal="< 50 MB", kept=resident < 50.0),
        ],
    )
