"""Reserved VMs on the local cluster, whose nodes are busy: how long after its start each answers, and that none does before.

A ping to each guest goes off twenty times a second, from the router of its network on its node, from before its start on.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from benchmarks.measurement import ROOT, Figure, Measurement

WEFT = str(Path(sys.executable).parent / "weft")
VMS, NEXT_SECONDS, LASTS = 20, 6.0, "12s"
BUSY = 3  # VMs that compute meanwhile, one for each node
MOST_SECONDS = 1.0
PING = Path(__file__).with_name("ping.py")


def weft(*words: str) -> str:
    done = subprocess.run([WEFT, *words], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"weft {' '.join(words)}: {done.stderr[-600:]}")
    return done.stdout


def find_router(node: str, gateway: str) -> list[str]:
    """What runs a command in the router of the network with this gateway, on a node of the local cluster."""
    state = str(ROOT / ".weft")
    found = subprocess.run(["pgrep", "-f", f"init.py weft init {node} --state {state}"], capture_output=True, text=True)
    for pid in reversed(found.stdout.split()):
        inside = ["nsenter", "-t", pid, "-m", "-n"]
        names = subprocess.run([*inside, "ip", "netns", "list"], capture_output=True, text=True).stdout.splitlines()
        for name in (line.split()[0] for line in names if line):
            words = [*inside, "ip", "netns", "exec", name]
            shown = subprocess.run([*words, "ip", "-br", "addr"], capture_output=True, text=True).stdout
            if f"{gateway}/" in shown:
                return words
    raise SystemExit(f"no router of {gateway} on {node}")


def measure() -> Measurement:
    names = [f"lease-{number}" for number in range(VMS)]
    busy = [f"busy-{number}" for number in range(BUSY)]
    pings: dict[str, subprocess.Popen[str]] = {}
    starts: dict[str, float] = {}
    try:
        for name in busy:
            weft(
                "vm",
                "create",
                name,
                "--image",
                "tiny",
                "--memory",
                "128M",
                "--cpu",
                "0.2",
                "--anti-affinity-group",
                "busy",
            )
            weft("vm", "exec", name, "--", "sh", "-c", "while :; do :; done >/dev/null 2>&1 &")
        first = time.time() + 45.0
        for number, name in enumerate(names):
            at = datetime.fromtimestamp(first + number * NEXT_SECONDS).astimezone().isoformat(timespec="milliseconds")
            weft(
                *("vm", "create", name, "--image", "tiny", "--memory", "128M", "--cpu", "0.25", "--grace", "1s"),
                *("--start", at, "--duration", LASTS, "--detach"),
            )
        while len(pings) < VMS:
            for item in json.loads(weft("vm", "list", "-o", "json"))["items"]:
                status, name = item["status"], item["name"]
                if name in pings or name not in names or not status.get("node") or not status.get("address"):
                    continue
                starts[name] = datetime.fromisoformat(status["lease"]["start"]).timestamp()
                if time.time() < starts[name] - 58:
                    continue  # its network isn't on the node yet
                # A router that had no answer asks for an address only once a second: half of the pings begin at the start.
                begin = 0.0 if names.index(name) % 2 else starts[name]
                address = status["address"]
                router = find_router(status["node"], address.rpartition(".")[0] + ".1")
                pings[name] = subprocess.Popen(
                    [*router, sys.executable, "-I", "-S", str(PING), address, str(begin)],
                    stdout=subprocess.PIPE,
                    text=True,
                )
            time.sleep(0.5)
        time.sleep(max(0.0, max(starts.values()) - time.time()) + 5.0)
    finally:
        answers = {name: _end(ping) for name, ping in pings.items()}
        subprocess.run([WEFT, "vm", "delete", *names, *busy, "--yes"], cwd=ROOT, capture_output=True)
    firsts = [_find_first(answers[name], starts[name]) - starts[name] for name in names]
    late, before = firsts[::2], firsts[1::2]
    early = [name for name in names if any(at < starts[name] for at in answers[name])]
    in_time = sum(seconds <= MOST_SECONDS for seconds in firsts)
    return Measurement(
        "lease_start",
        f"{VMS} reserved VMs of image tiny, one every {NEXT_SECONDS:g} s, on three nodes with {BUSY} VMs that compute; from its "
        "start to the first answer to a ping that goes off every 50 ms.",
        [
            Figure("start → answers, median", f"{statistics.median(late) * 1000:.0f} ms", "–", "–", "–"),
            Figure(
                "start → answers, longest", f"{max(late) * 1000:.0f} ms", "–", "–", "≤ 1 s", max(late) <= MOST_SECONDS
            ),
            Figure("in time", f"{in_time} of {len(firsts)}", "–", "–", "all", in_time == len(firsts)),
            Figure("answered before its start", f"{len(early)} of {len(before)} asked", "–", "–", "0", not early),
            Figure("the same, asked before its start, longest", f"{max(before) * 1000:.0f} ms", "–", "–", "–"),
        ],
    )


def _find_first(answers: list[float], start: float) -> float:
    return min((at for at in answers if at >= start), default=float("inf"))


def _end(ping: subprocess.Popen[str]) -> list[float]:
    ping.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        text, _ = ping.communicate(timeout=5)
        return [float(at) for at in text.split()]
    return []
