"""Replica: the points of a VM that runs at another cluster, as they came over the link, or of one of this cluster at another node.
Each point is a Snapshot here.

The other cluster's nodes create it and send its points. People here promote it; where the link grants ``take-over`` and its source
made it automatic, the witness's grant does. Its node takes the points in; the replicas
controller chooses that node, orders the next point, and removes old ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.allocation import LOCAL
from weft.kinds.cluster import ANSWERING
from weft.kinds.fields.cells import AGE, NAME, dig, note, text
from weft.kinds.fields.cluster.link import NO_WITNESS, PRIMARY_SPEAKS, TAKE_OVER, WITNESSED, read_witnessed
from weft.kinds.fields.replication.work import MOST_DISKS, ReceiveOrder
from weft.kinds.fields.subject import check_subject, split_subject
from weft.kinds.parts.goal import find_condition, find_failed, reaches
from weft.kinds.parts.snapshot.restored import ROOT, make_restored_vm, make_restored_volumes, name_volume
from weft.kinds.parts.snapshot.verbs import describe_lost
from weft.kinds.parts.stream_verbs import RECEIVE
from weft.kinds.record import (
    Access,
    Admission,
    Column,
    Counted,
    Display,
    Goal,
    Index,
    Kind,
    Lifetime,
    Object,
    Reference,
    Stored,
    Verb,
    uid_of,
)
from weft.objects.envelope import Envelope, decode_part, take_from_spec
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, WeftError
from weft.objects.identity import CLUSTER_PREFIX, MAX_NAME, cut_name
from weft.objects.quantity import format_bytes
from weft.objects.schema import field, words

LEAST_RPO, MOST_RPO = 10.0, 7 * 86400.0
MOST_KEPT = 20
MOST_WORKLOAD_BYTES = 64 << 10
MOST_DISK_BYTES = 1 << 50
STANDBY, PRIMARY = "standby", "primary"
RESTORE_FAILED, NODE_LOST = "restoreFailed", "nodeLost"  # reasons
Rpo = Annotated[float, field("How old its newest point may be", quantity="period", ge=LEAST_RPO, le=MOST_RPO)]
Keep = Annotated[int, field("Number of points that are kept", ge=1, le=MOST_KEPT)]


class ReplicaSpec(msgspec.Struct, kw_only=True):
    of: Annotated[str, field("What it is a replica of, where that runs: vm/NAME", change="never")]
    origin: Annotated[str, field("uid of the replication there that may send points", change="never", max_length=64)]
    workload: Annotated[dict[str, Any], field("Spec of the VM there, as of the newest point or the next one")] = {}
    disks: Annotated[dict[str, int], field("Sizes of its disks, by their names: root, and the volumes'")] = {}
    rpo: Rpo = 60.0
    keep: Keep = 3
    pool: Annotated[str, field("Storage pool that its points are in", change="never", name=True)] = LOCAL
    returns: Annotated[
        str,
        field(
            "uid of the replication here whose VM it continues the disks of: then only what changed since comes",
            change="never",
            max_length=64,
        ),
    ] = ""


class ReplicaMarks(msgspec.Struct, kw_only=True):
    role: Annotated[
        Literal["standby", "primary"],
        field("standby: it takes points; primary: it was promoted, and takes none"),
    ] = "standby"
    promoted: Annotated[
        int,
        field("Number of the point that its VM went back to in a promotion; 0: it made a new VM", ge=0),
    ] = 0
    became: Annotated[str, field("Name of the VM that its promotion made, or brought back", name=True)] = ""
    generation: Annotated[int, field("Of who writes: a promotion begins the next one", ge=1, le=1 << 40)] = 1
    granted: Annotated[str, field("Id of that generation, where the witness granted it", max_length=64)] = ""
    automatic: Annotated[bool, field("It takes over once the witness grants it: the VM's nodes end it before that")] = (
        False
    )
    arming: Annotated[int, field("Which turn of its source set ``automatic``: an earlier one is refused", ge=0)] = 0
    renewals: Annotated[int, field("How often its source has renewed its hold as primary here", ge=0)] = 0
    returned: Annotated[
        str,
        field(
            "Id of a generation that the witness granted, and that this cluster won't use any more",
            max_length=64,
        ),
    ] = ""
    restored: Annotated[
        bool,
        field(
            "The store here was restored, so it may have been promoted since: it promises nothing to its source until the "
            "witness says that it wasn't"
        ),
    ] = False


class Point(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A point that is complete."""

    number: int
    snapshot: str  # name of its Snapshot
    snapshot_uid: str
    source: str = ""  # uid of the snapshot there that it is a copy of
    generation: int = 1
    taken_at: float = 0.0  # seconds since 1970, by the source's clock
    received_at: float = 0.0  # by this cluster's clock
    age_seconds: float = 0.0  # how old it was then
    bytes: int = 0  # that came
    final: bool = False  # its source was stopped before it, and has written nothing since


class ReplicaStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words("Pending", "Seeding", "Standby", "NodeLost", "Promoted", "Deleting")] = "Pending"
    points: list[Point] = []  # oldest first
    node: str = ""  # where they are
    node_uid: str = ""
    lost_at: float | None = None  # since when that node isn't Ready
    vm: str = ""  # the VM here that it continues the disks of, which can't be started meanwhile: a promotion starts it
    vm_uid: str = ""
    order: ReceiveOrder | None = None  # for the next point
    reason: str = ""
    message: str = ""


def check_replica(spec: ReplicaSpec) -> None:
    """Raises InvalidInput."""
    check_subject(spec.of, "spec.of", ("vm",), "replicas are of")
    if not spec.origin:
        raise InvalidInput(
            "spec.origin is empty: a replica is made by the cluster that sends its points",
            field="spec.origin",
            hint="at that cluster: weft cluster replicate vm/NAME --destination HERE",
        )
    if not 1 <= len(spec.disks) <= MOST_DISKS or ROOT not in spec.disks:
        raise InvalidInput(
            f"spec.disks: {len(spec.disks)} entries; at most {MOST_DISKS}, and one of them is root", field="spec.disks"
        )
    for name, length in spec.disks.items():
        if not 1 <= length <= MOST_DISK_BYTES or not 1 <= len(name) <= 63:
            raise InvalidInput(f"spec.disks.{name[:63]}: {length} bytes can't be a disk's size", field="spec.disks")
    if len(msgspec.json.encode(spec.workload)) > MOST_WORKLOAD_BYTES:
        raise InvalidInput(f"spec.workload is larger than {MOST_WORKLOAD_BYTES >> 10} KiB", field="spec.workload")


def is_stopped_there(spec: ReplicaSpec) -> bool:
    """Whether people had stopped its VM, or suspended it. One that is fenced stands still so that its copy runs."""
    return spec.workload.get("run") in ("stop", "suspend") and not spec.workload.get("fenced")


def refuse_second_copy(copy: Envelope, of: str) -> None:
    """Raise IllegalTransition if ``copy``, a replication of ``of`` or its replica, belongs to a VM with copies: another would begin
    at once, and the VM have none until it has come whole."""
    if copy.owner is not None:
        raise IllegalTransition(
            f"{copy.kind}/{copy.name} is the second copy of {of}, and is there as long as that has copies",
            reason="secondCopy",
            hint=f"weft vm set {split_subject(of)[1]} --copies 1 takes it away, unless one of its volumes has 2; "
            f"weft replication set {copy.name} --rpo changes it",
        )


def _guard_deletion(replica: Envelope, _: float) -> None:
    refuse_second_copy(replica, decode_part(replica.spec, ReplicaSpec).of)


def _guard_change(replica: Envelope, new: ReplicaSpec, _: float) -> None:
    refuse_second_copy(replica, new.of)
    if decode_part(replica.marks, ReplicaMarks).role == PRIMARY:
        raise IllegalTransition(
            "the replica was promoted, so its source changes it no more",
            reason="staleGeneration",
            hint="its VM runs here now; delete the replica if nothing is to come of it",
        )


def name_points(replica: str) -> str:
    """Beginning of the names of its points' snapshots."""
    return cut_name(replica, "-point-", most=MAX_NAME - 12)


class HoldInput(msgspec.Struct, kw_only=True):
    """Input of the cluster that the VM runs at: nobody takes over for a while from now on."""

    origin: Annotated[str, msgspec.Meta(max_length=64)]  # uid of the replication there


