"""A disk in Ceph, beside QEMU by hand.

fio runs in a guest that weft starts, and in one of a plain QEMU, each with an RBD image as its disk, in turn: 4 KiB at random and
1 MiB in order, past the guest's caches. Both run all the time, with one vCPU, in control groups with the same limits (as many
cores as the machine has) and weight: QEMU's own work for a disk in Ceph counts as the VM's, and where CPUs are short, its threads
together count as much as the VM's cores. The cluster is one machine's, of two OSDs, so it and the guests share the processors.
Each is first run once without counting. Snapshots of a disk of 256 MiB are taken while its guest runs, and cloned.
"""

from __future__ import annotations

import asyncio
import statistics

from benchmarks.measurement import Figure, Measurement, spread
from benchmarks.rbd.rig import JOBS, Rig, command, read_rate

ROUNDS = 7
SNAPSHOTS = 10
LEAST = 0.9


def measure() -> Measurement:
    with Rig.begin() as rig:
        return asyncio.run(_measure(rig))


async def _measure(rig: Rig) -> Measurement:
    found: dict[str, dict[str, list[float]]] = {who: {job: [] for job in JOBS} for who in ("weft", "qemu")}
    await rig.begin_guests()
    for job in JOBS:
        for ask in (rig.ask_weft, rig.ask_qemu):
            await ask(command(job))
        for number in range(ROUNDS):
            for who in ("weft", "qemu") if number % 2 else ("qemu", "weft"):
                ask = rig.ask_weft if who == "weft" else rig.ask_qemu
                found[who][job].append(read_rate(job, await ask(command(job))))
    await rig.end_guests()
    figures = []
    for job, (what, unit) in JOBS.items():
        ours, theirs = found["weft"][job], found["qemu"][job]
        ratio = statistics.median(ours) / statistics.median(theirs)
        figures.append(
            Figure(
                f"fio: {what}",
                spread(ours, unit, 1.0),
                f"QEMU by hand: {spread(theirs, unit, 1.0)}",
                f"{ratio:.2f}×",
                f"≥ {LEAST}×",
                ratio >= LEAST,
            )
        )
    pauses, clones = await rig.take_snapshots(SNAPSHOTS)
    figures.append(Figure("a snapshot of the running guest: it stands still", spread(pauses)))
    figures.append(Figure("a new volume from a snapshot", spread(clones)))
    return Measurement("rbd", (__doc__ or "").split("\n\n")[1].strip().replace("\n", " "), figures)
