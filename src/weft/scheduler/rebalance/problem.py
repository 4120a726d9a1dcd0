"""Reads what a rebalancing is planned from: the VMs that may migrate, what each uses, whom each talks to, and the nodes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from weft.informer.view import Item, View
from weft.insight.course import HOUR_SECONDS, Course, expect
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.parts.migration.verb import MIGRATION_MODES
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.profile import ProfileStatus, name_profile
from weft.kinds.rebalance_plan import PlannedStep
from weft.objects.identity import object_key
from weft.objects.quantity import format_bytes
from weft.scheduler.rebalance.model import Problem, Reals
from weft.scheduler.rebalance.objective import Guest, RebalanceNode, make_problem
from weft.scheduler.table.facts import amounts_of, name_workload
from weft.scheduler.table.snapshot import Snapshot
from weft.transfer.forecast import PastMigration, forecast

KINDS = tuple(kind for kind, modes in MIGRATION_MODES.items() if modes[0] == "live")
ASSUMED_BYTES_PER_SECOND = 100_000_000  # of a path that nothing has been carried over yet
UNKNOWN_FACTOR = 1.5  # of the longest known round trip: what an unknown one counts
MOST_NODES = 2_000  # of which all round trips are compared; of more, traffic doesn't count


class MigratableWorkload(msgspec.Struct, frozen=True):
    """A workload that may migrate, where it is now."""

    key: str  # of its allocation
    workload: Item
    spec: AllocationSpec


def list_places(view: View, snapshot: Snapshot) -> list[MigratableWorkload]:
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
            places.append(MigratableWorkload(key, workload, spec))
    return places


def read_problem(
    view: View, snapshot: Snapshot, places: Sequence[MigratableWorkload], courses: Sequence[Course | None]
) -> tuple[Problem, list[str]]:
    """The problem, and the guests' names: KIND/NAME. Load is what ``courses`` expect of each VM, else its part of what its node
    uses, else what it requests. What talks with them and doesn't migrate is a guest, too, after them."""
    n, used, allocated = len(snapshot), snapshot.used, snapshot.allocated
    held, busy = np.zeros((3, n), dtype=np.int64), np.zeros((2, n))
    guests = []
    for place, course in zip(places, courses, strict=True):
        row = snapshot.index_of(place.spec.node_uid)
        assert row is not None
        standing = snapshot.recall(place.key)
        amounts = standing.amounts if standing is not None else amounts_of(place.spec.resources)
        share = used[0, row] / max(1, int(allocated[0, row])) if snapshot.measured[row] else 1.0
        cpu = float(amounts[0]) * share if course is None else float(course.high.max()) * 1000
        guests.append(
            Guest(
                name_workload(place.spec.workload),
                row,
                amounts,
                (cpu, float(amounts[1])),
                float(amounts[1] + count_local(place.spec)),
                mobile=not place.workload.status(WorkloadStatus).live_bar,  # it would stand still, which isn't worth it
            )
        )
        held[:, row] += np.array(amounts)
        busy[:, row] += np.array(guests[-1].used)
    machines = []
    for row, facts in enumerate(snapshot.facts):
        other = tuple(np.maximum(allocated[:, row] - held[:, row], 0).tolist())
        there = used[:2, row] - busy[:, row] if snapshot.measured[row] else np.array(other[:2])
        counts = bool(snapshot.online[row] and not snapshot.cordoned[row])
        machines.append(
            RebalanceNode(
                facts.name,
                facts.capacity,
                facts.given(),
                (other[0], other[1], other[2]),
                (max(0.0, float(there[0])), float(other[1])),
                counts=counts,
                takes=counts and facts.uid not in snapshot.unreachable,
            )
        )
    pairs, anchors = read_pairs(snapshot, places)
    guests += anchors
    problem = make_problem(machines, guests, pairs, read_round_trips(snapshot) if pairs else None)
    return problem, [guest.name for guest in guests]


def count_local(spec: AllocationSpec) -> int:
    """The bytes of its disks that lie on its node, which go with it."""
    local = sum(volume.size for volume in spec.volumes if volume.pool == "local")
    return local + (spec.resources.disk if spec.pool == "local" else 0)


def read_pairs(
    snapshot: Snapshot, places: Sequence[MigratableWorkload]
) -> tuple[dict[tuple[int, int], float], list[Guest]]:
    """The bytes a second of each pair that talks, by their numbers; and those of them that don't migrate, numbered after the
    places."""
    if len(snapshot) > MOST_NODES:
        return {}, []
    numbers = {place.spec.workload.uid: number for number, place in enumerate(places)}
    pairs, anchors = dict[tuple[int, int], float](), list[Guest]()
    for number, place in enumerate(places):
        for peer in snapshot.talkers.of(place.spec.workload.uid):
            if peer.uid not in numbers:
                at = snapshot.talkers.locate(peer.uid)
                row = snapshot.index_of(at.node_uid) if at is not None and at.node_uid is not None else None
                if at is None or row is None:
                    continue
                numbers[peer.uid] = len(places) + len(anchors)
                anchors.append(Guest(f"{at.kind}/{at.name}", row, (0, 0, 0), (0.0, 0.0), 0.0, mobile=False))
            other = numbers[peer.uid]
            pairs[min(number, other), max(number, other)] = peer.rate
    return pairs, anchors


def read_round_trips(snapshot: Snapshot) -> Reals:
    """Round trips in milliseconds (n, n); one that isn't known counts as longer than all that are."""
    trips: Reals = np.array([snapshot.distance(uid) for uid in snapshot.uids]).reshape(len(snapshot), len(snapshot))
    known = trips[np.isfinite(trips)]
    trips[~np.isfinite(trips)] = UNKNOWN_FACTOR * float(known.max(initial=0.0)) or 1.0
    np.fill_diagonal(trips, 0.0)
    return trips


def read_course(view: View, place: MigratableWorkload, now: float, hours: int) -> Course | None:
    """The cores that a VM will use hour by hour, by its profile; None: nothing is forecast."""
    of = place.spec.workload
    item = view.get(object_key("workloadprofile", of.project, name_profile(of.kind, of.name)))
    if item is None:
        return None
    status = item.status(ProfileStatus)
    return expect(status, now, [hour * HOUR_SECONDS for hour in range(hours + 1)]) if status.unit == "cores" else None


def plan_step(
    history: Sequence[PastMigration], place: MigratableWorkload, source: str, target: str, reason: str, size: int
) -> PlannedStep:
    """The step with what it takes: by past migrations, else by ``size`` (bytes) and ASSUMED_BYTES_PER_SECOND."""
    of, memory = place.spec.workload, place.spec.resources.memory
    expected = forecast(history, place.workload.key, source, target, mode="live", memory=memory)
    local = count_local(place.spec)
    with_disks = f"; up to {format_bytes(local)} of local disk go with it" if local and expected.bytes is None else ""
    size = expected.bytes or size
    return PlannedStep(
        workload=f"{of.kind}/{of.name}",
        project=of.project or "",
        uid=of.uid,
        from_=source,
        to=target,
        seconds=round(expected.duration_seconds or size / ASSUMED_BYTES_PER_SECOND, 1),
        bytes=size,
        reason=f"{reason}{with_disks}"[:200],
    )
