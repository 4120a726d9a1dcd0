"""Resources that leases take of the nodes over time. One question answers for all nodes together: when could this begin?

Each node has a step function (``availability.py``), where a question is a search by halves; the steps of all nodes lie side by
side in one table as well, so that a thousand nodes are one pass over arrays. Times are seconds since 1970. Beside the leases a
node has capacity that is taken for good; the caller says how much is left.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from weft.contracts.policy import Flags, Values, Whole
from weft.scheduler.lease.availability import Availability

Held = tuple[int, int]  # thousandths of a core, bytes of memory
_MOST = float(2**62)  # more than any node has: what no lease may begin in
_MOST_STALE = 1000  # ends of leases that are dropped, beside twice those that are counted


class CalendarEntry(msgspec.Struct, frozen=True):
    """Amounts that one allocation takes, and when; ``end`` may be infinite."""

    node_uid: str
    start: float
    end: float
    amounts: Held
    later: tuple[tuple[float, float], ...] = ()  # when it takes the same again, from and to, after ``end``

    @property
    def stretches(self) -> tuple[tuple[float, float], ...]:
        return (self.start, self.end), *self.later


class Calendar:
    """``put`` and ``drop`` by the allocation's key."""

    def __init__(self) -> None:
        self._leases: dict[str, CalendarEntry] = {}
        self._nodes: dict[str, Availability] = {}
        self._keys: dict[str, set[str]] = {}  # by node
        self._ends: list[tuple[float, str]] = []  # a heap, each entry once
        self._queued: set[tuple[float, str]] = set()
        self._table = _Table()

    def __len__(self) -> int:
        return len(self._leases)

    def nodes(self) -> Iterable[str]:
        """The uids of nodes with leases."""
        return self._nodes

    def list_keys(self, node_uid: str) -> list[str]:
        """The keys of the leases on a node, in order."""
        return sorted(self._keys.get(node_uid, ()))

    def get(self, key: str) -> CalendarEntry | None:
        return self._leases.get(key)

    def put(self, key: str, lease: CalendarEntry) -> None:
        """Count a lease, which may be counted already."""
        if self._leases.get(key) == lease:
            return
        self.drop(key)
        self._leases[key] = lease
        self._keys.setdefault(lease.node_uid, set()).add(key)
        if lease.end < math.inf and (lease.end, key) not in self._queued:
            heapq.heappush(self._ends, (lease.end, key))
            self._queued.add((lease.end, key))
            if len(self._ends) > 2 * len(self._leases) + _MOST_STALE:
                self._ends = sorted(one for one in self._ends if one[1] in self._leases)
                self._queued = set(self._ends)
        node = self._nodes.get(lease.node_uid)
        if node is None:
            node = self._nodes[lease.node_uid] = Availability((0.0, 0.0))
        for start, end in lease.stretches:
            node.take(start, end, lease.amounts)
        self._table.put(lease.node_uid, node)

    def drop(self, key: str) -> CalendarEntry | None:
        """Stop counting a lease; the one that was counted."""
        lease = self._leases.pop(key, None)
        if lease is None:
            return None
        node, keys = self._nodes[lease.node_uid], self._keys[lease.node_uid]
        keys.discard(key)
        if keys:
            for start, end in lease.stretches:
                node.take(start, end, [-amount for amount in lease.amounts])
            self._table.put(lease.node_uid, node)
        else:
            del self._nodes[lease.node_uid], self._keys[lease.node_uid]
            self._table.drop(lease.node_uid)
        return lease

    def find_peak(self, node_uid: str) -> Held:
        """The most that is taken of a node at any moment, each resource by itself."""
        node = self._nodes.get(node_uid)
        if node is None:
            return 0, 0
        cpu, memory = node.least_free(-math.inf, math.inf)
        return round(-cpu), round(-memory)

    def find_taken(self, uids: Sequence[str], start: float, seconds: float) -> Whole:
        """The most that leases take of each of these nodes at any moment of that time, each resource for itself; two rows."""
        taken = np.zeros((2, len(uids)), dtype=np.int64)
        for row, uid in enumerate(uids):
            if (node := self._nodes.get(uid)) is not None:
                taken[:, row] = [round(-free) for free in node.least_free(start, start + seconds)]
        return taken

    def find_taken_at(self, uids: Sequence[str], moment: float) -> Whole:
        """Amounts that leases take of each of these nodes at that moment; two rows."""
        taken = np.zeros((2, len(uids)), dtype=np.int64)
        rows = self._table.find(uids)
        leased = np.flatnonzero(rows >= 0)
        if len(leased):
            taken[:, leased] = self._table.find_taken_at(rows[leased], moment)
        return taken

    def read_free(self, node_uid: str, left: Held) -> Availability:
        """Free resources of one node over time, in a copy. ``left``: what it has beside its leases."""
        node = self._nodes.get(node_uid)
        free = node.copy() if node is not None else Availability((0.0, 0.0))
        free.take(-math.inf, math.inf, (-left[0], -left[1]))
        return free

    def take_over(self, now: float) -> list[str]:
        """The keys of leases that have ended by ``now``; each only once."""
        over = []
        while self._ends and self._ends[0][0] <= now:
            end, key = heapq.heappop(self._ends)
            self._queued.discard((end, key))
            if key in self._leases and self._leases[key].end == end:
                over.append(key)
        return over

    def find_next_end(self) -> float:
        """When the next lease ends, or one that has been dropped would have; infinite if there is none."""
        return self._ends[0][0] if self._ends else math.inf

    def find_starts(self, uids: Sequence[str], left: Whole, amounts: Held, earliest: float, seconds: float) -> Values:
        """Earliest time on each of these nodes, not before ``earliest``, from which ``amounts`` are free for ``seconds``; infinite
        where there is none. ``left``: two rows, what the nodes have beside their leases."""
        fits = (left[0] >= amounts[0]) & (left[1] >= amounts[1])
        starts: Values = np.where(fits, earliest, math.inf)
        rows = self._table.find(uids)
        leased = np.flatnonzero(rows >= 0)
        if len(leased):
            starts[leased] = self._table.find_starts(rows[leased], left[:, leased], amounts, earliest, seconds)
        return starts

    def find_lengths(self, uids: Sequence[str], left: Whole, amounts: Held, start: float) -> Values:
        """Seconds from ``start`` on for which each of these nodes has ``amounts`` free; 0 where it hasn't, infinite for good."""
        fits = (left[0] >= amounts[0]) & (left[1] >= amounts[1])
        lengths: Values = np.where(fits, math.inf, 0.0)
        rows = self._table.find(uids)
        leased = np.flatnonzero(rows >= 0)
        if len(leased):
            lengths[leased] = self._table.find_lengths(rows[leased], left[:, leased], amounts, start)
        return lengths


