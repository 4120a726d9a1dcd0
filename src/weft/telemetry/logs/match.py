"""Finds the lines of a block that hold a text, or that a regular expression matches. A pattern is searched in another process,
which is ended when it takes too long: no pattern of a stranger may keep the agent from its guests."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import select
import struct
import subprocess
import sys
import threading
from array import array
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Protocol

from weft.contracts.clock import Clock
from weft.objects.errors import InvalidInput, Unavailable
from weft.telemetry.logs.pattern_worker import ERROR

PATTERN_SECONDS = 5.0  # for all blocks of one question; a follower has them for each look
PIPE_BYTES = 1 << 20
MOST_PATTERNS, WAIT_SECONDS = 8, 10.0  # of one process at the same time
MOST_OF_ONE = 3  # of these: of one person, so that nobody keeps all others from searching
MOST_PATTERN = 1000  # characters
MOST_WAITING = 4  # of one person's questions at the same time: more are refused, since others' would wait behind them
# Threads of their own: those that wait for a place would otherwise take the threads of all other work.
_waiting = ThreadPoolExecutor(8 * MOST_PATTERNS, thread_name_prefix="weft-patterns")
_asked = Counter[str]()  # the questions that wait, by who asks
_WORKER = Path(__file__).with_name("pattern_worker.py")


class Matcher(Protocol):
    def find(self, text: bytes) -> Sequence[int]:
        """Start offsets of the lines that match, ascending. Raises InvalidInput."""

    def begin(self) -> None:
        """Another question begins."""

    def close(self) -> None: ...


class Literal:
    def __init__(self, needle: str) -> None:
        """Raises InvalidInput."""
        if "\n" in needle or len(needle) > MOST_PATTERN:
            raise InvalidInput(f"filter must be a text of one line, at most {MOST_PATTERN} characters", field="filter")
        self._needle = needle.encode()

    def find(self, text: bytes) -> Sequence[int]:
        found, needle = array("I"), self._needle
        at = text.find(needle)
        while at >= 0:
            found.append(text.rfind(b"\n", 0, at) + 1)
            at = text.find(needle, text.index(b"\n", at) + 1)
        return found

    def begin(self) -> None: ...

    def close(self) -> None: ...


class Pattern:
    """``close`` it: there are only so many, and fewer for each person."""

    _free = threading.Condition()
    _taken: ClassVar[Counter[str]] = Counter()  # by who asks

    def __init__(self, pattern: str, clock: Clock, seconds: float = PATTERN_SECONDS, asker: str = "") -> None:
        """May block for WAIT_SECONDS. Raises InvalidInput for what is not a pattern, Unavailable, OSError."""
        if "\n" in pattern or len(pattern) > MOST_PATTERN:
            raise InvalidInput(f"regex must be a pattern of one line, at most {MOST_PATTERN} characters", field="regex")
        self._asker = asker
        with self._free:
            if not self._free.wait_for(self._has_place, WAIT_SECONDS):
                raise _too_many(f"{MOST_OF_ONE} of your" if self._taken[asker] >= MOST_OF_ONE else str(MOST_PATTERNS))
            self._taken[asker] += 1
        self._clock, self._seconds = clock, seconds
        self._left = seconds
        self._closed = False
        try:
            self._worker = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                bufsize=0,
            )
        except OSError:
            self._give_place_back()
            raise
        assert self._worker.stdin is not None and self._worker.stdout is not None
        self._stdin, self._stdout = self._worker.stdin, self._worker.stdout
        try:
            with contextlib.suppress(OSError):  # with many pipes, their user may have no larger ones
                fcntl.fcntl(self._stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            self._ask(pattern.encode())
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        self._left = self._seconds

    def find(self, text: bytes) -> Sequence[int]:
        return self._ask(text)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._give_place_back()
            self._worker.kill()
            self._worker.wait()
            self._stdin.close()
            self._stdout.close()

    def _has_place(self) -> bool:
        return self._taken.total() < MOST_PATTERNS and self._taken[self._asker] < MOST_OF_ONE

    def _give_place_back(self) -> None:
        with self._free:
            self._taken[self._asker] -= 1
            if not self._taken[self._asker]:
                del self._taken[self._asker]
            self._free.notify_all()

    def _ask(self, data: bytes) -> Sequence[int]:
        began = self._clock.elapsed()
        try:
            self._stdin.write(struct.pack("<I", len(data)))
            left = memoryview(data)
            while left:
                left = left[self._stdin.write(left) :]
        except BrokenPipeError:
            raise _too_much() from None
        (count,) = struct.unpack("<I", self._read(4))
        if count == ERROR:
            message = self._read(*struct.unpack("<I", self._read(4)))
            raise InvalidInput(
                f"regex is not a regular expression: {message.decode(errors='replace')}",
                field="regex",
                hint="--filter TEXT looks for a text as it stands",
            )
        found = array("I")
        found.frombytes(self._read(4 * count))
        self._left -= self._clock.elapsed() - began
        return found

    def _read(self, size: int) -> bytes:
        data = bytearray()
        until = self._clock.elapsed() + self._left
        while len(data) < size:
            if not select.select([self._stdout], [], [], max(0.0, until - self._clock.elapsed()))[0]:
                raise InvalidInput(
                    f"regex takes more than {self._seconds:g} s on these lines",
                    field="regex",
                    hint="narrow the time with --since and --until, avoid nested repetitions like (a+)+, or use --filter TEXT",
                )
            piece = self._stdout.read(size - len(data))
            if not piece:
                raise _too_much()
            data += piece
        return bytes(data)


def _too_many(whose: str) -> Unavailable:
    return Unavailable(
        f"{whose} searches for patterns are under way here",
        reason="tooManyPatterns",
        hint="try again, or use --filter TEXT, which needs no search of its own",
        retry_after_seconds=5.0,
    )


def _too_much() -> InvalidInput:
    return InvalidInput(
        "regex needs too much memory", field="regex", hint="avoid large repetitions like {1000}, or use --filter TEXT"
    )


async def await_matcher(filter: str, regex: str, clock: Clock, asker: str) -> Matcher | None:
    """``make_matcher``, which may wait for a place, beside the loop."""
    if regex and _asked[asker] >= MOST_WAITING:
        raise _too_many(f"{MOST_WAITING} more of your")
    _asked[asker] += 1
    making = asyncio.get_running_loop().run_in_executor(_waiting, make_matcher, filter, regex, clock, asker)
    making.add_done_callback(lambda _: _begin_less(asker))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(_close_made)
        raise


def _begin_less(asker: str) -> None:
    _asked[asker] -= 1
    if not _asked[asker]:
        del _asked[asker]


def _close_made(making: asyncio.Future[Matcher | None]) -> None:
    if not making.cancelled() and making.exception() is None and (matcher := making.result()) is not None:
        matcher.close()


def make_matcher(filter: str, regex: str, clock: Clock, asker: str = "") -> Matcher | None:
    """None where every line matches. ``asker``: the person who asks. Raises InvalidInput, Unavailable, OSError."""
    if filter and regex:
        raise InvalidInput("filter and regex can't be given together", field="regex")
    if regex:
        return Pattern(regex, clock, asker=asker)
    return Literal(filter) if filter else None
