"""Spans on their way: written by one process, killed or not, gathered by another, found again, and sent to a collector."""

from __future__ import annotations

import errno
import itertools
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.contracts.hostile_http import serving

from weft.contracts.clock import SystemClock
from weft.contracts.trace.context import Context, new_trace
from weft.contracts.trace.span import Span, Tracer
from weft.objects.errors import InvalidInput
from weft.telemetry import collector
from weft.telemetry import spool as spools
from weft.telemetry.collector import read_collector
from weft.telemetry.spool import Spool, forget_read, list_files, read_spool
from weft.telemetry.traces.export import SpanExporter
from weft.telemetry.traces.otlp import to_otlp
from weft.telemetry.traces.store import TraceStore

NOW = 1_790_000_000
SECOND = 10**9


def make_span(trace: str, id: str = "1" * 16, parent: str = "", begin: float = 0, end: float = 1, **more: Any) -> Span:
    fields = {"name": "image", "process": "node/n1", "about": "vm/default/web", **more}
    return Span(
        trace, id, parent, begin=int((NOW + begin) * SECOND), end=int((NOW + end) * SECOND) if end else 0, **fields
    )


def read_all(folder: Path, position: str = "") -> tuple[list[Span], str]:
    data, after = read_spool(folder, position, 1 << 20)
    return [msgspec.json.decode(line, type=Span) for line in data.splitlines()], after


def test_what_is_put_is_read_once_in_order_while_it_is_being_written(tmp_path: Path) -> None:
    spool, trace = Spool(tmp_path / "s"), new_trace()
    given = [make_span(trace, f"{number:016x}") for number in range(5)]
    for one in given[:3]:
        spool.put(one)
    first, position = read_all(tmp_path / "s")
    for one in given[3:]:
        spool.put(one)
    rest, position = read_all(tmp_path / "s", position)
    assert first + rest == given
    assert read_all(tmp_path / "s", position) == ([], position)


def test_a_line_that_a_killed_process_tore_costs_only_itself(tmp_path: Path) -> None:
    trace = new_trace()
    Spool(tmp_path).put(make_span(trace))
    (only,) = list_files(tmp_path)
    with (tmp_path / f"{only:010d}.spool").open("ab") as file:
        file.write(b'["half a span')
    _, position = read_all(tmp_path)
    again = Spool(tmp_path)  # the next process
    again.put(make_span(trace, "2" * 16))
    found, position = read_all(tmp_path, position)
    assert [one.id for one in found] == ["2" * 16]
    forget_read(tmp_path, position)
    assert list_files(tmp_path) == [only + 1]


def test_without_a_reader_the_oldest_go_and_the_folder_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "FILE_BYTES", 1000)
    spool, trace = Spool(tmp_path), new_trace()
    for number in range(200):
        spool.put(make_span(trace, f"{number:016x}"))
    assert len(list_files(tmp_path)) <= spools.MOST_FILES
    found, _ = read_all(tmp_path, "1:77")  # that file is gone
    assert found[-1].id == f"{199:016x}" and len(found) < 100
    assert [one.id for one in found] == [f"{number:016x}" for number in range(200 - len(found), 200)]


def test_a_full_disk_costs_spans_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, trace, real = Spool(tmp_path), new_trace(), os.write

    def write(file: int, data: bytes) -> int:
        if b"2222" in data:
            raise OSError(errno.ENOSPC, "no space left on device")
        if b"3333" in data:
            return real(file, data[:10])
        return real(file, data)

    monkeypatch.setattr(os, "write", write)
    for digit in "1234":
        spool.put(make_span(trace, digit * 16))
    lines = read_spool(tmp_path, "", 1 << 20)[0].splitlines()
    store = TraceStore(tmp_path / "store", tmp_path / "none", SystemClock())
    assert spool.dropped == 1 and len(lines) >= 3
    assert b"4444" in lines[-1]
    store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    made = TraceStore(tmp_path / "store", tmp_path / "processes", SystemClock())
    yield made
    made.close()


