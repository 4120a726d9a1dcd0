"""How much of a move may be on its way."""

from __future__ import annotations

import pytest

from weft.agent.moving.window import LEAST_BYTES, choose_window


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
def test_a_path_is_kept_busy_and_little_waits(megabits: float, round_trip_ms: float, least: int, most: int) -> None:
    assert least <= choose_window(megabits * 125_000, round_trip_ms / 1000) <= most
