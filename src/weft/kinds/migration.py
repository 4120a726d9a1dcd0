"""Migration: a workload changes its node. People create one (``weft vm migrate``); the scheduler chooses the target, the
migrations controller carries it out, and its status shows progress and result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.fields.allocated_migration import PlannedMigration
from weft.kinds.fields.cells import AGE, NAME, dig, note, text
from weft.kinds.parts.convert_verb import refuse_fenced
from weft.kinds.parts.goal import find_ended, reaches
from weft.kinds.parts.migration.verb import DEFAULT_TIMEOUT_SECONDS, MIGRATION_MODES, Mode
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.record import (
    Access,
    Admission,
    Column,
    Display,
    History,
    Index,
    Kind,
    Lifetime,
    Object,
    Operation,
    Reference,
    Stored,
    Verb,
    uid_of,
)
from weft.objects.envelope import take_from_spec
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.identity import object_key
from weft.objects.quantity import format_time
from weft.objects.schema import field

# Proposed: it waits to be accepted; Planned: its time hasn't come; Pending: it has no target yet; Finishing: it runs at the target,
# and the source is cleared.
MigrationPhase = Literal[
    "Proposed",
    "Planned",
    "Pending",
    "Preparing",
    "Migrating",
    "Switching",
    "Finishing",
    "Succeeded",
    "Failed",
    "Cancelled",
]
ENDED = ("Succeeded", "Failed", "Cancelled")
NOT_ACCEPTED = "notAccepted"  # why a proposal ended that nobody accepted in time
HAS_LEFT = "hasLeft"  # why a plan ahead of a shortage ended whose workload isn't on the short node any more
WORKLOAD_DELETED = "workloadDeleted"
CLUSTER_UNREACHABLE = "clusterUnreachable"
ARRIVAL_MISSING = "arrivalMissing"  # the other cluster knows nothing of a guest that was handed over to it
KEPT_SECONDS = 7 * 86400.0  # ended ones, for forecasts
KEPT_OF_ONE = 20  # ended ones of one workload
MOST_TRIES = 3
FURTHEST_DAYS = 31  # from now to the window of a planned one: its capacity is held, by nobody used, until then
MIGRATED_ON = (
    "migratedOn"  # of one that a restored older store shows as under way, though the guest has arrived and left since
)


class MigrationSpec(msgspec.Struct, kw_only=True):
    workload: Annotated[str, field("Workload to migrate: KIND/NAME, in this project", change="never")]
    to: Annotated[str | None, field("Target node; the scheduler chooses one if unset", change="never", name=True)] = (
        None
    )
    cluster: Annotated[
        str | None, field("Linked cluster to migrate to, which chooses the node there", change="never", name=True)
    ] = None
    mode: Annotated[
        Mode,
        field(
            "live: without a shutdown, a container from its saved state; cold: shut down, and started on the target; "
            "best: live if the container can; saved: a suspended VM, with its memory; "
            "storage: relocate a disk to another pool of the node",
            change="never",
        ),
    ] = "live"
    pool: Annotated[str | None, field("Target pool of the disk (storage)", change="never", name=True)] = None
    volume: Annotated[
        str | None, field("Volume to relocate; the root disk if unset (storage)", change="never", name=True)
    ] = None
    timeout_seconds: Annotated[
        float, field("Timeout, after which the migration is abandoned", change="never", quantity="duration")
    ] = DEFAULT_TIMEOUT_SECONDS
    bytes_per_second: Annotated[
        int, field("Limit on the transfer rate, per second; 0 means no limit", change="never", quantity="bytes", ge=0)
    ] = 0
    pause_ms: Annotated[int, field("Longest downtime to aim for, in milliseconds", change="never", ge=1, le=60_000)] = (
        300
    )
    not_before: Annotated[
        float | None,
        field("Earliest start; immediately if unset", change="never", quantity="moment"),
    ] = None
    not_after: Annotated[float | None, field("Latest start", change="never", quantity="moment")] = None
    window: Annotated[
        Literal["", "auto"],
        field(
            "auto: that time was chosen because its workload does least then, which its quality says", change="never"
        ),
    ] = ""
    reason: Annotated[str, field("Reason, for people", change="live", max_length=200)] = ""


class MigrationActions(msgspec.Struct, kw_only=True):
    cancel: Annotated[bool, field("Abort the migration")] = False
    reclaim: Annotated[bool, field("Let the VM go on here, since people say that it runs nowhere else")] = False


class MigrationMarks(msgspec.Struct, kw_only=True):
    proposed: Annotated[bool, field("Wait until it is accepted")] = False
    ahead: Annotated[
        str, field("Node of whose shortage weft plans it ahead; empty: it is planned for another reason")
    ] = ""


class MigrationArrival(msgspec.Struct, kw_only=True, frozen=True):
    """The Arrival at the other cluster, of a migration between clusters."""

    name: str
    project: str  # there
    uid: str = ""  # "": it may have been asked for, and nobody has seen it
    cluster_uid: str = (
        ""  # of that cluster: another one that has its name since isn't asked; "": an older release noted none
    )
    settled: bool = False  # nothing of it is left there that is of use


class MigrationProgress(msgspec.Struct, kw_only=True, frozen=True):
    """How far it is."""

    sent_bytes: int = 0  # on the wire
    total_bytes: int = 0  # of the machine's memory
    remaining_bytes: int = 0  # of the machine's memory
    passes: int = 0
    bytes_per_second: int = 0
    dirty_bytes_per_second: int = 0


MOST_SAMPLES = 64


class MigrationSample(msgspec.Struct, kw_only=True, frozen=True):
    """How far it was, so long after it began."""

    elapsed_ms: int
    sent_bytes: int = 0
    remaining_bytes: int = 0
    passes: int = 0
    bytes_per_second: int = 0
    dirty_bytes_per_second: int = 0


class MigrationActual(msgspec.Struct, kw_only=True, frozen=True):
    duration_seconds: float = 0.0
    pause_ms: int = 0
    bytes: int = 0
    passes: int = 0


class MigrationError(msgspec.Struct, kw_only=True, frozen=True):
    """How far the plan was off, in percent of what came true."""

    duration: float = 0.0
    pause: float = 0.0
    bytes: float = 0.0


class MigrationForecast(msgspec.Struct, kw_only=True, frozen=True):
    """Forecast of a migration before anything was measured, from earlier ones; None: unknown."""

    mode: str = ""  # mode of the last migration
    duration_seconds: float | None = None
    pause_ms: int | None = None
    bytes: int | None = None
    confidence: float = 0.0
    basis: str = ""  # what the forecast rests on, in words


class MigrationWindow(msgspec.Struct, kw_only=True, frozen=True):
    """When a planned migration may begin, in seconds since 1970."""

    start: float
    end: float | None = None  # None: open end
    # 1/n if n migrations are planned for the same nodes then; 0 without a reservation. Of a window that weft chose, times how much
    # less than usual its workload does then.
    quality: float = 0.0
    reason: str = ""  # reason of the quality


class MigrationStatus(msgspec.Struct, kw_only=True):
    phase: MigrationPhase = "Pending"
    source: str = ""  # source node
    target: str = ""  # target node; while planned, with a reservation
    plan: PlannedMigration | None = None
    progress: MigrationProgress | None = None
    samples: tuple[
        MigrationSample, ...
    ] = ()  # of this try, in order: at most MOST_SAMPLES, further apart in a long migration
    actual: MigrationActual | None = None
    error: MigrationError | None = None
    reason: str = ""
    message: str = ""
    ending: Literal["", "Failed", "Cancelled", "Retry"] = (
        ""  # the phase once both ends are clear again; "": it goes on; Retry: it is tried again
    )
    window: MigrationWindow | None = None  # when a planned migration begins
    forecast: MigrationForecast | None = None  # of a planned migration, until ``plan`` is measured
    reservation_lost: str = ""  # why an earlier reservation was lost
    tries: int = 0
    avoid: tuple[str, ...] = ()  # nodes where a try has failed: the next try prefers another
    troubled_at: float | None = None  # since when the target can't get ready
    handed_over_at: float | None = None  # when the source was first reported to have stopped for good
    started_at: float | None = None
    ended_at: float | None = None
    arrival: MigrationArrival | None = None  # of a migration to another cluster


def migration_key(uid: str, tries: int) -> str:
    """The key of a Migration's try with this number, so that leftovers of an earlier try are not taken for it."""
    return uid if tries <= 1 else f"{uid}.{tries}"


