"""72 hours alone, in virtual time: each event in the middle of them, with three seeds, one case after the other.

The cases are those of ``tests/simulation`` that ``make soak`` runs by themselves; here they are counted and measured, each in a
process of its own. A run that is interrupted goes on where it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import msgspec

from benchmarks.measurement import ROOT, Figure, Measurement, spread
from benchmarks.soak.progress import read_progress

SEEDS = (1, 2, 3)
ALONE = "tests/simulation/test_autonomous_node.py::test_72_hours_alone_lose_and_double_no_guest_and_no_event"
SECRET = "tests/simulation/test_offline_secret.py::test_a_container_starts_again_with_its_secret_while_the_line_is_dead"
EVENTS = {
    **{event: f"{ALONE}[{event}-{{seed}}]" for event in ("agent killed", "power cut", "full disk", "VM deleted")},
    "clock 1970": f"{ALONE}[clock 1970-{{seed}}]",
    "secret changed": f"{SECRET}[{{seed}}-72]",
}
PROGRESS = ROOT / ".weft" / "soak-autonomy.json"


class Case(msgspec.Struct):
    event: str
    case: int
    kept: bool
    cpu: float  # seconds
    memory: int  # bytes at most


class Progress(msgspec.Struct):
    seed: int  # of nothing here: the cases have their own
    done: list[Case] = []


def list_cases() -> list[tuple[str, int]]:
    return [(event, seed) for seed in SEEDS for event in EVENTS]


def run(event: str, seed: int) -> Case:
    """One case, in a process of its own. What pytest says of one that fails is printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "long or not long"]
    child = subprocess.Popen(
        [*command, EVENTS[event].format(seed=seed)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert child.stdout is not None
    said = child.stdout.read().decode(errors="replace")
    child.stdout.close()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    kept = child.returncode == 0
    if not kept:
        print(said, flush=True)
    return Case(event, seed, kept, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def measure() -> Measurement:
    cases = list_cases()
    progress = read_progress(PROGRESS, Progress, lambda kept: len(kept.done) < len(cases))
    PROGRESS.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    for event, seed in cases[len(progress.done) :]:
        case = run(event, seed)
        progress.done.append(case)
        print(f"{event}, seed {seed}: {'kept' if case.kept else 'BROKEN'}, {case.cpu:.0f} s of CPU", flush=True)
        PROGRESS.write_bytes(msgspec.json.encode(progress))
    PROGRESS.unlink(missing_ok=True)
    return describe(progress.done, time.monotonic() - began)


def describe(done: list[Case], seconds: float) -> Measurement:
    def count(cases: list[Case]) -> str:
        return f"{sum(case.kept for case in cases)} of {len(cases)}"

    by_event = {event: [case for case in done if case.event == event] for event in EVENTS}
    figures = [
        Figure(f"{event}: cases kept", count(cases), goal="all", kept=bool(cases) and all(case.kept for case in cases))
        for event, cases in by_event.items()
    ]
    figures.append(Figure("CPU of a case", spread([case.cpu for case in done], "s", 1.0), goal="≤ 240 s"))
    return Measurement(
        "72 hours alone, simulated",
        "A node with two VMs, or with a container that has a secret, is cut off for 72 hours of virtual time; the event comes in "
        "the middle. No guest may be lost, doubled, or restarted without cause, no event lost or brought twice, and the node is "
        "Ready within 30 s of its return, a lost report included. Real agents, API servers and controllers in one process, drivers "
        "that pretend; in the idle hours what only looks, measures or tries again does so less often. The cases took "
        f"{seconds:.0f} s of ours, or the last of them did; "
        f"{max(case.memory for case in done) / 1e6:.0f} MB at most.",
        figures,
    )
