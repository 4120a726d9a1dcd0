"""Replication: a VM here has a replica at another cluster, or at another node of this one, whose newest point is never older than
``rpo``, as long as the link carries what the VM writes.

The replications controller has snapshots taken; the VM's node sends what changed. All that is known of how old the newest point is
is measured by this cluster's clock alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.allocation import LOCAL
from weft.kinds.cluster import ClusterSpec
from weft.kinds.fields.cells import AGE, NAME, dig, note, text
from weft.kinds.fields.cluster.link import (
    ARMED,
    AUTOMATIC,
    OFF,
    PREPARING,
    TURNED_OFF,
    WITNESSED,
    read_automatic,
    read_witnessed,
)
from weft.kinds.fields.replication.work import AskOrder, SendOrder
from weft.kinds.fields.subject import check_subject, list_named, split_subject
from weft.kinds.parts.convert_verb import describe_departure
from weft.kinds.parts.goal import find_condition, reaches, read_phase
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.record import (
    Access,
    Admission,
    Column,
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
from weft.kinds.replica import Keep, Rpo, refuse_second_copy
from weft.objects.envelope import Envelope, decode_part, take_from_spec
from weft.objects.errors import Forbidden, IllegalTransition, InvalidInput, WeftError
from weft.objects.identity import object_key
from weft.objects.quantity import format_duration
from weft.objects.schema import field, words


class ReplicationSpec(msgspec.Struct, kw_only=True):
    of: Annotated[str, field("What is replicated: vm/NAME, in this project", change="never")]
    cluster: Annotated[
        str,
        field("Linked cluster that the replica is at; empty: this one, for VMs with copies", change="never", name=True),
    ] = ""
    rpo: Rpo = 60.0
    mode: Annotated[
        Literal["async"],
        field("async: points are sent at intervals, and the VM never waits for the link", change="never"),
    ] = "async"
    keep: Keep = 3
    project_there: Annotated[
        str, field("Project there, which the link's ``projects`` say; another is refused", change="never", name=True)
    ] = ""
    pool: Annotated[str, field("Storage pool there", change="never", name=True)] = LOCAL
    replica: Annotated[str, field("Name of the replica; unset: that of this object", change="never", name=True)] = ""
    automatic: Annotated[
        bool,
        field(
            "The replica takes over automatically once the link's witness grants it; nodes here end the VM before that if this "
            "cluster reaches neither the witness nor the other cluster"
        ),
    ] = False
    paused: Annotated[bool, field("Send no points for now, and let nothing take over")] = False


class ReplicationActions(msgspec.Struct, kw_only=True):
    alone: Annotated[
        bool,
        field(
            "Turn automatic off without anybody's answer. It stays until the witness or the other cluster has answered that the "
            "copy there can't take over any more"
        ),
    ] = False
    handover: Annotated[bool, field("Stop the VM, send the last point, and leave it to the other cluster")] = False


class ReplicationMarks(msgspec.Struct, kw_only=True):
    guard: Annotated[
        Literal["", "begin", "hold", "release"],
        field(
            "How far automatic is: begin, nodes find out whether they can end the VM; hold, they do, and the replica may take "
            "over; release, they do until the other cluster has answered that it takes over nothing"
        ),
    ] = ""
    arming: Annotated[int, field("Number of times automatic failover was switched", ge=0)] = 0


# What the other cluster answers until people there or here have changed something.
REFUSALS = ("replicaGone", "otherOrigin", "nameTaken", "alreadyExists", "unsupported", "notFound", "forbidden")
LINK_REFUSED, NOT_LINKED, NEVER_RAN, NO_PLACE = "linkRefused", "projectNotLinked", "neverRan", "noPlace"
ENDED = ("Stale", "HandedOver", "Failed", "Deleting")  # phases of one whose VM here isn't the one that writes


class SentPoint(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A snapshot that is, or becomes, the replica's newest point."""

    snapshot: str  # its name
    snapshot_uid: str
    begun_at: float  # when it was ordered, in seconds since 1970: the point is no older
    number: int = 0  # at the replica
    taken_at: float = 0.0  # by its node's clock
    generation: int = 1
    final: bool = False  # the VM was handed over: it writes nothing more


class AgeSpan(msgspec.Struct, frozen=True):
    """The greatest age of the newest point in five minutes."""

    at: float  # when they began, in seconds since 1970
    seconds: float


class ReplicationStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[
        str,
        words(
            *(
                "Pending",
                "Seeding",
                "Replicating",
                "Behind",
                "Interrupted",
                "Paused",
                "HandingOver",
                "HandedOver",
                "TakingBack",
                "Stale",
            ),
            *("Failed", "Deleting"),
        ),
    ] = "Pending"
    workload_uid: str = ""
    node: str = ""  # that has the points, if they are in this cluster
    point: SentPoint | None = None  # the newest one that the replica has
    next: SentPoint | None = None  # the one under way
    order: SendOrder | None = None
    ask: AskOrder | None = None  # while there is no order
    attempt: int = 0  # of the last order
    failures: int = 0  # one after the other
    retry_at: float = 0.0  # seconds since 1970: not before
    lag_seconds: float | None = None  # age of the replica's newest point, as of ``updated_at``
    rpo_seconds: float | None = None  # the greatest age of the last hour
    rpo_history: list[AgeSpan] = []
    updated_at: float | None = None
    told_final: bool = False  # the replica may have a last point of a VM that was handed over
    cycle_seconds: float = 0.0  # from ordering the last point's snapshot until the replica had it
    transfer_seconds: float = 0.0  # of that: sending
    bytes: int = 0  # of the last point
    progress: float = 0.0  # of the one under way: 0 to 1
    reason: str = ""
    message: str = ""


def _hand_over(obj: Object, _: Any) -> dict[str, Any]:
    if not dig(obj, "spec.cluster"):
        raise IllegalTransition(
            f"replication/{obj['name']} stays in this cluster, so its VM is left to nobody",
            hint=f"weft migrate {dig(obj, 'spec.of')}",
        )
    if dig(obj, "status.phase") == "Stale":
        raise IllegalTransition(
            f"replication/{obj['name']}: its replica was promoted already",
            hint=f"weft describe replication/{obj['name']}",
        )
    if dig(obj, "status.point") is None:
        raise IllegalTransition(
            f"replication/{obj['name']}: its replica has no point yet, so nobody could go on from it",
            reason="noPoint",
            hint=f"weft wait replication/{obj['name']} --for=phase=Replicating",
        )
    if dig(obj, "spec.paused"):
        raise IllegalTransition(
            f"replication/{obj['name']} is paused, so its last point would not be sent",
            hint=f"weft replication set {obj['name']} --no-paused",
        )
    return {"handover": True}


def _pause(obj: Object, _: Any) -> dict[str, Any]:
    return {**obj["spec"], "paused": True}


def _resume(obj: Object, _: Any) -> dict[str, Any]:
    return {**obj["spec"], "paused": False}


def _turn_off(obj: Object, _: Any) -> dict[str, Any]:
    return {**obj["spec"], "automatic": False}


def _run_alone(obj: Object, _: Any) -> dict[str, Any]:
    if not dig(obj, "marks.guard"):
        raise IllegalTransition(
            f"replication/{obj['name']}: nothing takes over from it, so its VM runs without anybody's word",
            hint=f"weft describe replication/{obj['name']}",
        )
    return {"alone": True}


def _is_paused(obj: Object | None) -> bool:
    """No node holds the VM any more either: the condition says so after the nodes have."""
    if obj is None or read_phase(obj) != "Paused" or dig(obj, "marks.guard"):
        return False
    said = find_condition(obj, AUTOMATIC)
    return said is None or said.get("reason") == OFF


def _is_replicating(obj: Object | None) -> bool:
    """True if it replicates and, for an automatic one, it is known whether anything takes over."""
    if obj is None or read_phase(obj) not in ("Replicating", "Behind"):
        return False
    said = find_condition(obj, AUTOMATIC)
    return not dig(obj, "spec.automatic") or (said is not None and not _was_off(said))


def _was_off(condition: Object) -> bool:
    """Whether it is the word from before it was turned on."""
    return not condition.get("reason") or (
        condition.get("reason") == OFF and str(condition.get("message", "")).startswith(TURNED_OFF)
    )


def _describe_replicating(obj: Object) -> str:
    """Its phase, and of an automatic one that nothing takes over yet, with what people can do."""
    phase, said = read_phase(obj), find_condition(obj, AUTOMATIC)
    if not dig(obj, "spec.automatic") or said is None or said.get("reason") == ARMED:
        return phase
    if said.get("reason") == PREPARING:
        return f"{phase}; nothing takes over before it is {ARMED} (weft replication list -o wide)"
    return f"{phase}; nothing takes over ({said.get('reason')}): {said.get('message')}"


def _has_begun(obj: Object | None) -> bool:
    """Whether it replicates, or its VM has not run yet: nobody knows when that will be."""
    return _is_replicating(obj) or dig(obj or {}, "status.reason") == NEVER_RAN


