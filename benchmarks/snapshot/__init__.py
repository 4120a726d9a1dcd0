"""Snapshots of running guests.

Two guests of 256 MiB count on two disks and in memory: snapshots of one are weft's, those of the other the bare sequence of QEMU's
commands, in turn. Then 50 snapshots are tried for whether all in them is of one instant, and copies begin from kept memory.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import msgspec

from benchmarks.measurement import Figure, Measurement, spread
from benchmarks.snapshot.rig import Rig, Taken

ROUNDS, TRIES, COPIES = 8, 50, 5
PAUSE_MS = 100.0


def measure() -> Measurement:
    return asyncio.run(_measure())


async def _measure() -> Measurement:
    rig = Rig()
    try:
        figures = await _pauses(rig)
        figures.append(await _consistency(rig))
        figures.append(await _copies(rig))
    finally:
        await rig.close()
    return Measurement("snapshot", (__doc__ or "").split("\n\n")[1].strip().replace("\n", " "), figures)


async def _pauses(rig: Rig) -> list[Figure]:
    figures = []
    for what, memory in (("disks only", False), ("with 256 MiB of memory", True)):
        ours, bare = await rig.begin(f"ours-{memory}"), await rig.begin(f"bare-{memory}")
        mine: list[Taken] = []
        theirs: list[Taken] = []
        for turn in range(ROUNDS):
            mine.append(await rig.take(ours, f"k{turn}", memory=memory))
            theirs.append(await rig.take_bare(bare, f"k{turn}", memory=memory))
        if not memory:
            frozen = [await rig.take(ours, f"f{turn}", freeze=True) for turn in range(ROUNDS)]
        for name in (ours, bare):
            await rig.end(name)
        rows = [
            ("the guest stands still", [one.pause for one in mine], [one.pause for one in theirs]),
            (
                "until all is kept" if memory else "until its disks have switched",
                [one.whole for one in mine],
                [one.whole for one in theirs],
            ),
        ]
        if not memory:
            rows.append(
                ("file systems stand still for it", [one.pause for one in frozen], [one.pause for one in theirs])
            )
        for row, own, peer in rows:
            median = statistics.median(own)
            goal = memory and row == rows[0][0]
            figures.append(
                Figure(
                    f"{what}: {row}",
                    spread(own, digits=1),
                    f"by hand {spread(peer, digits=1)}",
                    f"{median / statistics.median(peer):.2f}×",
                    goal=f"< {PAUSE_MS:.0f} ms" if goal else "–",
                    kept=median * 1000 < PAUSE_MS if goal else None,
                )
            )
    return figures


async def _consistency(rig: Rig) -> Figure:
    """Half of them with memory; a guest has so many layers at most that each gets a few snapshots."""
    fits = 0
    for turn in range(TRIES):
        memory, name = turn % 2 == 1, f"try-{turn // 10}"
        if turn % 10 == 0:
            await rig.begin(name)
        fits += await rig.fits(name, f"k{turn}", memory=memory)
        if turn % 10 == 9:
            await rig.end(name)
    return Figure(
        f"{TRIES} snapshots, every other with memory: disks, and memory that goes on, are of one instant",
        f"{fits} of {TRIES}",
        goal="all",
        kept=fits == TRIES,
    )


async def _copies(rig: Rig) -> Figure:
    name = await rig.begin("original")
    plan = rig.plans[name]
    snapshot = await rig.keep(name, "m")
    warm, cold = [], []
    for turn in range(COPIES):
        copy = rig.copy(plan, f"copy-{turn}", snapshot.memory)
        began = time.perf_counter()
        await rig.answer(copy)
        warm.append(time.perf_counter() - began)
        await rig.stop(copy)
        booted = msgspec.structs.replace(rig.copy(plan, f"boot-{turn}", ""))
        began = time.perf_counter()
        await rig.answer(booted)
        cold.append(time.perf_counter() - began)
        await rig.stop(booted)
    await rig.end(name)
    return Figure(
        "restored under a new name with its memory, until it answers as itself",
        spread(warm),
        f"its disks booted {spread(cold)}",
        f"{statistics.median(warm) / statistics.median(cold):.2f}×",
    )
