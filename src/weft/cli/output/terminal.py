"""Abilities of the terminal: width, colours, raw mode. Off a terminal: no width, no colour."""

from __future__ import annotations

import os
import re
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from weft.kinds.fields.health import HEALTH, Health

CLEAR = "\x1b[H\x1b[2J"  # what stands on a terminal
_SGR = re.compile("\x1b\\[[0-9;]{0,32}m")  # the sequences that set them
_COLORS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "dim": 2, "bold": 1}
_HEALTH: dict[Health, str] = {
    "running": "green",
    "changing": "yellow",
    "waiting": "yellow",
    "degraded": "yellow",
    "failed": "red",
    "unknown": "red",
    "ended": "dim",
}
_COLOR_OF = {phase: _HEALTH[health] for phase, health in HEALTH.items()}
_COLOR_OF |= {"True": "green", "chosen": "green", "refused": "red"}  # of conditions and verdicts


class Paint:
    """Puts colour on text, or leaves it alone."""

    def __init__(self, active: bool) -> None:
        self.active = active

    def color(self, text: str, color: str) -> str:
        return f"\x1b[{_COLORS[color]}m{text}\x1b[0m" if self.active and text else text

    def phase(self, text: str) -> str:
        """``text`` in the colour of the phase that it names (blanks around it stay)."""
        color = _COLOR_OF.get(text.strip())
        return self.color(text, color) if color else text


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def plan_paint(stream: TextIO, wanted: bool) -> Paint:
    return Paint(wanted and is_terminal(stream) and os.environ.get("TERM") != "dumb")


def find_width(stream: TextIO) -> int | None:
    """Columns of the terminal that ``stream`` is, COLUMNS first; None when it is none."""
    if not is_terminal(stream):
        return None
    given = os.environ.get("COLUMNS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def find_size() -> tuple[int, int]:
    """Rows and columns of the terminal on standard input or output; 24, 80 when there is none."""
    for stream in (sys.stdout, sys.stdin):
        try:
            size = os.get_terminal_size(stream.fileno())
            return size.lines or 24, size.columns or 80
        except (OSError, ValueError):
            continue
    return 24, 80


@contextmanager
def raw_mode(descriptor: int) -> Iterator[None]:
    """Keys go through one by one and unchanged until the end of the block, which puts everything back."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def clean_lines(text: str) -> str:
    """``text`` as ``clean`` has it, with its newlines and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def clean(text: str) -> str:
    """``text`` on one line, without colours and control characters, which could move the cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c in "\n\t" else "?" for c in _SGR.sub("", text))