def _describe_begun(obj: Object) -> str:
    waits = dig(obj, "status.reason") == NEVER_RAN
    return f"waits: {dig(obj, 'status.message', '')}" if waits else _describe_replicating(obj)


_REPLICATING = Goal(_is_replicating, "Replicating", answer=_describe_replicating)
_BEGUN = Goal(_has_begun, "Replicating", answer=_describe_begun)


def _take_back(obj: Object, _: Any) -> dict[str, Any]:
    if dig(obj, "status.phase") == "Stale":
        raise IllegalTransition(
            f"replication/{obj['name']}: its replica was promoted, so the VM that writes is there",
            reason="staleGeneration",
            hint=f"at {dig(obj, 'spec.cluster')}: weft cluster replicate vm/NAME, then weft replication hand-over NAME",
        )
    return {"handover": False}


def _find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    """One whose replica was promoted never replicates again; what the other cluster refuses is tried again, but people are told at
    once."""
    phase, reason = read_phase(obj), str(dig(obj, "status.reason", "") or "driverFailed")
    if goal.ends_failed and phase in ("Stale", "Failed"):
        return IllegalTransition(f"{what}: {dig(obj, 'status.message')}", reason=reason)
    refused = reason in (*REFUSALS, LINK_REFUSED, NOT_LINKED) and phase in ("Pending", "Interrupted", "HandingOver")
    if goal.ends_refused and refused and not dig(obj, "spec.paused"):
        hint = f"It is tried again automatically.  weft describe {what}"
        return IllegalTransition(f"{what}: {dig(obj, 'status.message')}", reason=reason, hint=hint)
    return None


def check_replication(spec: ReplicationSpec) -> None:
    """Raises InvalidInput."""
    check_subject(spec.of, "spec.of", ("vm",), "can be replicated")
    if spec.automatic and not spec.cluster:
        raise InvalidInput(
            "spec.automatic: only a replica at another cluster takes over with a witness",
            field="spec.automatic",
            hint=f"weft vm set {split_subject(spec.of)[1]} --on-node-loss restart",
        )


def _check_new(spec: ReplicationSpec) -> None:
    """Raises InvalidInput for one within this cluster, which VMs with copies get automatically."""
    if not spec.cluster:
        raise InvalidInput(
            "spec.cluster must be the name of a linked cluster",
            field="spec.cluster",
            hint=f"for a copy at another node of this one: weft vm set {split_subject(spec.of)[1]} --copies 2",
        )


def _guard_deletion(replication: Envelope, _: float) -> None:
    refuse_second_copy(replication, decode_part(replication.spec, ReplicationSpec).of)


def _refuse_departed(_: ReplicationSpec, name: str, vm: WorkloadMarks) -> None:
    """Raise IllegalTransition for what is left of a VM that migrated to another cluster."""
    if vm.departed:
        refusal = describe_departure(f"vm/{name}", vm.departed)
        refusal.field, refusal.hint = "spec.of", f"there: weft cluster replicate vm/{name} --destination CLUSTER"
        raise refusal


def _refuse_other_project(spec: ReplicationSpec, _: str, cluster: ClusterSpec, project: str | None) -> None:
    """Raise Forbidden unless the link is for ``project``, InvalidInput unless it leads to the project that people name."""
    there = cluster.projects.get(project or "")
    if there is None:
        raise Forbidden(
            f"spec.cluster: the link with cluster {spec.cluster} is not for project {project}",
            reason="projectNotLinked",
            field="spec.cluster",
            hint=f"ask an administrator of the fabric: weft cluster set {spec.cluster} --projects {project}=THERE, with those "
            "that it has",
        )
    if spec.project_there not in ("", there):
        raise InvalidInput(
            f"spec.project_there: the link with cluster {spec.cluster} leads from project {project} to {there}, and to no other",
            field="spec.project_there",
            hint="leave it out",
        )


def _name_taken_over(spec: ReplicationSpec) -> str:
    """Name of the VM whose replica takes over automatically; "": none does. Two of one VM would both take over."""
    return spec.of if spec.automatic else ""


def _describe_target(obj: Object) -> str:
    """The cluster, or the node of this one."""
    node = dig(obj, "status.node")
    return str(dig(obj, "spec.cluster") or (f"node {node}" if node else "–"))


def _seconds(path: str) -> Any:
    def cell(obj: Object) -> str:
        seconds = dig(obj, path)
        return "–" if seconds is None else format_duration(round(seconds, 1))

    return cell


def is_local(replication: Stored) -> bool:
    """Whether its points go to another node of this cluster."""
    return not replication.spec(ReplicationSpec).cluster


