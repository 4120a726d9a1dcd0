"""Prints the output of a job's only task while a command waits for the job: one try after the other."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Mapping
from typing import Any

from weft.cli.command.target import Target
from weft.cli.job.logs import Joining
from weft.cli.output.terminal import is_terminal
from weft.cli.session import Session
from weft.cli.stream.client import write_bytes
from weft.cli.stream.logs import ask_log, carry_from_start
from weft.kinds.fields.cells import dig
from weft.kinds.registry import BY_NAME
from weft.objects.errors import WeftError
from weft.objects.index_ranges import read_indexes

_POLL_SECONDS = 0.2
PATIENCE_SECONDS = 10.0  # with a node that neither goes on with an ended task's log nor ends it
Object = Mapping[str, Any]


def has_one_task(job: Object) -> bool:
    """Whether the job has only one task, so that its output needs no prefix."""
    return not dig(job, "spec.schedule") and len(read_indexes(dig(job, "spec.array", "0"))) == 1


class TaskOutput:
    """Carries the output of a job's only task. ``has_come``: there is output, which waits until ``release`` is called.
    ``is_missing``: that of some try is not available, which was reported. ``lost``: it can't be printed any more, because nobody
    reads it or a disk is full."""

    def __init__(self, session: Session) -> None:
        self.is_missing = False
        self.lost: OSError | None = None
        self._last = b""
        self._pieces, self._writes = 0, False  # how many came, and whether one waits for its reader
        self._session, self._joining = session, Joining()
        self._tries: queue.Queue[str | None] = queue.Queue()
        self._come, self._released = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    @property
    def has_come(self) -> bool:
        return self._come.is_set()

    def see(self, job: Object) -> None:
        """Take up the tries that it has begun."""
        self._joining.see(job)
        for one in self._joining.take():
            self._tries.put(one.container)
            self._joining.end()

    def release(self) -> None:
        """Nothing else is drawn where it goes."""
        self._released.set()

    def end(self) -> None:
        """The job has ended: return when all its output is printed, or its node sends no more. Raises OSError if it can't be
        printed."""
        self._tries.put(None)
        quiet = 0.0
        while self._thread.is_alive() and quiet < PATIENCE_SECONDS:
            before = self._pieces
            self._thread.join(_POLL_SECONDS)  # Ctrl-C doesn't interrupt a wait without end
            quiet = quiet + _POLL_SECONDS if before == self._pieces and not self._writes else 0.0
        if self._thread.is_alive() and self.lost is None:
            self.is_missing = True
            self._session.notify("the node doesn't say whether the output is complete")
        self.check()
        if self._last not in (b"", b"\n") and is_terminal(sys.stdout):
            print(flush=True)  # the next message begins a line of its own

    def check(self) -> None:
        """Raises OSError if it can't be printed."""
        if self.lost is not None:
            raise self.lost

    def _carry(self) -> None:
        while (container := self._tries.get()) is not None:
            target = Target(BY_NAME["container"], container)
            try:
                carry_from_start(self._session, target, ask_log(True, -1, None), self._write)
            except WeftError as problem:
                self.is_missing = True
                self._session.notify(f"{target.what}: its output can't be shown: {problem.message}")
            except OSError as problem:
                self.lost = problem
                return

    def _write(self, descriptor: int, data: bytes) -> None:
        self._come.set()
        self._released.wait()
        self._pieces, self._writes = self._pieces + 1, True
        write_bytes(descriptor, data)
        self._writes = False
        self._last = data[-1:] or self._last
