"""Moving guests between two QEMU drivers: what weft chooses without a hint, against each of QEMU's own modes; and how well it
foresees what a move will cost.

The same guest under the same load moves in one run, there and back, over a link that tbf keeps to 100 Mbit/s and over one that
nothing limits. ``native`` is QEMU alone in one mode from begin to end; weft samples, chooses, corrects and leads. Every
loaded guest verifies what it has written; a guest that lost anything ends the run. For the second part guests are drawn:
sizes, kinds of load and rates; each plan is made before its move, from those before it. For the third one a guest moves in a
cluster of its own, and who asks it meanwhile counts what fails. For the fourth it moves in turn with and without somebody who
watches it.

``LOAD`` (a part of a load's name), ``REPEATS``, ``MOVES`` (foreseen ones), ``CLIENT_MOVES``, ``WATCHED_MOVES`` and
``PATIENCE`` make it shorter, and 0 leaves a part out. A run that is interrupted goes on with the next row, if the code is the same:
``.weft/bench-migration.json``.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from typing import NamedTuple

import msgspec

from benchmarks.measurement import Figure, Measurement
from benchmarks.migration.clients import ask
from benchmarks.migration.kept import Kept, read_kept
from benchmarks.migration.rig import MIB, Migrated, Rig
from benchmarks.migration.watched import compare_watched
from weft.contracts.driver.migration import MigrationMode, MigrationSettings
from weft.kinds.fields.allocated_migration import PlannedMigration
from weft.transfer.calibration import EndedMigration, judge, learn

FORESEEN = int(os.environ.get("MOVES", "66"))
REPEATS = int(os.environ.get("REPEATS", "3"))
ONLY = os.environ.get("LOAD", "")
CLIENT_MOVES = int(os.environ.get("CLIENT_MOVES", "8"))
WATCHED_MOVES = int(os.environ.get("WATCHED_MOVES", "4"))  # of each of the three
LEARNT_FROM = 10  # moves before those that are judged
NATIVE_PATIENCE_SECONDS = float(os.environ.get("PATIENCE", "30"))
NATIVE_PAUSE_MS = 100
LINKS: dict[str, int | None] = {"100 Mbit/s": 100, "unlimited": None}
PREDICTED_LINKS: dict[str, int | None] = {"100 Mbit/s": 100, "400 Mbit/s": 400, "unlimited": None}
NATIVE: tuple[MigrationMode, ...] = ("plain", "xbzrle", "multifd-zstd", "auto-converge")


class Loaded(NamedTuple):
    """A guest: ``kind`` as the verifier's (none: idle)."""

    name: str
    kind: str
    set_mib: int
    rate: float  # 10^6 bytes per second
    memory_mib: int = 128


LOADS = (
    Loaded("idle", "", 0, 0.0),
    Loaded("counters, 20 MB/s", "c", 32, 20.0),
    Loaded("text, 12 MB/s", "t", 32, 12.0),
    Loaded("noise, 20 MB/s", "r", 32, 20.0),
)


async def boot(rig: Rig, load: Loaded) -> None:
    await rig.boot(load.memory_mib, kind=load.kind, set_mib=load.set_mib, megabytes_per_second=load.rate)


class History:
    """What has been moved so far, as ended Migrations would tell it: ``moves`` grows."""

    def __init__(self, moves: list[EndedMigration]) -> None:
        self.migrations = moves

    async def migrate(self, rig: Rig, guest: str, link: str) -> Migrated:
        lesson = learn(self.migrations, guest, link, f"{link}, other end")
        moved = await rig.move_as_planned(lesson)
        await rig.check()
        plan = moved.plan
        if moved.converged and plan is not None:
            self.migrations.append(
                EndedMigration(
                    workload=guest,
                    source=link,
                    target=f"{link}, other end",
                    plan=plan.planned,
                    duration_seconds=moved.duration_seconds,
                    pause_seconds=moved.pause_seconds,
                    bytes=moved.bytes,
                    ended_at=float(len(self.migrations)),
                )
            )
        return moved


