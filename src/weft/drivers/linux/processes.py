"""Processes that are found again after anything: a pid together with its start time. Reads /proc only."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LOOKS = 100  # at a process without a command line, which it has none of while it starts another program


class ProcessId(msgspec.Struct, frozen=True):
    """A process that can't be taken for another: a pid is used again, together with its start time never."""

    pid: int
    start_ticks: int


def inspect_process(pid: int) -> ProcessId | None:
    """None if it is gone, or a zombie."""
    fields = _stat_fields(pid)
    if fields is None or fields[0] in ("Z", "X"):
        return None
    return ProcessId(pid, int(fields[19]))


def read_parent(pid: int) -> int | None:
    """The number of its parent; None if it has gone."""
    fields = _stat_fields(pid)
    return int(fields[1]) if fields else None


def has_children(pid: int) -> bool:
    """Whether it has child processes; one that has ended counts until it is waited for. False on a kernel that doesn't say."""
    for children in glob.iglob(f"/proc/{pid}/task/*/children"):  # of each thread those that it started
        with contextlib.suppress(OSError):
            if Path(children).read_bytes():
                return True
    return False


def is_alive(process: ProcessId) -> bool:
    return inspect_process(process.pid) == process


async def wait_for_end(process: ProcessId) -> None:
    """Return when the process has ended; it need not be our child."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        loop.add_reader(descriptor, ended.set)
        if is_alive(process):  # else the descriptor may be of another process with the same pid
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def kill_process(process: ProcessId) -> None:
    """SIGKILL, unless it has gone already."""
    with contextlib.suppress(ProcessLookupError):
        if is_alive(process):
            os.kill(process.pid, signal.SIGKILL)


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU the process has used; 0 if it has gone."""
    fields = _stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND if fields else 0.0


def resident_bytes(pid: int) -> int:
    """Bytes of memory the process has in RAM; 0 if it has gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def is_program_replaced(pid: int) -> bool:
    """Whether the program that the process runs isn't the one of that name any more, since its package was upgraded."""
    try:
        return os.readlink(f"/proc/{pid}/exe").endswith(" (deleted)")
    except OSError:
        return False


def host_boot_id() -> str:
    """The id of this kernel's boot: pids and pidfiles of another one mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat_fields(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None


def _has_memory(pid: int) -> bool:
    """Whether it is a program's process: those of the kernel, and those that have ended, have no memory of their own."""
    fields = _stat_fields(pid)
    return fields is not None and int(fields[20]) > 0


def list_arguments() -> Iterator[tuple[int, list[str]]]:
    """Each process's number and command line, the youngest numbers first, by a search of all. One that is about to start another
    program is not missed."""
    for pid in sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True):
        words = read_arguments(pid)
        for _ in range(_LOOKS):
            if words or not _has_memory(pid):
                break
            os.sched_yield()
            words = read_arguments(pid)
        if words:
            yield pid, words


def find_by_argument(word: str) -> list[ProcessId]:
    """Processes with this word on their command line."""
    found = (inspect_process(pid) for pid, words in list_arguments() if word in words)
    return [process for process in found if process is not None]


def read_arguments(pid: int) -> list[str]:
    """Its command line; empty of one that has gone, and of the kernel's own."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in words.removesuffix(b"\0").split(b"\0")] if words else []
