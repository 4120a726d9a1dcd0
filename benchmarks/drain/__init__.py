"""A node full of guests is drained, and they move to the two others: how long, against what its link allows?

The node's link is kept to 100 Mbit/s by tbf, and after that left as it is. What the link allows is the time that the bytes that
went over would have taken at its rate; where nothing limits it, the sum of the moves' own times, one after the other. Every
guest must answer afterwards, with the boot id it had.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.measurement import ROOT, Figure, Measurement
from weft.launch.local.topology import NODE_LINK

WEFT = str(Path(sys.executable).parent / "weft")
NODE = "n1"
GUESTS = int(os.environ.get("GUESTS", "20"))
MEMORY = "128M"  # the least that tiny takes
AT_ONCE = 4  # guests that are made, or brought back, while nothing is measured
MEGABITS = 100
PATIENCE = "1200s"


def weft(*words: str) -> str:
    done = subprocess.run([WEFT, *words], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"weft {' '.join(words)}: {done.stderr[-600:]}")
    return done.stdout


def items(*words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(weft(*words, "-o", "json"))["items"]
    return found


def inside(*words: str) -> str:
    """Run in the node's network namespace."""
    pid = json.loads((ROOT / ".weft" / "run" / f"init-{NODE}.pid").read_bytes())["pid"]
    return subprocess.run(["nsenter", "-t", str(pid), "-n", *words], capture_output=True, text=True, check=True).stdout


def shape(megabits: int | None) -> None:
    if megabits is None:
        inside("tc", "qdisc", "del", "dev", NODE_LINK, "root")
    else:
        inside(
            "tc",
            "qdisc",
            "add",
            "dev",
            NODE_LINK,
            "root",
            "tbf",
            "rate",
            f"{megabits}mbit",
            "burst",
            "64kb",
            "latency",
            "50ms",
        )


def sent_bytes() -> int:
    return int(json.loads(inside("ip", "-j", "-s", "link", "show", NODE_LINK))[0]["stats64"]["tx"]["bytes"])


def boot_ids() -> dict[str, str]:
    return {vm["name"]: vm["status"]["boot_id"] for vm in items("get", "vm", "-l", "bench=drain")}


def fill() -> None:
    """All guests on the node; those that have left it come back."""
    names = [f"drained-{number}" for number in range(GUESTS)]
    there = {vm["name"]: vm["status"].get("node") for vm in items("get", "vm", "-l", "bench=drain")}
    create = ("vm", "create", "--image", "tiny", "--memory", MEMORY, "--cpu", "0.25", "--label", "bench=drain")

    def bring(name: str) -> None:
        if name not in there:
            weft(*create, "--timeout", "600s", name)
        elif there[name] != NODE:
            weft("vm", "migrate", name, "--to", NODE)

    others = [node["name"] for node in items("get", "node") if node["name"] != NODE]
    try:
        for node in others:
            weft("node", "cordon", node)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(bring, names))
    finally:
        for node in others:
            weft("node", "uncordon", node)


def clear() -> None:
    """Whoever else is on the node leaves it first, so that both drains are of the same guests."""
    weft("node", "drain", NODE, "--reason", "bench", "--timeout", PATIENCE)
    weft("node", "uncordon", NODE)


def drain() -> tuple[float, int, list[dict[str, Any]]]:
    """Seconds, bytes that left the node, and the Migrations."""
    before, begun = sent_bytes(), time.monotonic()
    known = {item["name"] for item in items("get", "migration")}
    weft("node", "drain", NODE, "--reason", "bench", "--timeout", PATIENCE)
    took, sent = time.monotonic() - begun, sent_bytes() - before
    weft("node", "uncordon", NODE)
    return took, sent, [item for item in items("get", "migration", "-l", f"drain={NODE}") if item["name"] not in known]


def measure() -> Measurement:
    figures, begun = [], time.monotonic()
    clear()
    try:
        for megabits in (MEGABITS, None):
            fill()
            before = boot_ids()
            if megabits is not None:
                shape(megabits)
            try:
                took, sent, moves = drain()
            finally:
                if megabits is not None:
                    shape(None)
            if boot_ids() != before:
                raise SystemExit("a guest was started again")
            for name in before:
                weft("vm", "exec", name, "--", "true")
            came = [migration["status"]["actual"] for migration in moves if migration["status"]["phase"] == "Succeeded"]
            pauses = sorted(migration["pause_ms"] for migration in came)
            own = sum(migration["duration_seconds"] for migration in came)
            allowed = sent * 8 / (megabits * 1e6) if megabits else own
            link = f"{megabits} Mbit/s" if megabits else "unlimited"
            figures += [
                Figure(
                    f"drain of {len(came)} guests, {link}",
                    f"{took:.1f} s, {sent / 1e6:.0f} MB",
                    f"{'the link' if megabits else 'the moves alone'}: {allowed:.1f} s",
                    f"{took / allowed:.2f}",
                    "≤ 1.3" if megabits else "–",
                    took <= 1.3 * allowed if megabits else None,
                ),
                Figure(
                    f"moves that failed and were made again, {link}",
                    str(len(moves) - len(came)),
                    goal="0",
                    kept=len(moves) == len(came),
                ),
                Figure(f"their pauses, {link}", f"{pauses[len(pauses) // 2]} ms, longest {pauses[-1]} ms"),
            ]
    finally:
        subprocess.run([WEFT, "vm", "delete", "-l", "bench=drain", "--yes"], cwd=ROOT, capture_output=True)
    return Measurement(
        "drain",
        f"{GUESTS} idle guests of image tiny, of {MEMORY} each, leave one node for two others; {time.monotonic() - begun:.0f} s.",
        figures,
    )
