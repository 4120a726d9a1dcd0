"""Merges pages of several servers' audit logs by time. Each log has numbers of its own, so a place in all of them is a number for
each server. Pure."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from weft.objects.errors import InvalidInput
from weft.trust.audit_chain import read_record

_PLACE = re.compile(r"([a-z0-9-]{1,63}):([0-9]{1,16})")


class Part(NamedTuple):
    """Records of one server, oldest first, and the number after which its next page begins; None after the last page."""

    items: Sequence[msgspec.Raw]
    follow: int | None = None


class Merged(NamedTuple):
    """``reached``: the number up to which each server's records were taken; ``more``: some are left."""

    items: list[msgspec.Raw]
    reached: dict[str, int]
    more: bool


def read_place(text: str, server: str) -> dict[str, int]:
    """Numbers by server: ``s1:12,s2:7``, or one number of the log of ``server``, the only one. Raises InvalidInput."""
    if text.isascii() and text.isdecimal() and len(text) < 17:
        return {server: int(text)}
    found = [_PLACE.fullmatch(part) for part in text.split(",")[:64]]
    if not all(found):
        raise InvalidInput(
            f"query parameter after: {text[:40]!r} is not a place in the audit log",
            field="after",
            hint="give 0, or what continue says",
        )
    return {one[1]: int(one[2]) for one in found if one is not None}


def show_place(reached: Mapping[str, int]) -> str:
    """The same as text."""
    return ",".join(f"{name}:{number}" for name, number in sorted(reached.items()))


def merge_parts(parts: Mapping[str, Part], after: Mapping[str, int], limit: int) -> Merged:
    """The first ``limit`` records by time. Where a server has more than its part, records that may lie after its next ones wait."""
    reached = {name: after.get(name, 0) for name in parts}
    left = {name: len(part.items) for name, part in parts.items()}
    items: list[msgspec.Raw] = []
    stopped = any(not part.items and part.follow is not None for part in parts.values())
    for _, name, number, raw in heapq.merge(*(_read(name, part) for name, part in parts.items())):
        if stopped or len(items) == limit:
            break
        items.append(raw)
        reached[name], left[name] = number, left[name] - 1
        stopped = not left[name] and parts[name].follow is not None
    for name, part in parts.items():
        if not left[name] and part.follow is not None:
            reached[name] = part.follow
    return Merged(items, reached, any(left.values()) or any(part.follow is not None for part in parts.values()))


def merge_newest(parts: Sequence[Sequence[msgspec.Raw]], limit: int) -> list[msgspec.Raw]:
    """The newest ``limit`` records of all, oldest first."""
    merged = heapq.merge(*(_read(str(number), Part(items)) for number, items in enumerate(parts)))
    return [raw for _, _, _, raw in merged][-limit:] if limit else []


def _read(name: str, part: Part) -> Iterator[tuple[str, str, int, msgspec.Raw]]:
    for raw in part.items:
        record = read_record(bytes(raw))
        yield record.at, name, record.sequence, raw
