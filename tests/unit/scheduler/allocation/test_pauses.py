"""What a lease with planned pauses takes of its node, and when."""

from __future__ import annotations

import pytest

from weft.kinds.fields.lease import AllocatedLease, PlannedPause
from weft.scheduler.allocation.count import read_entry

LEASE = AllocatedLease(
    mode="deadline",
    start=10.0,
    prepare_at=10.0,
    end=90.0,
    pauses=(PlannedPause(30.0, 35.0, 50.0), PlannedPause(60.0, 62.0, 70.0)),
)


@pytest.mark.parametrize(
    ("now", "rests", "stretches"),
    [
        (0.0, False, [(10.0, 35.0), (50.0, 62.0), (70.0, 95.0)]),
        (34.0, False, [(10.0, 35.0), (50.0, 62.0), (70.0, 95.0)]),
        (35.0, False, [(10.0, 62.0), (70.0, 95.0)]),  # its node hasn't saved it
        (35.0, True, [(50.0, 62.0), (70.0, 95.0)]),
        (50.0, False, [(50.0, 62.0), (70.0, 95.0)]),
        (80.0, False, [(70.0, 95.0)]),
        (95.0, False, [(70.0, float("inf"))]),  # its node hasn't reported that it has ended
    ],
)
def test_capacity_is_free_in_a_pause_once_the_node_has_saved_the_guest(
    now: float, rests: bool, stretches: list[tuple[float, float]]
) -> None:
    assert list(read_entry("n1", LEASE, 5.0, (1, 1), now, rests=rests).stretches) == stretches
