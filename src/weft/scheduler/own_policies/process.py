"""One worker process, as the scheduler uses it: start it, ask it within a time limit, end it.

Reads the policy's file; the worker only gets its text. Nothing here waits longer than its caller allows.
"""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from weft.contracts.clock import SystemClock
from weft.contracts.policy import Column, Occasion, Request, Table
from weft.scheduler.own_policies.remote_table import answer_need, write_request
from weft.scheduler.own_policies.wire import Ended, PolicyLine

MOST_SOURCE_BYTES = 256 * 1024
MOST_COLUMNS = 16
MOST_ATTRIBUTES = 256  # each requested one stays in the scheduler's memory
MOST_LETTERS = 300
START_SECONDS = 15.0
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    **{f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")},
}

_clock = SystemClock()  # a worker is a real process, also in a test in virtual time


class PolicyFailed(Exception):
    """A user's policy gave no valid answer: ``reason`` as a token, ``message`` for people; ``fatal`` if its worker must end."""

    def __init__(self, reason: str, message: str, *, fatal: bool = False) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason if reason.isalnum() else "failed"
        self.message = "".join(sign if sign.isprintable() else " " for sign in message)
        self.fatal = fatal


def read_source(path: str) -> str:
    """The text of a policy's file. Raises PolicyFailed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PolicyFailed("fileUnreadable", f"{path} is not a file")
            source = file.read(MOST_SOURCE_BYTES + 1)
    except OSError as problem:
        raise PolicyFailed("fileUnreadable", f"{path}: {(problem.strerror or str(problem)).lower()}") from None
    if len(source) > MOST_SOURCE_BYTES:
        raise PolicyFailed("fileUnreadable", f"{path} has more than {MOST_SOURCE_BYTES // 1024} KiB")
    try:
        return source.decode()
    except UnicodeDecodeError:
        raise PolicyFailed("fileUnreadable", f"{path} is not UTF-8 text") from None


class PolicyWorker:
    """The process of the policy ``name`` (``file:PATH`` or ``entry:NAME``). Raises PolicyFailed if it can't be started."""

    def __init__(self, name: str) -> None:
        scheme, _, place = name.partition(":")
        policy: dict[str, Any] = {"name": place}
        policy.update({"entry": place} if scheme == "entry" else {"source": read_source(place)})
        ours, theirs = socket.socketpair()
        self.ready = False
        self._asked: set[str] = set()
        self._line = PolicyLine(ours)
        self._starts_until = _clock.elapsed() + START_SECONDS
        argv = [
            sys.executable,
            "-P",
            "-s",
            "-m",
            "weft.scheduler.own_policies.worker",
            str(theirs.fileno()),
            str(os.getpid()),
        ]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    argv, pass_fds=[theirs.fileno()], env=_ENVIRONMENT, cwd="/", stdin=subprocess.DEVNULL
                )
            self._line.send(policy, lambda: 1.0)
        except (OSError, Ended) as problem:
            ours.close()
            raise PolicyFailed("notStarted", f"the worker can't be started: {problem}") from None

    def start(self, seconds: float = 0.0) -> bool:
        """Wait at most ``seconds`` until it is ready; whether it is. Raises PolicyFailed if it will never be."""
        if self.ready:
            return True
        try:
            reason, message = self._line.receive(1 << 16, self._left(max(seconds, 0.001)))
        except TimeoutError:
            if _clock.elapsed() > self._starts_until:
                raise PolicyFailed(
                    "timedOut", f"the policy did not load within {START_SECONDS:g} s; do the work inside its function"
                ) from None
            return False
        except (Ended, ValueError, TypeError):
            raise PolicyFailed("ended", f"the worker ended while loading the policy{self._how()}") from None
        if reason != "ready":
            raise PolicyFailed(str(reason)[:40], str(message)[:400])
        self.ready = True
        return True

    def ask(self, table: Table, request: Request, occasion: Occasion, stamp: Any, seconds: float) -> list[Column]:
        """The policy's terms, their weights as parts of 1. Raises PolicyFailed."""
        left = self._left(seconds)
        count = len(table.names)
        try:
            self._line.send([stamp, count, write_request(request), [occasion.seed, occasion.uid, occasion.last]], left)
            while True:
                what, body = self._line.receive((8 * count + 128) * MOST_COLUMNS + 4096, left)
                if what != "need":
                    break
                name, argument = body
                self._count(str(name), str(argument))
                self._line.send(answer_need(table, str(name), str(argument)), left)
            if what != "columns":
                raise PolicyFailed(str(what)[:40], str(body)[:400])
            return read_columns(body, count)
        except TimeoutError:
            raise PolicyFailed("timedOut", f"no answer within {seconds * 1000:g} ms", fatal=True) from None
        except (Ended, LookupError, TypeError, ValueError) as problem:
            raise PolicyFailed("ended", f"the worker ended{self._how()} ({str(problem)[:120]})", fatal=True) from None

    def close(self) -> None:
        """End it, whatever it does."""
        self._line.close()
        self._process.kill()
        self._process.wait()

    def _count(self, name: str, argument: str) -> None:
        """Raises PolicyFailed if the policy requests too many columns."""
        if name in ("text", "number"):
            self._asked.add(argument)
        if len(self._asked) > MOST_ATTRIBUTES or len(argument) > MOST_LETTERS:
            message = f"asked for more than {MOST_ATTRIBUTES} attributes, or a name of more than {MOST_LETTERS} letters"
            raise PolicyFailed("asksTooMuch", message, fatal=True)

    def _left(self, seconds: float) -> Callable[[], float]:
        until = _clock.elapsed() + seconds

        def left() -> float:
            remaining = until - _clock.elapsed()
            if remaining <= 0.0:
                raise TimeoutError
            return remaining

        return left

    def _how(self) -> str:
        try:
            status = self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            return ""
        return f": signal {-status}" if status < 0 else f": exit status {status}"


def read_columns(body: Any, count: int) -> list[Column]:
    """The terms that a worker answered with, checked. Raises PolicyFailed."""
    if not isinstance(body, list) or not 1 <= len(body) <= MOST_COLUMNS:
        raise PolicyFailed("wrongShape", f"expected 1 to {MOST_COLUMNS} terms")
    columns: list[Column] = []
    for name, weight, data in body:
        if not isinstance(name, str) or not name.isprintable() or not isinstance(data, bytes) or len(data) != 8 * count:
            raise PolicyFailed("wrongShape", "a term does not have one value for each node")
        if not isinstance(weight, float) or not 0.0 < weight <= 1000.0:
            raise PolicyFailed("outOfRange", f"{name}: weight {weight} is not above 0 and at most 1000")
        values = np.frombuffer(data, dtype=np.float64)
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise PolicyFailed("notFinite", f"{name}: {values[row]} for node {row} of {count}")
        if ((values < 0.0) | (values > 100.0)).any():
            row = int(np.flatnonzero((values < 0.0) | (values > 100.0))[0])
            raise PolicyFailed(
                "outOfRange", f"{name}: {values[row]:g} for node {row} of {count}; values go from 0 to 100"
            )
        columns.append(Column(name, weight, values))
    whole = sum(column.weight for column in columns)
    return [Column(column.name, column.weight / whole, column.values) for column in columns]
