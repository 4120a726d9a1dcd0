"""Flows folded over time: sums for each peer, protocol, port, direction and verdict; the smaller ones as one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

MINUTE: Literal[60] = 60
HOUR: Literal[3600] = 3600
DAY = 86_400
MOST_OF_MINUTE, MOST_OF_HOUR = 64, 256  # entries that stand for themselves
KEPT_MINUTES, KEPT_HOURS = 2 * HOUR, DAY + HOUR  # seconds
OTHERS = "others"  # in place of an address: peers with less traffic than those that are kept


class Key(NamedTuple):
    direction: str  # out: opened by the workload; in: to it
    network: str
    address: str  # of the peer
    name: str  # of a workload of its project, ``protocol.traffic.OTHER_PROJECT``, or "": no workload of the network
    protocol: str
    port: int  # of the one to whom the flow was opened
    verdict: str


class FlowEntry(msgspec.Struct, array_like=True):
    key: Key
    sent_bytes: int = 0  # by the workload
    received_bytes: int = 0
    sent_packets: int = 0
    received_packets: int = 0
    first: float = 0.0  # unix seconds
    last: float = 0.0
    flows: int = 0  # that began


class Interval(msgspec.Struct, array_like=True, frozen=True):
    """The traffic of a workload's NICs while it was on the node ``node``; the last of those with the same ``which`` counts."""

    start: int  # unix seconds
    seconds: Literal[60, 3600]
    node: str
    entries: list[FlowEntry]
    lacking: bool = False  # the kernel forgot some flows before they could be counted

    @property
    def which(self) -> tuple[int, int, str]:
        return self.start, self.seconds, self.node

    @property
    def end(self) -> int:
        return self.start + self.seconds


class Fold:
    """Entries by key; never more than twice ``most``."""

    def __init__(self, most: int, entries: Iterable[FlowEntry] = ()) -> None:
        self._most = most
        self._entries: dict[Key, FlowEntry] = {}
        for entry in entries:
            self.add(entry)

    def count(self, key: Key, sent: tuple[int, int], received: tuple[int, int], at: float, flows: int = 0) -> None:
        """Packets and bytes that the workload sent and received since the last look; ``flows`` began since."""
        found = self._entries.get(key)
        if found is None:
            found = self._entries[key] = FlowEntry(key, first=at)
        found.sent_packets += sent[0]
        found.sent_bytes += sent[1]
        found.received_packets += received[0]
        found.received_bytes += received[1]
        found.last = at
        found.flows += flows
        if len(self._entries) > 2 * self._most:
            self._trim()

    def add(self, other: FlowEntry) -> None:
        found = self._entries.get(other.key)
        if found is None:
            self._entries[other.key] = msgspec.structs.replace(other)
        else:
            found.sent_packets += other.sent_packets
            found.sent_bytes += other.sent_bytes
            found.received_packets += other.received_packets
            found.received_bytes += other.received_bytes
            found.first, found.last = min(found.first, other.first), max(found.last, other.last)
            found.flows += other.flows
        if len(self._entries) > 2 * self._most:
            self._trim()

    def listed(self) -> list[FlowEntry]:
        """The ``most`` entries with most bytes, first, and the others."""
        self._trim()
        return sorted(self._entries.values(), key=_size, reverse=True)

    def copy(self) -> list[FlowEntry]:
        """Copy the entries as they are."""
        return [msgspec.structs.replace(entry) for entry in self._entries.values()]

    def __bool__(self) -> bool:
        return bool(self._entries)

    def _trim(self) -> None:
        if len(self._entries) <= self._most:
            return
        ordered = sorted(self._entries.values(), key=lambda entry: (entry.key.address != OTHERS, _size(entry)))
        self._entries = {entry.key: entry for entry in ordered[len(ordered) - self._most :]}
        for entry in ordered[: len(ordered) - self._most]:
            self.add(msgspec.structs.replace(entry, key=Key(entry.key.direction, "", OTHERS, "", "", 0, "allowed")))


def _size(entry: FlowEntry) -> int:
    return entry.sent_bytes + entry.received_bytes


def choose(intervals: Sequence[Interval], since: float) -> Iterator[Interval]:
    """Those that cover the time from ``since`` on, each moment once: hours, and minutes of hours that have no sum yet."""
    hours = {(one.start, one.node) for one in intervals if one.seconds == HOUR}
    by_minutes = since >= max((one.end for one in intervals), default=0) - KEPT_MINUTES
    for one in intervals:
        has_sum = (one.start // HOUR * HOUR, one.node) in hours
        if one.end > since and (one.seconds == MINUTE if by_minutes else one.seconds == HOUR or not has_sum):
            yield one


def condense(intervals: Iterable[Interval], now: float) -> list[Interval]:
    """Condense the intervals to what stays: a sum for each hour that has ended, minutes of the last two hours, nothing older than a
    day."""
    known = {one.which: one for one in intervals}
    hours: dict[tuple[int, str], list[Interval]] = {}
    for one in known.values():
        if one.seconds == MINUTE:
            hours.setdefault((one.start // HOUR * HOUR, one.node), []).append(one)
    for (start, node), minutes in hours.items():
        if start + HOUR <= now and (start, HOUR, node) not in known:
            fold = Fold(MOST_OF_HOUR, (entry for one in minutes for entry in one.entries))
            made = Interval(start, HOUR, node, fold.listed(), any(one.lacking for one in minutes))
            known[made.which] = made
    kept = [one for one in known.values() if one.end > now - (KEPT_MINUTES if one.seconds == MINUTE else KEPT_HOURS)]
    return sorted(kept, key=lambda one: (one.start, -one.seconds))