AHEAD_LABEL = "ahead"  # of Migrations, and the questions about them, ahead of a shortage: the node that will be short
GROUP_LABEL = "group"  # of Migrations that go together: one digest


def name_plan_phase(obj: Object) -> str:
    """How far a migration that was planned for later is. Waiting: no capacity is reserved for it yet."""
    phase = dig(obj, "status.phase", "Pending")
    if phase == "Planned" or (phase == "Pending" and dig(obj, "status.started_at") is None):
        return "Reserved" if dig(obj, "status.reason") == "reservationHeld" else "Waiting"
    return {"Succeeded": "Done", "Failed": "Failed", "Cancelled": "Cancelled", "Proposed": "Proposed"}.get(
        phase, "Running"
    )


def is_under_way(spec: MigrationSpec, status: MigrationStatus) -> bool:
    """Whether it has begun and not ended; one that is only planned keeps no other from migrating the workload."""
    return status.phase not in ENDED and (status.started_at is not None or spec.not_before is None)


def is_settled(status: MigrationStatus) -> bool:
    """Whether it has ended, and nothing is left to say to another cluster."""
    return status.phase in ENDED and (status.arrival is None or status.arrival.settled)


def read_workload(spec: MigrationSpec) -> tuple[str, str]:
    """Kind and name of the workload that migrates."""
    kind, _, name = spec.workload.partition("/")
    return kind, name


