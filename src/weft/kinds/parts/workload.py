"""Parts of every kind of workload: the part of its spec that controllers and scheduler read, its marks and status, its checks,
claims and verbs; and what a kind declares, so that they need not know the kinds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.allocation import Resources
from weft.kinds.constraint import names_preferred, names_required
from weft.kinds.disruption_budget import words_of_labels
from weft.kinds.fields.affinity import TALKERS, device_of
from weft.kinds.fields.cells import AGE, NAME, dig, joined, note, text
from weft.kinds.fields.deployment.instance import PARKED_LABEL
from weft.kinds.fields.gang import read_gang
from weft.kinds.fields.lease import LEASE_CONFLICT, LEASE_ENDED, LeaseStatus, check_new_lease
from weft.kinds.parts.convert_verb import refuse_departed, refuse_replaced
from weft.kinds.parts.goal import find_condition
from weft.kinds.parts.nic import claim_address, networks_of, read_nic
from weft.kinds.parts.placement_spec import MIB, PlacementSpec, check_placement, placement_references
from weft.kinds.published_port import claim_published_port
from weft.kinds.record import (
    Claim,
    ClaimWithin,
    Column,
    Counted,
    Index,
    Object,
    Reference,
    Stored,
    Verb,
    WordsOf,
    Workload,
    keys_of,
    uid_of,
    uid_of_owner,
)
from weft.kinds.reservation import count_gpus, refuse_larger, refuse_over
from weft.objects.envelope import Condition, Envelope, decode_part
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.lifecycle import Phase, check_verb
from weft.objects.quantity import format_bytes, format_cpu
from weft.objects.schema import field, words

MOST_MEMORY_BYTES = 64 * 2**40
MOST_CORES = 255
_PUBLISH = re.compile(r"(\d{1,5}):(\d{1,5})(?:/(tcp|udp))?")

WITHOUT_NETWORKS = Condition(
    "Addressed", "True", "Addressed", "no networks"
)  # a workload without any waits for no address
OUT_OF_REACH = ("nodeAutonomous", "nodeLost")  # nothing changes there until its node is back
CONDITIONS = {"Placed": "scheduler", "Addressed": "addresses", "Ready": "workload", "Current": "workload"}
KEPT = ("run", "hold")

WORKLOADS_BY_UID = Index("workloads by uid")
WORKLOADS_BY_OWNER = Index("workloads by owner")
WORKLOADS_BY_IMAGE = Index("workloads by image")
WORKLOADS_BY_VOLUME = Index("workloads by volume")
WORKLOADS_BY_NETWORK = Index("workloads by network")
WORKLOADS_BY_GROUP = Index("workloads by security group")
WORKLOADS_BY_CONSTRAINT = Index("workloads by constraint")
WORKLOADS_BY_GANG = Index("workloads by gang")
WORKLOADS_BY_LABEL = Index("workloads by label")
WORKLOADS_BY_NEAR = Index("workloads by what they prefer to be near, or are placed near by their strategy")
NEAR_STRATEGY = "network_proximity"


class WorkloadSpec(PlacementSpec, msgspec.Struct, kw_only=True):
    """Part of every workload's spec that controllers and scheduler read; a kind's own adds to it."""


class WorkloadActions(msgspec.Struct, kw_only=True, frozen=True):
    restart_generation: Annotated[int, field("Counter: the workload is started afresh when it grows", ge=0)] = 0


class WorkloadTest(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Mark of a VM that is only there to test a backup, or to rehearse a recovery."""

    backup: Annotated[str, field("Backup that it tests; unset: none", name=True)] = ""
    recovery: Annotated[str, field("Recovery plan that it rehearses; unset: none", name=True)] = ""
    hostname: Annotated[
        str, field("Name that its guest and its networks call it by; unset: that of the VM", name=True)
    ] = ""
    check: Annotated[str, field("Command that must end with exit code 0; unset: the guest answers")] = ""
    within: Annotated[float, field("Time until it must", quantity="duration")] = 0.0


