"""A device's numbers over time: a gap where nobody knew, and a plot that has room below zero."""

from __future__ import annotations

from typing import Any

from weft.cli.metrics.device_history import fill, read_properties
from weft.cli.metrics.plot import draw_plot, draw_sparkline


def answer(**of: list[tuple[float, str]]) -> dict[str, Any]:
    result = [
        {"metric": {"property": name}, "values": [[at, value] for at, value in values]} for name, values in of.items()
    ]
    return {"data": {"result": result}}


def test_each_property_is_a_series_and_a_cut_is_a_gap() -> None:
    given = answer(temperature=[(0.0, "-18.5"), (10.0, "-18"), (40.0, "-12")], humidity=[(10.0, "61")])
    series = fill(read_properties(given), 10.0)
    assert [(one["name"], [value for _, value in one["points"]]) for one in series] == [
        ("humidity", [None, 61.0, None, None, None]),
        ("temperature", [-18.5, -18.0, None, None, -12.0]),
    ]
    assert [one["name"] for one in read_properties(given, ["humidity"])] == ["humidity"]
    assert fill(read_properties(answer()), 10.0) == []


def test_values_below_zero_are_drawn_above_the_least_one() -> None:
    assert draw_sparkline([-20.0, -10.0, 0.0], 3) == "▁▅█"
    assert draw_sparkline([0.0, 5.0, 10.0], 3) == "▁▅█"  # as ever where nothing is below
    lines = draw_plot([0.0, 10.0, 20.0], [-20.0, -10.0, -4.0], "", 40, 4)
    assert lines[0] == " -4 ┤  █" and lines[4] == "-20 └───"