def stands_still(spec: MigrationSpec) -> bool:
    """Whether its workload stands still while it migrates, as all but live machines do."""
    return spec.mode in ("cold", "saved") or (spec.mode != "storage" and read_workload(spec)[0] == "container")


def check_migration(spec: MigrationSpec) -> None:
    kind, name = read_workload(spec)
    if kind not in MIGRATION_MODES or not name or "/" in name:
        raise InvalidInput(
            f"spec.workload: {spec.workload[:60]!r} is not a workload that can migrate",
            field="spec.workload",
            hint="write vm/web or container/web",
        )
    if spec.mode not in MIGRATION_MODES[kind]:
        raise InvalidInput(
            f"spec.mode: a {kind} doesn't support mode {spec.mode}",
            field="spec.mode",
            hint=f"one of {', '.join(MIGRATION_MODES[kind])}",
        )
    if (spec.mode == "storage") != (spec.pool is not None) or (spec.volume is not None and spec.mode != "storage"):
        raise InvalidInput(
            "spec.pool: mode storage needs a pool; no other mode takes a pool or a volume",
            field="spec.pool",
            hint="weft vm migrate web --storage --pool fast",
        )
    if spec.mode == "storage" and spec.to is not None:
        raise InvalidInput(
            "spec.to: mode storage relocates a disk within its node", field="spec.to", hint="leave spec.to out"
        )
    if spec.cluster is not None:
        _check_departure(spec, kind)
    if not 1 <= spec.timeout_seconds <= 86400:
        raise InvalidInput(
            f"spec.timeout_seconds: {spec.timeout_seconds:g} s is out of range",
            field="spec.timeout_seconds",
            hint="give 1s to 1d",
        )
    if spec.window and spec.not_before is None:
        raise InvalidInput(
            "spec.not_before: a window needs its earliest start",
            field="spec.not_before",
            hint="weft migration plan vm/web --window auto",
        )
    if spec.not_after is not None and spec.not_after <= (spec.not_before or 0.0):
        raise InvalidInput(
            "spec.not_after: not later than the earliest start",
            field="spec.not_after",
            hint="give a time after not_before",
        )


def _check_departure(spec: MigrationSpec, kind: str) -> None:
    """Raises InvalidInput for what can't migrate to another cluster."""
    if spec.to is not None:
        raise InvalidInput(
            "spec.to: the other cluster chooses its node", field="spec.to", hint="leave spec.to or spec.cluster out"
        )
    if kind != "vm" or spec.mode != "live":
        raise InvalidInput(
            "spec.cluster: only a VM that runs migrates to another cluster, with mode live",
            field="spec.cluster",
            hint="weft vm migrate web --to-cluster west",
        )
    if spec.not_before is not None or spec.not_after is not None:
        raise InvalidInput(
            "spec.not_before: a migration to another cluster begins immediately",
            field="spec.not_before",
            hint="leave the time out",
        )


