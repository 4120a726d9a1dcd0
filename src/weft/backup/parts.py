"""Bytes that lie in several places in memory and go out one after the other, without being copied together first."""

from __future__ import annotations

from collections.abc import Sequence


def drop_front(parts: Sequence[memoryview], count: int) -> list[memoryview]:
    """Drop the first ``count`` bytes. Returns what is left of the parts."""
    for number, part in enumerate(parts):
        if count < len(part):
            return [part[count:], *parts[number + 1 :]]
        count -= len(part)
    return []
