"""Delegation: a workload that a linked cluster runs for this one, like a site's own server. That cluster places, restarts and
watches it, also while the line between them is down; here are what it shall be and what was last heard of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.container import CONTAINER
from weft.kinds.fields.cells import AGE, NAME, dig, note, text
from weft.kinds.job import JOB
from weft.kinds.parts.goal import reaches, read_phase
from weft.kinds.parts.workload import leave_out_starts
from weft.kinds.record import Access, Admission, Column, Display, Goal, Index, Kind, Lifetime, Object, Reference, Verb
from weft.kinds.vm import VM
from weft.objects.envelope import take_from_spec
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, TooLarge, WeftError
from weft.objects.schema import field, read_strict, words

MOST_TEMPLATE_BYTES = 64 << 10
REFUSALS = NAME_TAKEN, REFUSED, RUNS_ALREADY = "nameTaken", "refused", "runsAlready"  # reasons that end the wait for it
WORKLOADS: Mapping[str, Kind] = {kind.name: kind for kind in (VM, CONTAINER, JOB)}
GONE = "Gone"


class DelegationSpec(msgspec.Struct, kw_only=True):
    cluster: Annotated[str, field("Linked cluster that runs the workload", change="never", name=True)]
    workload: Annotated[Literal["vm", "container", "job"], field("Its kind", change="never")]
    template: Annotated[
        dict[str, Any], field("Its spec, as its kind has it; names in it are objects of the other cluster")
    ]
    adopt: Annotated[
        bool, field("Take over what this cluster had created there under the name before, like what was abandoned")
    ] = False


class DelegationActions(msgspec.Struct, kw_only=True):
    resends: Annotated[int, field("Number of times re-creation there was requested", ge=0)] = 0
    abandoned: Annotated[bool, field("What runs there is left alone")] = False


class DelegationStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[
        str, words("Pending", "Starting", "Running", "Stopped", "Done", "Failed", GONE, "Unknown", "Deleting")
    ] = "Pending"
    begun: bool = False  # it may have been sent
    project: str = ""  # there, since it began
    uid: str = ""  # of the workload there; "": it never was there
    sent: str = ""  # mark of what the other cluster took last
    refused: str = ""  # mark of what it refused last
    resent: int = 0  # ``actions.resends`` when it was last created
    absent: bool = False  # it was there, and the other cluster no longer lists it
    ready: bool = False  # it is there as it was sent
    phase_there: str = ""
    node: str = ""  # there
    address: str = ""
    reason: str = ""
    message: str = ""


def mark_workload(labels: Mapping[str, str], template: Mapping[str, Any]) -> str:
    """The same for the same labels and template only."""
    return hashlib.sha256(msgspec.json.encode([labels, template], order="deterministic")).hexdigest()[:16]


def mark_attempt(labels: Mapping[str, str], spec: DelegationSpec) -> str:
    """The same for what would be refused again: with ``adopt`` it is another try."""
    return mark_workload(labels, spec.template) + ("+adopt" if spec.adopt else "")


def check_delegation(spec: DelegationSpec) -> None:
    """Raises InvalidInput for what this release knows to be wrong; the other cluster checks it again."""
    if len(msgspec.json.encode(spec.template)) > MOST_TEMPLATE_BYTES:
        raise TooLarge(
            f"spec.template is larger than {MOST_TEMPLATE_BYTES >> 10} KiB",
            field="spec.template",
            hint="put large files into the image",
        )
    kind = WORKLOADS[spec.workload]
    made = read_strict(dict(spec.template), kind.spec, "spec.template")
    if kind.admission.check is None:
        return
    try:
        kind.admission.check(made)
    except InvalidInput as problem:
        inner = problem.field or "spec"
        at = inner.replace("spec", "spec.template", 1)
        raise InvalidInput(
            problem.message.replace(inner, at, 1), reason=problem.token, field=at, hint=problem.hint
        ) from None


def _resend(obj: Object, _: Any) -> dict[str, Any]:
    if not dig(obj, "status.absent") and read_phase(obj) == "Unknown":
        raise IllegalTransition(
            f"delegation/{obj['name']} is Unknown: whether the other cluster still has it isn't known",
            hint="try again once that cluster answers: weft cluster list",
        )
    if not dig(obj, "status.absent"):
        raise IllegalTransition(
            f"delegation/{obj['name']} is {dig(obj, 'status.phase') or 'Pending'}: the other cluster still has it",
            hint="only a workload that the other cluster no longer has is created there again",
        )
    return {"resends": int(dig(obj, "actions.resends") or 0) + 1}


def _abandon(obj: Object, _: Any) -> dict[str, Any]:
    return {"abandoned": True}


def _mark(obj: Object) -> str:
    return mark_workload(obj.get("labels") or {}, dig(obj, "spec.template") or {})


def _attempt(obj: Object) -> str:
    return _mark(obj) + ("+adopt" if dig(obj, "spec.adopt") else "")


def _is_as_sent(obj: Object | None) -> bool:
    if obj is None or dig(obj, "status.resent", 0) < dig(obj, "actions.resends", 0):
        return False
    has_ended_well = dig(obj, "status.absent") and read_phase(obj) == "Done"
    return dig(obj, "status.sent") == _mark(obj) and bool(dig(obj, "status.ready") or has_ended_well)


def _is_left(obj: Object) -> bool:
    """Whether nothing more is sent for it: it is abandoned, or was there and isn't any more, and people haven't resent it."""
    lost = dig(obj, "status.absent") and dig(obj, "status.resent", 0) >= dig(obj, "actions.resends", 0)
    return bool(dig(obj, "actions.abandoned") or (lost and not _is_as_sent(obj)))


def _find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    """Failure of a delegation. A request that the other cluster refuses is repeated, but people see the refusal immediately."""
    mark, phase, reason = _mark(obj), read_phase(obj), dig(obj, "status.reason", "")
    refused = dig(obj, "status.refused") == _attempt(obj) and reason in REFUSALS
    failed = dig(obj, "status.sent") == mark and phase == "Failed" and not dig(obj, "status.absent")
    if not goal.ends_failed or not (refused or failed or _is_left(obj)):
        return None
    why = ": ".join(filter(None, [reason, dig(obj, "status.message", "")])) or "no reason given"
    return DriverFailed(
        f"{what} failed: {why}",
        reason=reason or None,
        hint=_ADOPT if reason == RUNS_ALREADY else f"weft describe {what}",
    )


_ADOPT = (
    "weft cluster delegate FILE --destination CLUSTER --adopt takes it over; or delete it there, or choose another name"
)
DELEGATIONS_BY_CLUSTER = Index("delegations by name of their cluster")
_RUNS = msgspec.structs.replace(reaches("Running"), reached=_is_as_sent)


def _upgrade_template(stored: dict[str, Any]) -> dict[str, Any]:
    """The upgrade of one whose template is as its workload's kind had its spec once. What was sent counts as sent."""
    spec, status, labels = dict(stored["spec"]), dict(stored.get("status") or {}), stored.get("labels") or {}
    made = {"spec": spec.get("template") or {}}
    for upgrade in WORKLOADS[spec["workload"]].upgrades:
        made = upgrade(made)
    template = leave_out_starts(made["spec"])
    for name in status.keys() & {"sent", "refused"}:
        before = mark_workload(labels, spec.get("template") or {})
        status[name] = status[name].replace(before, mark_workload(labels, template))
    return {**stored, "spec": {**spec, "template": template}, "status": status}


