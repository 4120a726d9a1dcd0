"""Small clusters and leases drawn by chance, and what a search through all schedules says of each rejection.

Time is a grid of ``STEP`` seconds. Whatever is drawn lies on it, and so does what the search tries: who runs, is saved or read back
in each step, and where. It shares no code with the planner; it takes from it only how far each lease had come when it rejected one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import product
from unittest import mock

import msgspec

from weft.scheduler.lease.plan import Lease, Mode, Plan, Standing
from weft.scheduler.simulate import lease_plan
from weft.scheduler.simulate.lease_plan import LeaseRun, simulate

STEP = 600.0  # seconds
SHORT_COST = 32.0  # seconds; the search counts a whole step for it
MODES: tuple[Mode, ...] = (*("deadline",) * 5, "reservation", "immediate", "best-effort")


class Instance(msgspec.Struct, frozen=True):
    capacity: list[tuple[float, ...]]  # cores of each node
    leases: list[Lease]
    real_seconds: dict[str, float]
    suspends: bool


def draw(seed: int) -> Instance:
    chance = random.Random(seed)
    capacity = [(float(chance.randint(1, 4)),) for _ in range(chance.randint(1, 3))]
    leases, real = [], {}
    for number in range(min(6, chance.randint(2, 8))):
        mode, arrival, duration = chance.choice(MODES), chance.randint(0, 6), chance.randint(1, 5)
        start = arrival + chance.randint(0, 5) if mode in ("reservation", "deadline") else 0
        most = int(max(capacity)[0])
        machines = [(float(chance.randint(1, min(2, most))),) for _ in range(chance.randint(1, 3))]
        lease = Lease(
            id=str(number),
            mode=mode,
            arrival=arrival * STEP,
            machines=tuple(machines),
            duration=duration * STEP,
            start=start * STEP,
            deadline=(start + duration + chance.randint(0, 6)) * STEP if mode == "deadline" else math.inf,
            preemptible=chance.random() < 0.6,
            suspend_seconds=chance.choice((0.0, SHORT_COST, STEP)),
        )
        leases.append(lease)
        if chance.random() < 0.25:
            real[lease.id] = chance.randint(1, duration) * STEP
    return Instance(capacity, leases, real, chance.random() < 0.5)


class Outcome(msgspec.Struct, frozen=True):
    wrongly_rejected: list[str]  # leases
    broken: list[str]  # accepted leases whose promise wasn't kept
    rejected: int


def judge(instance: Instance) -> Outcome:
    asked: dict[str, tuple[list[Standing], float]] = {}  # by the lease that wasn't to be had
    plan = lease_plan.keep_promises

    def ask(standings: list[Standing], capacity: object, now: float, *, suspends: bool) -> Plan | None:
        found = plan(standings, capacity, now, suspends=suspends)  # type: ignore[arg-type]
        if found is None:
            asked[standings[-1].lease.id] = (
                [msgspec.structs.replace(one, splits=False) for one in standings[-1:]],
                now,
            )
            asked[standings[-1].lease.id] = (standings[:-1] + asked[standings[-1].lease.id][0], now)
        return found

    with mock.patch.object(lease_plan, "keep_promises", ask):
        runs = simulate(instance.leases, instance.capacity, instance.real_seconds, suspends=instance.suspends)
    rejected = [run.lease.id for run in runs if run.state == "REJECTED"]
    wrong = [one for one in rejected if is_feasible(*asked[one], [cores for (cores,) in instance.capacity])]
    return Outcome(wrong, find_broken(runs, instance), len(rejected))


def find_broken(runs: list[LeaseRun], instance: Instance) -> list[str]:
    broken = []
    for run in runs:
        lease, pieces = run.lease, run.pieces
        times = [(piece.start, piece.end) for piece in pieces]
        if run.state == "REJECTED":
            kept = not pieces
        elif lease.mode in ("reservation", "immediate"):
            start = lease.arrival if lease.mode == "immediate" else lease.start
            kept = times == [(start, start + run.real_seconds)]
        else:
            kept = bool(pieces) and lease.start <= pieces[0].start and pieces[-1].end <= lease.deadline + 1e-3
            kept = kept and sum(piece.work_seconds for piece in pieces) >= run.real_seconds - 1e-3
        broken += [] if kept else [lease.id]
    taken = [
        (piece.start, piece.end, node, cores)
        for run in runs
        for piece in run.pieces
        for node, (cores,) in zip(piece.nodes, run.lease.machines, strict=True)
    ]
    for moment, _, node, _ in taken:
        used = sum(cores for start, end, on, cores in taken if on == node and start <= moment < end - 1e-3)
        broken += [f"node {node}"] if used > instance.capacity[node][0] else []
    return broken


class _Job(msgspec.Struct, frozen=True):
    """A promise, in steps from now on."""

    machines: tuple[int, ...]
    begins: int  # not before
    ends: int  # not after
    splits: bool
    cost: int  # steps to save it, and as many to read it back
    on: tuple[int, ...] = ()  # it begins on these nodes


_State = tuple[
    int, str, tuple[int, ...], int
]  # steps of work left; new, saved, runs, saving, reading; where; for how long


def is_feasible(standings: list[Standing], now: float, cores: list[float]) -> bool:
    """Whether the last of ``standings``, which is new, can have what it asks for while the others keep what they were promised."""
    jobs, ways = [], []
    taken: dict[int, list[float]] = {}
    for standing in standings:
        lease = standing.lease
        if not _fits_alone(lease, cores):
            return False
        rest, left = lease.preemptible, _count(lease.duration - standing.done_seconds)
        if lease.mode == "best-effort" and (rest or not standing.nodes):
            continue
        if standing.splits:  # nothing that comes later changes its pieces
            for piece in standing.pieces:
                for step in range(_count(piece.start - now), _count(piece.end - now)):
                    free = taken.setdefault(step, [0.0] * len(cores))
                    for node, (amount,) in zip(piece.nodes, lease.machines, strict=True):
                        free[node] += amount
            continue
        begins = max(0, _count(lease.start - now))
        ends = begins + left + _count(standing.resume_seconds)
        if lease.mode == "deadline":
            ends = _count(lease.deadline - now)
        whole = lease.mode != "deadline" or (not rest and standing is not standings[-1])
        machines = tuple(int(amount) for (amount,) in lease.machines)
        jobs.append(_Job(machines, begins, ends, not whole, _count(lease.suspend_seconds)))
        if standing.suspending_until is not None:
            state = [(left, "saving", standing.nodes, _count(standing.suspending_until - now))]
        elif standing.nodes:
            reading = _count(standing.resume_seconds)
            state = [(left, "reading" if reading else "runs", standing.nodes, reading)]
            state += [(_count(lease.duration), "new", (), 0)] if lease.mode == "deadline" and rest else []
        else:
            state = [(left, "saved" if standing.suspended else "new", (), 0)]
        ways.append(state)
    search = _Search(jobs, cores, taken)
    return any(search.run(0, tuple(states)) for states in product(*ways))


class _Search:
    def __init__(self, jobs: list[_Job], cores: list[float], taken: dict[int, list[float]]) -> None:
        self._jobs, self._cores, self._taken = jobs, cores, taken
        self._hopeless: set[tuple[int, tuple[_State, ...]]] = set()

    def run(self, step: int, states: tuple[_State, ...]) -> bool:
        if not any(left for left, *_ in states):
            return True
        if (step, states) in self._hopeless:
            return False
        free = [
            most - used for most, used in zip(self._cores, self._taken.get(step, [0.0] * len(self._cores)), strict=True)
        ]
        if self._go_on(step, states, (), free):
            return True
        self._hopeless.add((step, states))
        return False

    def _go_on(self, step: int, states: tuple[_State, ...], after: tuple[_State, ...], free: list[float]) -> bool:
        if len(after) == len(states):
            return self.run(step + 1, after)
        job = self._jobs[len(after)]
        for state, nodes in self._list_moves(step, job, states[len(after)], free):
            left, what, _, steps = state
            needs = left + (steps if what in ("saving", "reading") else 0)
            needs += job.cost if what in ("saved", "saving") else 0
            if left and step + 1 + needs > job.ends:
                continue
            for node, cores in zip(nodes, job.machines, strict=False):
                free[node] -= cores
            good = min(free) >= 0 and self._go_on(step, states, (*after, state), free)
            for node, cores in zip(nodes, job.machines, strict=False):
                free[node] += cores
            if good:
                return True
        return False

    def _list_moves(
        self, step: int, job: _Job, state: _State, free: list[float]
    ) -> Iterator[tuple[_State, tuple[int, ...]]]:
        """What may come next, and which nodes this step takes for it."""
        left, what, nodes, steps = state
        if not left:
            yield state, ()
        elif what in ("saving", "reading"):
            after = (left, "saved", (), 0) if what == "saving" else (left, "runs", nodes, 0)
            yield after if steps == 1 else (left, what, nodes, steps - 1), nodes
        else:
            if what == "runs":
                yield self._work(job, left, nodes), nodes
            if what == "runs" and job.splits and job.cost:
                yield (left, "saved", (), 0) if job.cost == 1 else (left, "saving", nodes, job.cost - 1), nodes
            if what != "runs" or (job.splits and not job.cost):
                if step >= job.begins:
                    for chosen in self._place(job.machines, free):
                        if what == "saved" and job.cost:
                            reads = (
                                (left, "runs", chosen, 0) if job.cost == 1 else (left, "reading", chosen, job.cost - 1)
                            )
                            yield reads, chosen
                        else:
                            yield self._work(job, left, chosen), chosen
                yield (left, "new" if what == "runs" else what, (), 0), ()

    def _work(self, job: _Job, left: int, nodes: tuple[int, ...]) -> _State:
        if left == 1:
            return 0, "new", (), 0
        return (left - 1, "new", (), 0) if job.splits and not job.cost else (left - 1, "runs", nodes, 0)

    def _place(self, machines: tuple[int, ...], free: list[float]) -> Iterator[tuple[int, ...]]:
        for nodes in product(range(len(free)), repeat=len(machines)):
            if all(
                a != b or one <= two for a, b, one, two in zip(machines, machines[1:], nodes, nodes[1:], strict=False)
            ):
                room = list(free)
                for node, cores in zip(nodes, machines, strict=True):
                    room[node] -= cores
                if min(room) >= 0:
                    yield nodes


def _fits_alone(lease: Lease, cores: list[float]) -> bool:
    return any(_Search([], cores, {})._place(tuple(int(amount) for (amount,) in lease.machines), cores))


def _count(seconds: float) -> int:
    """Steps, the last one begun."""
    return math.ceil(seconds / STEP - 1e-6)
