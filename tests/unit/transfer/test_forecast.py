"""What a move is expected to take, by what is known: nothing is made up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.kinds.fields.allocated_migration import PlannedMigration
from weft.kinds.migration import MigrationActual, MigrationForecast, MigrationSpec, MigrationStatus
from weft.transfer.forecast import ONLY_MEMORY, PastMigration, forecast
from weft.transfer.history import was_kept_slow

MIB = 1 << 20
NODES = ("n1", "n2", "n3")


def migration(workload: str = "web", source: str = "n1", target: str = "n2", **more: Any) -> PastMigration:
    figures = {
        "mode": "live",
        "way": "plain",
        "duration_seconds": 4.0,
        "pause_ms": 20,
        "bytes": 200 * MIB,
        "ended_at": 1.0,
    }
    return PastMigration(workload=workload, source=source, target=target, **{**figures, **more})


def foresee(*past: PastMigration, mode: str = "live", rate: int = 0, memory: int = 512 * MIB) -> MigrationForecast:
    return forecast(past, "web", "n1", "n2", mode=mode, memory=memory, bytes_per_second=rate)


def test_where_nothing_is_known_nothing_is_said_but_that() -> None:
    told = foresee()
    assert (told.duration_seconds, told.pause_ms, told.bytes, told.confidence) == (None, None, None, 0.0)
    assert told.basis == "no live migration yet, nor any other between n1 and n2; the guest has 512 MiB of memory"
    assert foresee(migration("db", "n1", "n3")).duration_seconds is None


def test_its_own_moves_over_the_same_path_are_what_counts() -> None:
    past = [migration(duration_seconds=seconds, source="n2", target="n1") for seconds in (4.0, 5.0, 30.0)]
    told = foresee(*past, migration("db", duration_seconds=100.0), migration(source="n3", duration_seconds=50.0))
    assert (told.duration_seconds, told.pause_ms, told.bytes, told.mode) == (5.0, 20, 200 * MIB, "plain")
    assert told.basis == "3 earlier migrations between n1 and n2"
    assert 0.5 < told.confidence < 0.75


def test_a_guest_that_moved_elsewhere_takes_its_bytes_along_at_this_paths_rate() -> None:
    told = foresee(migration(target="n3"), migration("db", bytes=100 * MIB, duration_seconds=2.0))
    assert told.duration_seconds == 4.0 and told.bytes == 200 * MIB
    assert told.basis == "one earlier migration, none between n1 and n2; that path carried 50 MiB/s"
    unknown = foresee(migration(target="n3"))
    assert (unknown.duration_seconds, unknown.bytes, unknown.confidence) == (None, 200 * MIB, 0.0)
    assert "how fast that path is isn't known" in unknown.basis


def test_a_guest_that_never_moved_is_told_by_its_memory_and_hardly_believed() -> None:
    told = foresee(migration("db", bytes=100 * MIB, duration_seconds=2.0, pause_ms=31))
    assert (told.bytes, told.pause_ms, told.confidence) == (512 * MIB, 31, ONLY_MEMORY)
    assert told.duration_seconds == 512 / 50
    cold = foresee(migration("db"), mode="cold")
    assert (cold.duration_seconds, cold.basis) == (None, "no cold migration yet; its disks are copied as they are")


def test_moves_of_the_other_kind_and_those_kept_slow_say_nothing() -> None:
    assert foresee(migration(mode="cold")).basis.endswith("; no live migration yet")
    assert foresee(migration(duration_seconds=60.0, limited=True), migration()).duration_seconds == 4.0
    assert foresee(migration("db", limited=True)).duration_seconds is None


def test_a_limit_that_is_lifted_slows_no_forecast_and_one_that_stands_is_told_by_those_under_it() -> None:
    slow = migration(duration_seconds=60.0, limited=True)
    told = foresee(slow)
    assert (told.duration_seconds, told.bytes) == (None, 200 * MIB)
    assert told.basis == "one earlier migration, kept slow; how fast that path is isn't known"
    assert foresee(slow, migration("db", bytes=100 * MIB, duration_seconds=2.0)).duration_seconds == 4.0
    assert foresee(slow, rate=10 * MIB).duration_seconds == 60.0


@pytest.mark.parametrize(
    ("own", "limit", "seconds", "slow"),
    [(0, 0, 10.0, False), (5 * MIB, 0, 10.0, True), (0, 20 * MIB, 10.0, True), (0, 100 * MIB, 10.0, False)],
)
def test_a_node_kept_a_move_slow_that_came_near_to_its_limit(own: int, limit: int, seconds: float, slow: bool) -> None:
    spec = MigrationSpec(workload="vm/web", bytes_per_second=own)
    actual = MigrationActual(duration_seconds=seconds, bytes=200 * MIB)
    status = MigrationStatus(plan=PlannedMigration(limit_bytes_per_second=limit), actual=actual)
    assert was_kept_slow(spec, status) == slow


def test_it_takes_no_less_than_what_it_is_kept_to() -> None:
    told = foresee(migration(), rate=10 * MIB)
    assert told.duration_seconds == 20.0 and told.basis.endswith("kept below 10 MiB/s")
    assert foresee(migration(), rate=100 * MIB).duration_seconds == 4.0


moves = st.builds(
    PastMigration,
    workload=st.sampled_from(("web", "db")),
    source=st.sampled_from(NODES),
    target=st.sampled_from(NODES),
    mode=st.sampled_from(("live", "cold")),
    way=st.just("plain"),
    duration_seconds=st.floats(1e-3, 1e5),
    pause_ms=st.integers(0, 10**6),
    bytes=st.integers(0, 1 << 45),
    ended_at=st.floats(0, 1e9),
    limited=st.booleans(),
)


@given(st.lists(moves, max_size=20), st.sampled_from(("live", "cold")), st.integers(0, 1 << 40))
def test_whatever_was_its_figures_are_those_of_moves_that_were(past: list[PastMigration], mode: str, rate: int) -> None:
    told = forecast(past, "web", "n1", "n2", mode=mode, memory=512 * MIB, bytes_per_second=rate)
    assert 0.0 <= told.confidence <= 1.0 and told.basis
    assert (told.duration_seconds is not None) >= (told.confidence > 0)
    own = [one for one in past if one.workload == "web" and one.mode == mode]
    if told.bytes is not None and own:
        assert min(one.bytes for one in own) <= told.bytes <= max(one.bytes for one in own)
    if rate and told.duration_seconds is not None and told.bytes:
        assert told.duration_seconds >= told.bytes / rate
