"""The replicas of a recovery plan as the view has them: which point each would be recovered from, or why it can't be. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from weft.controllers.recovery.facts import Candidate
from weft.controllers.recovery.plan import list_order
from weft.informer.quotas import read_quota
from weft.informer.view import Item, View
from weft.informer.workloads import is_test
from weft.kinds.cluster import ANSWERING, ClusterSpec, ClusterStatus
from weft.kinds.fields.cluster.link import NO_WITNESS, PRIMARY_SPEAKS, WITNESSED
from weft.kinds.fields.recovery.run import FAILOVER, REHEARSE, Mode, RunCheck, RunMember
from weft.kinds.fields.subject import split_subject
from weft.kinds.parts.nic import read_nic
from weft.kinds.parts.snapshot.restored import LEFT_OUT_OF_TESTS, make_restored_vm, make_restored_volumes
from weft.kinds.recovery_plan import RecoveryPlanSpec, RecoveryPlanStatus, read_checks, read_groups
from weft.kinds.replica import (
    PRIMARY,
    Point,
    PromoteInput,
    ReplicaMarks,
    ReplicaSpec,
    ReplicaStatus,
    make_promoted,
    make_returned,
    name_points,
)
from weft.kinds.snapshot import SnapshotStatus
from weft.kinds.vm import VM, VMS_BY_ORIGIN, VmSpec
from weft.kinds.volume import VolumeSpec
from weft.objects.errors import WeftError
from weft.objects.identity import CLUSTER_PREFIX, check_name, cut_name, named_key, object_key
from weft.objects.schema import read_strict

# What the spec of a VM names that a run makes, too, or that is checked where it is used.
_MADE = ("volume", "snapshot", "node", "priorityclass", "reservation")


def find_replica(view: View, plan: Item, name: str) -> Item | None:
    return view.get(object_key("replica", plan.envelope.project, name))


def list_members(view: View, plan: Item, run: str, mode: Mode | None, now: float) -> list[Candidate]:
    """Members that a run called ``run`` would recover now, in order; ``mode`` None: of a plan at rest."""
    spec = plan.spec(RecoveryPlanSpec)
    others = [
        item.envelope.name
        for item in (view.of_kind("replica").values() if spec.all else ())
        if item.envelope.project == plan.envelope.project and not item.deleting and not _is_left_out(view, item, mode)
    ]
    return [
        _read_candidate(view, plan, RunMember(replica=name, group=group, vm=""), run, mode, now)
        for group, name in list_order(read_groups(spec), others)
    ]


def _is_left_out(view: View, replica: Item, mode: Mode | None) -> bool:
    """Whether a run of all replicas leaves it out: a rehearsal one that was promoted, whose VM runs here; a failover one whose VM
    people have deleted since."""
    if replica.marks(ReplicaMarks).role != PRIMARY:
        return False
    return mode == REHEARSE or find_promoted(view, replica) is None


def _read_candidate(view: View, plan: Item, member: RunMember, run: str, mode: Mode | None, now: float) -> Candidate:
    replica = find_replica(view, plan, member.replica)
    what = f"replica/{member.replica}"
    if replica is None or replica.deleting:
        return Candidate(member, f"{what} is not there")
    spec = replica.spec(ReplicaSpec)
    member = msgspec.structs.replace(
        member, vm=_name_vm(spec, member, run, mode), checks=list_checks(plan, member, run)
    )
    if replica.marks(ReplicaMarks).role == PRIMARY:
        vm = find_promoted(view, replica)
        if mode == REHEARSE:
            return Candidate(member, f"{what} was promoted, so there is nothing to rehearse", is_promoted=True)
        if vm is None:
            return Candidate(member, f"{what} was promoted, and what it became is gone", is_promoted=True)
        age = _recall_age(plan, member.replica)
        return Candidate(msgspec.structs.replace(member, vm=vm.envelope.name, age_seconds=age), is_promoted=True)
    point = find_point(view, replica)
    if point is None:
        return Candidate(member, f"{what} has no point that can be used yet")
    member = _with_point(member, point, now)
    if mode != REHEARSE and (name := name_returned(replica)):
        member = msgspec.structs.replace(member, vm=name)
    return Candidate(member, _find_problem(view, plan, replica, member, mode), is_handed_over=point.final)


def name_returned(replica: Item) -> str:
    """The name of the VM here that it continues, which is stopped, and which its promotion brings back; "": none."""
    return replica.status(ReplicaStatus).vm


def _name_vm(spec: ReplicaSpec, member: RunMember, run: str, mode: Mode | None) -> str:
    if mode != REHEARSE:
        return split_subject(spec.of)[1]
    return cut_name(f"{run}-{member.replica}")


def name_original(view: View, plan: Item, member: RunMember) -> str:
    """The name of the VM at its source, by which others in a rehearsal find it. Raises InvalidInput."""
    replica = find_replica(view, plan, member.replica)
    return check_name(split_subject(replica.spec(ReplicaSpec).of)[1], "spec.of") if replica is not None else ""


def list_checks(plan: Item, member: RunMember, run: str) -> list[RunCheck]:
    """Checks of a member: that it runs, and what the plan asks of it. Each of these is a service's readiness."""
    return [
        RunCheck(type="running"),
        *(
            RunCheck(type=check.type, target=check.target, service=f"{run}-check-{number}")
            for number, check in enumerate(read_checks(plan.spec(RecoveryPlanSpec)))
            if check.replica == member.replica
        ),
    ]


