"""``weft vm list`` with 10,000 VMs: whole processes, from start to exit, in turn; selectors are the server's work."""

from __future__ import annotations

import os
import statistics
import subprocess
import time

import msgspec

from benchmarks.fabric_server import WEFT, FabricServer, running_server
from benchmarks.measurement import Figure, Measurement, spread
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Condition, Envelope
from weft.objects.identity import new_uid

VMS = 10_000
RUNS = 7
GOAL_SECONDS = 0.5
SHARE = 100  # one in so many has the label, and one in so many is not running
CASES = [
    ("weft vm list", VMS, GOAL_SECONDS, ["vm", "list"]),
    ("weft vm list -o json", VMS, GOAL_SECONDS, ["vm", "list", "-o", "json"]),
    (f"weft vm list -l tier=db: {VMS // SHARE} match", VMS // SHARE, None, ["vm", "list", "-l", "tier=db"]),
    (
        f"weft vm list --field status.phase=Failed: {VMS // SHARE} match",
        VMS // SHARE,
        None,
        ["vm", "list", "--field", "status.phase=Failed"],
    ),
]
STEPS = ["image", "disk", "network", "boot"]


def make_vm(number: int) -> Envelope:
    """A VM as a fabric at work keeps it: conditions, status and steps are there."""
    rare = number % SHARE == 7
    spec = VmSpec(image="debian-12", cpu=2, memory=512 << 20)
    status = WorkloadStatus(
        phase="Failed" if rare else "Running",
        node=f"n{number % 1000}",
        address=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
        boot_id=new_uid(),
        incarnation=1,
        reason="driverFailed" if rare else "",
        message="the disk could not be made" if rare else "",
        steps=[{"stage": step, "state": "done", "detail": "", "seconds": 0.1} for step in STEPS],
        started_at=1_700_000_000.0,
    )
    types = ("Placed", "Addressed", "Ready")
    return Envelope(
        kind="vm",
        name=f"web-{number:05}",
        uid=new_uid(),
        project="default",
        labels={"app": "shop", "tier": "db" if rare else "web"},
        created_at=time.time() - number,
        spec=msgspec.Raw(msgspec.json.encode(spec)),
        status=msgspec.Raw(msgspec.json.encode(status)),
        conditions=[Condition(type=t, status="True", reason="Done", since=1_700_000_000.0) for t in types],
        finalizers=["workload"],
    )


def time_list(server: FabricServer, words: list[str], expected: int) -> float:
    """Seconds of one whole process; what it prints must be all there is."""
    environ = {**os.environ, "WEFT_CONTEXT": str(server.folder / "context.json")}
    begun = time.perf_counter()
    done = subprocess.run([WEFT, *words], capture_output=True, env=environ)
    took = time.perf_counter() - begun
    is_json = "json" in words
    found = len(msgspec.json.decode(done.stdout)["items"]) if is_json else done.stdout.count(b"\n") - 1
    if done.returncode or found != expected:
        raise SystemExit(f"weft {' '.join(words)}: {found} of {expected}; {done.stderr.decode()[-400:]}")
    return took


def measure() -> Measurement:
    took: dict[str, list[float]] = {what: [] for what, *_ in CASES}
    with running_server("api", [make_vm(n) for n in range(VMS)]) as server:
        for turn in range(RUNS + 1):
            for what, expected, _, words in CASES:
                seconds = time_list(server, words, expected)
                if turn:
                    took[what].append(seconds)
    return Measurement(
        "list",
        f"{VMS:,} VMs as a fabric at work keeps them; whole processes over TLS, output to a pipe. For scale: Incus 6.0 on a "
        "machine like this lists 1,000 instances in 1.8 s.",
        [
            Figure(
                what,
                spread(took[what]),
                goal=f"< {goal * 1000:.0f} ms" if goal else "–",
                kept=statistics.median(took[what]) < goal if goal else None,
            )
            for what, _, goal, _ in CASES
        ],
    )
