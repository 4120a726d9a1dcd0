"""A disk in Ceph, beside QEMU by hand.

fio runs in a guest that weft starts, and in one of a plain QEMU, with one RBD image as their disk, in turn: 4 KiB at random and
1 MiB in order, past the guest's caches. The cluster is one machine's, of two OSDs, so it and the guests share the processors.
Snapshots of a disk of 256 MiB are taken while its guest runs, and cloned.
"""

from __future__ import annotations

import asyncio
import statistics

from benchmarks.measurement import Figure, Measurement, spread
from benchmarks.rbd.rig import JOBS, Rig

TURNS = ("weft", "qemu", "qemu", "weft", "weft", "qemu")
SNAPSHOTS = 10
LEAST = 0.9


def measure() -> Measurement:
    with Rig.begin() as rig:
        return asyncio.run(_measure(rig))


async def _measure(rig: Rig) -> Measurement:
    found: dict[str, dict[str, list[float]]] = {"weft": {}, "qemu": {}}
    await rig.fill()
    for who in TURNS:
        run = rig.run_weft if who == "weft" else rig.run_qemu
        for job, rate in (await run()).items():
            found[who].setdefault(job, []).append(rate)
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