def find_point(view: View, replica: Item) -> Point | None:
    """Its newest point that VMs can begin from."""
    for point in reversed(replica.status(ReplicaStatus).points):
        snapshot = view.get(object_key("snapshot", replica.envelope.project, point.snapshot))
        if snapshot is not None and snapshot.uid == point.snapshot_uid and not snapshot.deleting:
            if snapshot.status(SnapshotStatus).phase == "Ready":
                return point
    return None


def renew_point(view: View, replica: Item, member: RunMember, began_at: float) -> RunMember:
    """Give the member its newest point, if the one that it had when the run began is being removed."""
    if not member.snapshot:
        return member
    there = view.get(object_key("snapshot", replica.envelope.project, member.snapshot))
    is_there = there is not None and there.uid == member.snapshot_uid and not there.deleting
    point = None if is_there else find_point(view, replica)
    return member if point is None else _with_point(member, point, began_at)


def _with_point(member: RunMember, point: Point, now: float) -> RunMember:
    return msgspec.structs.replace(
        member,
        snapshot=point.snapshot,
        snapshot_uid=point.snapshot_uid,
        point=point.number,
        age_seconds=0.0 if point.final else max(0.0, now - point.received_at) + point.age_seconds,
    )


def find_promoted(view: View, replica: Item) -> Item | None:
    """The VM that its promotion made, or brought back; None: it is gone. Others that people made from its points don't count."""
    status, name = replica.status(ReplicaStatus), replica.marks(ReplicaMarks).became
    if not name:
        return _search_promoted(view, replica)
    vm = view.get(object_key("vm", replica.envelope.project, name))
    if vm is None or vm.deleting:
        return None
    if status.vm == name and vm.uid == status.vm_uid:
        return vm
    origin = vm.spec(VmSpec).origin
    is_from_it = origin is not None and origin.snapshot.startswith(name_points(replica.envelope.name))
    return vm if is_from_it else None


def _search_promoted(view: View, replica: Item) -> Item | None:
    """The same of a replica that was promoted when that wasn't noted yet: the VM that follows it, or one from its newest point."""
    status, project = replica.status(ReplicaStatus), replica.envelope.project
    there = view.get(object_key("vm", project, status.vm)) if status.vm else None
    if there is not None and there.uid == status.vm_uid and not there.deleting:
        return there
    for point in reversed(status.points):
        for vm in view.find(VMS_BY_ORIGIN, object_key("snapshot", project, point.snapshot)):
            if not vm.deleting and not is_test(vm):
                return vm
    return None