def test_a_trace_is_gathered_from_all_processes_and_survives_a_killed_server(store: TraceStore, tmp_path: Path) -> None:
    tracers = {
        name: Tracer(name, SystemClock(), Spool(tmp_path / "processes" / name).put) for name in ("api", "controllers")
    }
    trace, other = new_trace(), new_trace()
    root = tracers["api"].record(Context(trace, ""), "POST", NOW, NOW + 1)
    for mine in (trace, other):
        tracers["controllers"].record(Context(mine, root), "scheduler", NOW + 2, NOW + 3)
    store.gather()
    store.put([make_span(trace, begin=4, end=5)])
    assert [one.name for one in store.find(trace)] == ["POST", "scheduler", "image"]
    again = TraceStore(tmp_path / "store", tmp_path / "processes", SystemClock())  # without a close
    again.gather()
    assert [one.name for one in again.find(trace)] == ["POST", "scheduler", "image"]
    assert [one.process for one in again.find(other)] == ["controllers"]
    again.close()


def test_a_span_that_was_not_over_is_replaced_by_the_one_that_is_and_a_repeat_counts_once(store: TraceStore) -> None:
    trace = new_trace()
    store.put([make_span(trace, end=0)])
    (found,) = store.search(NOW - 1, lambda one: True)
    assert not found.over
    store.put([make_span(trace, end=7), make_span(trace, end=7), make_span(trace, end=0)])
    (only,) = store.find(trace)
    assert only.end == (NOW + 7) * SECOND
    (found,) = store.search(NOW - 1, lambda one: True)
    assert (found.over, found.seconds, found.spans) == (True, 7.0, 1)


def test_a_list_has_only_what_may_be_seen_since_then_newest_first(store: TraceStore) -> None:
    traces = [new_trace() for _ in range(3)]
    for number, trace in enumerate(traces):
        parent = "a" * 16  # of a caller who isn't here
        store.put(
            [
                make_span(trace, "2" * 16, "1" * 16, 10 * number + 1, 10 * number + 3, name="inner", error="no space"),
                make_span(
                    trace, "1" * 16, parent, 10 * number, 10 * number + 2, name="POST", about=f"vm/p{number}/web"
                ),
            ]
        )
    found = store.search(NOW + 5, lambda one: one.project != "p2")
    assert [(one.trace, one.name) for one in found] == [(traces[2], "inner"), (traces[1], "POST")]
    assert (found[1].seconds, found[1].spans, found[1].error) == (3.0, 2, "no space")
    assert [one.trace for one in store.search(NOW - 1, lambda one: True, "vm/p1/web")] == [traces[1]]


def test_the_store_forgets_the_oldest_first(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "store", tmp_path / "none", SystemClock(), most_bytes=600_000, most_age=1e9)
    first, last = "0" + "a" * 31, "0" + "b" * 31
    store.put([make_span(first)])
    for _ in range(40):
        store.put([make_span(new_trace(), os.urandom(8).hex(), name=os.urandom(60).hex()) for _ in range(1000)])
    store.put([make_span(last)])
    assert not store.find(first)
    assert store.find(last)
    size = sum(path.stat().st_size for path in (tmp_path / "store").iterdir())
    assert size < 6_000_000  # the journal's bound, and that of the segments
    store.close()


def test_otlp_has_ids_in_hex_times_as_text_and_typed_values() -> None:
    attributes: dict[str, Any] = {"n": 3, "ok": True, "share": 0.5, "what": "é"}
    one = make_span("ab" * 16, parent="c" * 16, error="no space", attributes=attributes, kind=2)
    document = json.loads(json.dumps(to_otlp([one, make_span("ab" * 16, "2" * 16, process="api")])))
    first, second = document["resourceSpans"]
    assert first["resource"]["attributes"] == [{"key": "service.name", "value": {"stringValue": "weft/node/n1"}}]
    (shown,) = first["scopeSpans"][0]["spans"]
    assert shown["traceId"] == "ab" * 16 and shown["parentSpanId"] == "c" * 16 and shown["kind"] == 2
    assert shown["startTimeUnixNano"] == str(NOW * SECOND) and shown["status"] == {"code": 2, "message": "no space"}
    assert {part["key"]: part["value"] for part in shown["attributes"]} == {
        "weft.object": {"stringValue": "vm/default/web"},
        "n": {"intValue": "3"},
        "ok": {"boolValue": True},
        "share": {"doubleValue": 0.5},
        "what": {"stringValue": "é"},
    }
    assert "parentSpanId" not in second["scopeSpans"][0]["spans"][0]