class ArmInput(msgspec.Struct, kw_only=True):
    """Input of the cluster that the VM runs at."""

    origin: Annotated[str, msgspec.Meta(max_length=64)]  # uid of the replication there
    automatic: bool  # whether it takes over once the witness grants it
    arming: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]  # which turn of the source this is


class PromoteInput(msgspec.Struct, kw_only=True):
    new_name: Annotated[str, field("Name of the VM here; unset: as at its source", name=True)] = ""
    point: Annotated[int, field("Number of the point; unset: the newest", ge=0)] = 0
    force: Annotated[
        bool,
        field(
            "Do it even if its source answers, or the witness gets word from it: if its VM runs there still, there are two that "
            "write, and what it writes after the point is lost"
        ),
    ] = False


def _renew(obj: Object, given: HoldInput) -> dict[str, Any]:
    """Raises IllegalTransition, by which its source learns that it is primary no more."""
    if dig(obj, "marks.role") == PRIMARY:
        raise IllegalTransition(
            f"replica/{obj['name']} was promoted: its source is primary no more",
            reason="staleGeneration",
            hint="its VM runs here now",
        )
    if dig(obj, "spec.origin") != given.origin:
        raise IllegalTransition(
            f"replica/{obj['name']} is of another replication",
            reason="otherOrigin",
            hint="give this replication another name for its replica",
        )
    if dig(obj, "marks.restored"):
        raise IllegalTransition(
            f"replica/{obj['name']} is of a store that was restored, so it may have been promoted since",
            reason="restored",
            hint=f"its cluster asks the witness; without one: delete replica/{obj['name']} there once nothing of it runs there",
        )
    return {"renewals": int(dig(obj, "marks.renewals") or 0) + 1}


def _list_needed(obj: Object, given: ArmInput) -> list[tuple[str, str]]:
    """The link, and what a take-over would make or bring back."""
    if not given.automatic:
        return []
    name = split_subject(str(obj["spec"]["of"]))[1]
    vms = {name, dig(obj, "status.vm", "")} - {""}
    return [("cluster", _name_source(obj)), *(("vm", one) for one in sorted(vms)), *_list_volumes(obj, name)]


def _name_source(obj: Object) -> str:
    return str(obj.get("created_by") or "").removeprefix(CLUSTER_PREFIX)


def _list_volumes(obj: Object, vm: str) -> list[tuple[str, str]]:
    return [("volume", name_volume(vm, disk)) for disk in dig(obj, "spec.disks") or {} if disk != ROOT]


def _arm(obj: Object, given: ArmInput) -> dict[str, Any]:
    """Counts as a renewal, so that no take-over that was decided before comes after. Raises IllegalTransition."""
    after = _renew(obj, HoldInput(origin=given.origin))
    if given.arming < int(dig(obj, "marks.arming") or 0):
        raise IllegalTransition(
            f"replica/{obj['name']} knows a later turn of its source than {given.arming}",
            reason="overtaken",
            hint="its source asks again with a later one",
        )
    if given.automatic:
        _refuse_unable(obj)
    return {**after, "automatic": given.automatic, "arming": given.arming}


def _refuse_unable(obj: Object) -> None:
    """Raise IllegalTransition if it couldn't, or isn't to, take over."""
    what, name, others = f"replica/{obj['name']}", split_subject(str(obj["spec"]["of"]))[1], dig(obj, "others", {})
    source = _name_source(obj)
    link = others.get(f"cluster/{source}") or {}
    granted = dig(link, "spec.grants") or []
    if TAKE_OVER not in granted:
        raise IllegalTransition(
            f"{what}: cluster/{source} isn't granted {TAKE_OVER} here, so nothing of it starts without people",
            reason="notGranted",
            hint=f"here: weft cluster set {source} --grants {','.join([*granted, TAKE_OVER])}",
        )
    if not dig(link, "spec.witness"):
        raise IllegalTransition(
            f"{what}: the link with cluster/{source} has no witness here, which a take-over needs",
            reason="noWitness",
            hint=f"here: weft cluster witness {source} URL --token TOKEN",
        )
    if not dig(obj, "status.points"):
        raise IllegalTransition(
            f"{what} has no point yet, from which it could go on", reason="noPoint", hint="once a point came, it does"
        )
    if _goes_back(obj, PromoteInput()):
        return
    for kind, taken in (("vm", name), *_list_volumes(obj, name)):
        if others.get(f"{kind}/{taken}"):
            raise IllegalTransition(
                f"{what} can't become vm/{name}: there is {kind}/{taken} here",
                reason="nameTaken",
                hint=f"replicate to another project, where the name is free; weft describe {kind}/{taken} shows what has it here",
            )


