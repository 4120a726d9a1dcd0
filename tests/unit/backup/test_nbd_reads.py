"""Reads that are sent ahead of their answers: in order for who reads, in any order from the server."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft.backup.process.nbd import NbdClient
from weft.objects.errors import DriverFailed

SIZE = 1 << 20


class Server:
    """Answers reads in pairs, the second one first. ``asked`` is the most that waited at once."""

    def __init__(self, path: Path) -> None:
        self.path, self.asked, self.odd = str(path), 0, 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._thread.join(60)
        self._listener.close()

    def _serve(self) -> None:
        line, _ = self._listener.accept()
        with line:
            line.sendall(struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 1))
            self._take(line, 4 + 16 + 6)
            info = struct.pack(">HQH", 0, SIZE, 0)
            line.sendall(struct.pack(">QIII", 0x3E889045565A9, 7, 3, len(info)) + info)
            line.sendall(struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0))
            waiting: list[tuple[int, int, int]] = []
            line.settimeout(0.2)
            while True:
                try:
                    _, _, command, number, offset, length = struct.unpack(">IHHQQI", self._take(line, 28))
                except TimeoutError:
                    command = 0
                else:
                    if command != 0:
                        return
                    waiting.append((number, offset, length))
                    self.asked = max(self.asked, len(waiting))
                    if len(waiting) < 4:
                        continue
                for number, offset, length in reversed(waiting):
                    data = bytes([offset >> 12 & 255]) * length
                    line.sendall(struct.pack(">IIQ", 0x67446698, 0, number + self.odd) + data)
                waiting = []

    @staticmethod
    def _take(line: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            if not (more := line.recv(count - len(data))):
                return struct.pack(">IHHQQI", 0, 0, 2, 0, 0, 0)
            data += more
        return data


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "nbd.sock")
    yield server
    server.close()


def test_what_comes_in_another_order_is_given_in_the_asked_one(server: Server) -> None:
    with NbdClient(server.path) as client:
        found = list(client.read_ahead((block << 12, 512 * (1 + block % 3)) for block in range(11)))
        assert [(data[0], len(data)) for data in found] == [(block, 512 * (1 + block % 3)) for block in range(11)]
        assert server.asked > 1
        assert client.read(5 << 12, 2) == b"\x05\x05"


def test_an_answer_to_nothing_is_refused(server: Server) -> None:
    server.odd = 40
    with NbdClient(server.path) as client, pytest.raises(DriverFailed, match="not asked"):
        list(client.read_ahead([(0, 512)]))


def test_who_ends_early_can_ask_no_more(server: Server) -> None:
    """What still comes would be taken for the answer."""
    with NbdClient(server.path) as client:
        reading = client.read_ahead((block << 12, 512) for block in range(9))
        next(reading)
        reading.close()
        with pytest.raises(OSError):
            client.read(0, 1)