def check_window(spec: MigrationSpec, now: float) -> None:
    """Raises InvalidInput for a window that is too far from ``now``."""
    for name, moment in (("not_before", spec.not_before), ("not_after", spec.not_after)):
        if moment is not None and moment > now + FURTHEST_DAYS * 86_400.0:
            raise InvalidInput(
                f"spec.{name}: {format_time(moment)} is more than {FURTHEST_DAYS} days ahead, and capacity is reserved until then",
                field=f"spec.{name}",
                hint="plan it nearer to its time",
            )


def _cancel(obj: Object, _: Any) -> dict[str, Any]:
    phase = dig(obj, "status.phase", "Pending")
    what = f"migration/{obj['name']}"
    if phase in ENDED and not dig(obj, "actions.cancel"):
        raise IllegalTransition(f"{what} has ended ({phase}): it can't be cancelled")
    if phase == "Finishing":
        raise IllegalTransition(
            f"{what} can't be cancelled any more: {dig(obj, 'spec.workload', 'the workload')} runs on {dig(obj, 'status.target')}",
            hint=f"migrate it back: weft migrate {dig(obj, 'spec.workload', '')}",
        )
    return {"cancel": True}


def _reclaim(obj: Object, _: Any) -> dict[str, Any]:
    what = f"migration/{obj['name']}"
    unheard = dig(obj, "status.reason") == CLUSTER_UNREACHABLE or bool(dig(obj, "status.ending", ""))
    waits = bool(dig(obj, "status.handed_over_at")) and dig(obj, "status.phase") not in (*ENDED, "Finishing")
    if dig(obj, "status.reason") != ARRIVAL_MISSING and not (unheard and waits):
        raise IllegalTransition(
            f"{what}: nothing is missing: either cluster says where {dig(obj, 'spec.workload')} runs, or will",
            hint=f"weft migration describe {obj['name']}",
        )
    return {"reclaim": True}


def _accept(obj: Object, _: Any) -> dict[str, Any]:
    if not dig(obj, "marks.proposed") or dig(obj, "status.phase", "Proposed") != "Proposed":
        raise IllegalTransition(
            f"migration/{obj['name']} is not proposed any more: it is {dig(obj, 'status.phase', 'Pending')}",
            hint="weft migration plans",
        )
    return {"proposed": False}


def _from_to(obj: Object) -> str:
    source, target = dig(obj, "status.source", ""), dig(obj, "status.target", "") or dig(obj, "spec.to", "")
    target = target or dig(obj, "spec.cluster", "")
    return f"{source or '–'} → {target or '?'}"


def _pause(obj: Object) -> str:
    pause = dig(obj, "status.actual.pause_ms")
    return f"{pause} ms" if pause else "–"


def describe_window(window: Mapping[str, Any]) -> str:
    """``2026-12-24 22:00–22:30 UTC``"""
    start, end = datetime.fromtimestamp(window["start"], UTC), window.get("end")
    if end is None:
        return f"{start:%Y-%m-%d %H:%M} UTC"
    until = datetime.fromtimestamp(end, UTC)
    day = "" if until.date() == start.date() else f"{until:%Y-%m-%d} "
    return f"{start:%Y-%m-%d %H:%M}–{day}{until:%H:%M} UTC"


def _note(obj: Object) -> str:
    window = dig(obj, "status.window")
    if window and dig(obj, "status.phase") in ("Planned", "Proposed"):
        return f"{describe_window(window)}: {dig(obj, 'status.message', '')}"
    return note(obj)


def _workloads(kind: str, spec: MigrationSpec) -> Sequence[str]:
    of_kind, name = read_workload(spec)
    return [name] if of_kind == kind else []


def _refuse_absent(_: MigrationSpec, name: str, vm: WorkloadMarks) -> None:
    """Raises IllegalTransition for a VM that runs, or may run, at another cluster."""
    refuse_fenced({"kind": "vm", "name": name, "marks": msgspec.to_builtins(vm)})


