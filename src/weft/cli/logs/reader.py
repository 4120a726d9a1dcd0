"""Reads the lines of one workload or node from its node, while others' are read."""

from __future__ import annotations

import json
import queue
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol, cast

from weft.cli.command.exit_codes import exit_code
from weft.cli.command.target import Target
from weft.cli.session import NotSent, Session
from weft.cli.stream.held_exec import Cut
from weft.cli.stream.logs import run_stream
from weft.cli.wait.again import read_again
from weft.objects.errors import Unavailable, WeftError
from weft.objects.quantity import parse_moment

MOST_WAITING = 5_000  # lines of one workload that were read ahead
OVERLAP_SECONDS, OVERLAP_LINES = 2.0, 5_000  # read again after a lost connection, and left out
PAUSE_SECONDS = 1.0
JournalLine = dict[str, str]


class Named(Protocol):
    """An object with a name. ``what``: KIND/NAME."""

    @property
    def name(self) -> str: ...

    @property
    def what(self) -> str: ...


class Reader:
    """One workload's lines, read by a thread of its own; iterated by the one that prints. ``code``: how it ended.
    ``alone``: nothing else is read, so what ends it is left in ``problem``; else it is printed."""

    def __init__(self, session: Session, target: Named, asked: dict[str, Any], *, alone: bool) -> None:
        self.session, self.target, self.asked, self.alone = session, target, asked, alone
        self.lines: queue.Queue[JournalLine | None] = queue.Queue(MOST_WAITING)
        self.code: int | None = None
        self.problem: WeftError | None = None
        self.ended = False
        self._rest = b""
        self._latest: deque[tuple[str, str]] = deque(maxlen=OVERLAP_LINES)
        self._left_out: set[tuple[str, str]] = set()

    def __iter__(self) -> Iterator[JournalLine]:
        while (line := self.lines.get()) is not None:
            yield line

    def run(self) -> None:
        try:
            self.code = self.read()
        except NotSent:
            pass  # it is printed with the rest of the explanation
        except WeftError as problem:
            self.code = exit_code(problem)
            if self.alone:
                self.problem = problem
            else:
                hint = f"\n  {problem.hint}" if problem.hint else ""
                self.session.notify(
                    f"{self.target.what}: {problem.message}{hint}"
                )  # at once: other readers notify, too
        finally:
            self.lines.put(None)

    def read(self) -> int:
        """Raises WeftError."""
        try:
            return self._read_once()
        except Unavailable as problem:
            if not self.asked["follow"] or not (self._latest or isinstance(problem, Cut)):
                raise
        self.session.rests(PAUSE_SECONDS)
        return read_again(self.session, self._read_once)

    def _read_once(self) -> int:
        asked = self.asked
        if self._latest:  # the connection was lost
            asked = {**asked, "tail": -1, "since": self._find_overlap()}
            self._left_out = set(self._latest)
        self._rest = b""
        return run_stream(self.session, cast(Target, self.target), asked, self._take)

    def _take(self, descriptor: int, data: bytes) -> None:
        if descriptor == 2:  # a warning of the gateway
            self.session.notify(data.decode(errors="replace").rstrip())
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for text in lines:
            line: JournalLine = json.loads(text)
            key = (line["time"], line["message"])
            if key in self._left_out:
                continue
            if self.asked["follow"]:
                self._latest.append(key)
            self.put(line)

    def put(self, line: JournalLine) -> None:
        self.lines.put(line)

    def _find_overlap(self) -> float:
        """How many seconds ago the last line was printed, and a little more."""
        return max(0.0, self.session.clock.now() - parse_moment(self._latest[-1][0])) + OVERLAP_SECONDS
