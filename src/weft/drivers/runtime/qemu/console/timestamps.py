"""When a guest printed what its console log has: QEMU writes no times, so the log's size is read every few seconds, and a file
beside it records it. A guest that prints a lot adds one line each time; of too many the older ones are thinned out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from weft.contracts.driver.runtime import PrintedBy
from weft.drivers.runtime.qemu.console.log import open_private

MOST_TIMES = 1024
_SUFFIX = ".times"
_LINE_BYTES = 39  # every line is as long as any other: one that was torn is known by that


def note_time(log: Path, printed: int, at: float) -> None:
    """``printed`` bytes had come by ``at``. Raises OSError."""
    path = _find(log)
    with open(path, "ab", opener=open_private) as file:
        size = file.tell()
        if size < MOST_TIMES * _LINE_BYTES:
            file.write(b"\n" * (size % _LINE_BYTES > 0) + _encode(PrintedBy(printed, at)))
            return
    _write(path, [*thin_out(read_times(log)), PrintedBy(printed, at)])


def add_times(log: Path, times: Sequence[PrintedBy]) -> None:
    """Add the times that another node has noted, of output after all that is noted here. Raises OSError."""
    known = read_times(log)
    last = known[-1].printed if known else -1
    fresh = [one for one in times[-MOST_TIMES:] if one.printed > last]
    if fresh:
        both = known + fresh
        _write(_find(log), both if len(both) <= MOST_TIMES else thin_out(both))


def read_times(log: Path) -> list[PrintedBy]:
    """All that was noted, oldest first; a damaged line is passed over."""
    try:
        with open(_find(log), "rb") as file:
            data = file.read((MOST_TIMES + 1) * _LINE_BYTES)
    except OSError:
        return []
    found = []
    for line in data.split(b"\n"):
        printed, _, at = line.partition(b" ")
        if len(line) == _LINE_BYTES - 1 and printed.isdigit() and at.replace(b".", b"", 1).isdigit():
            found.append(PrintedBy(int(printed), float(at)))
    return found


def thin_out(times: Sequence[PrintedBy]) -> list[PrintedBy]:
    """Every second one of the older half, and the newer half, of the newest that may be kept."""
    times = times[-MOST_TIMES:]
    half = len(times) // 2
    return [*times[:half:2], *times[half:]]


def _encode(one: PrintedBy) -> bytes:
    return f"{one.printed:020d} {one.at:017.3f}\n".encode()


def _write(path: Path, times: Sequence[PrintedBy]) -> None:
    fresh = path.with_suffix(".times.new")
    with open(fresh, "wb", opener=open_private) as file:
        file.write(b"".join(map(_encode, times)))
    os.replace(fresh, path)


def _find(log: Path) -> Path:
    return log.with_suffix(_SUFFIX)
