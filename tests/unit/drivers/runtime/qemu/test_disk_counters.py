"""Disk counters over a monitor that answers, hangs, lies or ends: weft/drivers/runtime/qemu/devices/disk_counters.py."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from weft.drivers.runtime.qemu.devices.disk_counters import MOST_BYTES, RECONNECT_SECONDS, DiskCounters

GREETING = b'{"QMP": {"version": {}, "capabilities": ["oob"]}}\r\n'
EVENT = b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RTC_CHANGE", "data": {"offset": 1}}\r\n'


class Monitor:
    """QEMU's end of the socket."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "qmp2")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._line: socket.socket | None = None

    def accept(self) -> None:
        self._line = self._listener.accept()[0]
        self.send(GREETING)
        assert self._line.recv(999) == b'{"execute":"qmp_capabilities"}\n'
        self.send(b'{"return": {}}\r\n')

    def send(self, data: bytes) -> None:
        assert self._line is not None
        self._line.sendall(data)

    def take_question(self) -> bool:
        assert self._line is not None
        self._line.setblocking(False)
        try:
            return self._line.recv(999) == b'{"execute":"query-blockstats"}\n'
        except BlockingIOError:
            return False
        finally:
            self._line.setblocking(True)

    def close(self) -> None:
        self._listener.close()
        if self._line is not None:
            self._line.close()


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    made = Monitor(tmp_path)
    yield made
    made.close()


def answer(**read: int) -> bytes:
    return json.dumps({"return": [device(serial, bytes_) for serial, bytes_ in read.items()]}).encode() + b"\r\n"


def device(serial: str, read: int) -> dict[str, Any]:
    stats = dict.fromkeys(("wr_bytes", "rd_operations", "wr_operations", "wr_total_time_ns", "other"), 7)
    where = f"/machine/peripheral/blk-{serial}/virtio-backend"
    return {"device": "", "qdev": where, "stats": {**stats, "rd_bytes": read, "rd_total_time_ns": 5_000_000}}


def connect(monitor: Monitor) -> DiskCounters:
    counters = DiskCounters(monitor.path, ["root", "data"])
    assert counters.read(0.0, often=False) is None
    monitor.accept()
    assert counters.read(0.2, often=False) is None and monitor.take_question()
    return counters


def test_an_answer_counts_for_the_time_of_its_question_and_the_next_comes_a_second_later(monitor: Monitor) -> None:
    counters = connect(monitor)
    monitor.send(EVENT + answer(root=4096, stranger=1) + EVENT[:20])
    found = counters.read(0.4, often=False)
    assert found is not None and found.at == 0.2
    assert found.values["disk.root.read"] == 4096 and found.values["disk.root.read_seconds"] == 0.005
    assert set(found.values) == {name for name in counters.names if name.startswith("disk.root.")}
    assert [(counters.read(at, often=False), monitor.take_question()) for at in (0.6, 0.8, 1.0)] == [(None, False)] * 3
    assert counters.read(1.2, often=False) is None and monitor.take_question()


def test_while_somebody_watches_each_read_asks(monitor: Monitor) -> None:
    counters = connect(monitor)
    for step in range(2, 6):
        monitor.send(answer(root=step))
        found = counters.read(step / 5, often=True)
        assert found is not None and found.values["disk.root.read"] == step and monitor.take_question()


def test_a_machine_that_hangs_is_asked_once_and_its_late_answer_is_not_taken(monitor: Monitor) -> None:
    counters = connect(monitor)
    assert [(counters.read(1.0 + at, often=True), monitor.take_question()) for at in range(5)] == [(None, False)] * 5
    monitor.send(answer(root=1))
    assert counters.read(7.0, often=False) is None and monitor.take_question()
    monitor.send(answer(root=2))
    found = counters.read(7.2, often=False)
    assert found is not None and found.at == 7.0


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x00\xff\n",
        b"[[[[",
        b"[" * 5000 + b"\n",
        b'{"return": [{"qdev": "/machine/peripheral/blk-root/x", "stats": {"rd_bytes": "many"}}]}\n',
        b'{"error": {"class": "GenericError", "desc": "no"}}\n',
        b'{"return": [{"stats": {"rd_bytes": 1e999}}]}\n',
        answer(root=10**400),
        answer(root=-1),
        b"x" * (MOST_BYTES + 10_000),
    ],
    ids=["bytes", "unfinished", "deep", "words", "refused", "huge", "beyond floats", "negative", "endless"],
)
def test_nonsense_is_no_sample_and_the_connection_is_made_again_later(monitor: Monitor, nonsense: bytes) -> None:
    counters = connect(monitor)
    for start in range(0, len(nonsense), 50_000):
        monitor.send(nonsense[start : start + 50_000])
        assert counters.read(0.4, often=False) is None
    if nonsense == b"[[[[":
        monitor.send(b"\n")
        assert counters.read(0.6, often=False) is None
    assert counters.read(1.0, often=False) is None
    counters.read(0.1 + RECONNECT_SECONDS, often=False)
    monitor.accept()
    assert counters.read(6.0, often=False) is None and monitor.take_question()
    monitor.send(answer(data=9))
    found = counters.read(6.2, often=False)
    assert found is not None and found.values["disk.data.read"] == 9


def test_a_monitor_that_is_missing_or_ends_is_no_fault(monitor: Monitor, tmp_path: Path) -> None:
    absent = DiskCounters(str(tmp_path / "absent"), ["root"])
    assert [absent.read(float(at), often=True) for at in range(12)] == [None] * 12
    counters = connect(monitor)
    monitor.close()
    assert [counters.read(float(at), often=True) for at in range(12)] == [None] * 12
    assert DiskCounters(str(tmp_path / "absent"), []).names == ()
