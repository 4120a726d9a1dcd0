"""A proof of the soak: a node of a real cluster that hears no server for ten minutes of the clock, and whose agent is killed
meanwhile.

Its VM counts once a second on its disk, and one of its containers ends every 20 s and is begun again. All packets between the node
and the server are dropped, in the node's own network namespace. ``WEFT_SOAK_ALONE`` (seconds) makes it shorter.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from tests.cluster.cluster import Cluster, lay_out, until

from benchmarks.measurement import Figure, Measurement

NODE = "n3"
SECONDS = float(os.environ.get("WEFT_SOAK_ALONE", "600"))
KILL_AFTER = 120.0  # the agent
LOOK_SECONDS = 10.0
MOST_READY = 20.0
MOST_GAP = 5.0  # between two numbers: the machine may be busy; a guest that was restarted lacks far more
COUNT = "n=0; while :; do n=$((n+1)); read up rest < /proc/uptime; echo $n $up >> /root/sold; sleep 1; done"
END = "echo printing; sleep 20; exit 1"


class Outcome(msgspec.Struct, frozen=True):
    cut_seconds: float
    phases: dict[str, int]  # of the node, in the looks while it was cut off
    ready_seconds: float  # after the line was back
    same_guest: bool  # the VM's process is the one that it was
    numbers: int  # that the VM counted
    gap: float  # the longest pause between two of them, by the guest's clock
    lacking: int  # numbers that are not there, or twice
    restarts: int  # of the container in that time, by its status
    told: Counter[str]  # how often each of them came as an event


def measure() -> Measurement:
    folder = Path(tempfile.mkdtemp(prefix="weft-alone-"))
    folder.chmod(0o755)
    cluster = lay_out(folder)
    try:
        cluster.up()
        outcome = _run(cluster)
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    return describe(outcome)


def _run(cluster: Cluster) -> Outcome:
    cluster.ok("image", "build", "busybox", timeout=300)
    cluster.ok("node", "set", NODE, "--autonomy", "1h")
    cluster.ok("vm", "create", "till", "--image", "tiny", "--memory", "128M", "--node", NODE)
    cluster.ok("vm", "exec", "till", "--", "sh", "-c", f"({COUNT}) >/dev/null 2>&1 </dev/null &")
    made = ("--image", "busybox", "--memory", "16M", "--node", NODE, "--restart", "always")
    cluster.ok("container", "create", "label", *made, "--", "sh", "-c", END)
    until(lambda: _restarts(cluster) >= 1)
    before, guest = _restarts(cluster), cluster.pids("guest=till")
    began, phases, killed = time.monotonic(), Counter[str](), False
    with _cut(cluster):
        while (passed := time.monotonic() - began) < SECONDS:
            if passed >= KILL_AFTER and not killed:
                killed = True
                os.kill(cluster.pid(f"weft agent {NODE} --state"), signal.SIGKILL)
                print(f"the agent was killed after {passed:.0f} s", flush=True)
            phases[str(cluster.object("node", NODE)["status"]["phase"])] += 1
            time.sleep(LOOK_SECONDS)
        cut_seconds = time.monotonic() - began
    back = time.monotonic()
    until(lambda: cluster.object("node", NODE)["status"]["phase"] == "Ready", 300)
    ready_seconds = time.monotonic() - back
    print(f"Ready {ready_seconds:.1f} s after the line was back; while it was cut: {dict(phases)}", flush=True)
    until(lambda: cluster.object("container", "label")["status"]["phase"] != "Unknown", 120)
    after = _restarts(cluster)
    until(lambda: f"restart {after}" in _told(cluster), 120)
    numbers = [
        (int(number), float(up))
        for number, up in (
            line.split() for line in cluster.ok("vm", "exec", "till", "--", "cat", "/root/sold").splitlines()
        )
    ]
    told = _told(cluster)
    return Outcome(
        cut_seconds=cut_seconds,
        phases=dict(phases),
        ready_seconds=ready_seconds,
        same_guest=len(guest) == 1 and cluster.pids("guest=till") == guest,
        numbers=len(numbers),
        gap=max(later - earlier for (_, earlier), (_, later) in pairwise(numbers)),
        lacking=sum(number != at for at, (number, _) in enumerate(numbers, 1)),
        restarts=after - before,
        told=Counter({message: count for message, count in told.items() if before < int(message.split()[-1]) <= after}),
    )


def _restarts(cluster: Cluster) -> int:
    report: dict[str, Any] = cluster.object("container", "label")["status"]
    return int(report.get("restarts") or 0)


def _told(cluster: Cluster) -> Counter[str]:
    """How often each restart came as an event."""
    events = json.loads(cluster.ok("events", "container/label", "-o", "json"))["items"]
    found = Counter[str]()
    for event in events:
        if event["reason"] == "GuestRestarted":
            found[str(event["message"])] += int(event.get("count") or 1)
    return found


@contextmanager
def _cut(cluster: Cluster) -> Iterator[None]:
    """Drop every packet between the node and this machine, where the server is."""
    server = cluster.host_address
    chains = (
        f"chain out {{ type filter hook output priority -300; ip daddr {server} drop; }};"
        f" chain in {{ type filter hook input priority -300; ip saddr {server} drop; }};"
    )
    space = Path(f"/proc/{cluster.pid(f'weft agent {NODE} --state')}/ns/net")
    with space.open() as held:  # the agent is killed meanwhile

        def rule(rules: str) -> None:
            inside = ["nsenter", f"--net=/proc/self/fd/{held.fileno()}", "nft", "-f", "-"]
            subprocess.run(inside, input=rules, text=True, check=True, pass_fds=[held.fileno()])

        rule(f"table inet alone {{ {chains} }}")
        try:
            yield
        finally:
            rule("delete table inet alone")


def describe(outcome: Outcome) -> Measurement:
    twice = sum(count - 1 for count in outcome.told.values())
    lost = outcome.restarts - len(outcome.told)
    alone = {phase: count for phase, count in outcome.phases.items() if phase != "Ready"}
    figures = [
        Figure(
            "what the node was called, by looks, after its last heartbeat",
            ", ".join(f"{phase} {count}" for phase, count in alone.items()),
            goal="Autonomous",
            kept=set(alone) == {"Autonomous"},
        ),
        Figure(
            "Ready after the line was back",
            f"{outcome.ready_seconds:.1f} s",
            goal=f"≤ {MOST_READY:.0f} s",
            kept=outcome.ready_seconds <= MOST_READY,
        ),
        Figure(
            "numbers that its VM counted; lost or twice",
            f"{outcome.numbers:,}; {outcome.lacking} (longest pause {outcome.gap:.1f} s)",
            goal="0, in one process",
            kept=outcome.same_guest and outcome.lacking == 0 and outcome.gap <= MOST_GAP,
        ),
        Figure(
            "restarts of its container; of these events lost, twice",
            f"{outcome.restarts}; {lost}, {twice}",
            goal="0, 0",
            kept=outcome.restarts > 0 and lost == 0 and twice == 0,
        ),
    ]
    return Measurement(
        "ten minutes alone, for real",
        f"A node of a real cluster, in its network namespace, whose packets to and from the server are dropped for "
        f"{outcome.cut_seconds:.0f} s; its agent is killed (kill -9) after {KILL_AFTER:.0f} s. Its VM counts once a second on its "
        "disk; one of its containers ends every 20 s and is begun again.",
        figures,
    )
