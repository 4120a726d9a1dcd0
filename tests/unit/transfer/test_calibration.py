"""Plans get better by how those before them went."""

from __future__ import annotations

import random

import msgspec
import pytest

from weft.kinds.fields.allocated_migration import PlannedMigration
from weft.transfer.calibration import EndedMigration, correct_plan, judge, learn
from weft.transfer.plan import USABLE_SHARE

RAW = PlannedMigration(
    mode="plain", duration_seconds=10.0, pause_seconds=0.1, bytes=100_000_000, passes=3, confidence=0.5
)


def ended(
    number: int = 0, *, plan: PlannedMigration = RAW, seconds: float = 12.0, pause: float = 0.2, **changes: object
) -> EndedMigration:
    migration = EndedMigration(
        workload="default/vm/a",
        source="n1",
        target="n2",
        plan=plan,
        duration_seconds=seconds,
        pause_seconds=pause,
        bytes=120_000_000,
        ended_at=float(number),
    )
    return msgspec.structs.replace(migration, **changes)


def test_without_a_past_nothing_is_corrected_and_no_path_is_known() -> None:
    lesson = learn([], "default/vm/a", "n1", "n2")
    assert lesson.path_bytes_per_second == 0
    assert correct_plan(RAW, lesson) == RAW


def test_what_was_off_the_same_way_each_time_is_corrected_and_then_believed() -> None:
    few, many = (
        correct_plan(RAW, learn([ended(number) for number in range(count)], "default/vm/a", "n1", "n2"))
        for count in (1, 20)
    )
    assert RAW.duration_seconds < few.duration_seconds < many.duration_seconds == pytest.approx(12.0, rel=0.02)
    assert many.pause_seconds == pytest.approx(0.2, rel=0.03)
    assert many.bytes == pytest.approx(120_000_000, rel=0.02)
    assert RAW.confidence < few.confidence < many.confidence


def test_learning_from_corrected_plans_does_not_correct_twice() -> None:
    past: list[EndedMigration] = []
    for number in range(30):
        plan = correct_plan(RAW, learn(past, "default/vm/a", "n1", "n2"))
        past.append(ended(number, plan=plan))
    assert past[-1].plan.duration_seconds == pytest.approx(12.0, rel=0.02)


def test_a_plan_is_corrected_by_its_like() -> None:
    short = msgspec.structs.replace(RAW, duration_seconds=0.2)
    past = [ended(n, plan=short, seconds=0.6) for n in range(10)] + [ended(n, seconds=10.0) for n in range(10, 20)]
    lesson = learn(past, "default/vm/a", "n1", "n2")
    assert correct_plan(short, lesson).duration_seconds > 0.5
    assert correct_plan(RAW, lesson).duration_seconds == pytest.approx(10.0, rel=0.05)
    other = msgspec.structs.replace(RAW, mode="xbzrle")
    corrected = correct_plan(other, lesson)
    assert (corrected.duration_seconds, corrected.bytes, corrected.confidence) == (10.0, RAW.bytes, RAW.confidence)


def test_what_a_pause_has_beside_its_bytes_is_learnt_as_a_sum_and_from_other_modes_too() -> None:
    """A node whose disk takes 50 ms for a record takes them whatever the path carries."""
    slow, fast = (msgspec.structs.replace(RAW, pause_seconds=seconds) for seconds in (0.1, 0.03))
    lesson = learn([ended(n, plan=slow, pause=0.15) for n in range(20)], "default/vm/a", "n1", "n2")
    assert correct_plan(fast, lesson).pause_seconds == pytest.approx(0.08, rel=0.1)
    other = msgspec.structs.replace(slow, mode="multifd-zstd")
    assert correct_plan(other, lesson).pause_seconds == pytest.approx(0.15, rel=0.1)
    quick = learn([ended(n, plan=slow, pause=0.02) for n in range(20)], "default/vm/a", "n1", "n2")
    assert 0.005 < correct_plan(fast, quick).pause_seconds < 0.03
    unseen = learn([ended(n, plan=slow, pause=0.0) for n in range(20)], "default/vm/a", "n1", "n2")
    assert correct_plan(slow, unseen).pause_seconds == slow.pause_seconds


def test_a_path_isnt_taken_for_slow_because_compressing_was() -> None:
    squeezed = msgspec.structs.replace(RAW, mode="multifd-zstd")
    past = [ended(0), *(ended(n, plan=squeezed, seconds=120.0) for n in range(1, 6))]
    assert learn(past, "default/vm/a", "n1", "n2").path_bytes_per_second == pytest.approx(10_000_000 / USABLE_SHARE)


def test_the_same_guest_and_the_same_nodes_say_more_than_others() -> None:
    mine = [ended(n, seconds=20.0) for n in range(3)]
    others = [ended(n, seconds=5.0, workload="default/vm/b", source="n3", target="n4") for n in range(10, 17)]
    assert correct_plan(RAW, learn(mine + others, "default/vm/a", "n1", "n2")).duration_seconds > 15


def test_a_path_is_as_fast_as_its_best_move_of_late() -> None:
    def path(*moves: EndedMigration) -> float:
        carried = learn(moves, "default/vm/z", "n2", "n1").path_bytes_per_second * USABLE_SHARE
        return round(carried, -3)

    assert (
        path(ended(1, seconds=12.0), ended(2, seconds=60.0)) == 10_000_000
    )  # either way; a slow one had other reasons
    assert path(*[ended(n, seconds=12.0 if n == 0 else 120.0) for n in range(4)]) == 1_000_000  # it has become slower
    assert path(ended(1, source="n3", target="n1")) == 10_000_000  # better than nothing
    assert path(ended(1, source="n3", target="n4")) == 0
    assert path(ended(1, bytes=1 << 20)) == 0  # too short to tell


def test_a_move_that_people_kept_slow_says_nothing_of_its_path() -> None:
    assert learn([ended(1, limited=True)], "default/vm/a", "n1", "n2").path_bytes_per_second == 0
    both = [ended(1), ended(2, limited=True, seconds=120.0)]
    assert learn(both, "default/vm/a", "n1", "n2").path_bytes_per_second > 10_000_000


def test_noise_leaves_what_is_foreseen_within_its_own_width() -> None:
    draw, past = random.Random(5), []
    for number in range(60):
        plan = correct_plan(RAW, learn(past[-40:], "default/vm/a", "n1", "n2"))
        past.append(
            ended(number, plan=plan, seconds=14.0 * draw.uniform(0.85, 1.15), pause=0.3 * draw.uniform(0.8, 1.2))
        )
    errors = judge(past[10:])
    assert errors.migrations == 50
    assert errors.duration < 0.12
    assert errors.pause < 0.18
    assert judge([]).migrations == 0