class Collector(HTTPServer):
    """Takes spans, after it has refused ``refusals`` times with 503."""

    def __init__(self, refusals: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refusals, self.taken = refusals, list[Any]()
        self.came = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        refused = self.server.refusals > 0
        self.server.refusals -= refused
        self.send_response(503 if refused else 200)
        self.end_headers()
        if not refused:
            self.server.taken.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.server.came.set()

    def log_message(self, *_: object) -> None:
        pass


def test_a_collector_gets_what_is_over_also_after_it_was_away() -> None:
    server = Collector(refusals=1)
    exporter = SpanExporter(read_collector(f"otlp=http://127.0.0.1:{server.server_port}"))
    exporter.put([make_span("ab" * 16, end=0), make_span("cd" * 16)])
    assert server.came.wait(20)
    exporter.close()
    server.shutdown()
    ((path, type_, document),) = server.taken
    assert (path, type_) == ("/v1/traces", "application/json")
    assert [span["traceId"] for span in document["resourceSpans"][0]["scopeSpans"][0]["spans"]] == ["cd" * 16]


def test_a_collector_that_is_nowhere_holds_nothing_up_and_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.telemetry.traces.export.MOST_WAITING", 100)
    exporter = SpanExporter(read_collector("otlp=http://127.0.0.1:9"))
    exporter.put([make_span("ab" * 16) for _ in range(1000)])
    assert exporter.unsent >= 400  # some may be on their way
    exporter.close()
    assert exporter.sent == 0


def test_a_collector_that_drips_its_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "WHOLE_SECONDS", 0.3)
    with serving(lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n", 400), pause=0.05) as url:
        assert collector.Collector(url).post({}) == ("no answer in time", False)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("otlp=http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("otlp=https://collector.example/", "https://collector.example/v1/traces"),
        ("otlp=http://[::1]:4318/other/v1/traces", "http://[::1]:4318/other/v1/traces"),
    ],
)
def test_a_collector_is_named_by_its_address(text: str, url: str) -> None:
    assert read_collector(text) == url


@pytest.mark.parametrize("text", ["otlp=", "otlp=ftp://x", "otlp=127.0.0.1:4318", "here", "otlp=http://x:99999"])
def test_what_is_no_collector_s_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="not the address of a collector") as refused:
        read_collector(text)
    assert "like otlp=http://" in (refused.value.hint or "")
    with pytest.raises(InvalidInput, match=r"^--log-otlp: ") as refused:
        read_collector("ftp://x", "--log-otlp", "/v1/logs")
    assert "like http://" in (refused.value.hint or "")


def test_a_guest_s_span_joins_only_traces_of_its_own_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.telemetry.traces.store.MOST_OF_GUESTS", 20)
    store = TraceStore(tmp_path / "store", tmp_path / "spools", SystemClock())
    trace, alone = new_trace(), new_trace()

    def of_guest(of: str, id: str, project: str) -> Span:
        return make_span(of, id, process="guest/shop", about=f"vm/{project}/web", name=f"{project} {id[0]}")

    store.put([of_guest(trace, "2" * 16, "mallory"), of_guest(alone, "3" * 16, "default")])
    store.put([make_span(trace, "1" * 16, name="run"), of_guest(trace, "1" * 16, "default")])
    store.put([of_guest(trace, "4" * 16, "default"), of_guest(alone, "5" * 16, "mallory")])
    assert [one.name for one in store.find(trace)] == ["run", "default 4"]  # nor does it replace one of weft's
    assert [one.name for one in store.find(alone)] == ["default 3"]  # whose came first has it
    store.put([of_guest(trace, f"{number:016x}", "default") for number in range(16, 200)])
    assert len(store.find(trace)) <= 21 and store.find(trace)[0].name == "run"
    store.put([of_guest(trace, "e" * 16, "default"), *[of_guest(trace, "f" * 16, "default")] * 500])
    decoded = list[bytes]()

    def count(lines: list[bytes]) -> list[Span]:
        decoded.extend(lines)
        return []

    monkeypatch.setattr("weft.telemetry.traces.store._decode_lines", count)
    store.find(trace)
    assert len(decoded) <= 22  # one that comes again and again costs no more
    store.close()
