"""A run of the engine over nodes and workloads: each workload once, or, with ``until``, the protocol that was published with
the openb trace: nodes with GPUs only, workloads in a drawn order, drawn anew when used up, until so much was requested."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

import msgspec
import numpy as np

from weft.contracts.clock import Clock
from weft.contracts.policy import Policy, Request
from weft.objects.errors import InvalidInput
from weft.scheduler.constraint.filters import FREE_CAPACITY
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.demand import Demand, make_outlook
from weft.scheduler.packing.repack import Placed, Repacking, repack
from weft.scheduler.policies import POLICIES
from weft.scheduler.policies.fgd import find_fragmented
from weft.scheduler.policies.residue import find_residue
from weft.scheduler.simulate.input import Workload
from weft.scheduler.table.facts import NodeFacts
from weft.scheduler.table.snapshot import Snapshot

PERCENTS = (80, 90, 95, 100, 130)
WHOLE = 1000
_PLOT_POINTS = 200


class Plan(msgspec.Struct, frozen=True):
    order: str  # file or shuffled
    seed: int
    until: Fraction | None = None  # how many times all GPUs are requested in the end; None: each workload once


class FabricState(msgspec.Struct, frozen=True):
    """How full the fabric is: percentages of all there is."""

    arrived_percent: float
    allocation_percent: dict[str, float]
    fragmented_gpu_percent: float


class SimulationOutcome(msgspec.Struct, frozen=True):
    checkpoints: list[FabricState]
    placed: int
    rejected: dict[str, int]
    loop_seconds: float
    decision_seconds: list[float]  # one for each decision
    nodes_used: int
    curve: list[FabricState]  # over the run, for a picture


class Simulation:
    """One run."""

    def __init__(
        self,
        nodes: Sequence[NodeFacts],
        workloads: Sequence[Workload],
        plan: Plan,
        clock: Clock,
        policies: Mapping[str, Policy] = POLICIES,
    ) -> None:
        """Raises InvalidInput."""
        self.snapshot = Snapshot()
        self._placed: list[tuple[Request, str]] = []  # and on which node, by its uid
        self._workloads = workloads
        self._plan = plan
        self._clock = clock
        for facts in nodes:
            if plan.until is None or facts.gpus:
                self.snapshot.put_node(facts)
        self._gpus = WHOLE * int((self.snapshot.gpu_free >= 0).sum())
        if plan.until is not None and not self._gpus:
            raise InvalidInput(
                "--until: no node has a GPU", field="until", hint="leave out --until to place each workload once"
            )
        if plan.until is not None and not any(w.request.gpus for w in workloads if not w.node):
            raise InvalidInput(
                "--until: no workload to be placed requests a GPU", field="until", hint="leave out --until"
            )
        asks = [(workload.request.amounts, workload.request.gpus) for workload in workloads]
        self._engine = Engine(self.snapshot, seed=plan.seed, policies=policies, demand=Demand(lambda: asks))
        self._typical = make_outlook(self.snapshot, asks)
        self._reasons: dict[Request, str] = {}

    def run(self, on_progress: Callable[[int, float], None], *, curve: bool = False) -> SimulationOutcome:
        """Decide on all of them, one after the other. ``on_progress(decisions, arrived percent)`` is called now and then."""
        self._put_standing()
        checkpoints: list[FabricState] = []
        points: list[FabricState] = []
        rejected: Counter[str] = Counter()
        durations: list[float] = []
        ahead = list(PERCENTS) if self._gpus else []
        arrived = placed = 0
        paused = 0.0  # the time of measurements doesn't count
        clock = self._clock
        began = clock.elapsed()
        for number, index in enumerate(self._order()):
            request = self._workloads[index].request
            if request.gpus is not None:
                arrived += request.gpus.count * request.gpus.share
            before = clock.elapsed()
            row = self._decide(request, number, index)
            durations.append(clock.elapsed() - before)
            if row is None:
                rejected[self._reason(request)] += 1
            else:
                placed += 1
            paused -= clock.elapsed()
            while ahead and 100 * arrived >= ahead[0] * self._gpus:
                checkpoints.append(self.measure(float(ahead.pop(0))))
            if number % 512 == 511:
                on_progress(number + 1, 100.0 * arrived / self._gpus if self._gpus else 0.0)
            done = arrived / self._gpus if self._gpus else (number + 1) / len(self._workloads)
            if curve and len(points) < done * _PLOT_POINTS:
                points.append(self.measure(100.0 * done))
            paused += clock.elapsed()
            if self._plan.until is not None and arrived >= self._plan.until * self._gpus:
                break
        seconds = clock.elapsed() - began - paused
        return SimulationOutcome(checkpoints, placed, dict(rejected), seconds, durations, self.count_used(), points)

    def measure(self, arrived_percent: float) -> FabricState:
        """How full it is now."""
        snapshot = self.snapshot
        given = snapshot.allocated.sum(axis=1) / np.maximum(snapshot.capacity.sum(axis=1, dtype=np.float64), 1.0)
        free = int(np.maximum(snapshot.gpu_free, 0).sum())
        fragmented = float(find_fragmented(snapshot, find_residue(snapshot), self._typical).sum())
        gpus = max(1, self._gpus)
        return FabricState(
            arrived_percent,
            {
                "cpu": round(100.0 * float(given[0]), 4),
                "memory": round(100.0 * float(given[1]), 4),
                "gpu": round(100.0 * (self._gpus - free) / gpus, 4),
            },
            round(100.0 * fragmented / gpus, 4),
        )

    def repack(self) -> Repacking:
        """Find on how few nodes all placed workloads would fit, if all could migrate."""
        rows = [(request, self.snapshot.index_of(uid)) for request, uid in self._placed]
        return repack(self._engine, [Placed(request, row) for request, row in rows if row is not None])

    def count_used(self) -> int:
        """How many nodes have anything on them."""
        snapshot = self.snapshot
        devices = (snapshot.gpu_free >= 0) & (snapshot.gpu_free < WHOLE)
        return int(((snapshot.allocated > 0).any(axis=0) | devices.any(axis=1)).sum())

    def _decide(self, request: Request, number: int, index: int) -> int | None:
        row = self._engine.place(request, self._workloads[index].name or str(number), str(number))
        if row is not None:
            self._placed.append((request, self.snapshot.uids[row]))
        return row

    def _put_standing(self) -> None:
        """Put in what is placed already."""
        for index, workload in enumerate(self._workloads):
            row = self.snapshot.index_of(workload.node) if workload.node else None
            if row is not None:
                load = self._engine.load(workload.request, row)
                self.snapshot.put_allocation(f"standing {index}", workload.node, workload.request.amounts, load)
                self._placed.append((workload.request, workload.node))

    def _order(self) -> Iterator[int]:
        plan = self._plan
        waiting = [index for index, workload in enumerate(self._workloads) if not workload.node]
        draw = random.Random(plan.seed)  # noqa: S311 (the same for the same seed)
        while waiting:
            if plan.order == "shuffled":
                draw.shuffle(waiting)
            yield from waiting
            if plan.until is None:
                return

    def _reason(self, request: Request) -> str:
        """Why no node fits: the reason that a refusal on a cluster has."""
        reason = self._reasons.get(request)
        if reason is None:
            wanting = next(
                (flags for filter_, flags in self._engine.refusers(request) if filter_ is FREE_CAPACITY), None
            )
            reason = self._reasons[request] = "insufficientResources" if wanting is not None else "noAvailableAgents"
        return reason
