"""The lesson of past migrations for the next one: how fast the path between two nodes is, and how wrong plans like this one were.

Pure: migrations that succeeded in, a lesson out. A plan is corrected by the plans that were most like it: of the same mode,
about as long, of the same nodes or the same guest, and recent. The more their errors differ, the lower is the confidence in the
corrected plan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from weft.kinds.fields.allocated_migration import MigrationLesson, PastMigration, PlannedMigration
from weft.transfer.plan import USABLE_SHARE

MOST_PAST = 32  # migrations that a lesson is made of
PATH_MIGRATIONS = 3  # the newest ones, whose best is the rate of the path,
UNCOMPRESSED_MIGRATIONS = 1  # and the newest that sent memory as it is: compressing may be slower than the path
LEAST_PATH_BYTES = 8 << 20  # a smaller migration tells little about its path
SAME_NODES, SAME_GUEST = 3.0, 3.0  # weights of such migrations
OTHER_MODE = 0.3  # weight of a migration in another mode for the pause
LEAST_PAUSE_SHARE = 0.3  # of the computed pause: no correction goes below
DOUBT = 1.0  # the weight of one migration like it whose plan was exact
_LEAST_SECONDS = 1e-3
_BARE = ("plain", "auto-converge", "stop-and-copy")


class EndedMigration(msgspec.Struct, kw_only=True, frozen=True):
    """A migration that has succeeded: its plan, and what it actually took."""

    workload: str
    source: str
    target: str
    plan: PlannedMigration
    duration_seconds: float
    pause_seconds: float
    bytes: int
    ended_at: float
    limited: bool = False  # by people, so that its rate isn't the path's


class Errors(NamedTuple):
    """Median errors over ``migrations`` ended ones, as shares of the actual values; 0 where there is none."""

    migrations: int
    duration: float
    pause: float
    bytes: float


def learn(ended: Iterable[EndedMigration], workload: str, source: str, target: str) -> MigrationLesson:
    """The lesson for a migration of ``workload`` from ``source`` to ``target``."""
    nodes, past = {source, target}, list[PastMigration]()
    own, others = _Rates(), _Rates()
    for migration in sorted(ended, key=lambda migration: migration.ended_at, reverse=True):
        same_nodes = {migration.source, migration.target} == nodes
        is_measure = not migration.limited and migration.bytes >= LEAST_PATH_BYTES and migration.duration_seconds > 0
        if is_measure and nodes & {migration.source, migration.target}:
            (own if same_nodes else others).add(migration)
        if len(past) < MOST_PAST and migration.plan.duration_seconds > 0:
            past.append(
                _remember(
                    migration,
                    (SAME_NODES if same_nodes else 1.0) * (SAME_GUEST if migration.workload == workload else 1.0),
                )
            )
    best = own.best() or others.best()
    return MigrationLesson(path_bytes_per_second=int(best / USABLE_SHARE), past=tuple(past))


class _Rates:
    """Bytes a second that migrates over one path have reached, the newest first."""

    def __init__(self) -> None:
        self._all, self._bare = list[float](), list[float]()

    def add(self, migration: EndedMigration) -> None:
        rate = migration.bytes / migration.duration_seconds
        self._all.append(rate)
        if migration.plan.mode in _BARE:
            self._bare.append(rate)

    def best(self) -> float:
        return max(self._all[:PATH_MIGRATIONS] + self._bare[:UNCOMPRESSED_MIGRATIONS], default=0.0)


def _remember(migration: EndedMigration, weight: float) -> PastMigration:
    plan = migration.plan
    return PastMigration(
        mode=plan.mode,
        duration_seconds=round(plan.duration_seconds / plan.duration_factor, 4),
        duration_ratio=round(_ratio(migration.duration_seconds, plan.duration_seconds) * plan.duration_factor, 4),
        pause_seconds=round(plan.pause_seconds / plan.pause_factor, 4) if migration.pause_seconds > 0 else 0.0,
        pause_more_seconds=round(migration.pause_seconds - plan.pause_seconds / plan.pause_factor, 4)
        if migration.pause_seconds > 0
        else 0.0,  # it wasn't measured
        bytes_ratio=round(_ratio(migration.bytes, plan.bytes) * plan.bytes_factor, 4),
        weight=weight,
    )


def correct_plan(planned: PlannedMigration, lesson: MigrationLesson) -> PlannedMigration:
    """The plan, corrected by the errors of plans like it; its factors are what it was multiplied by."""
    pause = _correct_pause(planned, lesson)
    planned = msgspec.structs.replace(planned, pause_seconds=pause, pause_factor=pause / planned.pause_seconds)
    alike = [
        (past, past.weight * _likeness(past.duration_seconds, planned.duration_seconds) / (1 + age / MOST_PAST))
        for age, past in enumerate(lesson.past)
        if past.mode == planned.mode
    ]
    if not alike:
        return planned
    weights = [weight for _, weight in alike]
    known = _known(weights)
    duration, volume = (
        max(0.05, min(20.0, _middle([(ratio(past), weight) for past, weight in alike]))) ** known
        for ratio in (_duration_ratio, _bytes_ratio)
    )
    off = sum(weight * abs(past.duration_ratio / duration - 1) for past, weight in alike) / sum(weights)
    return msgspec.structs.replace(
        planned,
        duration_seconds=planned.duration_seconds * duration,
        bytes=int(planned.bytes * volume),
        confidence=round((1 - known) * planned.confidence + known * max(0.05, 1 - min(1.0, off)), 2),
        duration_factor=duration,
        bytes_factor=volume,
    )


def _correct_pause(planned: PlannedMigration, lesson: MigrationLesson) -> float:
    """The part of a pause that doesn't depend on the bytes that are left is much the same in all modes: devices, a record on
    disk, how busy both nodes are. So the correction is a sum, and other modes count too."""
    alike = [
        (
            past.pause_more_seconds,
            past.weight
            * _likeness(past.pause_seconds, planned.pause_seconds)
            * (1.0 if past.mode == planned.mode else OTHER_MODE)
            / (1 + age / MOST_PAST),
        )
        for age, past in enumerate(lesson.past)
        if past.pause_seconds > 0
    ]
    more = _known([weight for _, weight in alike]) * _middle(alike) if alike else 0.0
    return max(LEAST_PAUSE_SHARE * planned.pause_seconds, planned.pause_seconds + more)


def _known(weights: Sequence[float]) -> float:
    return sum(weights) / (sum(weights) + DOUBT)


def judge(ended: Iterable[EndedMigration]) -> Errors:
    """How wrong the plans of these migrations were."""
    planned = [migration for migration in ended if migration.plan.duration_seconds > 0]
    pairs: list[list[tuple[float, float]]] = [
        [(migration.plan.duration_seconds, migration.duration_seconds) for migration in planned],
        [(migration.plan.pause_seconds, migration.pause_seconds) for migration in planned],
        [(migration.plan.bytes, migration.bytes) for migration in planned],
    ]
    duration, pause, volume = (
        _median([_error(foreseen, actual) for foreseen, actual in these]) if these else 0.0 for these in pairs
    )
    return Errors(len(planned), duration, pause, volume)


def _median(values: list[float]) -> float:
    # Not that of statistics: each agent would load it, and few are asked.
    values.sort()
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def _duration_ratio(past: PastMigration) -> float:
    return past.duration_ratio


def _bytes_ratio(past: PastMigration) -> float:
    return past.bytes_ratio


def _likeness(one: float, other: float) -> float:
    """1 for migrations that take as long, less the more they differ: fixed costs weigh more in short ones."""
    return math.exp(-abs(math.log(max(_LEAST_SECONDS, one) / max(_LEAST_SECONDS, other))))


def _middle(pairs: Sequence[tuple[float, float]]) -> float:
    """The weighted median, which one outlier doesn't shift."""
    ordered, half = sorted(pairs), sum(weight for _, weight in pairs) / 2
    for value, weight in ordered:
        half -= weight
        if half <= 0:
            return value
    return ordered[-1][0]


def _ratio(actual: float, foreseen: float) -> float:
    return max(_LEAST_SECONDS, actual) / max(_LEAST_SECONDS, foreseen)


def _error(foreseen: float, actual: float) -> float:
    return abs(foreseen - actual) / max(_LEAST_SECONDS, actual)
