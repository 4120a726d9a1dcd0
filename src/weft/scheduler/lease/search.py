"""When and where each promised lease runs, where no order of taking them one by one keeps all promises. Pure.

It goes from event to event: a lease may begin or must, something ends, what is free changes, or a lease must be saved by one of
these. At each it decides for every lease, the one with the least time to spare first, whether it runs until the next one, and on
which nodes; where that leads nowhere it goes back. A reservation is a lease without time to spare.

It gives up after as many checks of what is free as it may make: small conflicts are solved, on thousands of nodes hardly any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from weft.scheduler.lease.availability import Availability, Checks, OutOfChecks
from weft.scheduler.lease.plan import LEAST_PIECE_SECONDS, Lease, PlannedPiece, Standing

MOST_CHECKS = 50_000  # of what is free on a node: less than a second
MOST_MACHINES = 50  # of one lease
_MOST_FRAMES = 500  # of the interpreter's stack
_SOON = 1e-3  # seconds: events so near are one


class _State(NamedTuple):
    phase: Literal["waits", "runs", "saves", "done"]
    left: float  # seconds of work
    nodes: tuple[int, ...] = ()
    until: float = 0.0  # its memory is read, or written
    saved: bool = False


class _Job(msgspec.Struct, frozen=True):
    lease: Lease
    begins: float  # not before
    ends: float  # not after
    splits: bool
    prefers: tuple[int, ...]  # nodes

    def needs(self, state: _State, now: float) -> float:
        """Seconds until it can be over."""
        cost = self.lease.suspend_seconds
        if state.phase == "runs":
            return max(0.0, state.until - now) + state.left
        return (
            state.left + (cost if state.saved else 0.0) + (state.until - now + cost if state.phase == "saves" else 0.0)
        )

    def save(self, state: _State) -> _State:
        """The state once its memory is saved."""
        return _State("waits", state.left, state.nodes if self.lease.stays else (), saved=True)


class _Step(NamedTuple):
    """A step that a lease begins, on the way to the plan."""

    job: int
    time: float
    does: Literal["start", "save", "end", "restart"]
    nodes: tuple[int, ...] = ()
    seconds: float = 0.0  # to read, or to write


class _Event(msgspec.Struct, frozen=True):
    time: float
    opens: bool
    turns: list[float]  # at which something begins, or must

    def is_turn(self, cost: float) -> bool:
        """Whether something is free now, or begins once a lease is saved that is saved from now on."""
        return self.opens or any(abs(turn - cost - self.time) <= _SOON for turn in self.turns)


def search_plan(
    standings: Sequence[Standing],
    nodes: list[Availability],
    now: float,
    *,
    restarts: bool,
    checks: Checks | None = None,
) -> dict[str, list[PlannedPiece]]:
    """The pieces of all ``standings``, each of which has an end in time; {} if none were found. What is free on ``nodes`` is beside
    them. ``restarts``: what runs may be ended at once, and begin again. ``checks``: ``MOST_CHECKS`` if unset."""
    if any(len(standing.lease.machines) > MOST_MACHINES for standing in standings):
        return {}
    search = _Search(standings, nodes, now, checks or Checks(MOST_CHECKS), restarts=restarts)
    try:
        return search.read_plan() if search.go_on(now, search.begin()) else {}
    except OutOfChecks:
        return {}


class _Search:
    def __init__(
        self, standings: Sequence[Standing], nodes: list[Availability], now: float, checks: Checks, *, restarts: bool
    ) -> None:
        self._standings, self._nodes, self._now, self._restarts = standings, nodes, now, restarts
        self._jobs = [_make_job(standing, now) for standing in standings]
        limited = [standing.lease.on for standing in standings if standing.lease.on]
        self._takers = [tuple(node in on for on in limited) for node in range(len(nodes))]  # of each who may run there
        self._steps: list[_Step] = []
        self._hopeless: set[tuple[float, bool, tuple[_State, ...]]] = set()
        self._checks, self._events = checks, 0

    def begin(self) -> tuple[_State, ...]:
        states = []
        for number, standing in enumerate(self._standings):
            lease, left = standing.lease, standing.lease.duration - standing.done_seconds
            if not standing.nodes:
                states.append(_State("waits", left, saved=standing.suspended))
                continue
            until = standing.suspending_until
            reads = 0.0 if until is not None else standing.resume_seconds
            self._steps.append(_Step(number, self._now, "start", standing.nodes, reads))
            if until is not None:
                self._steps.append(_Step(number, self._now, "save", standing.nodes, until - self._now))
                states.append(_State("saves", left, standing.nodes, until))
                self._take(lease, standing.nodes, self._now, until)
            else:
                states.append(_State("runs", left, standing.nodes, self._now + reads))
                whole = reads if self._jobs[number].splits else reads + left
                self._take(lease, standing.nodes, self._now, self._now + whole)
        return tuple(states)

    def go_on(self, time: float, states: tuple[_State, ...], *, opens: bool = True) -> bool:
        """Whether there is a plan from this event on. ``opens``: it gives something free."""
        if all(state.phase == "done" for state in states):
            return True
        if (time, opens, states) in self._hopeless:
            return False
        spare = [
            job.ends - time - job.needs(state, time) if state.phase != "done" else math.inf
            for job, state in zip(self._jobs, states, strict=True)
        ]
        if min(spare) < -_SOON:
            return False
        self._checks.take(len(self._nodes))
        change = min((next(node.changes(time + _SOON, math.inf), math.inf) for node in self._nodes), default=math.inf)
        order = sorted(
            range(len(states)), key=lambda number: (states[number].phase in ("waits", "done"), spare[number])
        )
        turns = [change]  # what runs may have to be saved by then
        for job, state in zip(self._jobs, states, strict=True):
            if state.phase == "waits":
                turns += [job.begins, job.ends - job.needs(state, time)]
        event = _Event(time, opens, turns)
        self._events += 1
        if self._events * (len(states) + 3) > _MOST_FRAMES:
            raise OutOfChecks  # it has gone as deep as it may
        good = self._decide(event, order, list(states))
        self._events -= 1
        if good:
            return True
        self._hopeless.add((time, opens, states))
        return False

    def _decide(self, event: _Event, order: list[int], states: list[_State]) -> bool:
        """Choose for the first of ``order``, and then for the others."""
        if not order:
            return self._pass(event, states)
        number = order[0]
        job, before = self._jobs[number], states[number]
        for state, steps, takes in self._list_choices(number, event, before):
            for start, end in takes:
                self._take(job.lease, state.nodes, start, end)
            self._steps += steps
            states[number] = state
            good = self._decide(event, order[1:], states)
            for start, end in takes:
                self._take(job.lease, state.nodes, start, end, give_back=True)
            if good:
                return True
            del self._steps[len(self._steps) - len(steps) :]
        states[number] = before
        return False

    def _list_choices(
        self, number: int, event: _Event, state: _State
    ) -> Iterator[tuple[_State, list[_Step], list[tuple[float, float]]]]:
        """Yield each choice of a lease from this event on, the steps to that, and when it takes its nodes for that."""
        job, time = self._jobs[number], event.time
        cost = job.lease.suspend_seconds
        if state.phase in ("done", "saves") or (
            state.phase == "runs" and (not job.splits or time < state.until - _SOON)
        ):
            yield state, [], []  # its nodes are taken already
            return
        if state.phase == "runs":
            if self._fits(job.lease, state.nodes, time, time + _SOON):
                yield state, [], [(time, time + _SOON)]
            if not event.is_turn(cost):
                return
            began = next(one.time for one in reversed(self._steps) if one.job == number and one.does == "start")
            if cost and (began == self._now or time - began >= LEAST_PIECE_SECONDS):
                if self._fits(job.lease, state.nodes, time, time + cost):
                    saves = _State("saves", state.left, state.nodes, time + cost)
                    yield saves, [_Step(number, time, "save", state.nodes, cost)], [(time, time + cost)]
            elif not cost:
                saved = job.save(state)
                for after, steps, takes in self._list_starts(number, event, saved):
                    yield after, [_Step(number, time, "save"), *steps], takes
            if time == self._now and job.lease.preemptible and self._restarts:
                ended = _State("waits", job.lease.duration)
                for after, steps, takes in self._list_starts(number, event, ended):
                    yield after, [_Step(number, time, "restart"), *steps], takes
            return
        yield from self._list_starts(number, event, state)

    def _list_starts(
        self, number: int, event: _Event, state: _State
    ) -> Iterator[tuple[_State, list[_Step], list[tuple[float, float]]]]:
        job, time = self._jobs[number], event.time
        if time >= job.begins - _SOON and event.is_turn(0.0):
            reads = job.lease.suspend_seconds if state.saved else 0.0
            goes_on = state.left if not job.splits else 0.0 if reads else min(state.left, _SOON)
            end = time + reads + goes_on  # one that can be saved is decided on again once its memory is back
            for nodes in self._list_nodes(job, state, time, end):
                runs = _State("runs", state.left, nodes, time + reads)
                yield runs, [_Step(number, time, "start", nodes, reads)], [(time, end)]
        yield state, [], []

    def _pass(self, event: _Event, states: list[_State]) -> bool:
        """Go to the next event."""
        time, ends = event.time, [event.turns[0]]
        for job, state in zip(self._jobs, states, strict=True):
            if state.phase == "runs":
                ends.append(time + job.needs(state, time))
            elif state.phase == "saves":
                ends.append(state.until)
        turns = [
            turn
            for job, state in zip(self._jobs, states, strict=True)
            if state.phase == "waits"
            for turn in (job.begins, job.ends - job.needs(state, time))
        ]
        turns += [event.turns[0]]
        costs = {job.lease.suspend_seconds for job, one in zip(self._jobs, states, strict=True) if one.phase == "runs"}
        events = [*ends, *turns, *(turn - cost for turn in turns for cost in costs)]
        after = min((moment for moment in events if moment > time + _SOON), default=math.inf)
        if after == math.inf:
            return False
        here, passed = len(self._steps), []
        for number, state in enumerate(states):
            if state.phase == "runs":
                state = state._replace(left=state.left - max(0.0, after - max(time, state.until)))
                if state.left <= _SOON:
                    self._steps.append(_Step(number, after, "end"))
                    state = _State("done", 0.0)
            elif state.phase == "saves" and state.until <= after + _SOON:
                state = self._jobs[number].save(state)
            passed.append(state)
        if self.go_on(after, tuple(passed), opens=any(abs(end - after) <= _SOON for end in ends)):
            return True
        del self._steps[here:]
        return False

    def _list_nodes(self, job: _Job, state: _State, start: float, end: float) -> Iterator[tuple[int, ...]]:
        """Nodes for the machines, free from ``start`` to ``end``; of nodes that are alike only the first."""
        lease = job.lease
        if state.nodes:  # with its memory
            if self._fits(lease, state.nodes, start, end):
                yield state.nodes
            return
        if job.prefers and self._fits(lease, job.prefers, start, end):
            yield job.prefers
        order = sorted(range(len(lease.machines)), key=lambda number: lease.machines[number], reverse=True)
        yield from self._choose(lease, order, {}, start, end)

    def _choose(
        self, lease: Lease, order: list[int], chosen: dict[int, int], start: float, end: float
    ) -> Iterator[tuple[int, ...]]:
        if len(chosen) == len(order):
            yield tuple(chosen[number] for number in range(len(order)))
            return
        number, seen = order[len(chosen)], set()
        last = order[len(chosen) - 1] if chosen else number
        every: Sequence[int] = lease.on or range(len(self._nodes))
        first = every.index(chosen[last]) if chosen and lease.machines[last] == lease.machines[number] else 0
        for node in every[first:]:
            on = [lease.machines[other] for other, where in chosen.items() if where == node]
            self._checks.take(1)
            if not self._nodes[node].fits(
                start, end, [sum(amounts) for amounts in zip(lease.machines[number], *on, strict=True)]
            ):
                continue
            if not on:
                times, free = self._nodes[node].steps()
                self._checks.take(0, steps=len(times))
                alike = (*self._takers[node], *times, *(level for levels in free for level in levels))
                if alike in seen:
                    continue
                seen.add(alike)
            yield from self._choose(lease, order, {**chosen, number: node}, start, end)

    def _fits(self, lease: Lease, nodes: tuple[int, ...], start: float, end: float) -> bool:
        self._checks.take(len(nodes))
        needs: dict[int, list[float]] = {}
        for node, machine in zip(nodes, lease.machines, strict=True):
            needs[node] = [a + b for a, b in zip(needs.get(node, [0.0] * len(machine)), machine, strict=True)]
        return all(self._nodes[node].fits(start, end, amounts) for node, amounts in needs.items())

    def _take(self, lease: Lease, nodes: tuple[int, ...], start: float, end: float, *, give_back: bool = False) -> None:
        for node, machine in zip(nodes, lease.machines, strict=True):
            self._nodes[node].take(start, end, [-amount for amount in machine] if give_back else machine)

    def read_plan(self) -> dict[str, list[PlannedPiece]]:
        """The pieces that the steps make."""
        plan: dict[str, list[PlannedPiece]] = {job.lease.id: [] for job in self._jobs}
        began: dict[int, _Step] = {}
        for step in self._steps:
            if step.does == "start":
                began[step.job] = step
            elif (start := began.pop(step.job)) and step.does != "restart":
                saves = step.seconds if step.does == "save" else 0.0
                piece = PlannedPiece(start.time, step.time + saves, start.nodes, start.seconds, saves)
                plan[self._jobs[step.job].lease.id].append(piece)
        return plan


def _make_job(standing: Standing, now: float) -> _Job:
    lease, left = standing.lease, standing.lease.duration - standing.done_seconds
    begins = now if lease.mode == "immediate" and standing.promised is None else max(now, lease.start)
    if standing.promised is not None:
        begins = standing.promised.start
    ends = lease.deadline if lease.mode == "deadline" else begins + standing.resume_seconds + left
    splits = lease.mode == "deadline" and (lease.preemptible or standing.splits)
    return _Job(lease, begins, ends, splits, standing.promised.nodes if standing.promised else ())
