"""Answers a Report on rebalancing: which VMs would migrate where, so that load is even, by weft's own score. Pure but for the
snapshot, in which each migration that is found counts for those after it, and which is restored afterwards.

Only VMs that run without a lease are migrated, live: nothing stops for the sake of balance, so no disruption budget is touched.
Every target passes the filters of a Migration's own decision: constraints, affinity, spread, pools, devices, taints, leases and
reservations.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from weft.informer.view import Item, View
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.migration import MIGRATION_MODES, MigrationSpec
from weft.kinds.profile import ProfileStatus, name_profile
from weft.kinds.rebalance_plan import MOST_MIGRATIONS, PlannedStep
from weft.kinds.report import ReportSpec, ReportStatus
from weft.objects.identity import object_key
from weft.objects.quantity import format_bytes
from weft.scheduler.constraint.relax import relax
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.migration.target import read_migration_candidate
from weft.scheduler.rebalance.lazy import find_steps
from weft.scheduler.rebalance.model import Budget, Flags, Problem, Step
from weft.scheduler.rebalance.objective import Guest, Machine, make_problem
from weft.scheduler.rebalance.plan import conclude
from weft.scheduler.table.facts import amounts_of
from weft.scheduler.table.snapshot import Snapshot
from weft.scheduler.table.trial import Trial
from weft.scheduler.workload.request import Waiting
from weft.transfer.forecast import forecast
from weft.transfer.history import read_history

ASSUMED_BYTES_PER_SECOND = 100_000_000  # of a path that nothing has been carried over yet
KINDS = tuple(kind for kind, modes in MIGRATION_MODES.items() if modes[0] == "live")


class _Place(msgspec.Struct, frozen=True):
    key: str  # of its allocation
    workload: Item
    spec: AllocationSpec


def preview_rebalance(view: View, engine: Engine, asked: ReportSpec, strategy: str) -> ReportStatus:
    """The migrations, in the order in which they should begin, and the scores before and after."""
    snapshot = engine.snapshot
    snapshot.settle()
    places = list_places(view, snapshot)
    problem = read_problem(view, snapshot, places)
    budget = Budget(steps=min(asked.migrations, MOST_MIGRATIONS), size=float(asked.bytes) if asked.bytes else math.inf)
    with snapshot.trial() as trial:

        def check(guest: int, target: int) -> Flags | None:
            return _try(view, engine, trial, places[guest], target, strategy)

        outcome = conclude(problem, find_steps(problem, budget, check) if places else [])
    history, before = read_history(view), outcome.score_before
    planned = []
    for step in outcome.steps:
        place = places[step.guest]
        source, target, memory = snapshot.names[step.source], snapshot.names[step.target], place.spec.resources.memory
        expected = forecast(history, place.workload.key, source, target, mode="live", memory=memory)
        size = expected.bytes or int(problem.size[step.guest])
        planned.append(
            PlannedStep(
                workload=f"{place.spec.workload.kind}/{place.spec.workload.name}",
                project=place.spec.workload.project or "",
                uid=place.spec.workload.uid,
                from_=source,
                to=target,
                seconds=round(expected.duration_seconds or size / ASSUMED_BYTES_PER_SECOND, 1),
                bytes=size,
                reason=_describe(problem, place, step, before),
            )
        )
        before = step.score
    return ReportStatus(
        phase="Done",
        strategy=strategy,
        score_before=round(outcome.score_before, 6),
        score_after=round(outcome.score_after, 6),
        steps=planned,
    )


def list_places(view: View, snapshot: Snapshot) -> list[_Place]:
    """The workloads that may migrate for this, in order of their allocations' keys."""
    places = []
    for key, item in sorted(view.of_kind("allocation").items()):
        spec = item.spec(AllocationSpec)
        if spec.workload.kind not in KINDS or spec.role != "active" or item.deleting or spec.lease is not None:
            continue
        if spec.desired != "run" or item.report(AllocationReport).state != "running" or spec.slot is not None:
            continue
        workload = view.get(object_key(spec.workload.kind, spec.workload.project, spec.workload.name))
        known = workload is not None and workload.uid == spec.workload.uid and not workload.deleting
        if workload is not None and known and snapshot.index_of(spec.node_uid) is not None:
            places.append(_Place(key, workload, spec))
    return places


def read_problem(view: View, snapshot: Snapshot, places: list[_Place]) -> Problem:
    """Load is what profiles expect of each VM, else its part of what its node uses, else what it requests."""
    n, used, allocated = len(snapshot), snapshot.used, snapshot.allocated
    held, busy = np.zeros((3, n), dtype=np.int64), np.zeros((2, n))
    guests = []
    for place in places:
        row = snapshot.index_of(place.spec.node_uid)
        assert row is not None
        standing = snapshot.recall(place.key)
        amounts = standing.amounts if standing is not None else amounts_of(place.spec.resources)
        share = used[0, row] / max(1, int(allocated[0, row])) if snapshot.measured[row] else 1.0
        cpu = _read_profile(view, place)
        usage = (float(amounts[0]) * share if cpu is None else cpu * 1000, float(amounts[1]))
        local = sum(volume.size for volume in place.spec.volumes if volume.pool == "local")
        local += place.spec.resources.disk if place.spec.pool == "local" else 0
        guests.append(Guest(place.workload.key, row, amounts, usage, float(amounts[1] + local)))
        held[:, row] += np.array(amounts)
        busy[:, row] += np.array(usage)
    machines = []
    for row, facts in enumerate(snapshot.facts):
        other = tuple(np.maximum(allocated[:, row] - held[:, row], 0).tolist())
        there = used[:2, row] - busy[:, row] if snapshot.measured[row] else np.array(other[:2])
        takes = bool(snapshot.online[row] and not snapshot.cordoned[row])
        machines.append(
            Machine(
                facts.name,
                facts.capacity,
                facts.given(),
                (other[0], other[1], other[2]),
                (max(0.0, float(there[0])), float(other[1])),
                counts=takes,
                takes=takes,
            )
        )
    return make_problem(machines, guests, {}, None)


def _read_profile(view: View, place: _Place) -> float | None:
    """The cores that a VM will use, at the upper end of what its profile expects; None: it has none."""
    of = place.spec.workload
    item = view.get(object_key("workloadprofile", of.project, name_profile(of.kind, of.name)))
    if item is None:
        return None
    status = item.status(ProfileStatus)
    expected = [one.high for one in status.prediction.values()]
    return max(expected) if expected and status.unit == "cores" else None


def _try(view: View, engine: Engine, trial: Trial, place: _Place, target: int, strategy: str) -> Flags | None:
    """Count the migration in the snapshot; or the nodes that would take the workload, if the target doesn't."""
    snapshot, what = engine.snapshot, f"{place.spec.workload.kind}/{place.spec.workload.name}"
    found = read_migration_candidate(view, place.workload, MigrationSpec(workload=what), strategy, [])
    if isinstance(found, Waiting):
        return np.zeros(len(snapshot), dtype=np.bool_)
    trial.drop(place.key)
    request, _ = relax(found.candidate.request, snapshot)
    fits = engine.fits(request)
    if not fits[target]:
        trial.revert(place.key)
        return fits.copy()
    trial.put(f"rebalanced/{place.key}", snapshot.uids[target], request.amounts, engine.load(request, target))
    return None


def _describe(problem: Problem, place: _Place, step: Step, before: float) -> str:
    disks = int(problem.size[step.guest]) - place.spec.resources.memory
    copies = f"; copies {format_bytes(disks)} of local disk" if disks > 0 else ""
    return f"load is more even: score {before:.2f} → {step.score:.2f}{copies}"
