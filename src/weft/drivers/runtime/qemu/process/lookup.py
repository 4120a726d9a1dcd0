"""QEMU processes, found by pidfile and the machine's uuid on the command line. Reads /proc and pidfiles only."""

from __future__ import annotations

from pathlib import Path

from weft.drivers.linux.processes import ProcessId, inspect_process, list_arguments, read_arguments


def find_guest_process(pid_file: Path, uuid: str = "") -> ProcessId | None:
    """The live QEMU that wrote ``pid_file``, which no other guest's has, and whose machine has this uuid, if it is known."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return None
    return inspect_process(pid) if _runs_guest(read_arguments(pid), pid_file, uuid) else None


def search_guest_process(pid_file: Path, uuid: str = "") -> ProcessId | None:
    """Any process that is about to become that QEMU, by a search of all: it may not have written its pidfile yet."""
    return next((inspect_process(pid) for pid, words in list_arguments() if _runs_guest(words, pid_file, uuid)), None)


def _runs_guest(words: list[str], pid_file: Path, uuid: str) -> bool:
    return {str(pid_file), *([uuid] if uuid else [])} <= set(words)
