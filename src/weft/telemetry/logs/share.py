"""Choose the lines that go when a store is full: the oldest of the sources that have the most, so that one that prints much pushes
out none of the others'. Pure.

Max-min fairness, as queues get by dropping from the longest (McKenney, Stochastic Fairness Queueing, 1990)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from weft.telemetry.logs.segment import Head, LinesPart

SMALL = 4  # a segment with less than a fourth of the usual is written together with its neighbour
MOST_PARTS = 4096  # of one segment


class KeptSegments(NamedTuple):
    """Rest of neighbouring segments (by their place), to be written as one; nothing but the first: it stays as it is."""

    places: list[int]
    parts: list[tuple[LinesPart, ...]]
    changed: bool


def find_excess(used: Mapping[str, int], free_bytes: int) -> dict[str, int]:
    """How many bytes which sources lose, so that ``free_bytes`` become free: all that have more than the others come down to
    the same level."""
    left, excess = free_bytes, {}
    ordered = sorted(used.items(), key=lambda one: -one[1])
    for count, (_, size) in enumerate(ordered, 1):
        below = ordered[count][1] if count < len(ordered) else 0
        if left <= (size - below) * count or count == len(ordered):
            level = max(0, size - -(-left // count))
            excess = {uid: had - level for uid, had in ordered[:count] if had > level}
            break
        left -= (size - below) * count
    return excess


def plan_share(heads: Sequence[Head], excess: Mapping[str, int], segment_bytes: int) -> list[KeptSegments]:
    """Plan what to write in place of the first segments, oldest first; those behind them stay."""
    left, groups = dict(excess), list[KeptSegments]()
    size = 0  # of the last group, in bytes of text
    for place, head in enumerate(heads):
        if not any(amount > 0 for amount in left.values()):
            break
        kept = []
        for part in head.parts:
            if left.get(part.uid, 0) > 0:
                left[part.uid] -= part.frame_bytes
            else:
                kept.append(part)
        own = _measure(kept)
        changed = len(kept) < len(head.parts)
        joins = changed or own < segment_bytes // SMALL
        last = groups[-1] if groups else None
        parts = sum(map(len, last.parts)) if last is not None else 0
        fits = last is not None and size + own <= segment_bytes and parts + len(kept) <= MOST_PARTS
        if last is not None and joins and fits and (last.changed or size < segment_bytes // SMALL):
            groups[-1] = KeptSegments([*last.places, place], [*last.parts, tuple(kept)], True)
            size += own
        else:
            groups.append(KeptSegments([place], [tuple(kept)], changed))
            size = own
    return groups


def _measure(parts: Iterable[LinesPart]) -> int:
    return sum(8 * part.count + part.text_bytes for part in parts)
