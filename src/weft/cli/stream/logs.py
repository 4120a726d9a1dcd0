"""Output of guests and tasks, carried to this terminal."""

from __future__ import annotations

import codecs
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from weft.cli.command.exit_codes import INTERRUPTED, exit_code, partial_code
from weft.cli.command.target import Target
from weft.cli.output.terminal import clean, clean_lines, is_terminal
from weft.cli.session import NotSent, Session
from weft.cli.stream.client import Stream, open_stream, write_bytes
from weft.cli.stream.held_exec import Cut
from weft.cli.wait.again import read_again
from weft.objects.errors import IllegalTransition, Unavailable, WeftError

_LAST_LINES = 10
_LAST_BYTES = 1 << 16
_WIDEST = 500
_OVERLAP_BYTES = 4096  # of the latest output: it shows how far an interrupted log was read
_PAUSE_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_LINE = 1 << 20
_LINE_END = re.compile(r"\r+\n")
Write = Callable[[int, bytes], None]


def show_log(session: Session, target: Target, asked: dict[str, Any]) -> int:
    """Print a guest's log, its standard error on ours; ends when all is read, or, if followed, when the guest ends, or with
    Ctrl-C."""
    screens = {descriptor: Screen() for descriptor in (1, 2) if os.isatty(descriptor)}

    def write(descriptor: int, data: bytes) -> None:
        (screens[descriptor].put if descriptor in screens else write_bytes)(descriptor, data)

    try:
        return _carry(session, target, asked, write)
    except KeyboardInterrupt:
        if asked["follow"]:
            return INTERRUPTED  # enough was seen
        raise


def show_last_lines(session: Session, target: Target, project: str | None = None) -> None:
    """The end of its log, on standard error, beside a failure; nothing if the log is empty or not available. ``project``: which
    it is in, None: the session's."""
    kept = bytearray()

    def keep(_: int, piece: bytes) -> None:
        kept.extend(piece)
        del kept[:-_LAST_BYTES]

    try:
        asked = {"follow": False, "tail": _LAST_LINES}
        with open_stream(session.client, target.kind.name, target.name, "logs", asked, project=project) as sock:
            Stream(sock, forward_end=False, write=keep).run(None)
    except WeftError:
        return
    lines = kept.decode(errors="replace").splitlines()[-_LAST_LINES:]
    if any(lines):
        session.notify(f"{target.what}  last output:")
    for line in lines if any(lines) else ():
        session.notify(f"  {clean(line)[:_WIDEST]}")


def show_logs(
    session: Session, targets: Sequence[Target], *, follow: bool, tail: int, since: float | None, prefix: bool
) -> int:
    """Print several guests' logs, each line with its guest: one guest after the other, or with ``follow`` all at once. The exit
    code; a failure of one is reported and doesn't end the others. Raises OSError if the lines can't be printed."""
    lock = threading.Lock()
    codes: list[int] = []
    lost: list[OSError] = []

    def show(target: Target) -> None:
        lines = Lines(f"{target.what}  " if prefix else "", lock)
        try:
            try:
                codes.append(_carry(session, target, ask_log(follow, tail, since), lines.take))
            except NotSent:
                pass  # it is printed with the rest of the explanation
            except WeftError as problem:
                codes.append(exit_code(problem))
                session.notify(f"{target.what}: {problem.message}")
            finally:
                lines.end()
        except OSError as problem:  # no reader any more, or a full disk: no line of any guest can be printed
            lost.append(problem)

    threads = [threading.Thread(target=show, args=(target,), daemon=True) for target in targets]
    try:
        for thread in threads:
            thread.start()
            while not follow and thread.is_alive():
                thread.join(_PAUSE_SECONDS)
            if lost:
                break
        while not lost and any(thread.is_alive() for thread in threads):
            threads[0].join(0.2)
            threads = [thread for thread in threads if thread.is_alive()] or threads
    except KeyboardInterrupt:
        return INTERRUPTED  # enough was seen
    if lost:
        raise lost[0]
    return partial_code(codes)