def _recall_age(plan: Item, replica: str) -> float | None:
    """How old its point was in the failover that promoted it."""
    last = plan.status(RecoveryPlanStatus).failover
    return next((one.age_seconds for one in last.vms if one.replica == replica), None) if last is not None else None


def read_promoted(
    view: View, replica: Item, member: RunMember
) -> tuple[dict[str, Any], list[dict[str, Any]], ReplicaMarks]:
    """The manifests of the VM and its volumes that a promotion would make, and the marks of the replica after it. Raises
    WeftError."""
    found = view.get(object_key("snapshot", replica.envelope.project, member.snapshot))
    others = {f"snapshot/{member.snapshot}": _as_data(found)} if found is not None else {}
    return make_promoted({**_as_data(replica), "others": others}, PromoteInput(point=member.point))


def read_returned(view: View, replica: Item, member: RunMember) -> tuple[Item, ReplicaMarks] | None:
    """The VM here that a promotion would bring back, and the marks of the replica after it; None: it would make another one. Raises
    WeftError."""
    project, name = replica.envelope.project, replica.status(ReplicaStatus).vm
    vm = view.get(object_key("vm", project, name)) if name else None
    found = view.get(object_key("snapshot", project, member.snapshot))
    if vm is None or found is None:
        return None
    others = {f"snapshot/{member.snapshot}": _as_data(found), f"vm/{name}": _as_data(vm)}
    after = make_returned({**_as_data(replica), "others": others}, PromoteInput(point=member.point))
    return (vm, after) if after is not None else None


def read_rehearsed(view: View, plan: Item, member: RunMember) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The manifests of the VM and its volumes that are made of the point for a rehearsal, whatever a promotion would do."""
    snapshot = view.get(object_key("snapshot", plan.envelope.project, member.snapshot))
    status = snapshot.status(SnapshotStatus) if snapshot is not None else SnapshotStatus()
    disks = {name: disk.size for name, disk in status.disks.items()}
    made = make_restored_vm(status.workload_spec, member.vm, member.snapshot, disks, memory=False)
    kept = {key: value for key, value in made["spec"].items() if key not in LEFT_OUT_OF_TESTS and key != "origin"}
    pools = {name: (disk.size, disk.pool) for name, disk in status.disks.items()}
    volumes = make_restored_volumes(pools, member.vm, member.snapshot)
    return {**made, "spec": {**kept, **({"pool": status.pool} if status.pool else {})}}, volumes


def _as_data(item: Item) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(item.envelope))
    return data


def read_vm(manifest: dict[str, Any]) -> VmSpec:
    """The spec in a manifest that came from another cluster, as strictly as the API reads it. Raises WeftError."""
    spec = read_strict(manifest["spec"], VmSpec)
    assert VM.admission.check is not None
    VM.admission.check(spec)
    return spec


def _find_problem(view: View, plan: Item, replica: Item, member: RunMember, mode: Mode | None) -> str:
    """Why a failover couldn't recover it, or a rehearsal not try it; "": it can. A rehearsal is refused for either."""
    if mode == REHEARSE and (problem := _find_problem_of(view, plan, replica, member, mode)):
        return problem
    return _find_problem_of(view, plan, replica, member, FAILOVER)


