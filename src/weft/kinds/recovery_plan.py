"""RecoveryPlan: in which order VMs that have replicas here are recovered, and what shows that they work.

People rehearse it in networks that lead nowhere, or fail over for real. The recovery plans controller makes the VMs, measures,
and removes what a rehearsal has made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, note, text
from weft.kinds.fields.recovery.check import MOST_CHECK, Check, read_check
from weft.kinds.fields.recovery.run import (
    FAILOVER,
    RECOVERED,
    REHEARSE,
    REHEARSED,
    Mode,
    RecoveryRun,
    RunResult,
    ask,
    find_run_failure,
)
from weft.kinds.fields.service.readiness import MOST_CHECKED
from weft.kinds.record import (
    Access,
    Admission,
    Column,
    Display,
    Index,
    Kind,
    Lifetime,
    Object,
    Reference,
    Stored,
    Verb,
    uid_of,
)
from weft.objects.envelope import take_from_spec
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name
from weft.objects.quantity import format_bytes, format_duration
from weft.objects.schema import field, words

MOST_GROUPS, MOST_MEMBERS, MOST_CHECKS = 20, 40, 80
MOST_SPEC_BYTES = 32 << 10  # of groups and checks: with a run of them and two results, an object has at most 256 KB
LEAST_DEADLINE, MOST_DEADLINE = 10.0, 86400.0
Group = Annotated[str, field("", max_length=4096, shown="word")]
CheckText = Annotated[str, field("", max_length=MOST_CHECK, shown="word")]


class RecoveryPlanSpec(msgspec.Struct, kw_only=True):
    groups: Annotated[
        list[Group],
        field(
            "Replicas in the order in which they are recovered: each entry is a group, REPLICA,…, and follows the one before"
        ),
    ] = []
    all: Annotated[bool, field("All other replicas of the project, too, as the last group")] = False
    checks: Annotated[
        list[CheckText],
        field(
            "What must pass before the next group: REPLICA=tcp:PORT, =http:PORT/PATH, or =command:COMMAND in the guest"
        ),
    ] = []
    deadline: Annotated[
        float, field("How long a run may take from its begin until its last check passed", quantity="period")
    ] = 600.0


class RecoveryPlanActions(msgspec.Struct, kw_only=True):
    run_generation: Annotated[int, field("Number of runs that were asked for")] = 0
    run_mode: Annotated[Mode, field("What the last of them does")] = "rehearse"
    force: Annotated[bool, field("Fail over even if the cluster of the VMs answers")] = False


class RecoveryPlanStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words("Pending", "Ready", "Rehearsing", "FailingOver", "Promoted", "Deleting")] = "Pending"
    run: RecoveryRun | None = None
    asked_at: float = 0.0  # when the last run was noticed, in seconds since 1970
    asked_generation: int = 0
    ended_generation: int = 0  # of the last run that is over, with nothing left of it
    rehearsal: RunResult | None = None  # the last one
    failover: RunResult | None = None
    reason: str = ""
    message: str = ""


def read_groups(spec: RecoveryPlanSpec) -> list[list[str]]:
    """The names of the replicas in each group. Raises InvalidInput."""
    found = []
    for at, written in enumerate(spec.groups):
        names = [check_name(name.strip(), f"spec.groups[{at}]") for name in written.split(",")]
        found.append(names)
    return found


def read_checks(spec: RecoveryPlanSpec) -> list[Check]:
    """Raises InvalidInput."""
    return [read_check(written, f"spec.checks[{at}]") for at, written in enumerate(spec.checks)]


def check_recovery_plan(spec: RecoveryPlanSpec) -> None:
    """Raises InvalidInput."""
    named = [name for group in read_groups(spec) for name in group]
    if not named and not spec.all:
        raise InvalidInput(
            "spec.groups: no replica is given",
            field="spec.groups",
            hint="give replicas in groups, or all: weft replica list",
        )
    if len(spec.groups) > MOST_GROUPS or len(named) > MOST_MEMBERS:
        raise InvalidInput(
            f"spec.groups: {len(named)} replicas in {len(spec.groups)} groups are too many",
            field="spec.groups",
            hint=f"at most {MOST_MEMBERS} in {MOST_GROUPS}; make several plans",
        )
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise InvalidInput(f"spec.groups: {twice} is given twice", field="spec.groups", hint="name each replica once")
    if len(spec.checks) > MOST_CHECKS:
        raise InvalidInput(
            f"spec.checks: {len(spec.checks)} are too many", field="spec.checks", hint=f"at most {MOST_CHECKS}"
        )
    if (size := len(msgspec.json.encode([spec.groups, spec.checks]))) > MOST_SPEC_BYTES:
        raise InvalidInput(
            f"spec.checks: groups and checks together have {format_bytes(size)}",
            field="spec.checks",
            hint=f"at most {format_bytes(MOST_SPEC_BYTES)}: put long commands into files of the guests, or make several plans",
        )
    checks = read_checks(spec)
    for name in {check.replica for check in checks}:
        if sum(check.replica == name for check in checks) > MOST_CHECKED:
            raise InvalidInput(
                f"spec.checks: {name} has too many", field="spec.checks", hint=f"at most {MOST_CHECKED} for one replica"
            )
    for at, check in enumerate(checks):
        if check.replica not in named and not spec.all:
            raise InvalidInput(
                f"spec.checks[{at}]: {check.replica} is in no group",
                field=f"spec.checks[{at}]",
                hint=f"the groups have: {', '.join(named)}",
            )
    if not LEAST_DEADLINE <= spec.deadline <= MOST_DEADLINE:
        raise InvalidInput(
            f"spec.deadline: {format_duration(spec.deadline)} is out of range",
            field="spec.deadline",
            hint=f"give {format_duration(LEAST_DEADLINE)} to {format_duration(MOST_DEADLINE)}",
        )


def _list_replicas(spec: RecoveryPlanSpec) -> Sequence[str]:
    named = [name for group in read_groups(spec) for name in group]
    return list(dict.fromkeys([*named, *(check.replica for check in read_checks(spec))]))


def _find_rights(old: RecoveryPlanSpec | None, new: RecoveryPlanSpec) -> Iterable[tuple[str, str]]:
    """A plan runs commands in guests: nobody can have it do what they can't do themselves."""
    if any(check.type == "command" for check in read_checks(new)) and (old is None or old.checks != new.checks):
        yield "vm:exec", "run a command in the VMs of a recovery plan"


