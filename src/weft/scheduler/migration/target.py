"""A migrating workload as the engine sees it: its request, where it would go, or why it can't. Pure but for the snapshot, in which
its own place counts as free meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.contracts.policy import Request
from weft.informer.view import Item, View
from weft.informer.workloads import name_of, spec_of
from weft.kinds.allocation import (
    ALLOCATIONS_BY_WORKLOAD,
    LOCAL,
    ROOT,
    AllocationReport,
    AllocationSpec,
    account,
    is_restoring,
    list_disks,
)
from weft.kinds.migration import MigrationSpec, stands_still
from weft.kinds.node import NODES_BY_UID, NodeReport
from weft.kinds.parts.migration.verb import MIGRATION_MODES, is_carried
from weft.kinds.parts.workload import WorkloadStatus
from weft.objects.quantity import format_bytes
from weft.scheduler.constraint.filters import HasPools, find_pool
from weft.scheduler.constraint.relax import relax
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import Explanation, explain
from weft.scheduler.migration.checkpointing import (
    NOT_SAVED,
    Saves,
    choose_checkpointing,
    find_checkpoint_obstacle,
    find_missing_capability,
    name_runtime,
)
from weft.scheduler.table.facts import amounts_of
from weft.scheduler.workload.disks import find_alarmed_pools, read_carried
from weft.scheduler.workload.request import Candidate, Waiting, allocate_nics, read_candidate

NOT_SUSPENDED = "notSuspended"


class MigrationCandidate(msgspec.Struct, frozen=True):
    source: Item  # its allocation
    candidate: Candidate
    carried: bool = False  # it is suspended, and its memory goes with it


def read_migration_candidate(
    view: View, workload: Item, workload_spec: MigrationSpec, strategy: str, silent: list[str], *, later: bool = False
) -> MigrationCandidate | Waiting:
    """The request of a migrating workload, or why it can't migrate now; ``later``: whether its guest runs now doesn't matter."""
    places = [
        item
        for item in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)
        if item.spec(AllocationSpec).role == "active" and not item.deleting
    ]
    what = name_of(workload)
    if len(places) != 1:
        return Waiting("notPlaced", f"{what} is on no node, so there is nothing to migrate")
    source, spec, report = places[0], places[0].spec(AllocationSpec), places[0].report(AllocationReport)
    pinned = spec_of(workload).node
    if pinned is not None and (pinned == spec.node or workload_spec.to not in (None, pinned)):
        return Waiting(
            "pinned", f"{what} is bound to node {pinned} (spec.node), so it can't go to {workload_spec.to or 'another'}"
        )
    if conversion := workload.status(WorkloadStatus).conversion:
        return Waiting("isConverting", f"conversion/{conversion} of {what} is under way; confirm it, or undo it")
    if spec.slot is not None:
        where = f"{what} is in reservation/{spec_of(workload).reservation} on {spec.node}"
        return Waiting("inReservation", f"{where}, so it stays there until that ends")
    if spec.snapshots or is_restoring(spec, report):
        return Waiting("takingSnapshot", f"{what} waits until its snapshot is taken, or it is restored from one")
    if report.to_begin and spec.origin is not None:  # its target would begin from the image
        from_ = f"snapshot/{spec.origin.name}"
        return Waiting(
            "notBegun", f"{what} has not begun from {from_} yet, which is on {spec.node}: start it once first"
        )
    if encrypted := [volume.name for volume in spec.volumes if volume.encrypted]:
        which = f"volume{'s' * (len(encrypted) > 1)} {', '.join(encrypted)}"
        return Waiting("encryptedStays", f"{what} has encrypted {which}, which can't migrate; detach it first")
    if spec.once:
        return Waiting("runsOnce", f"{what} runs only once, so it ends on the node where it started")
    cold, here = stands_still(workload_spec), _read_report(view, spec.node_uid)
    kind, suspended = workload.envelope.kind, report.state == "suspended"
    carried = is_carried(kind, workload_spec.mode, suspended)
    if carried and not suspended and not later:
        return Waiting(NOT_SUSPENDED, f"{what} is {report.state} on {spec.node}, not suspended any more")
    if carried and (lack := find_missing_capability(here, kind)):
        return Waiting(NOT_SAVED, f"{spec.node} can't send the memory of {what}: {lack}; resume it first, or stop it")
    if (
        not later
        and not carried
        and report.state != "running"
        and not (workload_spec.mode != "live" and cold and report.state == "stopped")
    ):
        return Waiting("notRunning", f"{what} is {report.state} on {spec.node}")
    if not later and report.reason == "paused":
        return Waiting("notRunning", f"{what} is paused on {spec.node}: {report.message}")
    if workload_spec.mode == "live" and spec.gpus:
        return Waiting(
            "gpusStay",
            f"{what} uses a GPU of {spec.node}, which can't migrate with a running guest; migrate it with --cold",
        )
    if (
        workload_spec.mode == "live"
        and cold
        and (lack := find_checkpoint_obstacle(spec, report) or find_missing_capability(here))
    ):
        why = f"{spec.node} can't save {what} while it runs: {lack}"
        return Waiting(
            NOT_SAVED,
            f"{why}; weft {workload.envelope.kind} migrate {workload.envelope.name} --cold stops it for the migration",
        )
    candidate = read_candidate(view, workload, strategy, silent)
    if isinstance(candidate, Waiting):
        return candidate
    if isinstance(lacks := allocate_nics(view, workload), Waiting):
        return lacks
    saves = carried or (workload_spec.mode == "live" and cold)
    # A suspended one gets all that it had, so that it can resume.
    asked, resources = candidate.request, spec.resources if carried else account(spec, report)
    needs, disks = read_carried(spec, resources), (LOCAL,) if LOCAL in dict(list_disks(spec).values()) else ()
    request: Request = msgspec.structs.replace(
        asked,
        amounts=(*amounts_of(resources)[:2], needs.own),
        asks=needs.asks,
        of_volumes=needs.of_volumes,
        machine=_read_machine(view, spec) if carried or not cold else spec.machine,
        cpu_model=_read_cpu(view, spec) if carried or not cold else asked.cpu_model,
        runtime=name_runtime(kind) if saves and not asked.runtime else asked.runtime,
        node=workload_spec.to or asked.node,
        leaves=spec.node,
        home=None,  # the data of its volumes migrates with it
        pools=tuple(sorted({pool for pool, _ in list_disks(spec).values()} - {LOCAL})),
        # What lies in a pool that both ends share stays there; to another one it doesn't migrate.
        disks=disks,
        alarmed_pools=find_alarmed_pools(view, disks),
        mode="long-lived",
        gang="",
    )
    return MigrationCandidate(source, msgspec.structs.replace(candidate, request=request), carried)


def describe_way(
    view: View, migrating: MigrationCandidate, workload_spec: MigrationSpec, node: Item
) -> tuple[Saves, str]:
    """Whether it is saved for its migration to ``node``, or has been, and a sentence on it."""
    if migrating.carried:
        memory = format_bytes(migrating.source.spec(AllocationSpec).resources.memory)
        return "must", f"it stays suspended meanwhile: up to {memory} of saved memory go with its disks"
    spec, report = migrating.source.spec(AllocationSpec), migrating.source.report(AllocationReport)
    here, there = (spec.node, _read_report(view, spec.node_uid)), (node.envelope.name, node.report(NodeReport))
    return choose_checkpointing(workload_spec, find_checkpoint_obstacle(spec, report), here, there)


def _read_report(view: View, node_uid: str) -> NodeReport:
    return next((node.report(NodeReport) for node in view.find(NODES_BY_UID, node_uid)), NodeReport())


def _read_machine(view: View, spec: AllocationSpec) -> str:
    """The machine type with its version at the source, if that node reports it: a target must be able to build that very one."""
    own = [m for node in view.find(NODES_BY_UID, spec.node_uid) for m in node.report(NodeReport).machines]
    return next((m for m in reversed(own) if m.startswith(f"{spec.machine}@")), spec.machine)


def _read_cpu(view: View, spec: AllocationSpec) -> str | None:
    """The CPU model that the guest runs with: for an old allocation without one, its node's best."""
    own = [model for node in view.find(NODES_BY_UID, spec.node_uid) for model in node.report(NodeReport).cpu_models]
    return spec.cpu_model or (own[0] if own else None)