def _find_problem_of(view: View, plan: Item, replica: Item, member: RunMember, mode: Mode) -> str:
    what = f"replica/{member.replica}"
    project = plan.envelope.project
    try:
        name_original(view, plan, member)
        if mode == REHEARSE:
            manifest, volumes = read_rehearsed(view, plan, member)
        elif read_returned(view, replica, member) is not None:
            return ""
        else:
            manifest, volumes, _ = read_promoted(view, replica, member)
        spec = read_vm(manifest)
        for one in (manifest, *volumes):
            check_name(one["name"], f"the name of a {one['kind']}")
    except WeftError as problem:
        return f"{what}: {problem.message}"
    for reference in VM.references:
        if reference.kind in _MADE:
            continue
        for name in reference.list_names(manifest["name"], spec) if not reference.awaited else ():
            if view.get(named_key(reference.kind, project, name)) is None:
                return f"{what}: {reference.field}: {reference.kind}/{name} is not here"
    if not spec.networks and any(one.type in ("tcp", "http") for one in member.checks):
        return f"{what}: its workload has no network, so no port of it can be asked"
    if mode != FAILOVER:
        return ""
    taken = [one for one in (manifest, *volumes) if view.get(object_key(one["kind"], project, one["name"])) is not None]
    return f"{what}: {taken[0]['kind']}/{taken[0]['name']} exists here already" if taken else ""


def find_excess(view: View, plan: Item, members: Sequence[Candidate]) -> str:
    """Excess over the project's quota of all that their promotion makes together, as a sentence; "": it fits. Each replica counts
    no more once it is promoted.
    """
    quota, creator = read_quota(view, plan.envelope.project), plan.envelope.creator
    if quota is None:
        return ""
    made, changed = list[tuple[str, msgspec.Struct, str]](), list[tuple[Item, msgspec.Struct]]()
    for candidate in members:
        replica = find_replica(view, plan, candidate.member.replica)
        if replica is None or candidate.problem or candidate.is_promoted:
            continue
        if (returned := read_returned(view, replica, candidate.member)) is not None:
            changed.append((replica, returned[1]))
            continue
        manifest, volumes, after = read_promoted(view, replica, candidate.member)
        made.append(("vm", read_vm(manifest), creator))
        made += [("volume", msgspec.convert(one["spec"], VolumeSpec), creator) for one in volumes]
        changed.append((replica, after))
    return quota.describe_excess_together(made, changed)


def list_answering(view: View, plan: Item, members: list[Candidate]) -> list[str]:
    """Source clusters of replicas whose VMs weren't handed over that aren't known to be silent, each with what is known of it, like
    ``cluster/east answers``; and the replicas that take over without anybody's help.
    """
    found = set()
    for candidate in members:
        if candidate.is_handed_over:
            continue
        replica = find_replica(view, plan, candidate.member.replica)
        creator = replica.envelope.creator if replica is not None and not candidate.is_promoted else ""
        if creator and replica is not None and replica.marks(ReplicaMarks).automatic:
            found.add(f"replica/{replica.envelope.name} takes over automatically once the witness grants it")
        if creator.startswith(CLUSTER_PREFIX):
            name = creator.removeprefix(CLUSTER_PREFIX)
            cluster = view.get(object_key("cluster", None, name))
            if cluster is None:
                found.add(f"cluster/{name} is not linked any more")
            elif (phase := cluster.status(ClusterStatus).phase) != "Unreachable":
                found.add(f"cluster/{name} {'answers' if phase in ANSWERING else f'is {phase}'}")
            elif replica is not None:
                said = replica.envelope.condition(WITNESSED)
                if said is not None and said.reason == PRIMARY_SPEAKS:
                    found.add(f"cluster/{name} answers its witness")
                elif cluster.spec(ClusterSpec).witness is not None and (said is None or said.reason == NO_WITNESS):
                    found.add(f"the witness of cluster/{name} was not asked about replica/{replica.envelope.name} yet")
    return sorted(found)


def list_networks(view: View, plan: Item, members: Sequence[RunMember]) -> list[str]:
    """The networks that the VMs of a rehearsal would join."""
    found: dict[str, None] = {}
    for member in members:
        snapshot = view.get(object_key("snapshot", plan.envelope.project, member.snapshot))
        former = snapshot.status(SnapshotStatus).workload_spec if snapshot is not None else {}
        found |= {read_nic(nic).network: None for nic in former.get("networks", [])}
    return list(found)