def _find_point(obj: Object, given: PromoteInput) -> dict[str, Any]:
    """Raises IllegalTransition unless there is such a point."""
    what, of = f"replica/{obj['name']}", obj["spec"]["of"]
    if obj.get("owner"):
        raise IllegalTransition(
            f"{what} is the second copy of {of}, which goes on from it once its node is surely off",
            reason="secondCopy",
            hint=f"weft node confirm-off says that a silent node is; weft explain {of} says what it waits for",
        )
    if dig(obj, "marks.role") == PRIMARY:
        raise IllegalTransition(
            f"{what} was promoted before", hint=f"weft vm describe {split_subject(obj['spec']['of'])[1]}"
        )
    points: list[dict[str, Any]] = dig(obj, "status.points") or []
    found = [one for one in points if given.point in (0, one["number"])]
    if not found:
        there = ", ".join(str(one["number"]) for one in points) or "none"
        raise IllegalTransition(
            f"{what} has no such point; it has: {there}",
            reason="noPoint",
            hint="a point is complete once all its disks came: weft replica describe NAME",
        )
    return found[-1]


def _list_promoted(obj: Object, given: PromoteInput) -> list[tuple[str, str]]:
    points: list[dict[str, Any]] = dig(obj, "status.points") or []
    vm = dig(obj, "status.vm", "")
    named = [("vm", vm)] if vm else []
    if str(obj.get("created_by") or "").startswith(CLUSTER_PREFIX):
        named.append(("cluster", _name_source(obj)))
    return [*(("snapshot", str(one["snapshot"])) for one in points), *named]


def _goes_back(obj: Object, given: PromoteInput) -> bool:
    """Whether the VM that is here already goes back to the point, and no other is made."""
    vm = dig(obj, "status.vm", "")
    there = dig(obj, "others", {}).get(f"vm/{vm}") if vm and given.new_name in ("", vm) else None
    return there is not None and there["uid"] == dig(obj, "status.vm_uid", "") and bool(dig(there, "marks.fenced", ""))


def _read_snapshot(obj: Object, given: PromoteInput) -> Object:
    point = _find_point(obj, given)
    found: Object | None = dig(obj, "others", {}).get(f"snapshot/{point['snapshot']}")
    if found is None or found["uid"] != point["snapshot_uid"] or dig(found, "status.phase") != "Ready":
        raise IllegalTransition(
            f"point {point['number']} of replica/{obj['name']} can't be used now: its snapshot is "
            f"{dig(found, 'status.phase', 'gone') if found is not None else 'gone'}{describe_lost(found)}",
            reason="noPoint",
            hint="wait for its node, or give another point with --point",
        )
    return found


def _name_vm(obj: Object, given: PromoteInput) -> str:
    return given.new_name or split_subject(str(obj["spec"]["of"]))[1]


def _make_vm(obj: Object, given: PromoteInput, _: str) -> dict[str, Any] | None:
    snapshot = _read_snapshot(obj, given)
    if _goes_back(obj, given):
        return None
    disks = {name: disk.get("size", 0) for name, disk in dig(snapshot, "status.disks", {}).items()}
    former = dig(snapshot, "status.workload_spec", {})
    return make_restored_vm(former, _name_vm(obj, given), snapshot["name"], disks, memory=False)


def _make_volumes(obj: Object, given: PromoteInput, _: str) -> Sequence[dict[str, Any]]:
    snapshot = _read_snapshot(obj, given)
    disks = dig(snapshot, "status.disks", {})
    volumes = {name: (disk.get("size", 0), disk.get("pool", "")) for name, disk in disks.items()}
    return make_restored_volumes(volumes, _name_vm(obj, given), snapshot["name"])


