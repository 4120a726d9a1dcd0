"""Reads and ends processes: who runs, since when, with which command line. Reads /proc, sends signals.

A process is identified by its number and its start, so that a number used again is never taken for the old process.
Its command line is not part of that: a process that has only just been started may not show it yet.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from itertools import pairwise

import msgspec

from weft.drivers.linux.processes import inspect_process as inspect_id
from weft.drivers.linux.processes import read_arguments

WEFT_ROLES = ("server", "agent", "init", "gateway", "guard", "ceph")
ENGINES = ("qemu-", "dnsmasq", "etcd", "victoria-metrics", "ceph-", "radosgw")


class Process(msgspec.Struct, frozen=True):
    """One living process; ``start`` in clock ticks since boot."""

    pid: int
    start: int
    argv: tuple[str, ...]

    def is_same(self, other: Process | None) -> bool:
        """Whether both are one process of one boot."""
        return other is not None and (self.pid, self.start) == (other.pid, other.start)


def inspect_process(pid: int) -> Process | None:
    """The process with this number, or None when there is none or only its zombie."""
    found = inspect_id(pid)
    return Process(pid, found.start_ticks, tuple(read_arguments(pid))) if found is not None else None


def inspect_processes() -> list[Process]:
    """All living processes of this process namespace."""
    found = (inspect_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [process for process in found if process is not None]


def is_weft(process: Process, folders: Iterable[str]) -> bool:
    """Whether this is one of weft's daemons or engines at work in one of ``folders``; a person's editor isn't."""
    words = [word.rpartition("/")[2] for word in process.argv]
    ours = any(word == "weft" and following in WEFT_ROLES for word, following in pairwise(words))
    engine = bool(words) and words[0].startswith(ENGINES)
    return (ours or engine) and any(_mentions(word, folder) for word in process.argv for folder in folders)


def end(processes: Iterable[Process], sign: signal.Signals, timeout_seconds: float) -> list[Process]:
    """Send ``sign`` to each and wait until they are gone; those still alive at the end are given back."""
    waiting: dict[int, Process] = {}
    with ExitStack() as stack:
        poll = select.poll()
        for process in processes:
            try:
                descriptor = os.pidfd_open(process.pid)
            except ProcessLookupError:
                continue
            stack.callback(os.close, descriptor)
            if process.is_same(inspect_process(process.pid)):
                with suppress(ProcessLookupError):  # it has just ended: its descriptor says so
                    signal.pidfd_send_signal(descriptor, sign)
                poll.register(descriptor, select.POLLIN)
                waiting[descriptor] = process
        while waiting:
            ready = poll.poll(timeout_seconds * 1000)
            if not ready:
                break
            for descriptor, _ in ready:
                poll.unregister(descriptor)
                del waiting[descriptor]
    return list(waiting.values())


def _mentions(word: str, folder: str) -> bool:
    at = word.find(folder)
    while at >= 0:
        before, after = word[at - 1 : at], word[at + len(folder) : at + len(folder) + 1]
        if before in ("", "=", ":", ",") and after in ("", "/", ",", ":"):
            return True
        at = word.find(folder, at + 1)
    return False
