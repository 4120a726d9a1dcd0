"""Leases of all kinds from a file, on nodes from that file: what becomes of each, second by second."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from weft.scheduler.lease.availability import Amounts
from weft.scheduler.lease.backfill import SHORTEST_SECONDS
from weft.scheduler.lease.plan import Lease, PlannedPiece, Standing
from weft.scheduler.lease.promises import keep_promises

_SOON = 1e-6  # seconds: what is due so soon is due


class LeaseRun(msgspec.Struct):
    """Result of a lease."""

    lease: Lease
    real_seconds: float  # how long it runs; nobody knows it before
    state: str = ""  # DONE or REJECTED
    pieces: list[PlannedPiece] = []  # the slots in which it ran, as long as they really were
    slots: list[PlannedPiece] = []  # what is planned; the first one may have begun
    runs: bool = False
    done_seconds: float = 0.0  # before the first slot
    suspended: bool = False
    promised: PlannedPiece | None = None
    splits: bool = False  # see Standing

    @property
    def start(self) -> float | None:
        return self.pieces[0].start if self.pieces else None

    @property
    def end(self) -> float | None:
        return self.pieces[-1].end if self.pieces else None

    def worked(self, now: float) -> float:
        """Seconds worked in the first slot, which has begun."""
        slot = self.slots[0]
        return min(max(0.0, now - slot.start - slot.resume_seconds), slot.work_seconds)

    def find_end(self) -> float:
        """When it has done all that it really does, or its slot is over."""
        slot = self.slots[0]
        end = slot.start + slot.resume_seconds + self.real_seconds - self.done_seconds
        return end if end <= slot.end - slot.suspend_seconds + _SOON else slot.end

    def stand(self, now: float) -> Standing:
        pieces = tuple(self.slots) if self.splits else ()
        if not self.runs:
            return Standing(
                self.lease,
                self.done_seconds,
                suspended=self.suspended,
                promised=self.promised,
                splits=self.splits,
                pieces=pieces,
            )
        slot = self.slots[0]
        return Standing(
            self.lease,
            self.done_seconds + self.worked(now),
            slot.nodes,
            resume_seconds=max(0.0, slot.start + slot.resume_seconds - now),
            suspending_until=slot.end
            if slot.suspend_seconds and now >= slot.end - slot.suspend_seconds - _SOON
            else None,
            splits=self.splits,
            pieces=pieces,
        )

    def leave_slot(self, now: float) -> None:
        """The first slot ends here; what goes on where it was before is one piece with that."""
        slot, self.runs = self.slots.pop(0), False
        if now <= slot.start:
            return
        piece = msgspec.structs.replace(slot, end=now, suspend_seconds=slot.suspend_seconds if now >= slot.end else 0.0)
        last = self.pieces[-1] if self.pieces else None
        if last and (last.end, last.nodes, last.suspend_seconds) == (piece.start, piece.nodes, 0.0):
            self.pieces[-1] = msgspec.structs.replace(last, end=piece.end, suspend_seconds=piece.suspend_seconds)
        else:
            self.pieces.append(piece)


def simulate(
    leases: Sequence[Lease], capacity: Sequence[Amounts], real_seconds: dict[str, float], *, suspends: bool
) -> list[LeaseRun]:
    """``real_seconds``: of those that really run shorter than they asked for. In the order of ``leases``."""
    runs = [LeaseRun(lease, min(lease.duration, real_seconds.get(lease.id, math.inf))) for lease in leases]
    arriving = sorted(runs, key=lambda run: run.lease.arrival)
    accepted: list[LeaseRun] = []
    while arriving or accepted:
        times = [run.find_end() if run.runs else run.slots[0].start for run in accepted]
        now = min([*times, *(run.lease.arrival for run in arriving[:1])])
        news = [_end(run, now) for run in accepted if run.runs and run.find_end() <= now + _SOON]
        accepted = [run for run in accepted if run.state != "DONE"]
        while arriving and arriving[0].lease.arrival <= now:
            run = arriving.pop(0)
            if _accept(run, accepted, capacity, now, suspends=suspends):
                accepted.append(run)
            else:
                run.state = "REJECTED"
        if any(news):
            _replan(accepted, capacity, now, suspends=suspends)
        for run in accepted:
            if not run.runs and run.slots[0].start <= now + _SOON:
                run.runs = True
    return runs


def _accept(
    run: LeaseRun, accepted: list[LeaseRun], capacity: Sequence[Amounts], now: float, *, suspends: bool
) -> bool:
    if _replan([*accepted, run], capacity, now, suspends=suspends):
        return True
    run.splits = run.lease.mode == "deadline" and not run.lease.preemptible
    return run.splits and _replan([*accepted, run], capacity, now, suspends=suspends)


def _end(run: LeaseRun, now: float) -> bool:
    """Its slot is over; whether that came earlier than planned."""
    slot, run.done_seconds = run.slots[0], run.done_seconds + run.worked(now)
    run.leave_slot(now)
    if run.done_seconds >= run.real_seconds - _SOON:
        run.state = "DONE"
        return now < slot.end - _SOON or bool(run.slots)
    run.suspended = True
    return False


def _replan(runs: list[LeaseRun], capacity: Sequence[Amounts], now: float, *, suspends: bool) -> bool:
    """Adopt a plan that keeps every promise; False, and nothing changed, if there is none."""
    standings = [run.stand(now) for run in runs]
    plan = keep_promises(standings, capacity, now, suspends=suspends)
    if plan is None:
        return False
    for run, standing in zip(runs, standings, strict=True):
        if run.runs:
            run.leave_slot(now)
            run.done_seconds = standing.done_seconds
        run.slots = list(plan[run.lease.id])
        if run.lease.mode in ("reservation", "immediate") and not standing.nodes:
            run.promised = run.slots[0]
        if standing.nodes:
            run.runs = run.slots[0].start <= now and run.slots[0].nodes == standing.nodes
            run.done_seconds = standing.done_seconds if run.runs else 0.0  # what isn't suspended has lost its work
            run.suspended = False
    return True


def measure(runs: Sequence[LeaseRun], capacity: Sequence[Amounts]) -> tuple[float, float]:
    """Measures of the leases that are done: the average bounded slowdown, from when each could have started; and what share of the
    nodes' first resource they used, from the first arrival to the last end."""
    done = [(run, run.pieces[-1].end) for run in runs if run.pieces]
    if not done:
        return 0.0, 0.0
    slowdowns = [
        max(1.0, (end - max(run.lease.arrival, run.lease.start)) / max(run.real_seconds, SHORTEST_SECONDS))
        for run, end in done
    ]
    span = max(end for _, end in done) - min(run.lease.arrival for run in runs)
    work = sum([run.real_seconds * sum(machine[0] for machine in run.lease.machines) for run, _ in done])
    there = sum([amounts[0] for amounts in capacity]) * span
    return sum(slowdowns) / len(slowdowns), work / there if there else 0.0