MIGRATIONS_BY_UID = Index("migrations by uid")
MIGRATIONS_BY_WORKLOAD = Index("migrations by workload")
MIGRATIONS_AHEAD = Index("migrations ahead of a node's shortage")
ANY_CLUSTER = "*"
DEPARTURES = Index("migrations to other clusters that want something of these, by cluster", reads_status=True)


def workload_key(migration: Stored) -> str:
    """The key of the workload that a Migration migrates."""
    kind, name = read_workload(migration.spec(MigrationSpec))
    return object_key(kind, migration.envelope.project, name)


def _list_asked(migration: Stored) -> Sequence[str]:
    """The cluster that a migration goes to, and ANY_CLUSTER, until nothing is left to say to that."""
    cluster = migration.spec(MigrationSpec).cluster
    return (cluster, ANY_CLUSTER) if cluster and not is_settled(migration.status(MigrationStatus)) else ()


def list_short_nodes(migration: Stored) -> Sequence[str]:
    """The node of whose shortage weft planned a Migration ahead, if it did."""
    node = migration.marks(MigrationMarks).ahead
    return (node,) if node else ()


MIGRATION = Kind(
    name="migration",
    plural="migrations",
    title="migration",
    summary="A migration of a workload to another node",
    spec=MigrationSpec,
    actions=MigrationActions,
    marks=MigrationMarks,
    status=MigrationStatus,
    schema=2,
    upgrades=(take_from_spec(actions=MigrationActions, marks=MigrationMarks),),
    indexes={
        MIGRATIONS_BY_UID: uid_of,
        MIGRATIONS_BY_WORKLOAD: lambda item: (workload_key(item),),
        MIGRATIONS_AHEAD: list_short_nodes,
        DEPARTURES: _list_asked,
    },
    references=(
        *(
            Reference(
                *(kind, "spec.workload", partial(_workloads, kind)),
                blocks=False,
                bars=_refuse_absent if kind == "vm" else None,
            )
            for kind in MIGRATION_MODES
        ),
        Reference("node", "spec.to", lambda s: [s.to] if s.to else [], blocks=False),
        Reference("cluster", "spec.cluster", lambda s: [s.cluster] if s.cluster else [], blocks=False),
    ),
    verbs=(
        Verb("accept", "Carry out a migration that was proposed", act=_accept, needs="operate"),
        Verb("cancel", "Abort the migration; the workload stays where it is", act=_cancel, needs="operate"),
        Verb(
            "reclaim",
            "Let a VM go on here that was handed over to a cluster which knows nothing of it any more, or is lost",
            act=_reclaim,
            needs="write",
            while_deleted=True,
        ),
    ),
    access=Access(
        readers="project",
        status_writer="migrations",
        condition_writers={"Placed": "scheduler"},
        mark_writers={
            "cancel": (":cancel", "drain", "plans ahead", "rebalance"),
            "proposed": (":accept", "plans ahead"),
            "ahead": ("plans ahead",),
        },
    ),
    admission=Admission(
        check=check_migration,
        check_times=check_window,
    ),
    display=Display(
        topic="Work and answers",
        columns=(
            NAME,
            Column("WORKLOAD", text("spec.workload")),
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("NODES", _from_to),
            Column("MODE", text("status.plan.mode", "–")),
            Column("DOWNTIME", _pause, align="right"),
            Column("TRIES", text("status.tries", "0"), align="right", wide=True),
            AGE,
            Column("NOTE", _note, flexible=True),
        ),
    ),
    lifetime=Lifetime(
        goals={
            "create": reaches("Succeeded", ends_refused=False),
            "cancel": reaches("Cancelled", ends_refused=False),
        },
        find_failure=find_ended(ENDED),
        operation=Operation(
            act="migrate", cancel="cancel", ended=ENDED, subject="spec.workload", started="status.started_at"
        ),
        finalizers=("migration",),
        history=History(
            index=MIGRATIONS_BY_WORKLOAD,
            word=workload_key,
            has_ended=lambda item: is_settled(item.status(MigrationStatus)),
            ended_at=lambda item: item.status(MigrationStatus).ended_at,
        ),
    ),
)
