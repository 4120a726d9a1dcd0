"""The kernel's counters of the whole node, in files that stay open.

Some at each reading: cores, pressure, the link of the underlay. The rest once a second: memory, disks, temperature. What this
kernel or machine lacks is left out.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from weft.contracts.driver.runtime import Counted, Counters
from weft.drivers.linux.counters import OpenFile

EVERY_SECONDS = 0.9
MOST_CORES, MOST_DISKS, MOST_SENSORS = 80, 6, 16
_FILE_BYTES = 1 << 17  # of /proc/stat, of a machine with a thousand cores
_TICKS = os.sysconf("SC_CLK_TCK")
_SECTOR_BYTES = 512
_NO_DISK = re.compile(r"(loop|ram|zram|sr|fd|nbd|dm-|md)\d*")
_LINK_FILES = ("rx_bytes", "rx_packets", "rx_dropped", "tx_bytes", "tx_packets", "tx_dropped")
_LINK_NAMES = ("received", "received_packets", "received_drops", "sent", "sent_packets", "sent_drops")
Parse = Callable[[str], dict[str, float]]


class NodeFiles:
    """Counters (contracts.driver.runtime) of these files, each with what reads its text; read at most each ``seconds``."""

    def __init__(self, files: Iterator[tuple[Path, Parse]], seconds: float = 0.0) -> None:
        self._files: list[tuple[OpenFile, Parse]] = []
        self._seconds, self._last_at = seconds, float("-inf")
        for path, parse in files:
            with contextlib.suppress(OSError):
                self._files.append((OpenFile(str(path), _FILE_BYTES), parse))
        self.names = tuple(self._read())

    def read(self, at: float, *, often: bool) -> Counted | None:
        if at - self._last_at < self._seconds:
            return None
        self._last_at = at
        return Counted(at, self._read())

    def close(self) -> None:
        for file, _ in self._files:
            file.close()
        self._files.clear()

    def _read(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for file, parse in self._files:
            with contextlib.suppress(OSError, ValueError, KeyError, IndexError):  # a sensor that is asleep, say
                for name, value in parse(file.read().decode(errors="replace")).items():
                    values[name] = max(value, values.get(name, value)) if name == "temperature" else value
        return values


def open_node_counters(link: str, root: Path = Path("/")) -> list[Counters]:
    """Those of this machine, below ``root``; ``link`` is that of the underlay."""
    return [
        NodeFiles(_list_quick(root, link)),
        NodeFiles(_list_slow(root), EVERY_SECONDS),
    ]


def _list_quick(root: Path, link: str) -> Iterator[tuple[Path, Parse]]:
    yield root / "proc/stat", count_cores
    for resource in ("cpu", "memory", "io"):
        yield root / "proc/pressure" / resource, lambda text, resource=resource: count_pressure(text, resource)  # type: ignore[misc]
    for file, name in zip(_LINK_FILES, _LINK_NAMES, strict=True):
        series = f"nic.{link}.{name}"
        yield root / "sys/class/net" / link / "statistics" / file, _name_count(series)


def _list_slow(root: Path) -> Iterator[tuple[Path, Parse]]:
    yield root / "proc/meminfo", read_memory
    disks = sorted(path.name for path in _list(root / "sys/block") if not _NO_DISK.fullmatch(path.name))
    for disk in disks[:MOST_DISKS]:
        yield root / "sys/block" / disk / "stat", lambda text, disk=disk: count_disk(text, disk)  # type: ignore[misc]
    sensors = [
        *(root / "sys/class/thermal").glob("thermal_zone*/temp"),
        *(root / "sys/class/hwmon").glob("*/temp*_input"),
    ]
    for sensor in sorted(sensors)[:MOST_SENSORS]:
        yield sensor, read_temperature


def _list(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []


def _name_count(name: str) -> Parse:
    return lambda text: {name: int(text)}


def count_cores(text: str) -> dict[str, float]:
    """Pure: of /proc/stat, the seconds that all cores and each worked, and that a hypervisor took from them."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("cpu"):
            break
        word, *counts = line.split()
        user, nice, system, _, _, irq, softirq, steal = (int(count) / _TICKS for count in counts[:8])
        worked = user + nice + system + irq + softirq
        if word == "cpu":
            values["cpu"], values["steal"] = worked, steal
        elif len(values) - 2 < MOST_CORES:
            values[f"cpu.{word[3:]}"] = worked
    return values


def count_pressure(text: str, resource: str) -> dict[str, float]:
    """Pure: of /proc/pressure/…, the seconds in which some task, or all of them (full), waited for the resource."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        total = int(dict(pair.split("=") for pair in pairs)["total"]) / 1e6
        if kind == "some":
            values[f"pressure.{resource}"] = total
        elif resource != "cpu":  # of the whole node that is not defined
            values[f"pressure.{resource}.full"] = total
    return values


def count_disk(text: str, disk: str) -> dict[str, float]:
    """Pure: of /sys/block/…/stat, in the words of ``Counted``; ``busy`` are the seconds in which it had something to do."""
    reads, _, read, read_ms, writes, _, written, write_ms, _, busy_ms = map(int, text.split()[:10])
    of = f"disk.{disk}."
    return {
        of + "read": read * _SECTOR_BYTES,
        of + "written": written * _SECTOR_BYTES,
        of + "reads": reads,
        of + "writes": writes,
        of + "read_seconds": read_ms / 1000,
        of + "write_seconds": write_ms / 1000,
        of + "busy": busy_ms / 1000,
    }


def read_memory(text: str) -> dict[str, float]:
    """Pure: of /proc/meminfo, the bytes that programs use, and that they could get."""
    kilobytes: Mapping[str, int] = {
        line.partition(":")[0]: int(line.split()[1]) for line in text.splitlines() if line.startswith(("MemT", "MemA"))
    }
    total, available = kilobytes["MemTotal"], kilobytes["MemAvailable"]
    return {"memory.used": (total - available) * 1024, "memory.available": available * 1024}


def read_temperature(text: str) -> dict[str, float]:
    """Pure: of a sensor, in degrees Celsius; nothing of one that says what can't be."""
    degrees = int(text) / 1000
    return {"temperature": degrees} if -50 < degrees < 200 else {}