class Screen:
    """Prints what a guest printed on a terminal, which it must not steer: control characters show as ``?``."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._kept = ""

    def put(self, descriptor: int, data: bytes) -> None:
        text = _LINE_END.sub("\n", self._kept + self._decoder.decode(data))
        self._kept = "\r" if text.endswith("\r") else ""  # perhaps before a newline
        text = text.rstrip("\r")
        write_bytes(descriptor, clean_lines(text).encode())


class Lines:
    """Prints whole lines on standard output and error, so that several guests' lines stay apart."""

    def __init__(self, prefix: str, lock: threading.Lock) -> None:
        self._prefix, self._lock = prefix.encode(), lock
        self._rest = {1: b"", 2: b""}

    def take(self, descriptor: int, data: bytes) -> None:
        *lines, self._rest[descriptor] = (self._rest[descriptor] + data).split(b"\n")
        if len(self._rest[descriptor]) > _LONGEST_LINE:  # a line that never ends is shown in pieces
            lines.append(self._rest[descriptor])
            self._rest[descriptor] = b""
        self._put(descriptor, lines)

    def end(self) -> None:
        for descriptor, rest in self._rest.items():
            self._put(descriptor, [rest] if rest else [])

    def _put(self, descriptor: int, lines: Sequence[bytes]) -> None:
        out = sys.stdout if descriptor == 1 else sys.stderr
        with self._lock:
            for line in lines:
                text = (self._prefix + line).decode("utf-8", "replace").rstrip("\r")
                out.write((clean(text) if is_terminal(out) else text) + "\n")  # guests must not move the cursor
            sys.stdout.flush()


def carry_from_start(session: Session, target: Target, asked: dict[str, Any], write: Write) -> int:
    """The log of a container that has begun, or is about to, to ``write``, followed to its end. Raises WeftError."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return _carry(session, target, asked, write)
        except IllegalTransition:  # it has no place yet; once it is gone, that is NotFound
            over = target.kind.display.over
            if over is not None and over(session.client.get(target.kind.name, target.name)):
                return 0  # it never had one
        session.client.http.closed.wait(pause)
        pause = min(2 * pause, _PAUSE_SECONDS)


def ask_log(follow: bool, tail: int, since: float | None) -> dict[str, Any]:
    return {"follow": follow, "tail": tail, **({} if since is None else {"since": since})}


def _carry(session: Session, target: Target, asked: dict[str, Any], write: Write) -> int:
    """Passes one guest's log to ``write``. A followed log is resumed after a lost connection: nothing is missing or repeated, as
    long as the log still has the latest output. Raises WeftError."""
    seen = bytearray()

    def note(descriptor: int, data: bytes) -> None:
        write(descriptor, data)
        seen.extend(data)
        del seen[:-_OVERLAP_BYTES]

    def follow() -> int:
        if not seen:
            return run_stream(session, target, asked, note)
        return run_stream(session, target, {"follow": True, "tail": -1}, _skip(_measure(session, target, seen), note))

    try:
        return follow()
    except Unavailable as problem:
        if not asked["follow"] or not (seen or isinstance(problem, Cut)):
            raise
    session.rests(_PAUSE_SECONDS)
    return read_again(session, follow)


def run_stream(session: Session, target: Target, asked: dict[str, Any], write: Write) -> int:
    """One stream of what is ``asked`` for, to its end; the exit code that it brings. Raises WeftError."""
    client = session.make_client()
    with open_stream(client, target.kind.name, target.name, "logs", asked) as sock:
        return Stream(sock, forward_end=False, write=write).run(None) or 0


def _measure(session: Session, target: Target, seen: bytes | bytearray) -> int:
    """How many bytes of the whole log have come already; 0 if it lacks the latest output."""
    whole = bytearray()
    run_stream(session, target, {"follow": False, "tail": -1}, lambda _, data: whole.extend(data))
    at = whole.rfind(seen)
    if at < 0:
        session.notify(f"{target.what}: its log was restarted or truncated: showing it from the start")
        return 0
    return at + len(seen)


def _skip(count: int, write: Write) -> Write:
    """``write`` for what comes after the first ``count`` bytes."""
    left = count

    def skipping(descriptor: int, data: bytes) -> None:
        nonlocal left
        kept = data[min(left, len(data)) :]
        left -= len(data) - len(kept)
        if kept:
            write(descriptor, kept)

    return skipping