class _Table:
    """The steps of all nodes with leases: a row each, as wide as the longest, filled up with steps that never come."""

    def __init__(self) -> None:
        self._row: dict[str, int] = {}
        self._free_rows: list[int] = []
        self._times = np.full((16, 8), math.inf)
        self._taken = np.full((2, 16, 8), _MOST)
        self._uids: tuple[str, ...] = ()
        self._order: Whole = np.zeros(0, dtype=np.int64)
        self._epoch, self._ordered = 0, -1

    def put(self, uid: str, node: Availability) -> None:
        times, free = node.steps()
        row = self._row.get(uid)
        if row is None:
            row = self._row[uid] = self._free_rows.pop() if self._free_rows else len(self._row)
            self._epoch += 1
        self._reserve(row, len(times))
        self._times[row] = math.inf
        self._taken[:, row] = _MOST
        self._times[row, : len(times)] = times
        for resource, levels in enumerate(free):
            self._taken[resource, row, : len(times)] = np.negative(levels)

    def drop(self, uid: str) -> None:
        row = self._row.pop(uid)
        self._free_rows.append(row)
        self._epoch += 1

    def find(self, uids: Sequence[str]) -> Whole:
        """The rows of these nodes, -1 for one without leases; kept for the same question."""
        asked = tuple(uids)
        if self._ordered != self._epoch or asked != self._uids:
            self._order = np.array([self._row.get(uid, -1) for uid in asked], dtype=np.int64)
            self._uids, self._ordered = asked, self._epoch
        return self._order

    def find_starts(self, rows: Whole, left: Whole, amounts: Held, earliest: float, seconds: float) -> Values:
        begins, ends, blocked, nearest = self._read(rows, left, amounts)
        at = np.maximum(begins, earliest)
        found = np.where(~blocked & (ends > earliest) & (nearest >= at + seconds), at, math.inf)
        starts: Values = found.min(axis=1)
        return starts

    def find_lengths(self, rows: Whole, left: Whole, amounts: Held, start: float) -> Values:
        begins, ends, blocked, nearest = self._read(rows, left, amounts)
        found = np.where(~blocked & (begins <= start) & (start < ends), nearest - start, 0.0)
        lengths: Values = found.max(axis=1)
        return lengths

    def find_taken_at(self, rows: Whole, moment: float) -> Whole:
        at = np.count_nonzero(self._times[rows] <= moment, axis=1) - 1
        taken: Whole = np.rint(self._taken[:, rows, at]).astype(np.int64)
        return taken

    def _read(self, rows: Whole, left: Whole, amounts: Held) -> tuple[Values, Values, Flags, Values]:
        """Begin and end of each step, whether too little is free in it, and when the next such step begins."""
        begins = self._times[rows]
        ends: Values = np.concatenate([begins[:, 1:], np.full((len(rows), 1), math.inf)], axis=1)
        blocked: Flags = np.isinf(begins) & (begins > 0)
        for resource, amount in enumerate(amounts):
            if amount:
                blocked |= self._taken[resource][rows] + amount > left[resource][:, None]
        nearest: Values = np.where(blocked, begins, math.inf)
        return begins, ends, blocked, np.minimum.accumulate(nearest[:, ::-1], axis=1)[:, ::-1]

    def _reserve(self, row: int, steps: int) -> None:
        rows, wide = self._times.shape
        if row < rows and steps <= wide:
            return
        rows, wide = max(rows, 2 * row if row >= rows else 0), max(wide, 2 * steps if steps > wide else 0)
        times, taken = np.full((rows, wide), math.inf), np.full((2, rows, wide), _MOST)
        of = self._times.shape
        times[: of[0], : of[1]] = self._times
        taken[:, : of[0], : of[1]] = self._taken
        self._times, self._taken = times, taken