async def compare(rig: Rig, kept: Kept) -> list[Figure]:
    history = History(kept.compared)
    for load in [load for load in LOADS if ONLY in load.name]:
        left = {link: megabits for link, megabits in LINKS.items() if f"{load.name}, {link}" not in kept.rows}
        if left:
            await boot(rig, load)
        for link, megabits in left.items():
            rig.link.shape(megabits)
            limit = int(megabits * 125_000 * 0.92) if megabits else 0
            native: dict[str, Migrated] = {}
            for mode in NATIVE:
                slowdown = 0.2 if mode == "auto-converge" else 0.0
                settings = MigrationSettings(
                    mode=mode,
                    bytes_per_second=limit,
                    pause_ms=NATIVE_PAUSE_MS,
                    slowdown=slowdown,
                    cache_bytes=max(64, load.memory_mib) * MIB,
                )
                native[mode] = await rig.migrate(settings, patience=NATIVE_PATIENCE_SECONDS)
                await rig.check()
                say_native(f"{load.name}, {link}", native[mode])
            await history.migrate(rig, load.name, link)  # the first one doesn't know the path yet
            ours = [await history.migrate(rig, load.name, link) for _ in range(REPEATS)]
            row = kept.rows[f"{load.name}, {link}"] = describe_pair(f"{load.name}, {link}", native, ours)
            kept.save()
            for told in row:
                print(*(part for part in msgspec.structs.astuple(told) if part != "–"), sep=" | ", flush=True)
    return [figure for row in kept.rows.values() for figure in row]


def say_native(what: str, moved: Migrated) -> None:
    told = (
        f"{moved.duration_seconds:.2f} s, pause {moved.pause_seconds * 1000:.0f} ms, {moved.bytes / 1e6:.0f} MB"
        if moved.converged
        else f"given up after {moved.duration_seconds:.0f} s"
    )
    print(f"  {what}: QEMU alone, {moved.mode}: {told}", flush=True)


def describe_pair(what: str, native: dict[str, Migrated], ours: list[Migrated]) -> list[Figure]:
    ended = {mode: moved for mode, moved in native.items() if moved.converged}
    modes = "/".join(sorted({moved.mode for moved in ours}))
    pause = max(moved.pause_seconds for moved in ours)
    seconds = statistics.median(moved.duration_seconds for moved in ours)
    volume = statistics.median(moved.bytes for moved in ours)
    endless = [mode for mode in native if mode not in ended]
    told = f"not within {NATIVE_PATIENCE_SECONDS:.0f} s: {', '.join(endless)}" if endless else ""
    if not ended:
        return [Figure(f"{what}: time ({modes})", f"{seconds:.1f} s, pause {pause * 1000:.0f} ms", peer=told)]
    still, soon, small = (min(ended, key=lambda mode: key(ended[mode])) for key in (_pause, _seconds, _bytes))
    best_pause, best_seconds, best_bytes = _pause(ended[still]), _seconds(ended[soon]), _bytes(ended[soon])
    least = f" (least: {small} {_bytes(ended[small]) / 1e6:.0f} MB)" if small != soon else ""
    aim = min(best_pause + 0.02, 0.1) if what.startswith("idle") else best_pause + 0.02
    return [
        Figure(
            f"{what}: longest pause of {len(ours)} ({modes})",
            f"{pause * 1000:.0f} ms",
            f"{still} {best_pause * 1000:.0f} ms",
            f"{(pause - best_pause) * 1000:+.0f} ms",
            f"≤ {aim * 1000:.0f} ms",
            pause <= aim,
        ),
        Figure(
            f"{what}: time",
            f"{seconds:.2f} s",
            f"{soon} {best_seconds:.2f} s; {told}".rstrip("; "),
            f"{seconds / best_seconds:.2f}",
            "≤ 1.05",
            seconds <= 1.05 * best_seconds,
        ),
        Figure(
            f"{what}: bytes",
            f"{volume / 1e6:.0f} MB",
            f"{soon} {best_bytes / 1e6:.0f} MB{least}",
            f"{volume / best_bytes:.2f}",
            "≤ 1",
            round(volume / best_bytes, 2) <= 1,  # ours as TLS
        ),
    ]


def _pause(moved: Migrated) -> float:
    return moved.pause_seconds


def _seconds(moved: Migrated) -> float:
    return moved.duration_seconds


def _bytes(moved: Migrated) -> float:
    return float(moved.bytes)


