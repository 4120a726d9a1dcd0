"""When and where each lease runs, planned anew from what is known now. Pure.

Leases with an hour that was promised come first and keep their slots, then those with a deadline, then the others by arrival. Of
two with deadlines the earlier one comes first (earliest deadline first: Liu and Layland, JACM 20(1), 1973), or, where that
fails, the one with less time to spare, in seconds or for its length. Whatever may be suspended fills gaps piece by piece, and pays
for it: its memory is written and read again (Sotomayor, Keahey and Foster, "Combining Batch Execution and Leasing Using Virtual
Machines", HPDC 2008). A lease with a deadline that isn't preemptible runs in one piece, or in pieces around what was promised
before it; nothing that comes later changes it.

What no such order places ``search.py`` may; ``promises.py`` asks both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from weft.scheduler.lease.availability import Availability, Checks

Order = Literal["deadline", "spare", "ratio"]  # of leases with deadlines
ORDERS: tuple[Order, ...] = ("deadline", "spare", "ratio")
Mode = Literal["immediate", "best-effort", "reservation", "deadline"]
LEAST_PIECE_SECONDS = 60.0  # a shorter one isn't worth a suspension
MOST_CHECKS = 2_000  # of other nodes, for the unequal machines of a lease in one stretch of time
_BACKWARDS = 1e-6  # seconds: sums of pieces differ by that much


class Lease(msgspec.Struct, frozen=True):
    """A request. ``machines`` all run at the same time."""

    id: str
    mode: Mode
    arrival: float
    machines: tuple[tuple[float, ...], ...]  # what each needs of each resource of a node
    duration: float  # seconds
    start: float = 0.0  # not before; of a reservation, just then
    deadline: float = math.inf
    preemptible: bool = True
    suspend_seconds: float = 0.0  # to write its memory, and as long to read it
    on: tuple[int, ...] = ()  # the nodes that it may run on, the best one first; (): any
    stays: bool = False  # its saved memory stays where it was written: all its pieces are on the same nodes


class PlannedPiece(msgspec.Struct, frozen=True):
    """A stretch of time on nodes, of which ``resume_seconds`` at the beginning and ``suspend_seconds`` at the end do no work."""

    start: float
    end: float
    nodes: tuple[int, ...]  # of each machine
    resume_seconds: float = 0.0
    suspend_seconds: float = 0.0

    @property
    def work_seconds(self) -> float:
        return max(0.0, self.end - self.start - self.resume_seconds - self.suspend_seconds)


class Standing(msgspec.Struct):
    """State of an accepted lease so far."""

    lease: Lease
    done_seconds: float = 0.0  # of its duration
    nodes: tuple[int, ...] = ()  # where its machines run now
    suspended: bool = False
    resume_seconds: float = 0.0  # of what runs: until its memory is back
    suspending_until: float | None = None  # of what runs, but is being suspended
    promised: PlannedPiece | None = None  # of a reservation
    splits: bool = False  # though not preemptible, it was accepted in pieces around what was promised before it
    pieces: tuple[PlannedPiece, ...] = ()  # of one that splits: what was planned for it


Plan = dict[str, list[PlannedPiece]]  # by lease; empty for what finds no place in time


def make_plan(
    standings: Iterable[Standing],
    nodes: Iterable[Availability],
    now: float,
    *,
    suspends: bool,
    restarts: bool,
    order: Order = "deadline",
    checks: Checks | None = None,
) -> Plan:
    """``nodes``: what is free of each beside ``standings``. ``restarts``: what runs may be ended at once, and begin again. Raises
    OutOfChecks."""
    planner = Planner([node.copy() for node in nodes], now, suspends=suspends, restarts=restarts, checks=checks)
    placed = sorted(standings, key=lambda standing: _rank(standing, order, now))
    for standing in placed:
        planner.pin(standing)
    return {standing.lease.id: planner.place(standing) for standing in placed}


def _rank(standing: Standing, order: Order, now: float) -> tuple[int, float, float]:
    lease, left = standing.lease, standing.lease.duration - standing.done_seconds
    if standing.splits:
        return 2, lease.arrival, 0.0
    if standing.nodes and not lease.preemptible:
        return 0, lease.arrival, 0.0
    if lease.mode in ("reservation", "immediate"):
        return 1 if standing.promised is not None or standing.nodes else 3, lease.arrival, 0.0
    if lease.mode == "deadline":
        spare = lease.deadline - left if order == "spare" else (lease.deadline - now) / max(left, _BACKWARDS)
        return 4, lease.deadline if order == "deadline" else spare, lease.arrival
    return 5, lease.arrival, 0.0


class Planner:
    """All of it may raise OutOfChecks."""

    def __init__(
        self,
        nodes: list[Availability],
        now: float,
        *,
        suspends: bool,
        restarts: bool,
        checks: Checks | None = None,
    ) -> None:
        self.nodes = nodes
        self._checks = checks if checks is not None else Checks()
        self._checks.take(0, steps=sum(map(len, nodes)))
        self._now = now
        self._suspends = suspends
        self._restarts = restarts

    def keep(self, standing: Standing) -> list[PlannedPiece]:
        """Its pieces as they were planned, from now on."""
        pieces = list(standing.pieces)
        if standing.nodes:
            begun = max(pieces[0].start, self._now)
            reads = 0.0 if standing.suspending_until is not None else standing.resume_seconds
            saves = min(pieces[0].suspend_seconds, pieces[0].end - begun)
            pieces[0] = msgspec.structs.replace(pieces[0], start=begun, resume_seconds=reads, suspend_seconds=saves)
        self.take_all(standing.lease, pieces)
        return pieces

    def take_all(self, lease: Lease, pieces: Iterable[PlannedPiece]) -> None:
        for piece in pieces:
            self._take(piece, lease)

    def pin(self, standing: Standing) -> None:
        """Take the nodes of a running lease until it is suspended: it needs them, whatever else comes of it."""
        self._take(self._suspension(standing), standing.lease)

    def place(self, standing: Standing) -> list[PlannedPiece]:
        lease, pinned = standing.lease, self._suspension(standing)
        self._take(pinned, lease, give_back=True)
        if lease.mode in ("reservation", "immediate") and not standing.nodes:
            slots = self._place_at(standing, self._now if lease.mode == "immediate" else lease.start)
        elif lease.stays and not standing.nodes:
            slots = self._place_in_pieces_on_one(standing)
        else:
            slots = self._place_in_pieces(standing)
        self.take_all(lease, slots)
        if not slots:
            self._take(pinned, lease)
        return slots

    def _suspension(self, standing: Standing) -> PlannedPiece | None:
        if not standing.nodes:
            return None
        if standing.suspending_until is not None:
            return PlannedPiece(self._now, standing.suspending_until, standing.nodes)
        waits = self._can_suspend(standing) and not self._restarts
        return PlannedPiece(self._now, self._now + (standing.lease.suspend_seconds if waits else 0.0), standing.nodes)

    def _can_suspend(self, standing: Standing) -> bool:
        return self._suspends and (standing.lease.preemptible or standing.splits)

    def _can_save(self, standing: Standing) -> bool:
        """Whether there is time to suspend what runs."""
        lease, nodes = standing.lease, standing.nodes
        if not self._can_suspend(standing) or not lease.suspend_seconds:
            return self._can_suspend(standing)
        return bool(self._find_nodes(lease, self._now, self._now + lease.suspend_seconds, nodes))

    def _place_at(self, standing: Standing, start: float) -> list[PlannedPiece]:
        lease = standing.lease
        slot = standing.promised
        if slot is None:
            if start < self._now:
                return []
            if not (nodes := self._find_nodes(lease, start, start + lease.duration)):
                return []
            slot = PlannedPiece(start, start + lease.duration, nodes)
        return [slot]

    def _place_in_pieces_on_one(self, standing: Standing) -> list[PlannedPiece]:
        """All pieces of one machine on the node where it is done first."""
        lease, best = standing.lease, list[PlannedPiece]()
        for node in lease.on or range(len(self.nodes)):
            there = msgspec.structs.replace(lease, on=(node,))
            slots = self._place_in_pieces(msgspec.structs.replace(standing, lease=there))
            if slots and (not best or slots[-1].end < best[-1].end - _BACKWARDS):
                best = slots
        return best

    def _place_in_pieces(self, standing: Standing) -> list[PlannedPiece]:
        lease, left = standing.lease, standing.lease.duration - standing.done_seconds
        slots: list[PlannedPiece] = []
        time, resume = max(self._now, lease.start), standing.suspended
        if standing.suspending_until is not None:
            rest = standing.suspending_until - self._now
            slots.append(PlannedPiece(self._now, standing.suspending_until, standing.nodes, 0.0, rest))
            time, resume = standing.suspending_until, True
        elif standing.nodes:
            piece = self._fit(standing, self._now, left, standing.resume_seconds, standing.nodes)
            if piece is None and self._can_save(standing):
                saved = self._now + lease.suspend_seconds
                piece = PlannedPiece(self._now, saved, standing.nodes, 0.0, lease.suspend_seconds)
            elif piece is None and not self._restarts:
                return []
            elif piece is None:
                left = lease.duration  # it is ended, and begins again
            if piece is not None:
                slots.append(piece)
                left -= piece.work_seconds
                time, resume = piece.end, True
        nodes = standing.nodes or None if lease.stays else None
        while left > _BACKWARDS:
            piece = self._find_piece(standing, time, left, lease.suspend_seconds if resume else 0.0, nodes)
            if piece is None:
                break
            slots.append(piece)
            left -= piece.work_seconds
            time, resume = piece.end, True
        if left > _BACKWARDS or slots[-1].end > lease.deadline + _BACKWARDS:
            return []
        return slots

    def _find_piece(
        self, standing: Standing, time: float, left: float, resume: float, nodes: tuple[int, ...] | None
    ) -> PlannedPiece | None:
        """The first one from ``time`` on, before the deadline."""
        latest = standing.lease.deadline - min(left, LEAST_PIECE_SECONDS)
        for start in self._list_changes(standing.lease, time, latest):
            if (piece := self._fit(standing, start, left, resume, nodes)) is not None:
                return piece
        return None

    def _list_changes(self, lease: Lease, time: float, latest: float) -> Iterable[float]:
        """``time``, and when what is free changes on one of the lease's nodes."""
        yield time
        nodes = [self.nodes[node] for node in lease.on] or self.nodes
        found = {change for node in nodes for change in node.changes(time, math.nextafter(latest, math.inf))}
        self._checks.take(0, steps=len(found))
        yield from sorted(found)

    def _fit(
        self, standing: Standing, start: float, left: float, resume: float, nodes: tuple[int, ...] | None = None
    ) -> PlannedPiece | None:
        """The longest piece that begins at ``start``; all that is ``left``, or, where it can be suspended, a part of it."""
        lease, whole = standing.lease, start + resume + left
        if found := self._find_nodes(lease, start, whole, nodes):
            return PlannedPiece(start, whole, found, resume)
        if not self._can_suspend(standing):
            return None
        overhead = resume + lease.suspend_seconds
        ends = [
            end
            for end in self._list_changes(lease, start, whole)
            if end - start >= overhead + min(left, LEAST_PIECE_SECONDS)
        ]
        low, high, best = 0, len(ends), None
        while low < high:  # what is free until a time is so until all times before it
            middle = (low + high) // 2
            if found := self._find_nodes(lease, start, ends[middle], nodes):
                best, low = PlannedPiece(start, ends[middle], found, resume, lease.suspend_seconds), middle + 1
            else:
                high = middle
        return best

    def _find_nodes(
        self, lease: Lease, start: float, end: float, nodes: tuple[int, ...] | None = None
    ) -> tuple[int, ...]:
        """A node for each machine, free from ``start`` to ``end``; () if there are none. ``nodes``: no other ones.

        The largest choose first. Equal ones need no second try; others take back and choose again within ``MOST_CHECKS``."""
        order = sorted(range(len(lease.machines)), key=lambda number: lease.machines[number], reverse=True)
        every: Sequence[int] = lease.on or range(len(self.nodes))
        chosen: dict[int, int] = {}  # nodes by machine, in that order
        tries = MOST_CHECKS // len(every) if nodes is None and len(set(lease.machines)) > 1 else 0
        first = 0
        while len(chosen) < len(order):
            number = order[len(chosen)]
            machine = lease.machines[number]
            where = every[first:] if nodes is None else (nodes[number],)
            self._checks.take(len(where))
            node = next((node for node in where if self.nodes[node].fits(start, end, machine)), None)
            if node is not None:
                self.nodes[node].take(start, end, machine)
                chosen[number] = node
                same = len(chosen) < len(order) and lease.machines[order[len(chosen)]] == machine
                first = every.index(node) if same and nodes is None else 0
            elif chosen and tries > 0:  # the last one that has a place looks for another
                tries -= 1
                number, node = chosen.popitem()
                self.nodes[node].take(start, end, [-amount for amount in lease.machines[number]])
                first = every.index(node) + 1
            else:
                break
        for number, node in chosen.items():
            self.nodes[node].take(start, end, [-amount for amount in lease.machines[number]])
        return tuple(chosen[number] for number in range(len(order))) if len(chosen) == len(order) else ()

    def _take(self, slot: PlannedPiece | None, lease: Lease, *, give_back: bool = False) -> None:
        if slot is not None:
            for node, machine in zip(slot.nodes, lease.machines, strict=True):
                self.nodes[node].take(slot.start, slot.end, [-a for a in machine] if give_back else machine)
