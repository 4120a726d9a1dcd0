"""The kernel's counters of one control group, in files that stay open: see ``drivers/linux/counters.py``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from weft.contracts.driver.runtime import Counted
from weft.drivers.linux.counters import OpenFile

_FILE_BYTES = 4096  # as much as the kernel gives at once: the disks of a node that has very many are counted in part
FILES = {
    1: {
        "cpu": "cpuacct.usage",
        "throttled": "cpu.stat",
        "memory": "memory.usage_in_bytes",
        "bytes": "blkio.throttle.io_service_bytes",
        "operations": "blkio.throttle.io_serviced",
    },
    2: {"cpu": "cpu.stat", "memory": "memory.current", "bytes": "io.stat"},
}


class OpenGroup:
    """Counters (contracts.driver.runtime) of a group with these files; None where the node lacks a file's controller. Raises
    ProcessLookupError where the group isn't there any more."""

    names: tuple[str, ...]

    def __init__(self, files: Mapping[str, Path | None], version: int) -> None:
        self._version = version
        self._files: dict[str, OpenFile] = {}
        try:
            for what, path in files.items():
                if path is not None and (what == "cpu" or path.exists()):
                    self._files[what] = OpenFile(str(path), _FILE_BYTES)
            self.names = tuple(self.read(0.0, often=False).values)
        except OSError as problem:
            self.close()
            raise ProcessLookupError(problem.errno, problem.strerror) from problem

    def read(self, at: float, *, often: bool) -> Counted:
        try:
            texts = {what: file.read().decode(errors="replace") for what, file in self._files.items()}
        except OSError as problem:
            raise ProcessLookupError(problem.errno, problem.strerror) from problem
        return Counted(at, count_group(texts, self._version))

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


def count_group(texts: dict[str, str], version: int) -> dict[str, float]:
    """Pure: the values of ``Counted``, from the texts of a group's files."""
    values: dict[str, float] = {}
    with contextlib.suppress(ValueError):
        if version == 1 and "cpu" in texts:
            values["cpu"] = int(texts["cpu"]) / 1e9
        if version == 2 and "cpu" in texts:
            counts = _read_counts(texts["cpu"])
            values["cpu"] = counts["usage_usec"] / 1e6
            if "throttled_usec" in counts:
                values["throttled"] = counts["throttled_usec"] / 1e6
        if "throttled" in texts:
            values["throttled"] = _read_counts(texts["throttled"]).get("throttled_time", 0) / 1e9
        if "memory" in texts:
            values["memory.used"] = int(texts["memory"])
        if "bytes" in texts:
            values["disk.read"], values["disk.written"] = count_io(texts["bytes"], version)
        operations = texts.get("operations" if version == 1 else "bytes")
        if operations is not None:
            counted = count_io(operations, version, ("rios", "wios"))
            values["disk.reads"], values["disk.writes"] = counted
    return values


def _read_counts(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split(" ", 1) for line in text.splitlines() if " " in line)}


def count_io(text: str, version: int, names: tuple[str, str] = ("rbytes", "wbytes")) -> tuple[int, int]:
    """Pure. Bytes read and written, from io.stat (version 2, where they have these ``names``) or blkio.throttle.io_service_bytes;
    or operations, from io.stat by other names or from blkio.throttle.io_serviced."""
    done = written = 0
    for line in text.splitlines():
        words = line.split()
        if version == 2:
            counts = dict(word.split("=", 1) for word in words[1:] if "=" in word)
            done, written = done + int(counts.get(names[0], 0)), written + int(counts.get(names[1], 0))
        elif len(words) == 3 and words[1] == "Read":
            done += int(words[2])
        elif len(words) == 3 and words[1] == "Write":
            written += int(words[2])
    return done, written