DELEGATION = Kind(
    name="delegation",
    plural="delegations",
    title="delegation",
    summary="Workloads that a linked cluster runs for this one",
    spec=DelegationSpec,
    actions=DelegationActions,
    status=DelegationStatus,
    schema=3,
    upgrades=(take_from_spec(actions=DelegationActions), _upgrade_template),
    indexes={DELEGATIONS_BY_CLUSTER: lambda item: (item.spec(DelegationSpec).cluster,)},
    references=(Reference("cluster", "spec.cluster", lambda spec: [spec.cluster], blocks=True),),
    verbs=(
        Verb("resend", "Create it there again, after the other cluster lost or deleted it", act=_resend, needs="write"),
        Verb(
            "abandon",
            "Leave what runs there alone from now on; deleting the delegation then leaves it there, too",
            act=_abandon,
            needs="write",
        ),
    ),
    access=Access(readers="project", status_writer="delegations"),
    admission=Admission(check=check_delegation),
    display=Display(
        topic="Clusters",
        columns=(
            NAME,
            Column("KIND", text("spec.workload")),
            Column("CLUSTER", text("spec.cluster")),
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("NODE", text("status.node")),
            Column("ADDRESS", text("status.address")),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(goals={"create": _RUNS, "resend": _RUNS}, find_failure=_find_failure, finalizers=("delegation",)),
)
