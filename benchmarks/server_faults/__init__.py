"""Three servers that keep a member of the store each, in network namespaces of their own, while one of them is frozen, its link
loses packets or works one way only, its clock jumps, its etcd's disk fills up, or the store uses up its quota.

The benchmark's namespaces are a program's of its own, so that nothing of this reaches the machine's network.
"""

from __future__ import annotations

import subprocess
import sys

import msgspec

from benchmarks.measurement import ROOT, Figure, Measurement

LONGEST_SECONDS = 10.0


class Row(msgspec.Struct):
    """A fault: for how long one client had no answer to a write, and to a read; why writes were refused, if they were."""

    what: str
    write_seconds: float
    read_seconds: float
    refused: dict[str, int] = {}


class Outcome(msgspec.Struct):
    rows: list[Row]
    made: int
    wrong: list[str]


def measure() -> Measurement:
    words = ["unshare", "--net", "--mount", sys.executable, "-m", "benchmarks.server_faults.program"]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    outcome = msgspec.json.decode(done.stdout, type=Outcome)
    lost = Figure(
        "acknowledged writes lost or done twice",
        f"{len(outcome.wrong)} of {outcome.made}",
        goal="0",
        kept=not outcome.wrong,
    )
    summary = (
        "Three servers, each with its member of the store, in network namespaces of their own on one machine, under writers and"
        " readers; the longest time that one client had no answer, from the fault until 10 s after it was mended."
    )
    wrong = f" Wrong: {'; '.join(outcome.wrong[:3])}." if outcome.wrong else ""
    return Measurement("Servers under faults", summary + wrong, [lost, *map(_describe, outcome.rows)])


def _describe(row: Row) -> Figure:
    refused = ", ".join(f"{count} × {reason}" for reason, count in sorted(row.refused.items()))
    value = f"writes {row.write_seconds:.1f} s, reads {row.read_seconds:.1f} s"
    says_why = set(row.refused) == {"storeFull"}
    kept = row.read_seconds <= LONGEST_SECONDS and (row.write_seconds <= LONGEST_SECONDS or says_why)
    return Figure(row.what, value + (f"; refused: {refused}" if refused else ""), goal="≤ 10 s, or a reason", kept=kept)
