"""What a run of the department's soak has proven, and the figures that say so."""

from __future__ import annotations

import statistics
from collections import Counter

import msgspec

from benchmarks.measurement import Figure, Measurement
from benchmarks.soak.department.leases import AT_ONCE_SECONDS, AWAY_SECONDS, KILLED_SECONDS, START_SECONDS


class Progress(msgspec.Struct):
    """What was proven up to ``rounds``."""

    seed: int
    rounds: int = 0
    killed: dict[str, int] = {}
    acts: dict[str, int] = {}
    ends: dict[str, int] = {}  # of promised leases, by whether they answered at their start
    requests: dict[str, int] = {}  # of those whose rights come and go
    looks: int = 0
    lost: dict[str, int] = {}  # nodes, by how they were lost
    suspended: int = 0  # times that a VM with a budget was suspended for others
    latest: list[float] = []
    longest_heal: float = 0.0
    broken: str = ""


def describe(progress: Progress, rounds: int, since: int, seconds: float) -> Measurement:
    whole = progress.rounds >= rounds and not progress.broken
    ends, requests = Counter(progress.ends), Counter(progress.requests)
    told = ", ".join(f"{number} {what}" for what, number in sorted(progress.acts.items()))
    killed = ", ".join(f"{number} {what}" for what, number in sorted(progress.killed.items()))
    lost = ", ".join(f"{number} {what}" for what, number in sorted(progress.lost.items())) or "none"
    late = ("late, killed", "late, node lost", "late, begun at once")
    starts = ends["in time"] + sum(ends[which] for which in late) + ends["missed, told"] + ends["missed"]
    latest = progress.latest or [0.0]
    return Measurement(
        "A department under kills",
        f"Seed {progress.seed}, three projects: {told}; kill -9 of {killed}; nodes lost: {lost}; {seconds:.0f} s"
        + (f", after {since} rounds of a run before it" if since else "")
        + (f". Broken: {progress.broken}" if progress.broken else "."),
        [
            Figure(
                "rounds after which nothing was lost, and all was as acknowledged",
                str(progress.rounds),
                goal=str(rounds),
                kept=whole,
            ),
            Figure(
                f"promised leases that answered within {START_SECONDS:g} s after their start, and not before",
                f"{ends['in time']} of {starts}",
            ),
            Figure(
                f"the same, within {START_SECONDS + KILLED_SECONDS:g} s: an agent or the server was killed then",
                str(ends["late, killed"]),
            ),
            Figure(
                f"the same, within {START_SECONDS + AWAY_SECONDS:g} s: a node was lost then",
                str(ends["late, node lost"]),
            ),
            Figure(
                f"the same, within {START_SECONDS + AT_ONCE_SECONDS:g} s: with a deadline, begun as soon as there was capacity",
                str(ends["late, begun at once"]),
            ),
            Figure(
                "missed their start: with a reason, without",
                f"{ends['missed, told']}, {ends['missed']}",
                goal="–, 0",
                kept=not ends["missed"],
            ),
            Figure("start → answers, median and longest", f"{statistics.median(latest):.1f} s, {max(latest):.1f} s"),
            Figure(
                "looks that found a node or slot promised twice, a workload placed twice, a gang split, a reservation not whole, "
                "or a quota, ceiling or disruption budget exceeded",
                f"0 of {progress.looks}" if whole else "?",
                goal="0",
                kept=whole,
            ),
            Figure(
                "requests of people whose rights came and went: allowed, refused; none otherwise from 1 s after the change on",
                f"{requests['allowed']}, {requests['refused']}",
                kept=whole,
            ),
            Figure(
                "writes found in the audit log as they were answered", str(requests["audited"]), goal="all", kept=whole
            ),
            Figure("suspensions of two VMs that a budget protects, one at a time", str(progress.suspended)),
            Figure("longest round until all was as acknowledged", f"{progress.longest_heal:.1f} s"),
        ],
    )