async def foresee(rig: Rig, kept: Kept) -> list[Figure]:
    """Guests drawn with a fixed seed, each moved once over each link, in any order."""
    history = History(kept.foreseen)
    for number in range(kept.guests, -(-FORESEEN // len(PREDICTED_LINKS))):
        draw = random.Random(f"11/{number}")
        kind = ("", "c", "r", "t")[number % 4]
        memory = draw.choice((96, 128, 160, 192))
        set_mib = draw.randint(8, memory // 4)
        load = Loaded(f"guest-{number}", kind, set_mib, draw.uniform(max(1, set_mib / 6), 24), memory)
        await boot(rig, load)
        for link in draw.sample(sorted(PREDICTED_LINKS), len(PREDICTED_LINKS)):
            rig.link.shape(PREDICTED_LINKS[link])
            moved = await history.migrate(rig, load.name, link)
            kept.converged += moved.converged
            kept.migrations += 1
            assert moved.plan is not None
            print(
                f"{load.name} {kind or 'idle'} {memory} MiB {load.rate:.0f} MB/s, {link}, {moved.mode}: "
                f"{moved.duration_seconds:.2f} s (foreseen {moved.plan.planned.duration_seconds:.2f}), "
                f"pause {moved.pause_seconds * 1000:.0f} ms ({moved.plan.planned.pause_seconds * 1000:.0f}), "
                f"{moved.bytes / 1e6:.0f} MB ({moved.plan.planned.bytes / 1e6:.0f}), believed {moved.plan.planned.confidence}",
                flush=True,
            )
        kept.guests = number + 1
        kept.save()
    judged = history.migrations[LEARNT_FROM:]
    errors = judge(judged)
    raw = judge([msgspec.structs.replace(migration, plan=_uncorrected(migration.plan)) for migration in judged])
    return [
        Figure(
            f"{errors.migrations} migrations of {kept.guests} different guests: median error of the time foreseen",
            f"{errors.duration:.0%}",
            f"{raw.duration:.0%} without learning",
            goal="≤ 15 %",
            kept=errors.duration <= 0.15,
        ),
        Figure(
            "… of the pause", f"{errors.pause:.0%}", f"{raw.pause:.0%} without", goal="≤ 30 %", kept=errors.pause <= 0.3
        ),
        Figure("… of the bytes", f"{errors.bytes:.0%}", f"{raw.bytes:.0%} without"),
        Figure(
            "moves that ended",
            f"{kept.converged} of {kept.migrations}",
            goal="all",
            kept=kept.converged == kept.migrations,
        ),
    ]


def _uncorrected(plan: PlannedMigration) -> PlannedMigration:
    return msgspec.structs.replace(
        plan,
        duration_seconds=plan.duration_seconds / plan.duration_factor,
        pause_seconds=plan.pause_seconds / plan.pause_factor,
        bytes=round(plan.bytes / plan.bytes_factor),
    )


async def _measure(kept: Kept) -> list[Figure]:
    rig = Rig()
    try:
        return [*(await compare(rig, kept) if REPEATS else []), *(await foresee(rig, kept) if FORESEEN else [])]
    finally:
        await rig.close()


def measure() -> Measurement:
    kept, began = read_kept(f"{ONLY} {REPEATS} {FORESEEN} {NATIVE_PATIENCE_SECONDS}"), time.monotonic()
    before = (
        f", after {len(kept.rows)} rows and {kept.migrations} foreseen moves of a run before it" if kept.rows else ""
    )
    figures = asyncio.run(_measure(kept))
    if CLIENT_MOVES:
        figures += ask(CLIENT_MOVES)
    if WATCHED_MOVES:
        figures += compare_watched(WATCHED_MOVES)
    kept.forget()
    return Measurement(
        "migration",
        "Guests of image tiny between two QEMU drivers, over a link between two namespaces; pauses from the source's stop to the "
        "target's run, bytes as they left it. QEMU alone goes through a bare relay, weft through agents' listeners, with TLS. "
        "Time and bytes are compared with those of one and the same of QEMU's modes, the soonest: fewer bytes that take longer "
        "are no better move. The pause is compared with the shortest one of any mode. All of "
        f"{', '.join(NATIVE)} were tried, each once, with a downtime limit of {NATIVE_PAUSE_MS} ms, and given up after "
        f"{NATIVE_PATIENCE_SECONDS:.0f} s. {time.monotonic() - began:.0f} s{before}.",
        figures,
    )
