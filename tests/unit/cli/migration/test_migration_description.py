"""A Migration in full, for a person, and the moments that people name for one."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest

from weft.cli.command.explain import Calls
from weft.cli.command.target import Target
from weft.cli.migration.description import describe_migration
from weft.cli.migration.plot import draw_migration
from weft.cli.migration.progress import describe_end
from weft.cli.output.description import describe_object
from weft.cli.output.local_time import read_moment, render_time
from weft.cli.output.terminal import Paint
from weft.cli.session import NotSent, Session
from weft.cli.verbs.describe import _plot
from weft.contracts.clock import SystemClock
from weft.kinds.registry import BY_NAME, find_kind
from weft.objects.errors import InvalidInput

NOW = datetime(2026, 3, 1, 21, 30).astimezone().timestamp()
PLAN = {
    "mode": "plain", "reason": "each pass leaves less", "duration_seconds": 2.0, "pause_seconds": 0.05, "bytes": 64 << 20,
    "passes": 2, "streams": 1, "chunk_bytes": 4096, "ratio": 1.0, "confidence": 0.9, "dirty_bytes_per_second": 5 << 20,
    "path_bytes_per_second": 0, "duration_factor": 1.5, "pause_factor": 1.0, "bytes_factor": 1.0,
}  # fmt: skip
ACTUAL = {"duration_seconds": 4.0, "pause_ms": 40, "bytes": 128 << 20, "passes": 3}
SAMPLES = [
    {
        "elapsed_ms": at * 1000,
        "sent_bytes": at << 20,
        "remaining_bytes": (10 - at) << 20,
        "dirty_bytes_per_second": 9,
    }
    for at in range(1, 9)
]
DRAWN = {"spec": {"workload": "vm/<web>"}, "status": {"samples": SAMPLES, "actual": ACTUAL, "plan": PLAN}}
ERROR = {"duration": 50.0, "pause": 25.0, "bytes": 50.0}


def test_what_was_foreseen_stands_beside_what_came_true_with_units_and_how_far_off_it_was() -> None:
    told = describe_migration({"status": {"plan": PLAN, "actual": ACTUAL, "error": ERROR}}, Paint(False)).splitlines()
    rows = [" ".join(line.split()) for line in told]
    assert "dirty rate 5 MiB/s" in rows and "corrected by past migrations duration ×1.5" in rows
    assert "streams 1, 4 KiB at a time" in rows and not any("path" in row for row in rows), "nothing is known of it"
    assert "PLANNED ACTUAL OFF BY" in rows
    assert "duration 2.0 s 4.0 s 50 % of it" in rows
    assert "downtime 50 ms 40 ms 25 % of it" in rows
    assert "bytes on the wire 64 MiB 128 MiB 50 % of it" in rows


def test_one_that_goes_on_says_how_far_it_is_and_no_downtime_before_it_is_known() -> None:
    progress = {"sent_bytes": 1 << 20, "remaining_bytes": 127 << 20, "total_bytes": 128 << 20}
    told = describe_migration({"status": {"progress": progress}}, Paint(False))
    assert "127 MiB of 128 MiB" in told and "PLANNED" not in told
    assert describe_migration({"status": {"phase": "Pending"}}, Paint(False)) == ""
    assert "downtime" not in describe_end({"status": {"actual": {"duration_seconds": 1.0, "pause_ms": 0}}})


def test_limits_and_moments_of_a_migration_are_told_in_words() -> None:
    spec = {"workload": "vm/web", "bytes_per_second": 0, "pause_ms": 300, "not_before": NOW}
    obj = {"name": "m", "uid": "u", "spec": spec}
    rows = describe_object(obj, find_kind("migration"), lambda since: "0s", None, Paint(False)).splitlines()
    told = [" ".join(row.split()) for row in rows]
    assert "bytes per second no limit" in told and "pause ms 300 ms" in told
    assert f"not before {render_time(NOW)}" in told


def test_its_way_is_drawn_from_its_samples_and_one_that_was_too_short_is_not() -> None:
    picture = ElementTree.fromstring(draw_migration(DRAWN))
    lines = [line.attrib["points"].split() for line in picture.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(points) for points in lines] == [8] * 4
    rates = {point.partition(",")[2] for point in lines[0]}
    assert len(rates) == 1, "each second carried as much"
    assert any("downtime 40 ms" in (text.text or "") for text in picture.iter("{http://www.w3.org/2000/svg}text"))
    assert draw_migration({"status": {"samples": SAMPLES[:1]}}) == ""


def test_a_picture_that_is_only_explained_is_not_written(tmp_path: Path) -> None:
    session, path = Session(SystemClock, {}), tmp_path / "way.svg"
    session.recorder = calls = Calls()
    with pytest.raises(NotSent):
        _plot(session, DRAWN, Target(BY_NAME["migration"], "m1"), path)
    assert not path.exists() and [call["path"] for call in calls.calls] == [f"write {path}"]


@pytest.mark.parametrize(
    ("text", "after"),
    [("2h", 7200), ("22:00", 1800), ("21:00", 23.5 * 3600), ("2026-03-01 23:30", 7200), ("2026-03-01T23:30:00", 7200)],
)
def test_a_moment_is_a_time_of_day_a_date_or_a_while_from_now(text: str, after: float) -> None:
    assert read_moment(text, NOW) - NOW == after


@pytest.mark.parametrize("text", ["", "soon", "25:00", "2026-03-01 21:00", "2026-13-01 10:00", "-1h", "99999999999d"])
def test_what_is_no_moment_or_is_over_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_moment(text, NOW, "--at")
    assert "--at" in refused.value.message and refused.value.hint