def _promote(obj: Object, given: PromoteInput) -> dict[str, Any]:
    _read_snapshot(obj, given)
    generation = int(dig(obj, "marks.generation") or 1) + 1
    goes_back = _goes_back(obj, given)
    became = dig(obj, "status.vm") if goes_back else _name_vm(obj, given)
    promoted = _find_point(obj, given)["number"] if goes_back else 0
    return {"role": PRIMARY, "generation": generation, "promoted": promoted, "became": became}


def _promote_if_silent(obj: Object, given: PromoteInput) -> dict[str, Any]:
    """Raises IllegalTransition while its VM may still run at its source: both would write."""
    after = _promote(obj, given)
    if given.force or _has_final_point(obj):
        return after
    what, source, said = f"replica/{obj['name']}", _name_source(obj), find_condition(obj, WITNESSED)
    if dig(obj, "marks.automatic"):
        raise _may_run_there(
            f"{what} takes over automatically once the witness grants it; until then its VM may run elsewhere",
            f"if it surely runs nowhere: weft replica promote {obj['name']} --force",
        )
    link = dig(obj, "others", {}).get(f"cluster/{source}") or {}
    if dig(link, "spec.witness") and (said is None or said.get("reason") == NO_WITNESS):
        raise _may_run_there(
            f"{what}: the witness hasn't answered yet whether it gets word from {source}",
            "try again in some seconds, or with --force if its VM surely runs nowhere",
        )
    speaks = f"cluster {source} answers" if dig(link, "status.phase") in ANSWERING else ""
    if said is not None and said.get("reason") == PRIMARY_SPEAKS:
        speaks = str(said["message"])
    if speaks:
        _, vm = split_subject(str(obj["spec"]["of"]))
        raise _may_run_there(
            f"{what}: {speaks}, so vm/{vm} may still run there, and both would write; what it wrote after point "
            f"{_find_point(obj, given)['number']} would be lost",
            f"at {source}: weft replication hand-over NAME, then nothing is lost; or stop it there, and: "
            f"weft replica promote {obj['name']} --force",
        )
    return after


def _has_final_point(obj: Object) -> bool:
    """Whether its VM was stopped at its source before its newest point, and can't be started there."""
    points: list[dict[str, Any]] = dig(obj, "status.points") or []
    return bool(points and points[-1].get("final"))


def _may_run_there(message: str, hint: str) -> IllegalTransition:
    return IllegalTransition(message, reason="primaryAnswers", hint=hint)


def make_promoted(obj: Object, given: PromoteInput) -> tuple[dict[str, Any], list[dict[str, Any]], ReplicaMarks]:
    """Work out what the verb makes and changes: the manifests of the VM and of its volumes, and the replica's new marks. ``obj``
    has the snapshot of the point among its ``others``. Raises IllegalTransition."""
    after = _mark(obj, _promote(obj, given))
    made = _make_vm(obj, given, "")
    if made is None or dig(obj, "status.vm", ""):
        raise IllegalTransition(
            f"replica/{obj['name']} continues vm/{dig(obj, 'status.vm')}, which isn't as it was left here, so it can't go back",
            hint=f"weft replica promote {obj['name']} --new-name NAME makes another one",
        )
    return made, list(_make_volumes(obj, given, "")), after


def make_returned(obj: Object, given: PromoteInput) -> ReplicaMarks | None:
    """The replica's marks after a promotion that brings the VM here back; None: it would make another one. ``obj`` has the snapshot
    of the point and that VM among its ``others``. Raises IllegalTransition."""
    return _mark(obj, _promote(obj, given)) if _goes_back(obj, given) else None


def _mark(obj: Object, fields: Mapping[str, Any]) -> ReplicaMarks:
    return msgspec.convert({**(obj.get("marks") or {}), **fields}, ReplicaMarks)


def _count(spec: ReplicaSpec, _: ReplicaStatus, marks: ReplicaMarks) -> Counted:
    """The whole size of its disks, however much has come: so what comes is never too much. Once promoted, its VM counts."""
    return Counted({"disk": 0 if marks.role == PRIMARY else sum(spec.disks.values())})


def _newest(obj: Object, what: str) -> Any:
    points = dig(obj, "status.points") or []
    return points[-1].get(what) if points else None


