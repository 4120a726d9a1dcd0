"""When a node says that its table of connections fills."""

from __future__ import annotations

from weft.agent.node.capabilities import grade_fill


def test_a_table_is_reported_from_80_percent_in_steps_and_until_it_is_below_75() -> None:
    reported, before = [], 0
    for count in (10, 79, 80, 84, 91, 100, 78, 74, 79):
        before = grade_fill(count, 100, before)
        reported.append(before)
    assert reported == [0, 0, 80, 80, 90, 100, 75, 0, 0]
    assert grade_fill(0, 0, 0) == 0
