"""Samples in files: what was measured is read as it was, at every step; what wasn't is a gap, whatever happened."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from weft.objects.errors import InvalidInput
from weft.telemetry.samples.file import SampleFile, find_file, open_file
from weft.telemetry.samples.layout import HEADER_BYTES, LEVELS, NAN, Layout, Series, decode_header, encode_header
from weft.telemetry.samples.query import answer, plan_question

SERIES = (Series("cpu", "cores"), Series("memory.resident", "bytes"), Series("steal", "cores"))
NOW = 1_800_000_000.0  # the beginning of a step of every level


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guest.samples"


def fill(file: SampleFile, first: float, ticks: int, at_once: int = 1) -> None:
    """A tick each 0.2 s: ``cpu`` counts them, memory stands still, and steal isn't known."""
    for tick in range(0, ticks, at_once):
        file.append(first + tick * 0.2 + 0.02, [float(tick), 1e6, NAN])


def ask(
    file: SampleFile | None, now: float, seconds: float, granularity: float = 0.0, until: float = 0.0, **more: Any
) -> dict[str, Any]:
    question = plan_question(now, seconds, until, granularity, **more)
    document: dict[str, Any] = json.loads(b"".join(answer(file, question, (), SERIES)))
    document["series"] = {one.pop("name"): one for one in document["series"]}
    return document


def points(file: SampleFile | None, now: float, seconds: float, granularity: float = 0.0) -> list[list[float | None]]:
    found: list[list[float | None]] = ask(file, now, seconds, granularity)["series"]["cpu"]["points"]
    return found


def test_ticks_come_back_at_five_hertz_and_folded_at_every_coarser_step(path: Path) -> None:
    file = open_file(path, SERIES)
    fill(file, NOW, 100)
    assert points(file, NOW + 19.83, 1) == [[NOW + 19.0 + n / 5, 95.0 + n] for n in range(5)]
    assert points(file, NOW + 19.9, 3, 1) == [[NOW + n, 5 * n + 2.0] for n in (17, 18, 19)]
    extremes = ask(file, NOW + 19.9, 20, 10, extremes=True)["series"]["cpu"]
    assert extremes == {
        "unit": "cores", "points": [[NOW, 24.5], [NOW + 10, 74.5]], "min": [0.0, 50.0], "max": [49.0, 99.0],
    }  # fmt: skip
    assert points(file, NOW + 19.9, 7 * 86400)[-1] == [NOW, 49.5]  # of five minutes, so far
    assert points(file, NOW + 19.9, 20, 5) == [[NOW + 5 * n, 25 * n + 12.0] for n in range(4)]
    unknown = ask(file, NOW + 19.9, 3, 1, extremes=True)["series"]["steal"]
    assert (
        unknown["points"] == [[NOW + n, None] for n in (17, 18, 19)] and unknown["min"] == unknown["max"] == [None] * 3
    )
    file.close()


def test_what_was_written_outlives_a_killed_writer(path: Path) -> None:
    """Nothing waits in memory: the file of one that was never closed has all of it, and the next one folds what was begun."""
    before = open_file(path, SERIES)
    fill(before, NOW, 8)  # the second second is not over
    after = open_file(path, SERIES)
    assert points(after, NOW + 1.9, 2, 1) == [[NOW, 2.0], [NOW + 1, 6.0]]
    after.append(NOW + 400, [1.0, 1.0, 1.0])
    assert [p for p in points(after, NOW + 401, 420, 1) if p[1] is not None] == [
        [NOW, 2.0], [NOW + 1, 6.0], [NOW + 400, 1.0],
    ]  # fmt: skip
    assert [p for p in points(after, NOW + 401, 86400 * 2) if p[1] is not None] == [
        [NOW, 4.0], [NOW + 300, 1.0],  # each second counts alike
    ]  # fmt: skip
    before.close()
    after.close()


