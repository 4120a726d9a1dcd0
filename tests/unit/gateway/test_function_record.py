"""What is kept of invocations: figures, printed lines; and which gateway a function is at home at."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from weft.contracts.clock import SystemClock
from weft.gateway.function.invocation.call import InvocationOutcome
from weft.gateway.function.record.aggregated_log import AggregatedLog
from weft.gateway.function.record.counts_file import CountsFile
from weft.gateway.function.record.metrics import Counts, Durations, make_metrics
from weft.gateway.function.record.output_log import FILE_BYTES, PrintedLog, stamp
from weft.kinds.function import FunctionLogsInput
from weft.objects.errors import InvalidInput


def test_percentiles_are_right_to_within_five_percent() -> None:
    draw, durations = random.Random(3), Durations()
    values = sorted(draw.lognormvariate(-4, 2) for _ in range(5000))
    for value in draw.sample(values, len(values)):
        durations.add(value)
    for share in (0.5, 0.9, 0.99):
        assert durations.percentile(share) == pytest.approx(values[int(share * 5000) - 1], rel=0.05)
    assert durations.percentile(1.0) == pytest.approx(values[-1], rel=0.05)
    assert Durations().percentile(0.5) == 0.0


def test_what_is_told_of_a_function() -> None:
    counts = Counts(since=5.0)
    for number in range(4):
        counts.arrive(number + 1)
    counts.end(InvocationOutcome(id="1", payload=b"", start="cold", seconds=0.1, init_seconds=0.05, most_memory=9), 0.2)
    counts.end(InvocationOutcome(id="2", payload=b"", error="Unhandled", error_type="Function.TimedOut"), 3.0)
    counts.refuse("insufficientResources")
    counts.throttles = counts.lost = 1
    told = make_metrics(counts, "hello", "default", 2, [])
    assert (told.invocations, told.concurrent, told.most_concurrent) == (4, 2, 4)
    assert told.errors == {"Function.TimedOut": 1} and told.starts == {"cold": 1, "warm": 1}
    assert told.init.p50 == pytest.approx(50, rel=0.05) and told.latency.most == 3000.0 and told.most_memory == 9


def test_error_types_that_code_makes_up_are_bounded() -> None:
    counts = Counts(since=0.0)
    for number in range(1000):
        counts.end(InvocationOutcome(id="1", payload=b"", error="Unhandled", error_type=f"Error{number}"), 1.0)
    assert len(counts.errors) == 101 and counts.errors["(others)"] == 900


def test_what_was_counted_is_there_after_a_restart_and_goes_with_its_function(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept, counts = CountsFile(tmp_path / "counts"), Counts(since=5.0)
    counts.arrive(3)
    counts.end(
        InvocationOutcome(id="1", payload=b"", start="cold", seconds=0.1, error="Unhandled", error_type="KeyError"), 0.2
    )
    kept.change("uid", counts)
    kept.write(kept.take())
    assert kept.take() == {}
    again = CountsFile(tmp_path / "counts")
    found = again.read("uid")
    assert (
        found == counts
        and found is not None
        and make_metrics(found, "a", "p", 0, []) == make_metrics(counts, "a", "p", 0, [])
    )
    assert again.read("other") is None
    (tmp_path / "counts" / "uid").write_bytes(b"nonsense")
    assert again.read("uid") is None and "uid are lost" in caplog.text
    again.keep_only({"other"})
    assert not list((tmp_path / "counts").iterdir())


def test_lines_are_kept_in_their_order_with_when_and_by_which_invocation(tmp_path: Path) -> None:
    log = PrintedLog(tmp_path)
    log.append("uid", b"one\ntwo\n", "id-1", 1000.0)
    log.append("uid", b"no end", "", 2000.5)
    lines = log.read("uid")
    assert lines == [
        b"1970-01-01T00:16:40.000Z id-1 one\n",
        b"1970-01-01T00:16:40.000Z id-1 two\n",
        b"1970-01-01T00:33:20.500Z - no end\n",
    ]
    assert log.read("uid", tail=1) == lines[-1:] and log.read("uid", tail=0) == []
    assert log.read("uid", since=stamp(1500.0)) == lines[-1:]
    assert log.read("other") == []
    log.close()
    again = PrintedLog(tmp_path)  # after a restart
    again.append("uid", b"more\n", "", 3000.0)
    assert len(again.read("uid")) == 4
    again.keep_only({"other"})
    assert again.read("uid") == [] and not list(tmp_path.iterdir())


async def test_a_function_s_lines_come_in_the_form_of_other_workloads_and_are_chosen_like_theirs(
    tmp_path: Path,
) -> None:
    log, clock = PrintedLog(tmp_path), SystemClock()
    now = clock.now()
    log.append("uid", b"ERROR one\nfine\n", "id-1", now - 100)
    log.append("uid", b"ERROR \xff two\n", "id-2", now)

    async def ask(**given: Any) -> list[dict[str, str]]:
        asked = await AggregatedLog.open("thumbs", FunctionLogsInput(aggregate=True, **given), clock, "ann")
        try:
            return [json.loads(line) for line in asked.read(log.read("uid", since=asked.since)).splitlines()]
        finally:
            asked.close()

    whole = await ask()
    assert [line["message"] for line in whole] == ["id-1 ERROR one", "id-1 fine", "id-2 ERROR \\xff two"]
    assert {line["source"] for line in whole} == {"function/thumbs"}
    assert len(whole[0]["time"]) == len("2026-11-21T03:50:00.123000Z") and whole[0]["time"].endswith("000Z")
    assert [line["message"] for line in await ask(filter="ERROR", since=50)] == ["id-2 ERROR \\xff two"]
    assert [line["message"] for line in await ask(regex="ERROR|id-1", until=50, tail=1)] == ["id-1 fine"]
    follower = await AggregatedLog.open("thumbs", FunctionLogsInput(follow=True, filter="three"), clock, "ann")
    lines = [b"1970-01-01T00:16:40.000Z id-3 two\n", b"1970-01-01T00:16:40.000Z id-3 three\n"]
    assert json.loads(follower.choose(lines))["message"] == "id-3 three"
    follower.close()
    with pytest.raises(InvalidInput, match="follow"):
        await ask(follow=True, until=5)


def test_no_more_than_two_files_are_kept_and_the_newest_lines_are_there(tmp_path: Path) -> None:
    log, line = PrintedLog(tmp_path), b"x" * 1000
    for number in range(3 * FILE_BYTES // 1000):
        log.append("uid", b"%d %s\n" % (number, line), "id", 1000.0 + number)
    sizes = [path.stat().st_size for path in (tmp_path / "uid").iterdir()]
    assert len(sizes) == 2 and max(sizes) <= FILE_BYTES and sum(sizes) > FILE_BYTES
    lines = log.read("uid")
    assert lines[-1].split()[2] == b"%d" % number and len(lines) > FILE_BYTES / 1100
    log.close()


def test_many_functions_keep_few_files_open(tmp_path: Path) -> None:
    log = PrintedLog(tmp_path)
    for number in range(300):
        log.append(f"uid-{number}", b"x\n", "", 1.0)
    assert len(log._open) <= 64
    assert all(log.read(f"uid-{number}") for number in range(300))
    log.close()


async def test_a_follower_gets_what_comes_and_a_slow_one_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.gateway.function.record.output_log.FOLLOWER_LINES", 3)
    log = PrintedLog(tmp_path)
    follower = log.follow("uid")
    for number in range(5):
        log.append("uid", b"%d\n" % number, "", 1.0)
    log.append("other", b"x\n", "", 1.0)
    assert [follower.lines.get_nowait().split()[2] for _ in range(3)] == [b"2", b"3", b"4"]
    log.leave("uid", follower)
    log.append("uid", b"after\n", "", 1.0)
    assert follower.lines.empty()
    log.close()


def test_stamps_sort_as_times_do() -> None:
    assert stamp(0.9996) < stamp(1.0) < stamp(1.001) < stamp(10.0**9)
