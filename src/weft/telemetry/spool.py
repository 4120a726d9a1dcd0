"""Spans, or lines of its log, of a process on their way to the server's store: files to which one JSON line is appended for each,
at once, so that a killed process loses none. Another process may read them meanwhile. The oldest file goes where nobody reads."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import msgspec

FILE_BYTES = 1 << 20
MOST_FILES = 8
_encoder = msgspec.json.Encoder()


class Spool:
    """Writes into ``folder``, which is this process's alone. Thread-safe. ``dropped``: what the disk had no space for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._file = -1
        self._number = self._size = 0
        self._torn = False
        self.dropped = 0

    def put(self, *each: msgspec.Struct) -> None:
        """Never raises: work goes on where its traces can't be written."""
        lines = _encoder.encode_lines(each)
        with self._lock:
            try:
                self._write(lines)
            except OSError:
                self.dropped += len(each)

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _write(self, lines: bytes) -> None:
        """Raises OSError."""
        if self._file < 0 or self._size >= FILE_BYTES:
            self._begin_file()
        data = b"\n" + lines if self._torn else lines
        self._torn = True  # until all of it is there
        self._torn = os.write(self._file, data) < len(data)
        self._size += len(data)

    def _begin_file(self) -> None:
        """Never the file of an earlier process, whose last line may be torn."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = list_files(self._folder)
        for old in there[: max(0, len(there) - MOST_FILES + 1)]:
            with contextlib.suppress(OSError):
                _path(self._folder, old).unlink()
        number = max([self._number, *there]) + 1
        file = os.open(
            _path(self._folder, number), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_EXCL, 0o600
        )
        if self._file >= 0:
            os.close(self._file)
        self._file, self._number, self._size, self._torn = file, number, 0, False


def list_files(folder: Path) -> list[int]:
    """Their numbers, in order."""
    return sorted(int(path.stem) for path in folder.glob("*.spool") if path.stem.isdecimal())


def read_spool(folder: Path, position: str, most: int) -> tuple[bytes, str]:
    """Whole lines after ``position`` ("": the oldest), about ``most`` bytes, and the position after them. Raises OSError."""
    number, offset = _read_position(position)
    there = list_files(folder)
    found = b""
    for each in there:
        if each < number:
            continue
        begin = offset if each == number else 0
        try:
            with open(_path(folder, each), "rb") as file:
                file.seek(begin)
                data = file.read(max(1, most - len(found)))
        except FileNotFoundError:
            continue
        end = data.rfind(b"\n") + 1
        found += data[:end]
        number, offset = each, begin + end
        if end < len(data) and (each == there[-1] or len(found) + len(data) - end >= most):
            break
        if len(found) >= most:
            break
    return found, f"{number}:{offset}"


def forget_read(folder: Path, position: str) -> None:
    """Remove files that lie before ``position``: never the one that is written now. Raises OSError."""
    number, _ = _read_position(position)
    for each in list_files(folder)[:-1]:
        if each < number:
            _path(folder, each).unlink(missing_ok=True)


def _read_position(position: str) -> tuple[int, int]:
    number, _, offset = position.partition(":")
    return (int(number), int(offset)) if number.isdecimal() and offset.isdecimal() else (0, 0)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:010d}.spool"
