"""How much of a move may be on its way."""

from __future__ import annotations

import pytest

from weft.agent.moving.window import LEAST_BYTES, QUEUE_SECONDS, adjust_window


@pytest.mark.parametrize(
    ("megabits", "round_trip_ms", "least", "most"),
    [
        (100, 0.2, 150_000, 300_000),  # a near and slow path: some 15 ms of it
        (1000, 0.2, 1_500_000, 2_500_000),
        (100, 100, 2_000_000, 3_000_000),  # a far one: its own content twice
        (1, 0.2, LEAST_BYTES, LEAST_BYTES),
        (0, 0.2, LEAST_BYTES, LEAST_BYTES),
    ],
)
def test_what_waits_too_long_on_a_path_is_bounded_by_what_it_carries(
    megabits: float, round_trip_ms: float, least: int, most: int
) -> None:
    assert least <= adjust_window(0, 0.25, megabits * 125_000, round_trip_ms / 1000, LEAST_BYTES) <= most


def test_nothing_is_bounded_where_nothing_waits() -> None:
    assert adjust_window(0, 0.0, 1e9, 0.001, LEAST_BYTES) == 0


@pytest.mark.parametrize("hiccup_seconds", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("megabits", [1, 100, 10_000])
def test_an_end_that_is_slow_to_wake_keeps_its_path_busy_all_the_same(hiccup_seconds: float, megabits: float) -> None:
    """What such a machine carries is its window once per hiccup. Were the window made by that rate alone, each would shrink
    the other, down to nothing."""
    path, window = megabits * 125_000, LEAST_BYTES
    for _ in range(200):
        rate = min(path, window / hiccup_seconds)
        waits = max(0.0, window - path * hiccup_seconds) / rate
        window = adjust_window(window, waits, rate, 0.0002, LEAST_BYTES)
    assert min(path, window / hiccup_seconds) > 0.8 * path
    assert window <= max(LEAST_BYTES, 1.25 * path * (hiccup_seconds + 3 * QUEUE_SECONDS))