def subject_of(replication: Stored) -> str:
    """The key of what is replicated."""
    kind, name = split_subject(replication.spec(ReplicationSpec).of)
    return object_key(kind, replication.envelope.project, name)


def _list_snapshots(item: Stored) -> list[str]:
    status = item.status(ReplicationStatus)
    return [one.snapshot_uid for one in (status.point, status.next) if one is not None]


def _list_waiting(item: Stored) -> list[str]:
    status = item.status(ReplicationStatus)
    return [WAITING] if status.next is not None and status.order is None else []


REPLICATIONS_BY_UID = Index("replications by uid")
REPLICATIONS_BY_SUBJECT = Index("replications by key of what they are of")
REPLICATIONS_BY_CLUSTER = Index("replications by name of their cluster")
REPLICATIONS_WAITING = Index("replications whose next point no node was ordered to send", reads_status=True)
WAITING = "waiting"
REPLICATIONS_BY_SNAPSHOT = Index("replications by uid of their snapshots", reads_status=True)

REPLICATION = Kind(
    name="replication",
    plural="replications",
    title="replication",
    summary="VMs that have a replica at another cluster, or another node",
    spec=ReplicationSpec,
    actions=ReplicationActions,
    marks=ReplicationMarks,
    status=ReplicationStatus,
    schema=2,
    upgrades=(take_from_spec(actions=ReplicationActions, marks=ReplicationMarks),),
    indexes={
        REPLICATIONS_BY_UID: uid_of,
        REPLICATIONS_BY_SUBJECT: lambda item: (subject_of(item),),
        REPLICATIONS_BY_CLUSTER: lambda item: (item.spec(ReplicationSpec).cluster,),
        REPLICATIONS_BY_SNAPSHOT: _list_snapshots,
        REPLICATIONS_WAITING: _list_waiting,
    },
    references=(
        Reference(
            "vm",
            "spec.of",
            lambda spec: list_named("vm", [spec.of]),
            blocks=False,
            bars=_refuse_departed,
            alone="starts and replaces it, also while a copy of it runs at the other cluster",
        ),
        Reference(
            "cluster",
            "spec.cluster",
            lambda spec: [spec.cluster] if spec.cluster else [],
            blocks=True,
            fits=_refuse_other_project,
        ),
    ),
    verbs=(
        Verb(
            "hand-over",
            "Stop its VM, send the last point, and keep the VM stopped: nothing is lost by promoting the replica then",
            act=_hand_over,
            needs="write",
        ),
        Verb(
            "pause",
            "Send no points, and let nothing take over, until resume: also before planned work on servers and lines",
            change=_pause,
            needs="write",
        ),
        Verb(
            "resume",
            "Send points again, and let the replica take over again if it shall",
            change=_resume,
            needs="write",
        ),
        Verb(
            "run-alone",
            "Run its VM if the other cluster doesn't answer, and turn automatic off: only if its copy runs nowhere and never will",
            change=_turn_off,
            act=_run_alone,
            needs="write",
        ),
        Verb("take-back", "Let its VM be started here again, after hand-over", act=_take_back, needs="write"),
    ),
    access=Access(
        readers="project",
        status_writer="replications",
        condition_writers={WITNESSED: "witnesses", AUTOMATIC: "witnesses"},
        mark_writers={
            "alone": (":run-alone", "witnesses"),
            "guard": ("witnesses",),
            "arming": ("witnesses",),
        },
    ),
    admission=Admission(
        check=check_replication,
        check_new=_check_new,
        delete_guard=_guard_deletion,
        one_of=(_name_taken_over, "spec.automatic"),
    ),
    display=Display(
        topic="Clusters",
        columns=(
            NAME,
            Column("OF", text("spec.of")),
            Column("TO", _describe_target),
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("LAG", _seconds("status.lag_seconds"), align="right"),
            Column("RPO", _seconds("spec.rpo"), align="right"),
            Column("WORST", _seconds("status.rpo_seconds"), align="right"),
            Column("POINT", lambda obj: str(dig(obj, "status.point.number") or "–"), align="right", wide=True),
            Column("WITNESS", read_witnessed, wide=True),
            Column("AUTOMATIC", read_automatic, wide=True),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(
        goals={
            "create": _BEGUN,
            "wait": _REPLICATING,
            "hand-over": reaches("HandedOver"),
            "pause": Goal(_is_paused, "Paused"),
            "resume": _BEGUN,
            "take-back": reaches("Replicating", "Behind"),
        },
        find_failure=_find_failure,
        finalizers=("replication",),
    ),
)
