"""QEMU processes, found by pidfile and the machine's uuid on the command line. Reads /proc and pidfiles only."""

from __future__ import annotations

import os
from pathlib import Path

from weft.drivers.linux.processes import ProcessId, inspect_process


def find_guest_process(pid_file: Path, uuid: str = "") -> ProcessId | None:
    """The live QEMU that wrote ``pid_file``, which no other guest's has, and whose machine has this uuid, if it is known."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return None
    return inspect_process(pid) if _runs_guest(pid, pid_file, uuid) else None


def search_guest_process(pid_file: Path, uuid: str = "") -> ProcessId | None:
    """Any process on its way to become that QEMU, by a search of all: it may not have written its pidfile yet."""
    found = (int(name) for name in os.listdir("/proc") if name.isdigit())
    for pid in sorted(found, reverse=True):
        if _runs_guest(pid, pid_file, uuid):
            return inspect_process(pid)
    return None


def _runs_guest(pid: int, pid_file: Path, uuid: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return {os.fsencode(pid_file), *([uuid.encode()] if uuid else [])} <= set(words)