def test_values_without_end_are_gaps(path: Path) -> None:
    file = open_file(path, SERIES)
    for tick, value in enumerate((1.0, float("inf"), float("-inf"), 1e39 / 10, -2.5)):
        file.append(NOW + tick * 0.2 + 0.02, [value, NAN, NAN])
    assert [value for _, value in points(file, NOW + 0.99, 1)][:3] == [1.0, None, None]
    assert points(file, NOW + 0.99, 1)[-1] == [NOW + 0.8, -2.5]
    file.close()


def test_a_file_turns_round_and_never_shows_a_former_round(path: Path) -> None:
    file = open_file(path, SERIES)
    fill(file, NOW, 5)
    span = LEVELS[0].span_seconds
    fill(file, NOW + span + 0.4, 5)  # over some of those places
    got = points(file, NOW + span + 1.3, 1.2)
    assert [value for _, value in got] == [
        None,
        0.0,
        1.0,
        2.0,
        3.0,
        4.0,
    ]  # the place of the first has the one from before
    assert len(points(file, NOW + span + 1.3, span)) == LEVELS[0].slots
    file.close()


def test_a_gap_is_a_gap(path: Path) -> None:
    file = open_file(path, SERIES)
    fill(file, NOW, 5)
    fill(file, NOW + 3, 5)
    assert points(file, NOW + 3.9, 4, 1) == [[NOW, 2.0], [NOW + 1, None], [NOW + 2, None], [NOW + 3, 2.0]]
    assert points(file, NOW + 60, 2, 1) == [[NOW + 59, None]]  # and what isn't over yet is left out
    assert points(None, NOW, 2, 1) == [[NOW - 1, None]]
    assert points(None, NOW, 180, 60) == [[NOW - 120, None], [NOW - 60, None]]  # each of several slots of its level
    file.close()


def test_a_clock_that_steps_back_or_forward_costs_only_what_it_steps_over(path: Path) -> None:
    file = open_file(path, SERIES)
    fill(file, NOW, 50)
    fill(file, NOW + 4, 10)  # back by six seconds: the newer measurement of the same time counts
    assert points(file, NOW + 5.9, 6, 1) == [[NOW + n, 5 * n + 2.0] for n in range(4)] + [
        [NOW + 4, 2.0],
        [NOW + 5, 7.0],
    ]
    year = NOW + 365 * 86400
    fill(file, year, 10)
    assert points(file, year + 1.9, 3, 1) == [[year - 1, None], [year, 2.0], [year + 1, 7.0]]
    fill(file, NOW + 6, 10)  # and back again
    file.close()
    file = open_file(path, SERIES)
    fill(file, NOW + 8, 10)
    assert points(file, NOW + 9.9, 4, 1) == [[NOW + 6 + n, value] for n, value in enumerate((2.0, 7.0, 2.0, 7.0))]
    file.close()


@pytest.mark.parametrize("damage", ["empty", "noise", "version", "names", "folder", "link"])
def test_a_file_that_cannot_be_read_is_replaced(path: Path, damage: str) -> None:
    open_file(path, SERIES).close()
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "link":
        path.symlink_to("/etc/passwd")
    else:
        path.write_bytes(
            {
                "empty": b"",
                "noise": os.urandom(HEADER_BYTES * 2),
                "version": whole[:8] + b"\x63" + whole[9:],
                "names": whole.replace(b"cores", b"doors", 1),
            }[damage]
        )
    assert find_file(path) is None
    if damage == "folder":
        path.rmdir()
    file = open_file(path, SERIES)
    fill(file, NOW, 5)
    assert points(file, NOW + 0.9, 1, 1) == [[NOW, 2.0]]
    assert path.stat().st_size == file.layout.file_bytes and path.stat().st_mode & 0o777 == 0o600
    file.close()


