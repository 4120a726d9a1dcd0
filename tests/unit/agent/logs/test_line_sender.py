"""Lines that go on to a syslog: as it reads them, and without waiting for one that is gone."""

from __future__ import annotations

import re
import socket
from array import array
from pathlib import Path

import pytest

from weft.agent.logs.syslog import MOST_BYTES, LineSender, make_message
from weft.contracts.clock import SystemClock
from weft.telemetry.logs.segment import Lines


def test_a_line_is_a_message_with_its_time_its_node_and_its_source() -> None:
    message = make_message(1795618433224698, "n1", "vm/default/web", b"\x1b[31mred\tone\\")
    assert message == b"<134>1 2026-11-25T14:53:53.224698Z n1 weft - - - vm/default/web: \\x1b[31mred one\\"
    assert len(make_message(0, "n1", "vm/web", "ü".encode() * 9000)) in (MOST_BYTES, MOST_BYTES - 1)


@pytest.mark.parametrize("kind", ["socket", "port"])
def test_lines_arrive_in_their_order(tmp_path: Path, kind: str) -> None:
    family = socket.AF_UNIX if kind == "socket" else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "log") if kind == "socket" else ("127.0.0.1", 0))
        syslog.settimeout(10)
        sender = LineSender(syslog.getsockname(), "n1", SystemClock())
        sender.send("vm/web", Lines("uid", 0, array("q", [1, 2]), b"one\ntwo\n"))
        found = [syslog.recv(9000) for _ in range(2)]
        assert [re.sub(rb".*: ", b"", line) for line in found] == [b"one", b"two"]
        sender.close()
        assert sender.unsent == 0


def test_a_syslog_that_is_gone_misses_lines_and_keeps_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sender = LineSender(str(tmp_path / "nothing"), "n1", SystemClock())
    for _ in range(3):
        sender.send("vm/web", Lines("uid", 0, array("q", [1, 2]), b"one\ntwo\n"))
    sender.close()
    assert sender.unsent == 6
    assert len(caplog.records) == 1 and "syslog takes no lines" in caplog.text
