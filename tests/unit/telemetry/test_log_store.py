"""The store of a node's logs: what it keeps, what a crash or a full disk costs, and what questions find."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import time
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.agent.logs.carry import Arriving, pack_log
from weft.contracts.clock import SystemClock
from weft.objects.errors import InvalidInput, Unavailable
from weft.telemetry.logs import journal, match, segment, store
from weft.telemetry.logs.journal import Cursor
from weft.telemetry.logs.match import Pattern, await_matcher, make_matcher
from weft.telemetry.logs.query import Range, StoredLine, read_last, read_lines
from weft.telemetry.logs.share import find_excess
from weft.telemetry.logs.store import LogStore

HOUR = 3600 * 10**6


def open_store(folder: Path, **more: float) -> LogStore:
    opened = LogStore(folder, SystemClock(), **more)  # type: ignore[arg-type]
    opened.open()
    return opened


def put(logs: LogStore, uid: str, *lines: str, at: int | None = None, cursor: str = "") -> None:
    now = int(time.time() * 1e6) if at is None else at
    logs.append(
        uid,
        array("q", [now] * len(lines)),
        "".join(f"{line}\n" for line in lines).encode(),
        Cursor(cursor) if cursor else None,
    )


def texts(found: list[StoredLine]) -> list[str]:
    return [line.text.decode() for line in found]


def read(logs: LogStore, uid: str, *, filter: str = "", regex: str = "", **range_: int) -> list[str]:
    matcher = make_matcher(filter, regex, SystemClock())
    try:
        return texts([line for lines in read_lines(logs, Range(uid, **range_), matcher) for line in lines])
    finally:
        if matcher is not None:
            matcher.close()


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SEGMENT_BYTES", 400)


def test_lines_come_back_in_order_over_segments_and_the_journal(tmp_path: Path, small_segments: None) -> None:
    logs = open_store(tmp_path)
    for number in range(100):
        put(logs, "a", f"line {number}")
        put(logs, "b", f"other {number}")
    assert len(logs.segments) > 3
    assert read(logs, "a") == [f"line {number}" for number in range(100)]
    assert texts(read_last(logs, Range("a"), None, 7)) == [f"line {number}" for number in range(93, 100)]
    assert read(logs, "nobody") == []


def test_a_killed_agent_loses_no_line_and_goes_on_where_it_was(tmp_path: Path, small_segments: None) -> None:
    logs = open_store(tmp_path)
    for number in range(50):
        put(logs, "a", f"line {number}", cursor=str(number))
        again = open_store(tmp_path)  # the one before is never closed, as if it was killed
        assert read(again, "a") == [f"line {before}" for before in range(number + 1)]
        assert again.cursor("a") == Cursor(str(number))
        logs = again


def test_a_torn_record_is_cut_off_with_its_cursor(tmp_path: Path) -> None:
    logs = open_store(tmp_path)
    put(logs, "a", "whole", cursor="1")
    size = next(tmp_path.glob("*.journal")).stat().st_size
    put(logs, "a", "torn by a power failure", cursor="2")
    path = next(tmp_path.glob("*.journal"))
    for left in range(size, path.stat().st_size):
        path.write_bytes(path.read_bytes()[:size] + b"x" * (left - size))
        again = open_store(tmp_path)
        assert (read(again, "a"), again.cursor("a")) == (["whole"], Cursor("1"))
        assert path.stat().st_size == size
        again.close()


def test_a_crash_between_a_segment_and_the_next_journal_doubles_no_line(
    tmp_path: Path, small_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    logs = open_store(tmp_path)
    monkeypatch.setattr(store, "begin_journal", crash)
    with pytest.raises(KeyboardInterrupt):
        for number in range(100):
            put(logs, "a", f"line {number}", cursor=str(number))
    monkeypatch.undo()
    again = open_store(tmp_path)
    count = len(read(again, "a"))
    assert read(again, "a") == [f"line {number}" for number in range(count)]
    assert again.cursor("a") == Cursor(str(count - 1))
    put(again, "a", "next")
    assert read(open_store(tmp_path), "a")[count:] == ["next"]


def test_numbers_go_on_and_restart_above_all_that_was(tmp_path: Path) -> None:
    logs = open_store(tmp_path)
    put(logs, "a", "one", "two")
    following = logs.next_number("a")
    put(logs, "a", "three")
    assert read(logs, "a", first=following) == ["three"]
    logs.set_next("a", following + 1000, Cursor("c"))  # it was elsewhere meanwhile
    put(logs, "a", "four")
    assert [line.number for lines in read_lines(logs, Range("a"), None) for line in lines][-1] == following + 1000
    assert open_store(tmp_path).cursor("a") == Cursor("c")


def test_a_full_disk_costs_the_oldest_lines_and_says_how_many(
    tmp_path: Path, small_segments: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logs = open_store(tmp_path)
    for number in range(40):
        put(logs, "a", f"line {number}")
    had, lines = len(logs.segments), logs.segments[0].head.lines
    real = os.write

    def is_full(file: int, data: bytes) -> int:
        if len(logs.segments) == had:
            real(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "no space left on device")
        return real(file, data)

    monkeypatch.setattr(journal.os, "write", is_full)
    put(logs, "a", "the newest")
    monkeypatch.undo()
    assert logs.dropped == lines
    assert f"the oldest {lines} lines of this node were dropped" in caplog.text
    assert read(open_store(tmp_path), "a") == [*(f"line {number}" for number in range(lines, 40)), "the newest"]


def test_a_full_disk_with_nothing_to_drop_keeps_the_cursor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    logs = open_store(tmp_path)
    put(logs, "a", "one", cursor="1")
    monkeypatch.setattr(journal.os, "write", is_full)
    with pytest.raises(OSError, match="no space"):
        put(logs, "a", "two", cursor="2")
    monkeypatch.undo()
    assert (read(logs, "a"), logs.cursor("a")) == (["one"], Cursor("1"))


def test_what_is_too_old_or_too_much_goes_first(tmp_path: Path, small_segments: None) -> None:
    now = int(time.time() * 1e6)
    logs = open_store(tmp_path, most_age=7200.0)
    for hour in (5, 4, 3, 1, 0):
        for number in range(20):
            put(logs, "a", f"{hour} h ago {number}", at=now - hour * HOUR)
    logs.keep()
    assert {line.split()[0] for line in read(logs, "a")} <= {"3", "1", "0"}  # a segment goes as a whole
    small = open_store(tmp_path, most_bytes=1)
    small.keep()
    assert small.segments == ()


def test_cursors_of_workloads_that_left_are_forgotten_and_their_lines_stay(tmp_path: Path) -> None:
    logs = open_store(tmp_path)
    put(logs, "a", "one", cursor="1")
    logs.keep(["b"])
    assert logs.cursor("a") is None
    assert read(logs, "a") == ["one"]


def test_lines_carried_from_another_node_stand_before_those_of_this_one_and_once(tmp_path: Path) -> None:
    source, target = open_store(tmp_path / "s"), open_store(tmp_path / "t")
    put(target, "a", "zero")  # it was here before
    source.set_next("a", target.next_number("a"), Cursor())
    put(source, "a", "one", "two")
    lines = [*target.find("a")[2], *source.find("a")[2]]
    target.set_next("a", source.next_number("a"), Cursor("console 7"))
    target.put_carried("a", segment.encode_segment(lines)[1])
    put(target, "a", "three")
    for logs in (target, open_store(tmp_path / "t")):
        assert read(logs, "a") == ["zero", "one", "two", "three"]
        assert texts(read_last(logs, Range("a"), None, 3)) == ["one", "two", "three"]
        assert logs.cursor("a") == Cursor("console 7")
    target.keep([])  # the workload was deleted: its lines stay as long as others'
    assert read(target, "a") == ["zero", "one", "two", "three"]
    old = open_store(tmp_path / "t", most_age=-60.0)
    old.keep([])
    assert not list((tmp_path / "t" / "carried").iterdir())
    small = open_store(tmp_path / "s", most_bytes=1)
    small.put_carried("a", segment.encode_segment(lines)[1])
    small.keep(["a"])
    assert read(small, "a") == ["zero", "one", "two"]
    small.keep([])
    assert (read(small, "a"), small.take_dropped()) == (["one", "two"], {"a": 3})


def test_since_and_until_and_filters_choose_lines(tmp_path: Path, small_segments: None) -> None:
    logs = open_store(tmp_path)
    for number in range(60):
        put(logs, "a", f"{'ERROR' if number % 10 == 3 else 'info'} number {number} ü", at=number * 1000)
    assert read(logs, "a", filter="ERROR") == [f"ERROR number {number} ü" for number in range(3, 60, 10)]
    assert read(logs, "a", filter="ERROR", since=20_000, until=43_000) == ["ERROR number 23 ü", "ERROR number 33 ü"]
    assert read(logs, "a", filter="number 5 ü") == ["info number 5 ü"]
    assert read(logs, "a", regex=r"^ERROR.*[35]3 ü$") == ["ERROR number 33 ü", "ERROR number 53 ü"]
    matcher = make_matcher("ERROR", "", SystemClock())
    assert texts(read_last(logs, Range("a", until=50_000), matcher, 2)) == ["ERROR number 33 ü", "ERROR number 43 ü"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"a\s+b", ["a b"]),  # never over the end of a line
        (r"a[^x]+b", ["a b"]),
        (r"\Aab\Z", ["ab"]),
        (r"(?i)^AB", ["ab"]),
        (r"^$", [""]),
        (r"a(?!b)", ["a", "a b"]),
        (r"b.", ["bc"]),
        ("", ["a", "b", "a b", "ab", "", "bc"]),
    ],
)
def test_a_pattern_sees_each_line_by_itself(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    logs = open_store(tmp_path)
    put(logs, "a", "a", "b", "a b", "ab", "", "bc")
    assert read(logs, "a", regex=pattern) == expected


def test_a_hostile_pattern_is_ended_and_says_what_to_do() -> None:
    hostile = Pattern("^(a+)+$", SystemClock(), seconds=0.3)
    with pytest.raises(InvalidInput, match=r"takes more than 0.3 s"):
        hostile.find(b"a" * 60 + b"!\n")
    hostile.close()


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "*", "a\nb", "x" * 2000])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="regex"):
        Pattern(pattern, SystemClock())


def test_a_damaged_segment_is_removed_and_the_rest_is_read(tmp_path: Path, small_segments: None) -> None:
    logs = open_store(tmp_path)
    for number in range(80):
        put(logs, "a", f"line {number}")
    first, second = logs.segments[:2]
    first.path.write_bytes(b"nonsense")
    data = bytearray(second.path.read_bytes())
    data[-9] ^= 1  # in a part, not in the head
    second.path.write_bytes(data)
    left = first.head.lines + second.head.lines
    assert read(open_store(tmp_path), "a") == [f"line {number}" for number in range(left, 80)]
    assert not first.path.exists()


def test_a_whole_block_fits_and_patterns_have_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match, "WAIT_SECONDS", 0.1)
    block = b"a line of some length that holds nothing in particular\n" * (store.SEGMENT_BYTES // 55)
    people = [f"p{number // match.MOST_OF_ONE}" for number in range(match.MOST_PATTERNS)]
    patterns = [Pattern("a line.*particular$", SystemClock(), asker=person) for person in people]
    try:
        assert len(patterns[0].find(block)) == len(patterns[1].find(block)) == store.SEGMENT_BYTES // 55
        with pytest.raises(Unavailable, match="searches for patterns"):
            Pattern("x", SystemClock())
        with pytest.raises(InvalidInput, match="too much memory"):
            patterns[2].find(b"(" * (80 << 20) + b"\n")
    finally:
        for pattern in (*patterns, patterns[0]):
            pattern.close()
    Pattern("x", SystemClock()).close()


async def test_one_person_s_searches_leave_places_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, held = SystemClock(), [Pattern("x", SystemClock(), asker="ann") for _ in range(match.MOST_OF_ONE)]
    waiting = [asyncio.ensure_future(await_matcher("", "x", clock, "ann")) for _ in range(200)]
    held.append(await await_matcher("", "x", clock, "bob"))  # also while they wait for places
    assert sum(not one.done() for one in waiting) == match.MOST_WAITING
    monkeypatch.setattr(match, "WAIT_SECONDS", 0.1)
    with pytest.raises(Unavailable, match="3 of your searches"):
        Pattern("x", clock, asker="ann")
    for one in waiting:
        one.cancel()
    for pattern in held:
        pattern.close()
    await asyncio.gather(*waiting, return_exceptions=True)


def fill(logs: LogStore, rounds: int) -> None:
    """One source prints much, three a line now and then."""
    for number in range(rounds):
        put(logs, "chatty", *(f"{number} {random.random()} {line}" for line in range(50)))
        if number % 20 == 0:
            for quiet in ("a", "b", "c"):
                put(logs, quiet, f"{quiet} {number}")


@pytest.fixture
def segments_of_some_kib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SEGMENT_BYTES", 8000)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def test_a_source_that_prints_much_pushes_out_none_of_the_others(tmp_path: Path, segments_of_some_kib: None) -> None:
    logs = open_store(tmp_path, most_bytes=60_000)
    fill(logs, 160)
    quiet = [f"{number}" for number in range(0, 160, 20)]
    for again in (logs, open_store(tmp_path, most_bytes=60_000)):
        for uid in ("a", "b", "c"):
            assert read(again, uid) == [f"{uid} {number}" for number in quiet]
        assert again.used_bytes <= 60_000 + 8000
    kept = read(logs, "chatty")
    assert kept and kept[-1].startswith("159 ") and len(logs.segments) < 60
    assert logs.take_dropped() == {"chatty": 160 * 50 - len(kept)}
    assert logs.take_dropped() == {}


def test_sources_that_print_alike_lose_alike(tmp_path: Path, segments_of_some_kib: None) -> None:
    logs = open_store(tmp_path, most_bytes=60_000)
    for number in range(120):
        for uid in ("a", "b", "c"):
            put(logs, uid, *(f"{number} {random.random()} {line}" for line in range(20)))
    counts = [len(read(logs, uid)) for uid in ("a", "b", "c")]
    assert 0 < max(counts) - min(counts) < 0.4 * max(counts) < 0.4 * 2400
    assert all(read(logs, uid)[-1].startswith("119 ") for uid in ("a", "b", "c"))


def test_a_crash_while_segments_are_written_anew_doubles_no_line(
    tmp_path: Path, segments_of_some_kib: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = open_store(tmp_path, most_bytes=60_000)
    crashes = 0
    for number in range(150):
        left: list[Path] = []
        monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False, left=left: left.append(path))
        fill(logs, 1)
        put(logs, "a", f"a line {number}")
        monkeypatch.undo()
        monkeypatch.setattr(store, "SEGMENT_BYTES", 8000)
        if len([path for path in left if path.suffix == ".segment"]) > 1:
            crashes += 1
            for path in left[: number % len(left)]:  # those that had gone before it crashed
                path.unlink(missing_ok=True)
            logs = open_store(tmp_path, most_bytes=60_000)
            lines = read(logs, "a")
            assert [line for line in lines if "line" in line] == [f"a line {before}" for before in range(number + 1)]
            assert len(set(read(logs, "chatty"))) == len(read(logs, "chatty"))
        else:
            for path in left:
                path.unlink(missing_ok=True)
    assert crashes > 2


@given(st.dictionaries(st.integers(), st.integers(1, 10**6), min_size=1), st.floats(0.0, 1.0))
def test_what_goes_is_enough_and_only_from_those_that_have_the_most(used: dict[int, int], part: float) -> None:
    asked = int(sum(used.values()) * part)
    named = {f"s{uid}": size for uid, size in used.items()}
    excess = find_excess(named, asked)
    left = {uid: size - excess.get(uid, 0) for uid, size in named.items()}
    assert sum(excess.values()) >= asked and min(left.values()) >= 0
    assert sum(excess.values()) < asked + len(named)
    if losing := [left[uid] for uid in excess]:
        assert max(left.values()) <= min(losing) + 1


def test_what_sources_are_called_is_known_also_after_a_crash(tmp_path: Path, segments_of_some_kib: None) -> None:
    logs = open_store(tmp_path)
    now = array("q", [int(time.time() * 1e6)])
    logs.append("a", now, b"one\n", what="vm/lab/web")
    fill(logs, 40)
    assert len(logs.segments) > 1 and open_store(tmp_path).sources() == {"a": "vm/lab/web"}


def test_a_log_goes_to_another_cluster_without_the_uid_that_the_workload_has_there(tmp_path: Path) -> None:
    here, there = open_store(tmp_path / "here"), open_store(tmp_path / "there")
    put(here, "uid-here", "one", "two", cursor="file")
    arriving = Arriving(there, "uid-there", named=False)
    pieces = pack_log(here, "uid-here", named=False)
    assert not any(b"uid-here" in piece for piece in pieces)
    assert [arriving.take(piece) for piece in pieces][-1]
    assert read(there, "uid-there") == ["one", "two"]
    assert there.next_number("uid-there") == here.next_number("uid-here")
    arriving = Arriving(there, "uid-there", named=False)
    with pytest.raises(InvalidInput, match="not a segment of this workload"):
        for piece in pack_log(here, "uid-here"):
            arriving.take(piece)
    here.close()
    there.close()