class WorkloadPoint(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The snapshot from which a VM goes on, since its disks are on a node that was lost."""

    snapshot: Annotated[str, field("Snapshot on another node", name=True)]
    snapshot_uid: Annotated[str, field("Its uid")]
    taken_at: Annotated[float, field("When it was taken, in seconds since 1970: what was written after that is lost")]
    backup: Annotated[str, field("Backup that it is fetched from; unset: none", name=True)] = ""
    passed_over: Annotated[list[str], field("Newer backups, which turned out to be damaged")] = []
    lost_at: Annotated[float, field("When the workload was freed from its node, in seconds since 1970")] = 0.0


class WorkloadMarks(msgspec.Struct, kw_only=True, frozen=True):
    """Decisions about a workload, beside what people want. Only VMs have any; of every other kind these are the defaults."""

    fenced: Annotated[str, field("Replication that left it to another cluster: it can't be started", name=True)] = ""
    arrives: Annotated[str, field("Arrival that it comes by from another cluster, until it runs here", name=True)] = ""
    departed: Annotated[
        str, field("Where it migrated to, as CLUSTER/PROJECT/NAME: nothing of it is here", max_length=200)
    ] = ""
    guard: Annotated[
        Literal["", "begin", "hold"],
        field(
            "hold: its replica takes over automatically, so its node runs it only while this cluster is known to be primary; "
            "begin: nodes find out whether they can"
        ),
    ] = ""
    test: Annotated[WorkloadTest | None, field("Why it is only there to test")] = None
    continues: Annotated[
        WorkloadPoint | None,
        field("What it goes on from, since its disks are on a lost node, until it has begun from there"),
    ] = None


_UNMARKED = WorkloadMarks()
# Fields of actions and marks that were in the spec once: older objects, and older clusters, have them there.
ONCE_IN_SPEC = ("restart_generation", "pulls", "restore", "reclaim", *WorkloadMarks.__struct_fields__)


class WorkloadStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words(*Phase)] = "Pending"
    node: str | None = None
    address: str | None = None  # address of the first NIC
    addresses: dict[str, str] = {}
    ready: bool | None = None  # None: the image has no agent to report it
    boot_id: str | None = None
    incarnation: int = 0  # highest incarnation of its allocations
    active_incarnation: int = 0  # highest of its active allocations: a lower one never runs again
    restarts: int = 0
    observed_generation: int = 0
    reason: str = ""
    message: str = ""
    steps: list[dict[str, Any]] = []
    accelerator: str | None = None
    resize_limits: dict[str, int] | None = (
        None  # limits of the running machine, by field of the spec (``objects/spec_change.py``); None: none runs
    )
    resources: Resources | None = None  # what its allocation has of its node; None: it has no allocation
    live_bar: str = ""  # why the running guest can migrate only while it stands still; "" if it can do so live
    started_at: float | None = None
    migration: str = ""  # name of the Migration under way
    pool: str = ""  # pool of its root disk
    ended: bool = False  # as in its allocation's report
    exit_code: int | None = None
    conversion: str = ""  # name of its Conversion under way, whether as old or as new workload
    converts_to: str = ""  # the new workload, if this is the old one of a Conversion
    lease: LeaseStatus | None = None  # None: it has none
    handed_over: str = (
        ""  # key of the migration to another cluster that its node has carried out, and the store doesn't know
    )
    # What it wrote after that (seconds since 1970) was lost with a node, the last time that it went on from a snapshot elsewhere.
    lost_since: float | None = None


def leave_out_starts(template: Mapping[str, Any]) -> dict[str, Any]:
    """A template that an older weft stored without what was in a workload's spec then, and is in its actions or marks."""
    return {name: value for name, value in template.items() if name not in ONCE_IN_SPEC}


def find_publish_rights(old: Any, new: Any) -> list[tuple[str, str]]:
    """The permission in all projects that a forced port takes: what nodes and the server need themselves is the fabric's."""
    had = set(old.publish) if old is not None and old.force_publish else set()
    return [("node:update", "publish ports by force")] if new.force_publish and set(new.publish) - had else []


def parse_publish(text_: str, field_: str = "spec.publish") -> tuple[int, int, Literal["tcp", "udp"]]:
    """``8080:80/tcp`` as (host port, guest port, protocol). Raises InvalidInput."""
    match = _PUBLISH.fullmatch(text_)
    hint = "write HOST:GUEST, like 8080:80 or 5353:53/udp"
    if match is None:
        raise InvalidInput(f"{field_}: {text_[:60]!r} is not a port mapping", field=field_, hint=hint)
    host, guest = int(match[1]), int(match[2])
    for port in (host, guest):
        if not 1 <= port <= 65535:
            raise InvalidInput(f"{field_}: port {port} is not between 1 and 65535", field=field_, hint=hint)
    return host, guest, "udp" if match[3] == "udp" else "tcp"


def check_workload(spec: WorkloadSpec, *, least_memory: int) -> None:
    """Checks what types can't; fields with several spellings get their one. Raises InvalidInput."""
    if spec.memory < least_memory:
        raise InvalidInput(
            f"spec.memory: {format_bytes(spec.memory)} is too little for a workload",
            field="spec.memory",
            hint=f"give at least {least_memory // MIB}M",
        )
    if spec.memory > MOST_MEMORY_BYTES:
        raise InvalidInput(
            "spec.memory: more than a workload can have",
            field="spec.memory",
            hint="at most 64T",
            details={"most": MOST_MEMORY_BYTES},
        )
    if spec.cpu > MOST_CORES:
        raise InvalidInput(
            f"spec.cpu: {spec.cpu:g} is more than a workload can have",
            field="spec.cpu",
            hint=f"at most {MOST_CORES}",
            details={"most": MOST_CORES},
        )
    check_placement(spec)
    if spec.networks or spec.publish or spec.security_groups:
        _check_connections(spec)


def _check_connections(spec: WorkloadSpec) -> None:
    for index, nic in enumerate(spec.networks):
        read_nic(nic, f"spec.networks[{index}]")
    ports = [parse_publish(p, f"spec.publish[{i}]")[::2] for i, p in enumerate(spec.publish)]
    refuse_twice(publish=ports, networks=networks_of(spec.networks), security_groups=spec.security_groups)
    if spec.publish and not spec.networks:
        raise InvalidInput("spec.publish needs a network", field="spec.publish", hint="add networks: [default]")
    if len(spec.networks) > 8:
        raise InvalidInput("spec.networks: a workload can join at most 8 networks", field="spec.networks")
    if len(spec.security_groups) > 16:
        raise InvalidInput("spec.security_groups: a workload can have at most 16", field="spec.security_groups")


def refuse_twice(**lists: Sequence[Any]) -> None:
    """Raises InvalidInput for a list, by field of a spec, that names one thing twice."""
    for name, values in lists.items():
        if len(values) > 1 and len(set(values)) != len(values):
            raise InvalidInput(
                f"spec.{name} names the same thing twice", field=f"spec.{name}", hint="leave one of the two out"
            )


def claim_places(envelope: Envelope, spec: WorkloadSpec) -> Sequence[Claim | ClaimWithin]:
    """Claims to what it must have alone: each published port (named by the port) and each chosen address (an endpoint, named by
    network and address)."""
    if not (spec.networks or spec.publish):
        return []
    claims: list[Claim | ClaimWithin] = []
    for index, nic in enumerate(spec.networks):
        claim = claim_address(envelope, index, nic)
        if claim is not None:
            claims.append(claim)
    for index, mapping in enumerate(spec.publish):
        port, target, protocol = parse_publish(mapping)
        claims.append(claim_published_port(envelope, index, port, target, protocol, force=spec.force_publish))
    return claims


def workload_references() -> tuple[Reference, ...]:
    """The objects that any workload's spec names."""
    return (
        Reference("network", "spec.networks", lambda s: networks_of(s.networks)),
        Reference("securitygroup", "spec.security_groups", lambda s: s.security_groups),
        *placement_references(),
        Reference(
            "priorityclass",
            "spec.lease.priority_class",
            lambda s: [s.lease.priority_class] if s.lease is not None and s.lease.priority_class is not None else [],
            blocks=False,
        ),
        Reference("node", "spec.node", lambda s: [s.node] if s.node else [], blocks=False),
        Reference(
            "reservation",
            "spec.reservation",
            lambda s: [s.reservation] if s.reservation else [],
            agree=refuse_larger,
            suffices=refuse_over,
            asks=lambda s: s.reservation,
            groups=lambda reserved: reserved.groups,
        ),
    )


def born(spec: WorkloadSpec) -> list[Condition]:
    return [] if spec.networks else [WITHOUT_NETWORKS]


def phase_of(obj: Object) -> Phase:
    return Phase(dig(obj, "status.phase", "Pending"))


def what_is(obj: Object) -> str:
    """``vm/web``"""
    return f"{obj['kind']}/{obj['name']}"


def check_act(verb: str, obj: Object) -> None:
    """Raises IllegalTransition unless ``verb`` is legal in the phase of ``obj``, and for what migrated to another cluster, whose
    phase is as if it could be started."""
    refuse_departed(obj)
    over = dig(obj, "status.reason") == LEASE_ENDED  # an ended lease is never restarted
    phase = phase_of(obj)
    why = dig(obj, "status.message", "") if phase is Phase.UNKNOWN else ""
    check_verb(verb, phase, what_is(obj), ("start", "restart") if over else (), why)


def set_fields(verb: str, **fields: Any) -> Callable[[Object, Any], dict[str, Any]]:
    """The change of a verb that gives fields of the spec these values."""

    def change(obj: Object, _: Any) -> dict[str, Any]:
        check_act(verb, obj)
        refuse_replaced(obj)
        return {**obj["spec"], **fields}

    return change


def check_times(spec: WorkloadSpec, now: float) -> None:
    """Raises InvalidInput for a lease whose time has passed by ``now``."""
    if spec.lease is not None:
        check_new_lease(spec.lease, now)


def _start(obj: Object, _: Any) -> dict[str, Any]:
    check_act("start", obj)
    return _run(obj)


def _count_start(obj: Object, _: Any) -> dict[str, Any]:
    """A guest that ended by itself, or failed, gets a fresh boot; it may have been told to stop after that."""
    return _count_restart(obj, _) if phase_of(obj) in (Phase.STOPPED, Phase.FAILED) else {}


def _run(obj: Object) -> dict[str, Any]:
    """The spec of one that shall run. Raises IllegalTransition for one that can't."""
    refuse_replaced(obj)
    _refuse_parked(obj)
    _refuse_again(obj)
    _refuse_over(obj)
    return {**obj["spec"], "run": "run"}


def _refuse_parked(obj: Object) -> None:
    """Another VM of its deployment has its ports and volumes."""
    if PARKED_LABEL in (obj.get("labels") or {}):
        name = dig(obj, "owner.name", "NAME")
        raise IllegalTransition(
            f"{what_is(obj)} is kept, stopped: another VM of deployment/{name} has taken its place",
            hint=f"weft rollout undo {name} lets it run again   weft rollout history {name}",
        )


def _refuse_again(obj: Object) -> None:
    if dig(obj, "spec.once"):
        raise IllegalTransition(
            f"{what_is(obj)} runs once: it can't be started again",
            hint="create another; for a task: weft job retry JOB",
        )


def was_refused(envelope: Envelope) -> bool:
    """Whether its lease was refused, and it never had a place."""
    placed = envelope.condition("Placed")
    if placed is None or (placed.status, placed.reason) != ("False", LEASE_CONFLICT):
        return False
    status = decode_part(envelope.status, WorkloadStatus)
    return placed.generation == envelope.generation and not (status.incarnation or status.conversion)


def _refuse_over(obj: Object) -> None:
    if dig(obj, "status.reason") == LEASE_ENDED:
        raise IllegalTransition(
            f"the lease of {what_is(obj)} is over: it can't be started again",
            reason="leaseOver",
            hint="create another; its disks stay until it is deleted",
        )


def _restart(obj: Object, _: Any) -> dict[str, Any]:
    check_act("restart", obj)
    return _run(obj)


def _count_restart(obj: Object, _: Any) -> dict[str, Any]:
    return {"restart_generation": dig(obj, "actions.restart_generation", 0) + 1}


START = Verb(
    "start",
    "Start the workload (after stop, suspend or failure)",
    change=_start,
    act=_count_start,
    needs="operate",
)
RESTART = Verb(
    "restart", "Shut the workload down and start it afresh", change=_restart, act=_count_restart, needs="operate"
)
STARTED_BY = (":start", ":restart", "deployments")  # who lets a workload start afresh
HOLD = Verb("hold", "Do not place the workload yet", change=set_fields("hold", hold=True), needs="operate")
RELEASE = Verb("release", "Let a held workload be placed", change=set_fields("release", hold=False), needs="operate")


def workload_columns(image: Column) -> tuple[Column, ...]:
    """A workload's row; ``image`` is what tells of the kind's own image."""
    return (
        NAME,
        Column("PHASE", text("status.phase", "Pending"), keep=True),
        Column("NODE", text("status.node")),
        Column("ADDRESS", text("status.address"), keep=True),
        Column("CPU", lambda obj: format_cpu(_find_size(obj, "cpu")), align="right"),
        Column("MEMORY", lambda obj: format_bytes(_find_size(obj, "memory")), align="right"),
        image,
        AGE,
        Column("NETWORKS", joined("spec.networks"), wide=True),
        Column("GROUPS", joined("spec.security_groups"), wide=True),
        Column("PUBLISH", joined("spec.publish"), wide=True),
        Column("RESTARTS", text("status.restarts", "0"), align="right", wide=True),
        Column("NOTE", _find_note, flexible=True),
    )


def _find_size(obj: Object, name: str) -> Any:
    """Size of the running machine; of one that doesn't run, what its next start is to give it."""
    runs = dig(obj, "status.resize_limits") is not None
    return (dig(obj, f"status.resources.{name}") if runs else None) or dig(obj, f"spec.{name}", 0)


def _find_note(obj: Object) -> str:
    """Note in its status beside the phase; else what of its spec it doesn't have, and why."""
    current = find_condition(obj, "Current")
    return note(obj) or str(current.get("message", "") if current is not None else "")


def sizes_of(status: WorkloadStatus, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``spec`` that haven't been carried out, as the workload has them: a root disk that hasn't grown, cores and
    memory of a machine that runs."""
    has = status.resources
    if has is None:
        return {}
    found: dict[str, Any] = {"disk": min(spec["disk"], has.disk)} if "disk" in spec else {}
    return found if status.resize_limits is None else {**found, "cpu": has.cpu, "memory": has.memory}


def name_gang(project: str | None, spec: WorkloadSpec) -> str:
    """``default/web``, of a workload that has one."""
    return f"{project}/{read_gang(spec.gang)[0]}" if spec.gang is not None else ""


def index_workload(type_: type[WorkloadSpec], workload: Workload) -> dict[Index, WordsOf]:
    """The indexes of a kind of workload with specs of ``type_``."""

    def words_of_gang(item: Stored) -> Iterable[str]:
        gang = name_gang(item.envelope.project, item.spec(type_))
        return (gang,) if gang else ()

    def by(kind: str, names_of: Any) -> WordsOf:
        return lambda item: keys_of(kind, item, names_of(item.spec(type_)))

    return {
        WORKLOADS_BY_UID: uid_of,
        WORKLOADS_BY_OWNER: uid_of_owner,
        WORKLOADS_BY_IMAGE: by("image", lambda spec: workload.needs(spec).images),
        WORKLOADS_BY_VOLUME: by("volume", workload.volumes),
        WORKLOADS_BY_NETWORK: by("network", lambda spec: networks_of(spec.networks)),
        WORKLOADS_BY_GROUP: by("securitygroup", lambda spec: spec.security_groups),
        WORKLOADS_BY_CONSTRAINT: by("constraint", _names_of_constraints),
        WORKLOADS_BY_GANG: words_of_gang,
        WORKLOADS_BY_NEAR: lambda item: _words_of_near(item, item.spec(type_)),
        WORKLOADS_BY_LABEL: lambda item: words_of_labels(item.envelope.project, item.envelope.labels),
    }


def _words_of_near(item: Stored, spec: WorkloadSpec) -> Iterable[str]:
    """TALKERS, and the key of the device."""
    device = keys_of("device", item, [name] if (name := device_of(spec.near)) else [])
    return (*device, TALKERS) if spec.near == TALKERS or NEAR_STRATEGY in (spec.strategy or "") else device


def count_workload(workload: Workload) -> Callable[[Any, WorkloadStatus], Counted]:
    """Count a workload of a kind in its project's quota, whether it runs or not: it keeps its place. One that has ended for good
    has left it, and one that tests a backup is weft's own; one whose lease is over keeps its disk and its ports."""

    def count(spec: Any, status: WorkloadStatus, marks: WorkloadMarks = _UNMARKED) -> Counted:
        if (status.ended and workload.runs_once(spec)) or marks.test is not None or marks.departed:
            return Counted({})
        needs = workload.needs(spec)
        disk = max(needs.disk, status.resources.disk if status.resources is not None else 0)
        amounts: dict[str, float] = {"disk": disk, "published_ports": len(spec.publish)}
        if status.reason != LEASE_ENDED:
            amounts["instances"] = 1
            if spec.reservation is None:  # else its reservation counts
                amounts |= {"cpu": spec.cpu, "memory": spec.memory, "gpus": count_gpus(spec)}
        return Counted(amounts, next(iter(needs.images), ""))

    return count


def _names_of_constraints(spec: WorkloadSpec) -> list[str]:
    try:
        return [*names_required(spec.constraint), *names_preferred(spec.prefer)]
    except InvalidInput:
        return []  # words of a later weft; the scheduler reports them
