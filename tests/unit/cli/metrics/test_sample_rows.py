"""Samples on a terminal: weft/cli/metrics/samples.py."""

from __future__ import annotations

from typing import Any

from weft.cli.metrics.samples import COLUMNS, Watched, draw_rows, list_measured
from weft.cli.output.table import GAP


def series(name: str, unit: str, *values: float | None, first: float = 100.0) -> dict[str, Any]:
    return {"name": name, "unit": unit, "points": [[first + at, value] for at, value in enumerate(values)]}


def answer(*of: dict[str, Any]) -> dict[str, Any]:
    return {"granularity": 1.0, "from": 0.0, "until": 0.0, "series": list(of)}


def test_rows_of_the_longest_names_and_values_fit_into_80_columns() -> None:
    values = [999.9 * 2**30, None, 5.0] * 100
    rows = draw_rows(
        [
            series("disk.aaaaaaaaaaaaa-123456.read_latency", "s", 9.99999, 0.1),
            series("nic7.received_packets", "packets/s", *values),
            series("nic7.received", "bytes/s", *values),
        ],
        1.0,
        80,
    )
    widths = [max(map(len, column)) for column in zip([one.title for one in COLUMNS], *rows, strict=True)]
    assert rows[0][0] == "disk.aaaaaaaaa….read_latency"
    assert sum(widths) + len(GAP) * (len(widths) - 1) <= 80 and all(row[-1].strip() for row in rows)


def test_now_is_the_newest_value_of_the_last_two_seconds_and_a_gap_when_there_is_none() -> None:
    rows = draw_rows([series("a", "s", 1.0, 2.0, None), series("b", "s", 1.0, None, None)], 1.0, 80)
    assert [row[1] for row in rows] == ["2000.00 ms", "–"]


def test_what_was_always_0_is_named_and_what_was_not_measured_is_left_out() -> None:
    measured, idle = list_measured([series("a", "s", None), series("b", "s", 0.0, None), series("c", "s", 0.0, 1.0)])
    assert [one["name"] for one in measured] == ["c"] and idle == ["b"]


def test_a_watch_keeps_its_range_and_the_newest_word_on_each_point() -> None:
    known = Watched(3.0)
    known.add(answer(series("cpu", "cores", 1.0, 2.0, None)))
    found = known.add(
        answer(series("cpu", "cores", 9.0, 4.0, first=102.0), series("nic0.sent", "bytes/s", 7.0, first=103.0))
    )
    assert found["series"] == [
        {"name": "cpu", "unit": "cores", "points": [[101.0, 2.0], [102.0, 9.0], [103.0, 4.0]]},
        {"name": "nic0.sent", "unit": "bytes/s", "points": [[101.0, None], [102.0, None], [103.0, 7.0]]},
    ]
    assert (found["from"], found["until"]) == (101.0, 103.0)