def test_a_damaged_record_is_a_gap_and_a_short_file_has_what_it_has(path: Path) -> None:
    file = open_file(path, SERIES)
    fill(file, NOW, 25)
    with open(path, "r+b") as raw:  # one byte of the value of the third second
        raw.seek(file.layout.offset(1, int(NOW) + 2) + 30)
        byte = raw.read(1)
        raw.seek(-1, os.SEEK_CUR)
        raw.write(bytes([byte[0] ^ 1]))
    assert [value for _, value in points(file, NOW + 4.9, 4, 1)] == [7.0, None, 17.0, 22.0]
    os.truncate(path, file.layout.offset(1, int(NOW) + 1))
    file.close()
    file = open_file(path, SERIES)
    assert [value for _, value in points(file, NOW + 4.9, 5, 1)] == [2.0, None, None, None, 22.0]  # made of the ticks
    fill(file, NOW + 5, 10)
    assert [value for _, value in points(file, NOW + 6.9, 3, 1)] == [22.0, 2.0, 7.0]
    file.close()


def test_a_record_cut_off_half_way_is_a_gap(path: Path) -> None:
    """As after a power cut between two blocks."""
    file = open_file(path, SERIES)
    fill(file, NOW, 5)
    half = file.layout.record_bytes(0) // 2
    old = os.pread(os.open(path, os.O_RDONLY), half, file.layout.offset(0, int(NOW) * 5 + 1) + half)
    os.pwrite(file._file, bytes(len(old)), file.layout.offset(0, int(NOW) * 5 + 1) + half)
    assert [value for _, value in points(file, NOW + 0.99, 1)] == [0.0, None, 2.0, 3.0, 4.0]
    file.close()


def test_new_series_widen_a_file_and_keep_what_is_in_it(path: Path) -> None:
    file = open_file(path, SERIES)
    fill(file, NOW, 12)
    file.close()
    nic = Series("nic0.received", "bytes/s")
    file = open_file(path, (*SERIES, nic, Series("nic0.sent", "bytes/s")))
    file.append(NOW + 2.4, [9.0, 1e6, NAN, 77.0, 78.0])
    found = ask(file, NOW + 2.5, 3, 1)["series"]
    assert found["cpu"]["points"] == [[NOW, 2.0], [NOW + 1, 7.0], [NOW + 2, 10.0]]
    assert [value for _, value in found["nic0.received"]["points"]] == [None, None, 77.0]
    file.close()
    file = open_file(path, (nic,))  # fewer are asked for than there are
    assert [one.name for one in file.layout.series][:3] == ["cpu", "memory.resident", "steal"]
    file.close()


def test_a_question_that_cannot_be_answered_says_what_can(path: Path) -> None:
    for given, hint in (
        ((NOW, 3600.0, 0.0, 0.2), "use 1s, or a shorter time range"),
        ((NOW, 86400.0, 0.0, 1.0), "use 10s, or a shorter time range"),
        ((NOW, 60.0, 7200.0, 1.0), "use 10s, or a shorter time range"),
        ((NOW, 60.0, 0.0, 0.5), "use 0.2s"),
        ((NOW, 86400.0, 0.0, 15.0), "use 10s"),
        ((NOW, 40 * 86400.0, 0.0, 0.0), "use a shorter time range"),
        ((NOW, 60.0, 0.0, 1e308), "use a finer granularity"),
    ):
        with pytest.raises(InvalidInput) as refused:
            plan_question(*given)
        assert refused.value.hint == hint and (refused.value.field or "") in refused.value.message
    assert plan_question(NOW, 3600, 0, 0).step_ms == 1000
    assert (plan_question(NOW, 3600, 0, 60).level, plan_question(NOW, 60, 0, 0).level) == (2, 0)


def test_a_header_says_what_is_in_the_file_and_nothing_damaged_passes_for_one() -> None:
    layout = Layout((*SERIES, Series('"\n\x1b]0;', "héllo")))
    header = encode_header(layout)
    assert decode_header(header) == layout and len(header) == HEADER_BYTES
    for at in range(len(header.rstrip(b"\0"))):
        assert decode_header(header[:at] + bytes([header[at] ^ 4]) + header[at + 1 :]) is None
    assert decode_header(header[:-1]) is None
