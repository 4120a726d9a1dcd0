"""The forecast of a migration before its guest is measured, from earlier migrations of the same guest and over the same path. Pure.

Without any there is no forecast: only its node can measure what a guest writes, and what is on its disks, and only when the
migration begins.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence, Set

import msgspec

from weft.kinds.migration import MigrationForecast
from weft.objects.quantity import format_bytes
from weft.transfer.calibration import LEAST_PATH_BYTES

MOST_PAST = 8  # the newest of the same guest
PATH_MIGRATIONS = 3  # the newest ones, whose best is the rate of the path
OTHER_PATH = 0.5  # factor of the confidence for a guest's migrations between other nodes
ONLY_MEMORY = 0.2  # confidence in its memory and its path alone


class PastMigration(msgspec.Struct, frozen=True, kw_only=True):
    """A migration that has succeeded."""

    workload: str
    source: str
    target: str
    mode: str
    way: str = ""  # the mode of its memory: plain, …
    duration_seconds: float
    pause_ms: int
    bytes: int
    ended_at: float
    limited: bool = False  # by people


def forecast(
    past: Sequence[PastMigration],
    workload: str,
    source: str,
    target: str,
    *,
    mode: str,
    memory: int,
    bytes_per_second: int = 0,
) -> MigrationForecast:
    """The forecast of a migration of ``workload`` between two nodes; ``past`` has the newest first, ``memory`` is the guest's in
    bytes, ``bytes_per_second`` a limit (0: none)."""
    nodes = {source, target}
    mine = [migration for migration in past if migration.workload == workload and migration.mode == mode]
    free = [migration for migration in mine if not migration.limited]
    known = (free or mine if bytes_per_second else free)[:MOST_PAST]
    here = [migration for migration in known if {migration.source, migration.target} == nodes]
    rate, path = find_path_rate(past, nodes), f"{source} and {target}"
    if here:
        forecast = _from_own(here)
        forecast = msgspec.structs.replace(forecast, basis=f"{_count(here)} between {path}")
    elif mine:
        mine = (free or mine)[:MOST_PAST]
        forecast = _from_own(mine)
        seconds = (forecast.bytes or 0) / rate if rate else None
        but = f"none between {path}" if free else "kept slow"
        carried = f"that path carried {format_bytes(int(rate))}/s" if rate else "how fast that path is isn't known"
        forecast = msgspec.structs.replace(
            forecast,
            duration_seconds=seconds,
            confidence=round(forecast.confidence * OTHER_PATH, 2) if seconds is not None else 0.0,
            basis=f"{_count(mine)}, {but}; {carried}",
        )
    elif mode == "live" and rate:
        pauses = [
            migration.pause_ms
            for migration in past
            if {migration.source, migration.target} == nodes and migration.mode == mode
        ]
        forecast = MigrationForecast(
            duration_seconds=memory / rate,
            pause_ms=round(statistics.median(pauses)) if pauses else None,
            bytes=memory,
            confidence=ONLY_MEMORY,
            basis=f"its memory once at {format_bytes(int(rate))}/s, as the path carried, without disks; no live migration yet",
        )
    else:
        ways = {
            "cold": "its disks are copied as they are",
            "saved": f"its disks and up to {format_bytes(memory)} of saved memory are copied as they are",
        }
        what = ways.get(mode, f"the guest has {format_bytes(memory)} of memory")
        so_far = f"no {mode} migration yet" + ("" if rate else f", nor any other between {path}")
        return MigrationForecast(basis=f"{so_far}; {what}")
    if bytes_per_second and forecast.bytes:
        forecast = _keep_to(forecast, bytes_per_second, forecast.bytes)
    return forecast


def _from_own(migrations: Sequence[PastMigration]) -> MigrationForecast:
    """The median of the same guest's migrations; the confidence grows with their number, and falls as they differ."""
    seconds = statistics.median(migration.duration_seconds for migration in migrations)
    off = statistics.median(abs(migration.duration_seconds / seconds - 1) for migration in migrations)
    known = len(migrations) / (len(migrations) + 1)
    return MigrationForecast(
        mode=migrations[0].way,
        duration_seconds=seconds,
        pause_ms=round(statistics.median(migration.pause_ms for migration in migrations)),
        bytes=round(statistics.median(migration.bytes for migration in migrations)),
        confidence=round(known * max(0.1, 1 - off), 2),
    )


def find_path_rate(past: Sequence[PastMigration], nodes: Set[str]) -> float:
    """The best recent rate of the path between these nodes, in bytes a second; 0: unknown."""
    rates = [
        migration.bytes / migration.duration_seconds
        for migration in past
        if {migration.source, migration.target} == nodes
        and not migration.limited
        and migration.bytes >= LEAST_PATH_BYTES
    ]
    return max(rates[:PATH_MIGRATIONS], default=0.0)


def _keep_to(forecast: MigrationForecast, bytes_per_second: int, volume: int) -> MigrationForecast:
    least = volume / bytes_per_second
    if forecast.duration_seconds is not None and forecast.duration_seconds >= least:
        return forecast
    slow = f"kept below {format_bytes(bytes_per_second)}/s"
    return msgspec.structs.replace(forecast, duration_seconds=least, basis=f"{forecast.basis}; {slow}")


def _count(migrations: Sequence[PastMigration]) -> str:
    return "one earlier migration" if len(migrations) == 1 else f"{len(migrations)} earlier migrations"