REPLICAS_BY_UID = Index("replicas by uid")
REPLICAS_BY_NODE = Index("replicas by uid of their node", reads_status=True)  # "": they have none yet
REPLICAS_BY_RETURNED = Index("replicas by uid of the replication whose VM they continue")
REPLICAS_BY_POINT = Index("replicas by uid of their points' snapshots", reads_status=True)


def _node_uid(replica: Stored) -> tuple[str, ...]:
    return (replica.status(ReplicaStatus).node_uid,)


def _find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    """Failure that keeps its VM from starting after a promotion, until people do something."""
    reason = str(dig(obj, "status.reason", ""))
    if goal.ends_refused and dig(obj, "marks.role") == PRIMARY and reason in (RESTORE_FAILED, NODE_LOST):
        message = f"{what}: {dig(obj, 'status.message', '')}"
        return DriverFailed(message, reason=reason, hint=f"It is tried again automatically.  weft describe {what}")
    return find_failed(obj, what, goal)


REPLICA = Kind(
    name="replica",
    plural="replicas",
    title="replica",
    summary="Points of VMs that run at another cluster, or at another node",
    spec=ReplicaSpec,
    marks=ReplicaMarks,
    status=ReplicaStatus,
    schema=2,
    upgrades=(take_from_spec(marks=ReplicaMarks),),
    indexes={
        REPLICAS_BY_UID: uid_of,
        REPLICAS_BY_NODE: _node_uid,
        REPLICAS_BY_RETURNED: lambda item: [one] if (one := item.spec(ReplicaSpec).returns) else [],
        REPLICAS_BY_POINT: lambda item: [one.snapshot_uid for one in item.status(ReplicaStatus).points],
    },
    references=(Reference("pool", "spec.pool", lambda s: [s.pool] if s.pool != LOCAL else [], blocks=False),),
    verbs=(
        RECEIVE.verb("Take a point in, from the cluster that sends it"),
        Verb(
            "renew",
            "Take over nothing for a while, since its source is primary",
            input=HoldInput,
            act=_renew,
            needs="operate",
            for_its_cluster=True,
        ),
        Verb(
            "arm",
            "Take over automatically once the witness grants it, or not any more",
            input=ArmInput,
            act=_arm,
            reads=_list_needed,
            needs="operate",
            for_its_cluster=True,
        ),
        Verb(
            "promote",
            "Create its VM from its newest point, and take no more points",
            input=PromoteInput,
            act=_promote_if_silent,
            make=_make_vm,
            make_before=_make_volumes,
            owns=False,
            reads=_list_promoted,
            needs="write",
        ),
    ),
    access=Access(
        readers="project",
        status_writer="replicas",
        condition_writers={WITNESSED: "witnesses"},
        mark_writers={
            "role": (":promote", "recovery plans", "witnesses"),
            "generation": (":promote", "loss", "recovery plans", "witnesses"),
            "promoted": (":promote", "recovery plans", "witnesses"),
            "became": (":promote", "recovery plans", "witnesses"),
            "granted": ("witnesses",),
            "automatic": (":arm", "witnesses"),
            "arming": (":arm",),
            "renewals": (":arm", ":renew", "witnesses"),
            "returned": ("witnesses",),
            "restored": ("witnesses",),
        },
    ),
    admission=Admission(
        check=check_replica,
        change_guard=_guard_change,
        delete_guard=_guard_deletion,
        counts=_count,
    ),
    display=Display(
        topic="Clusters",
        columns=(
            NAME,
            Column("OF", text("spec.of")),
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("POINTS", lambda obj: str(len(dig(obj, "status.points") or [])), align="right"),
            Column("NEWEST", lambda obj: str(_newest(obj, "number") or "–"), align="right"),
            Column("DISKS", lambda obj: format_bytes(sum((dig(obj, "spec.disks") or {}).values())), align="right"),
            Column("NODE", text("status.node")),
            Column("POOL", text("spec.pool"), wide=True),
            Column("WITNESS", read_witnessed, wide=True),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(
        goals={"create": reaches("Standby"), "promote": reaches("Promoted")},
        find_failure=_find_failure,
        finalizers=("replica",),
    ),
)
