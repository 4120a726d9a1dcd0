"""The trace that something belongs to, and how that travels: in HTTP's ``traceparent`` (W3C Trace Context, levels 1 and 2), in the
mark that a person's write leaves on an object, and in this process with whatever is being done. Pure but for ``os.urandom``."""

from __future__ import annotations

import os
import re
from contextvars import ContextVar
from typing import NamedTuple

import msgspec

from weft.objects.envelope import Envelope

MARK_SECONDS = 3600.0  # what happens later to an object belongs to no trace any more
_AHEAD_SECONDS = 300.0  # of another machine's clock
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)
_MARK = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{1,10})", re.ASCII)
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
SAMPLED, RANDOM = 1, 2  # flags


class Context(NamedTuple):
    """``span``: whose children follow."""

    trace: str  # 32 hex digits
    span: str  # 16
    sampled: bool = True


def new_trace() -> str:
    return os.urandom(16).hex()


def new_span() -> str:
    return os.urandom(8).hex()


def is_trace_id(text: str) -> bool:
    return bool(_ID.fullmatch(text)) and text != _NO_TRACE


def read_traceparent(text: str) -> Context | None:
    """The header's; None for anything malformed, which counts as none. A later version may have more after what this one has."""
    found = _PARENT.fullmatch(text.strip()) if 55 <= len(text) <= 512 else None
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    if found[2] == _NO_TRACE or found[3] == _NO_SPAN:
        return None
    return Context(found[2], found[3], bool(int(found[4], 16) & SAMPLED))


def write_traceparent(context: Context) -> str:
    """The flag for ids that are random isn't set: a caller's may not be."""
    return f"00-{context.trace}-{context.span}-{SAMPLED if context.sampled else 0:02x}"


def write_xray(context: Context) -> str:
    """Write the context as Lambda's runtimes know it: ``Root=1-…;Parent=…;Sampled=…``."""
    return f"Root=1-{context.trace[:8]}-{context.trace[8:]};Parent={context.span};Sampled={1 if context.sampled else 0}"


def make_mark(context: Context, now: float) -> str:
    """Make the mark that a write leaves on its object: ``TRACE-SPAN-TIME``, the time in seconds, all in hex digits."""
    return f"{context.trace}-{context.span}-{int(now):x}"


def read_mark(mark: str | msgspec.UnsetType, now: float) -> Context | None:
    """The trace that an object's change belongs to at ``now``; None: to none, or to none any more."""
    found = _MARK.fullmatch(mark) if isinstance(mark, str) and len(mark) <= 64 else None
    if found is None or not -_AHEAD_SECONDS <= now - int(found[3], 16) <= MARK_SECONDS:
        return None
    return Context(found[1], found[2])


def end_mark(envelope: Envelope) -> None:
    """End the mark once what people wrote is done: the object goes on naming the trace, and what happens to it from now on has
    other causes."""
    found = _MARK.fullmatch(envelope.trace) if isinstance(envelope.trace, str) and len(envelope.trace) <= 64 else None
    if found is not None:
        envelope.trace = f"{found[1]}-{found[2]}-0"


def read_ended(mark: str | msgspec.UnsetType) -> Context | None:
    """The trace of a write that is done; None: of one that goes on, or of none."""
    found = _MARK.fullmatch(mark) if isinstance(mark, str) and len(mark) <= 64 else None
    return Context(found[1], found[2]) if found is not None and not int(found[3], 16) else None


def pass_on(of: Envelope, to: Envelope) -> None:
    """Pass the trace on: what is done to ``to`` from now on is done because of what was written to ``of``, if that isn't done, and
    unless people have written ``to`` later."""
    if of.trace is msgspec.UNSET or not read_time(of.trace):
        return
    if to.trace is msgspec.UNSET or read_time(of.trace) >= read_time(to.trace):
        to.trace = of.trace


def hand_over(of: Envelope, to: Envelope) -> None:
    """Hand the trace over: what is done to ``to`` from now on is done because of ``of`` alone, whatever ``to`` was written for
    before."""
    to.trace = of.trace


def read_time(mark: str) -> int:
    found = _MARK.fullmatch(mark) if len(mark) <= 64 else None
    return int(found[3], 16) if found is not None else 0


class Marks:
    """The marks of one request's writes: the first ``left`` objects get one."""

    def __init__(self, text: str, left: int) -> None:
        self.text, self.left = text, left


marks: ContextVar[Marks | None] = ContextVar("weft-marks", default=None)


def mark(envelope: Envelope) -> None:
    """Leave the mark of the present request on an object that it writes. Without one, nothing changes."""
    found = marks.get()
    if found is None or envelope.trace == found.text:
        return
    if found.left > 0:
        found.left -= 1
        envelope.trace = found.text