def decide(
    engine: Engine, migrating: MigrationCandidate, held: Sequence[Item] = (), avoid: tuple[str, ...] = ()
) -> tuple[Candidate, int | None, Explanation]:
    """The row of the node that a workload would migrate to, None if there is none, and why; a node in ``avoid`` only if there is
    no other. What is ``held`` for it counts as free."""
    if avoid:
        request = msgspec.structs.replace(migrating.candidate.request, avoids=avoid)
        other = msgspec.structs.replace(
            migrating, candidate=msgspec.structs.replace(migrating.candidate, request=request)
        )
        elsewhere = decide(engine, other, held)
        if elsewhere[1] is not None:
            return elsewhere
    with engine.snapshot.trial() as trial:
        trial.drop(migrating.source.key, *(item.key for item in held))
        request, given_up = relax(migrating.candidate.request, engine.snapshot)
        candidate = msgspec.structs.replace(migrating.candidate, request=request, given_up=given_up)
        row = engine.choose(request, candidate.workload.uid)
        return candidate, row, explain(engine, request, candidate.workload.uid, row)


def describe_refusal(engine: Engine, migrating: MigrationCandidate, explanation: Explanation, to: str | None) -> str:
    """Why it can't migrate, in one sentence, on the requested node if there is one. Where a node lacks its disks' pools, the
    sentence has the commands that relocate these to the pool that every node has."""
    verdict = next((verdict for verdict in explanation.verdicts if verdict.node == to), None)
    why = f"{to}: {verdict.reason}" if verdict is not None and verdict.reason else explanation.message
    lacking = [one.node for one in explanation.verdicts if one.filter == HasPools.name and to in (None, one.node)]
    first = _list_relocations(engine, migrating, lacking)
    return f"{why}; first {', '.join(first)}" if first else why


def _list_relocations(engine: Engine, migrating: MigrationCandidate, nodes: Sequence[str]) -> list[str]:
    """The commands that relocate the disks in pools that one of ``nodes`` lacks; none for disks that can't be relocated."""
    spec, snapshot = migrating.source.spec(AllocationSpec), engine.snapshot
    if "storage" not in MIGRATION_MODES[spec.workload.kind]:
        return []
    rows, names = [snapshot.names.index(node) for node in nodes], {one.uid: one.name for one in spec.volumes}
    return [
        f"weft {spec.workload.kind} migrate {spec.workload.name} --storage --pool {LOCAL}"
        + (f" --volume {names[disk]}" if disk != ROOT else "")
        for disk, (pool, _) in list_disks(spec).items()
        if pool != LOCAL and not find_pool(snapshot, pool)[rows].all()
    ]
