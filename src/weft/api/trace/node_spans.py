"""Spans that a node reports: read strictly, put on the server's clock, and bounded, so that one node fills no other's place."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.trace.context import is_trace_id
from weft.contracts.trace.span import MOST_ATTRIBUTES, MOST_TEXT, Span
from weft.protocol.traces import MOST_SPAN_BYTES, MOST_SPANS

SPANS_PER_SECOND = 500.0  # of one node, on average
BURST = 20_000.0
_MOST_NODES = 10_000
_MOST_KNOWN = 50_000
_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_ABOUT = re.compile(r"[a-z]{1,40}/[a-z0-9.-]{1,253}/[a-z0-9.-]{1,253}", re.ASCII)
_GUEST = re.compile(r"guest/[\w.:/ ?-]{0,100}")
_MOST_NANOSECONDS = 1 << 62
_decoder = msgspec.json.Decoder(Span)


class NodeSpans:
    """How many spans each node may still bring."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # by node: spans, and when that was so (elapsed seconds)
        self._known: dict[str, set[str]] = {}  # by node: the workloads that it has, or had

    def take(self, node: str, count: int) -> int:
        """How many of ``count`` more spans are taken now."""
        now = self._clock.elapsed()
        left, at = self._left.pop(node, (BURST, now))
        left = min(BURST, left + (now - at) * SPANS_PER_SECOND)
        taken = min(count, MOST_SPANS, int(left))
        self._left[node] = (left - taken, now)
        if len(self._left) > _MOST_NODES:
            del self._left[next(iter(self._left))]
        return taken

    def known(self, node: str) -> set[str]:
        """The workloads of which it may tell; add those that it turns out to have. Few are forgotten."""
        found = self._known.setdefault(node, set())
        if len(found) > _MOST_KNOWN:
            found.clear()
        return found


def read_spans(given: Sequence[msgspec.Raw], process: str, offset: float) -> list[Span]:
    """Those that are valid, as spans of ``process``, or of a guest that sent them to the node; ``offset`` (seconds) puts their
    times on this clock."""
    shift = int(max(-1e9, min(1e9, offset)) * 1e9) if offset == offset else 0
    spans = []
    for raw in given:
        if len(raw) > MOST_SPAN_BYTES:
            continue
        try:
            one = _decoder.decode(raw)
        except msgspec.MsgspecError:
            continue
        if _is_valid(one):
            begin = max(0, one.begin + shift)
            end = max(begin, one.end + shift) if one.end else 0
            said_by = one.process if is_guest_s(one) else process
            spans.append(msgspec.structs.replace(one, process=said_by, begin=begin, end=end))
    return spans


def is_guest_s(one: Span) -> bool:
    """Whether a workload sent it to its node."""
    return bool(_GUEST.fullmatch(one.process))


def _is_valid(one: Span) -> bool:
    return (
        is_trace_id(one.trace)
        and bool(_ID.fullmatch(one.id))
        and (not one.parent or bool(_ID.fullmatch(one.parent)))
        and bool(_ABOUT.fullmatch(one.about))
        and 0 < one.begin < _MOST_NANOSECONDS
        and (one.end == 0 or one.begin <= one.end < _MOST_NANOSECONDS)
        and 0 < len(one.name) <= MOST_TEXT
        and len(one.error) <= MOST_TEXT
        and len(one.attributes) <= MOST_ATTRIBUTES
        and 1 <= one.kind <= 5
    )