class FailoverInput(msgspec.Struct, kw_only=True):
    force: Annotated[bool, field("Do it even if the cluster that the VMs run at answers")] = False


def _find_rights_of_failover(_: Object, __: FailoverInput) -> Iterable[tuple[str, str]]:
    """Rights to promote each of its replicas. What a rehearsal makes is weft's own."""
    yield "vm:create", "make the VMs of a recovery plan"
    yield "replica:promote", "promote the replicas of a recovery plan"


def _rehearse(obj: Object, _: Any) -> dict[str, Any]:
    return ask(obj, "rehearse")


def _fail_over(obj: Object, given: FailoverInput) -> dict[str, Any]:
    return ask(obj, "failover", force=given.force)


def _order(obj: Object) -> str:
    return " > ".join([*(dig(obj, "spec.groups") or []), *(["all"] if dig(obj, "spec.all") else [])])


def _figure(path: str) -> Any:
    def cell(obj: Object) -> str:
        seconds = dig(obj, path)
        return "–" if seconds is None else format_duration(round(seconds, 1))

    return cell


RECOVERY_PLANS_BY_SNAPSHOT = Index("recovery plans by uid of the snapshots that their run needs", reads_status=True)


def _list_snapshots(item: Stored) -> list[str]:
    run = item.status(RecoveryPlanStatus).run
    return [one.snapshot_uid for one in run.members if one.snapshot_uid] if run is not None else []


RECOVERY_PLANS_BY_UID = Index("recovery plans by uid")

RECOVERY_PLAN = Kind(
    name="recoveryplan",
    plural="recoveryplans",
    title="recovery plan",
    summary="The order in which VMs with replicas here are recovered, rehearsed and measured",
    spec=RecoveryPlanSpec,
    actions=RecoveryPlanActions,
    status=RecoveryPlanStatus,
    schema=2,
    upgrades=(take_from_spec(actions=RecoveryPlanActions),),
    indexes={RECOVERY_PLANS_BY_SNAPSHOT: _list_snapshots, RECOVERY_PLANS_BY_UID: uid_of},
    references=(Reference("replica", "spec.groups", _list_replicas, blocks=False),),
    verbs=(
        Verb(
            "rehearse",
            "Recover its VMs in networks that lead nowhere, check and measure, and remove them again",
            act=_rehearse,
            needs="operate",
        ),
        Verb(
            "failover",
            "Promote its replicas in order, and check that the VMs work",
            input=FailoverInput,
            act=_fail_over,
            rights=_find_rights_of_failover,
            needs="write",
        ),
    ),
    access=Access(readers="project", status_writer="recovery plans", further_rights_in_project=_find_rights),
    admission=Admission(
        check=check_recovery_plan,
    ),
    display=Display(
        topic="Clusters",
        aliases=("recovery",),
        columns=(
            NAME,
            Column("ORDER", _order, flexible=True),
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("REHEARSED", text("status.rehearsal.phase")),
            Column("RPO", _figure("status.rehearsal.rpo_seconds"), align="right"),
            Column("RTO", _figure("status.rehearsal.rto_seconds"), align="right"),
            Column("FAILOVER", text("status.failover.phase"), wide=True),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(
        goals={REHEARSE: REHEARSED, FAILOVER: RECOVERED},
        find_failure=find_run_failure,
        finalizers=("recoveryplan",),
    ),
)
