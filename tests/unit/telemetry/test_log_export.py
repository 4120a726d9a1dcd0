"""Lines on their way to a collector: each once while both live, none missing when one of them was away."""

from __future__ import annotations

import json
import threading
import time
from array import array
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from weft.contracts.clock import SystemClock
from weft.telemetry.logs import export
from weft.telemetry.logs.export import LogExporter
from weft.telemetry.logs.store import LogStore


class Collector(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0, status: int = 200) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.status = status
        self.lines: list[tuple[str, str]] = []
        self.sizes: list[int] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def wait(self, count: int) -> list[tuple[str, str]]:
        deadline = time.monotonic() + 30
        while len(self.lines) < count:
            assert time.monotonic() < deadline, self.lines[-3:]
            time.sleep(0.01)
        return self.lines


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status == 200:
            assert (self.path, self.headers["Content-Type"]) == ("/v1/logs", "application/json")
            for resource in json.loads(body)["resourceLogs"]:
                service = resource["resource"]["attributes"][0]["value"]["stringValue"]
                records = resource["scopeLogs"][0]["logRecords"]
                assert all(int(record["timeUnixNano"]) > 10**18 for record in records)
                self.server.lines += [(service, record["body"]["stringValue"]) for record in records]
        self.server.sizes.append(len(body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LogStore]:
    made = LogStore(tmp_path / "logs", SystemClock())
    made.open()
    yield made
    made.close()


def put(store: LogStore, uid: str, *lines: str) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    store.append(uid, array("q", [int(time.time() * 1e6)] * len(lines)), text, what=f"vm/lab/{uid}")


def begin(store: LogStore, port: int, **_: Any) -> LogExporter:
    made = LogExporter(
        store, f"http://127.0.0.1:{port}/v1/logs", store._folder / "exported.json", "node/n1", SystemClock()
    )
    made.begin()
    return made


def test_what_is_new_is_sent_once_and_what_was_there_before_is_not(store: LogStore) -> None:
    collector = Collector()
    put(store, "web", "before")
    exporter = begin(store, collector.server_port)
    put(store, "web", "one", "two \x1b[2J")
    put(store, "db", "three")
    collector.wait(3)
    exporter.close()
    put(store, "web", "while it was down")
    again = begin(store, collector.server_port)
    put(store, "web", "last")
    assert sorted(collector.wait(5)) == [
        ("vm/lab/db", "three"), ("vm/lab/web", "last"), ("vm/lab/web", "one"), ("vm/lab/web", "two \x1b[2J"),
        ("vm/lab/web", "while it was down"),
    ]  # fmt: skip
    again.close()
    collector.shutdown()
    collector.server_close()


@pytest.mark.parametrize("status", [503, 429])
def test_a_collector_that_was_away_gets_all_in_requests_of_a_bounded_size(
    store: LogStore, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(export, "LONGEST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(export, "FIRST_PAUSE_SECONDS", 0.01)
    collector = Collector(status=status)
    exporter = begin(store, collector.server_port)
    for number in range(0, 3000, 100):
        put(store, "chatty", *(f"{each} {'x' * 100}" for each in range(number, number + 100)))
    put(store, "quiet", "only one")
    while not collector.sizes:
        time.sleep(0.01)
    assert not collector.lines
    collector.status = 200
    lines = collector.wait(3001)
    assert [text.split()[0] for service, text in lines if service == "vm/lab/chatty"] == [str(n) for n in range(3000)]
    assert [service for service, _ in lines].index("vm/lab/quiet") < 1500  # one that prints much keeps no other waiting
    exporter.close()
    assert exporter.unsent == 0 and max(collector.sizes) < 2 << 20
    collector.shutdown()
    collector.server_close()


def test_a_collector_that_refuses_lines_gets_the_next_ones(store: LogStore) -> None:
    collector = Collector(status=400)
    exporter = begin(store, collector.server_port)
    put(store, "web", "poison")
    while not exporter.unsent:
        time.sleep(0.01)
    collector.status = 200
    put(store, "web", "next")
    assert collector.wait(1) == [("vm/lab/web", "next")]
    exporter.close()
    collector.shutdown()
    collector.server_close()
