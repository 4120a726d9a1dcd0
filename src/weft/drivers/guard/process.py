"""The guard of a node: ``python -SB -m weft.drivers.guard.process FOLDER``.

It lets guests run until the time that it was given for each, by CLOCK_BOOTTIME, which counts a suspended machine's sleep, too; then
it ends all that is in their control groups. It is two processes: one serves, and the other begins a new one when that is killed or
stopped; the one that serves does the same for the other, if that is killed. What it holds is in ``FOLDER/guard.json``, from which a
new one goes on. It ends once it holds nothing, or nobody can start again what it has ended, since its folder is gone.

Requests come by ``FOLDER/guard.sock``, one in a packet: see ``holds.read_request``. The answer has all that it holds, without
groups, or ``problem``. Imports the standard library only: it starts in a moment, and takes a few megabytes.

Source: timerfd_create(2), cgroups(7), cgroup.kill in the kernel's admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time

from weft.drivers.guard.holds import (
    MOST_REQUEST_BYTES,
    Holds,
    apply_request,
    find_next,
    list_due,
    note_ended,
    read_holds,
    read_request,
    write_answer,
    write_holds,
)

SOCKET, FILE, LOCK = "guard.sock", "guard.json", "guard.lock"
CLOCK_BOOTTIME, TFD_TIMER_ABSTIME = 7, 1
MCL_CURRENT, MCL_FUTURE = 1, 2
PAUSE_SECONDS = 0.1  # before a process that ended is begun again
ANSWER_SECONDS = 0.5  # a client that doesn't read its answer loses it


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("every", _Time), ("at", _Time))


class Alarm:
    """A descriptor that can be read at a time of CLOCK_BOOTTIME, at once if that has passed while the machine slept."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.timerfd_create(CLOCK_BOOTTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, at: float | None) -> None:
        whole = int(at or 0.0)
        rest = 0 if at is None else max(1, int((at - whole) * 1e9))  # all zeros would be no time
        timer = _Timer(_Time(0, 0), _Time(whole, rest))
        if self._libc.timerfd_settime(self.fd, TFD_TIMER_ABSTIME, ctypes.byref(timer), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")


class Guard:
    """The guard's server. ``folder`` is there."""

    def __init__(self, folder: str, listener: socket.socket) -> None:
        self._file, self._listener = f"{folder}/{FILE}", listener
        with open("/proc/sys/kernel/random/boot_id") as file:
            self._boot_id = file.read().strip()
        self._alarm = Alarm()
        self._holds: Holds = self._read()
        self._has_begun = bool(self._holds)  # it has held something

    def serve(self, watcher: int) -> bool:
        """Serve until nothing is held any more: False; or until the process ``watcher`` is gone: True."""
        try:
            other = os.pidfd_open(watcher)
        except ProcessLookupError:
            return True
        poll = select.poll()
        for descriptor in (other, self._alarm.fd, self._listener.fileno()):
            poll.register(descriptor, select.POLLIN)
        try:
            while os.getppid() == watcher:
                self._end_due()
                if (self._has_begun and not self._holds) or self._is_forgotten():
                    return False
                self._alarm.set(find_next(self._holds, _now()))
                if self._listener.fileno() in [descriptor for descriptor, _ in poll.poll()]:
                    self._answer()
            return True
        finally:
            os.close(other)

    def _end_due(self) -> None:
        before = self._holds
        for name in list_due(before, _now()):
            if end_groups(before[name].groups) and not before[name].ended_at:
                self._holds = note_ended(self._holds, name, _now())
        if self._holds != before:  # only once all have ended: a disk may hang
            with contextlib.suppress(OSError):
                self._write(self._holds)

    def _is_forgotten(self) -> bool:
        """Whether its folder is gone, and with it the agent's, and all that it held has ended."""
        if os.path.isdir(os.path.dirname(self._file)):
            return False
        return all(one.until <= _now() and not any(map(_list_pids, one.groups)) for one in self._holds.values())

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            caller, _ = self._listener.accept()
            with caller:
                caller.settimeout(ANSWER_SECONDS)
                data = caller.recv(MOST_REQUEST_BYTES + 1)
                try:
                    answer = self._change(data)
                except ValueError as problem:
                    answer = json.dumps({"problem": str(problem)}).encode()
                try:
                    caller.send(answer)
                except OSError as problem:  # an empty answer would say that there is no guard
                    if problem.errno != errno.EMSGSIZE:
                        raise
                    caller.send(json.dumps({"problem": "the answer is longer than a packet may be here"}).encode())

    def _change(self, data: bytes) -> bytes:
        """Raises ValueError."""
        request = read_request(data)
        after = apply_request(self._holds, request)
        try:
            if after != self._holds:
                self._write(after)
        except OSError as problem:
            # A new guard would end those that are written earlier than it should, and not know the others.
            if after.keys() - self._holds.keys():
                raise ValueError(f"{self._file} can't be written: {problem.strerror}") from None
        self._holds = after
        self._has_begun = self._has_begun or bool(request.renew)
        return write_answer(self._holds, self._boot_id)

    def _read(self) -> Holds:
        try:
            with open(self._file, "rb") as file:
                return read_holds(file.read(), self._boot_id)
        except (OSError, ValueError):
            return {}

    def _write(self, holds: Holds) -> None:
        """Save the holds against kill -9 only: a machine that lost its power has no guests."""
        fresh = f"{self._file}.new"
        with open(fresh, "wb") as file:
            file.write(write_holds(holds, self._boot_id))
        os.rename(fresh, self._file)


def end_groups(groups: tuple[str, ...]) -> bool:
    """Kill all that is in them; whether anything was."""
    found = False
    for group in groups:
        if not (pids := _list_pids(group)):
            continue
        found = True
        try:
            kill = os.open(f"{group}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(kill, b"1")
            finally:
                os.close(kill)
        except OSError:  # of version 1, or an old kernel
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    return found


def _list_pids(group: str) -> list[int]:
    try:
        with open(f"{group}/cgroup.procs") as file:
            return [int(word) for word in file.read().split() if int(word) > 0]
    except (OSError, ValueError):
        return []


def _now() -> float:
    return time.clock_gettime(CLOCK_BOOTTIME)


def _be_first() -> None:
    """Raise this process's priority as far as it may: it runs before the guests after a machine was frozen, and isn't killed for
    memory."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


def _stay_in_memory() -> None:
    """Have no page of this process read from a disk: it may hang when a guest's time is over. A child has to ask for itself."""
    ctypes.CDLL(None).mlockall(MCL_CURRENT | MCL_FUTURE)


def main(folder: str) -> int:
    """0 once nothing is held; 1 if there is another guard of this folder."""
    os.umask(0o077)
    lock = os.open(f"{folder}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by both processes
    except BlockingIOError:
        return 1
    place = f"{folder}/{SOCKET}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    listener.bind(place)
    listener.listen(16)
    _be_first()
    watcher = os.getpid()
    child = os.fork()
    while True:
        _stay_in_memory()
        if child:
            _, status = os.waitpid(child, os.WUNTRACED)
            if os.WIFSTOPPED(status):  # it would end nothing
                os.kill(child, signal.SIGKILL)
                continue
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                return 0
            select.select([], [], [], PAUSE_SECONDS if os.WIFEXITED(status) else 0.0)
        elif not Guard(folder, listener).serve(watcher):
            os._exit(0)
        watcher = os.getpid()
        child = os.fork()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
