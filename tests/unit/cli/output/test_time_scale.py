"""Calendars have a scale of round local times, and bars that stand where their times are."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.cli.output.gantt import draw_gantt
from weft.cli.output.time_scale import draw_bar, make_scale, write_scale

AT = datetime.fromisoformat("2026-11-24T21:27:41+00:00").timestamp()
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_ticks_are_round_and_the_date_is_said_once_a_day() -> None:
    scale = make_scale(AT, AT + 4 * 3600, 4)
    assert [scale.label(tick, before) for tick, before in zip(scale.ticks, (None, *scale.ticks), strict=False)] == [
        "24 Nov 20:00",
        "22:00",
        "25 Nov 00:00",
        "02:00",
    ]
    assert write_scale(scale, 36) == "20:00       22:00       00:00       "
    assert write_scale(make_scale(AT, AT + 86_400 * 9, 4), 36) == "19 Nov      26 Nov      3 Dec       "


@given(st.floats(0, 4e9), st.floats(3600, 4e8), st.integers(2, 9))
def test_a_scale_holds_its_span_in_few_equal_steps(first: float, span: float, most: int) -> None:
    scale = make_scale(first, first + span, most)
    assert scale.first <= first and scale.last >= first + span
    assert 1 <= len(scale.ticks) - 1 <= most
    assert len({round(b - a) for a, b in zip(scale.ticks, scale.ticks[1:], strict=False)}) == 1
    assert len(write_scale(scale, 36)) == 36
    assert len(draw_bar(scale, first, first + 1, 36, "█", first)) == 36


def test_a_bar_of_one_hour_and_one_of_four_look_different_and_now_is_marked() -> None:
    scale = make_scale(AT, AT + 4 * 3600, 4)
    one, four = (draw_bar(scale, AT + 600, AT + 600 + hours * 3600, 36, "█", AT) for hours in (1, 4))
    assert one.count("█") * 3 < four.count("█")
    assert one.index("│") < one.index("█")


def test_in_the_picture_a_short_lease_s_name_stands_beside_its_bar_and_can_be_read() -> None:
    entry = {"workload": "vm/lecture", "node": "n1", "project": "physics", "kind": "reservation", "state": "Active"}
    short = {**entry, "start": AT, "end": AT + 120}
    late = {**entry, "start": AT + 7 * 3600, "end": AT + 7 * 3600 + 60, "workload": "vm/late"}
    long = {**entry, "start": AT, "end": AT + 7 * 3600, "node": "n2", "workload": "vm/long"}
    held = {**long, "node": "n3", "state": "Suspended", "workload": "vm/held"}
    root = ElementTree.fromstring(draw_gantt([short, late, long, held], AT))
    texts = {text.text: text.attrib for text in root.iter(f"{SVG}text")}
    bars = {
        bar.find(f"{SVG}title").text: bar.attrib
        for bar in root.iter(f"{SVG}rect")
        if bar.find(f"{SVG}title") is not None
    }
    name, bar = texts["physics/vm/lecture"], bars["physics/vm/lecture"]
    assert name["fill"] == "#222" and float(name["x"]) >= float(bar["x"]) + float(bar["width"])
    assert texts["physics/vm/long"]["fill"] == "#fff"
    assert float(texts["physics/vm/late"]["x"]) < float(bars["physics/vm/late"]["x"])  # no room behind it
    assert "stroke-dasharray" in bars["physics/vm/held"] and "stroke-dasharray" not in bars["physics/vm/long"]
    assert "now" in texts and "24 Nov 21:00" in texts


def test_names_never_overlap_the_next_bar_of_their_node(tmp_path: Path) -> None:
    entry = {"node": "n1", "project": "p", "kind": "immediate", "state": "Active"}
    entries = [
        {**entry, "workload": f"vm/number-{n}", "start": AT + 700 * n, "end": AT + 700 * n + 60} for n in range(12)
    ]
    root = ElementTree.fromstring(draw_gantt(entries, AT))
    rows: dict[str, list[tuple[float, float]]] = {}
    for bar in root.iter(f"{SVG}rect"):
        if (title := bar.find(f"{SVG}title")) is not None:
            label = next(t for t in root.iter(f"{SVG}text") if t.text == title.text)
            ends = [
                float(bar.attrib["x"]),
                float(label.attrib["x"]),
                float(bar.attrib["x"]) + float(bar.attrib["width"]),
            ]
            rows.setdefault(bar.attrib["y"], []).append(
                (min(ends), max(ends[2], ends[1] + 6.2 * len(title.text or "")))
            )
    for reach in rows.values():
        ordered = sorted(reach)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ordered))
