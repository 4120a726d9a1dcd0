"""The history of metrics as arrays: the same from a real database as from a list."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.scenario.metrics_lab import OwnDatabase, fetch

from weft.contracts.clock import SystemClock
from weft.contracts.history import Floats, History, Labels, Span
from weft.controllers.profile.series import Series, read_all
from weft.objects.errors import InvalidInput, TooLarge, Unavailable
from weft.telemetry.metrics.database import Asker, Database, make_off
from weft.telemetry.metrics.history import DatabaseHistory, SampleHistory
from weft.telemetry.metrics.sample import Sample

STEP = 10.0


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnDatabase]:
    made = OwnDatabase(tmp_path / "server")
    yield made
    made.close()


def read(history: History, query: str, span: Span) -> dict[str, Floats]:
    found = asyncio.run(history.read(query, span))
    return {labels.get("name"): values for labels, values in found.items()}


def test_the_database_gives_the_arrays_that_its_samples_are(own: OwnDatabase) -> None:
    span = Span.until(time.time() - 60, 300, STEP)
    samples = [
        Sample(
            "weft_guest_cpu_cores", (("kind", "vm"), ("name", name)), int(1000 * (span.start + at * STEP)), at * size
        )
        for name, size in (("web", 0.5), ("db", 2.0))
        for at in range(span.count)
        if name == "web" or not 8 <= at < 20
    ]
    own.send(samples)
    fetch(own.find(), "/internal/force_flush", b"")
    asker = Asker(SystemClock(), 1)
    try:
        database = DatabaseHistory(asker, own.find)
        found = read(database, "last_over_time(weft_guest_cpu_cores[9s])", span)
        wanted = read(SampleHistory(samples), "weft_guest_cpu_cores", span)
        assert sorted(found) == sorted(wanted) == ["db", "web"]
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], values)
        assert np.isnan(found["db"]).sum() == 12
        assert read(database, "weft_guest_nothing", span) == {}
        with pytest.raises(InvalidInput, match="refuses the query"):
            read(database, "sum(", span)
        with pytest.raises(TooLarge):
            read(database, "weft_guest_cpu_cores", Span(span.start - 3_000_000, 1.0, 3_000_000))
    finally:
        asker.close()


def test_a_counter_that_begins_again_on_another_node_neither_jumps_nor_goes_below_zero(own: OwnDatabase) -> None:
    """1,000 bytes a second all along: to the source's counter belong 20 GB, the target's begins at zero, and later once more."""
    step, rate = 300.0, 1000.0
    span = Span.until(time.time() - 60, 24 * step, step)

    def count(node: str, first: float, begin: float, end: float, start: float) -> list[Sample]:
        labels = (("project", "default"), ("kind", "vm"), ("name", "web"), ("node", node), ("nic", "0"))
        times = np.arange(begin, end, 10.0)
        return [
            Sample("weft_guest_network_sent_bytes_total", labels, int(1000 * at), first + rate * (at - start))
            for at in times
        ]

    begin, third = span.start - 2 * step, span.count / 3 * step
    own.send(count("n1", 2e10, begin, span.start + third, begin))
    own.send(count("n2", 0.0, span.start + third, span.start + 2 * third, span.start + third))
    own.send(count("n2", 0.0, span.start + 2 * third, span.end + 1, span.start + 2 * third))  # the guest started again
    fetch(own.find(), "/internal/force_flush", b"")
    asker = Asker(SystemClock(), 1)
    try:
        of = Series("default", "vm", "web")
        (found,) = asyncio.run(read_all(DatabaseHistory(asker, own.find), "network", [of], span)).values()
    finally:
        asker.close()
    assert np.isfinite(found).all()
    assert found.min() >= 0.0 and found.max() <= 1.1 * rate
    assert np.median(found) == pytest.approx(rate, rel=0.01) and (found > 0.9 * rate).sum() >= span.count - 2


def test_a_project_s_query_sees_its_own_series_and_no_others(own: OwnDatabase) -> None:
    span = Span.until(time.time() - 60, 60, STEP)
    samples = [
        Sample("weft_x", (("name", project), ("project", project)), int(1000 * (span.start + at * STEP)), 1.0)
        for project in ("ours", "theirs")
        for at in range(span.count)
    ]
    own.send(samples)
    fetch(own.find(), "/internal/force_flush", b"")
    asker = Asker(SystemClock(), 1)
    try:
        database = DatabaseHistory(asker, own.find)
        for query in ('weft_x{project="theirs"}', 'weft_x or {project="theirs"}', "weft_x # all"):
            found = asyncio.run(database.read(query, span, "ours"))
            assert {labels.get("name") for labels in found} <= {"ours"}
        assert len(found) == 1
        elsewhere = Database("prometheus", own.find().url)
        with pytest.raises(Unavailable, match="can't tell projects apart"):
            asyncio.run(DatabaseHistory(asker, lambda: elsewhere).read("weft_x", span, "ours"))
    finally:
        asker.close()


def test_a_history_that_isn_t_there_says_so() -> None:
    def find() -> Database:
        raise make_off()

    asker = Asker(SystemClock(), 1)
    with pytest.raises(Unavailable, match="keeps no history"):
        read(DatabaseHistory(asker, find), "weft_node_up", Span(0.0, STEP, 2))
    gone = Database("victoriametrics", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="can't be reached"):
        read(DatabaseHistory(asker, lambda: gone), "weft_node_up", Span(0.0, STEP, 2))
    asker.close()


def test_a_span_names_its_moments() -> None:
    span = Span.until(1234.0, 60, 10)
    assert (span.start, span.end, span.count) == (1180.0, 1230.0, 6)
    assert [span.index(at) for at in (1180.0, 1193.0, 1230.0, 1240.0, 1170.0)] == [0, 1, 5, None, None]
    assert Labels.of({"__name__": "x", "b": "2", "a": "1"}).pairs == (("a", "1"), ("b", "2"))
    row = asyncio.run(SampleHistory([Sample("x", (), 1_200_000, 3.0), Sample("y", (), 1_200_000, 4.0)]).read("x", span))
    assert [None if math.isnan(value) else value for value in row[Labels(())]] == [None, None, 3.0, None, None, None]
