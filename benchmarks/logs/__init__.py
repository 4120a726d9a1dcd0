"""What a node's store of logs takes and finds, and what is lost when its agent is killed.

A hundred consoles are read by an agent's collector, in a process of its own; a million lines of one guest are searched; and a
collector is killed with SIGKILL again and again while a console grows.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path

from benchmarks.measurement import ROOT, Figure, Measurement, spread
from weft.contracts.clock import SystemClock
from weft.telemetry.logs.match import make_matcher
from weft.telemetry.logs.query import Range, read_last, read_lines
from weft.telemetry.logs.store import LogStore

LINES, BATCH, GUESTS, KILLS, RUNS = 1_000_000, 500, 100, 30, 5
LEAST_RATE, MOST_SECONDS = 200_000, 0.5
KILL_LINES = 400_000
UID = "11111111-1111-4111-8111-111111111111"


def measure() -> Measurement:
    with tempfile.TemporaryDirectory(prefix="weft-logs-") as folder:
        figures = [
            *_fill_and_search(Path(folder) / "search"),
            _collect(Path(folder) / "collect"),
            _kill(Path(folder) / "kill"),
        ]
    return Measurement("logs", (__doc__ or "").split("\n\n")[1].replace("\n", " "), figures)


def make_lines(count: int) -> list[bytes]:
    chance = random.Random(1)
    return [
        b"2026-11-25 %s request id=%016x path=/api/v1/items/%d status=%d in 12 ms\n"
        % (
            b"ERROR" if chance.random() < 0.002 else b"INFO",
            chance.getrandbits(64),
            chance.randrange(9999),
            chance.choice((200, 404, 500)),
        )
        for _ in range(count)
    ]


def _fill_and_search(folder: Path) -> list[Figure]:
    lines = make_lines(LINES // 10)
    rates = []
    for run in range(RUNS):
        store = LogStore(folder / str(run), SystemClock())
        store.open()
        began = time.perf_counter()
        for _ in range(10):
            for at in range(0, len(lines), BATCH):
                store.append(UID, array("q", [int(time.time() * 1e6)]) * BATCH, b"".join(lines[at : at + BATCH]))
        rates.append(LINES / (time.perf_counter() - began))
        if run < RUNS - 1:
            store.close()
    text = sum(map(len, lines)) * 10

    def search(filter: str, regex: str) -> list[float]:
        spent = []
        for _ in range(RUNS):
            began = time.perf_counter()
            matcher = make_matcher(filter, regex, SystemClock())
            found = sum(len(block) for block in read_lines(store, Range(UID), matcher))
            if matcher is not None:
                matcher.close()
            spent.append(time.perf_counter() - began)
            assert 0 < found < LINES // 100
        return spent

    def time_tail() -> float:
        began = time.perf_counter()
        assert len(read_last(store, Range(UID), None, 100)) == 100
        return time.perf_counter() - began

    pattern, literal = search("", r"ERROR.*status=5\d\d"), search("ERROR", "")
    figures = [
        Figure(
            f"lines into a node's store, {BATCH} at a time, {LINES:,} of {len(lines[0])} bytes",
            f"{spread(rates, 'lines/s', 1.0)}; {store.used_bytes / 1e6:.1f} MB on disk of {text / 1e6:.0f} MB",
            goal="≥ 200,000 lines/s",
            kept=statistics.median(rates) >= LEAST_RATE,
        ),
        Figure(
            f"{LINES:,} lines by a regular expression, its process included",
            spread(pattern),
            goal="≤ 0.5 s",
            kept=statistics.median(pattern) <= MOST_SECONDS,
        ),
        Figure(f"{LINES:,} lines by a text", spread(literal)),
        Figure(f"the last 100 of {LINES:,} lines", spread([time_tail() for _ in range(RUNS)], digits=1)),
    ]
    store.close()
    return figures


def _run_collector(folder: Path, what: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "benchmarks.logs.collector", str(folder), what]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _collect(folder: Path) -> Figure:
    """Consoles that are full of lines, read to their ends."""
    folder.mkdir()
    lines = make_lines(LINES // GUESTS)
    for guest in range(GUESTS):
        (folder / f"{guest:010d}.log").write_bytes(b"".join(lines))
    done = _run_collector(folder, "once").communicate()[0]
    found = json.loads(done)
    assert found["lines"] == LINES
    return Figure(
        f"the same from {GUESTS} consoles, by the agent's collector",
        f"{found['lines'] / found['seconds']:.0f} lines/s",
        goal="≥ 200,000 lines/s",
        kept=found["lines"] / found["seconds"] >= LEAST_RATE,
    )


def _kill(folder: Path) -> Figure:
    folder.mkdir()
    with open(folder / f"{0:010d}.log", "ab", buffering=0) as console:
        chance, printed = random.Random(2), 0
        for _ in range(KILLS):
            collector = _run_collector(folder, "ever")
            assert collector.stdout is not None
            collector.stdout.readline()  # it has begun
            until = time.monotonic() + chance.uniform(0.05, 0.4)
            while time.monotonic() < until and printed < KILL_LINES:
                console.write(b"".join(b"line %d\n" % number for number in range(printed, printed + 137)))
                printed += 137
            os.kill(collector.pid, signal.SIGKILL)
            collector.wait()
    done = _run_collector(folder, "once").communicate()[0]
    assert json.loads(done)["lines"] >= 0
    store = LogStore(folder / "logs", SystemClock())
    store.open()
    found = [line.text for lines in read_lines(store, Range("0"), None) for line in lines]
    wanted = [b"line %d" % number for number in range(printed)]
    lost, twice = len(set(wanted) - set(found)), len(found) - len(set(found))
    return Figure(
        f"a collector killed with SIGKILL {KILLS} times while a console prints {printed:,} lines",
        f"{lost} lines lost, {twice} twice, {'in order' if found == wanted else 'out of order'}",
        goal="0 lost",
        kept=found == wanted,
    )
