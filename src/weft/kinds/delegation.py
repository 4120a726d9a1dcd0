"""Delegation: a workload that a linked cluster runs for this one, like a site's own server. That cluster places, restarts and
watches it, also while the line between them is down; here are what it shall be and what was last heard of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.container import CONTAINER
from weft.kinds.fields.cells import AGE, NAME, dig, note, text
from weft.kinds.job import JOB
from weft.kinds.parts.goal import reaches, read_phase
from weft.kinds.record import Access, Admission, Column, Display, Index, Kind, Lifetime, Object, Reference, Verb
from weft.kinds.vm import VM
from weft.objects.errors import IllegalTransition, InvalidInput, TooLarge
from weft.objects.schema import field, read_strict, words

MOST_TEMPLATE_BYTES = 64 << 10
MOST_OF_CLUSTER = 1_000  # delegations that are sent to one cluster; further ones wait
WORKLOADS: Mapping[str, Kind] = {kind.name: kind for kind in (VM, CONTAINER, JOB)}
GONE = "Gone"


class DelegationSpec(msgspec.Struct, kw_only=True):
    cluster: Annotated[str, field("Linked cluster that runs the workload", change="never", name=True)]
    workload: Annotated[Literal["vm", "container", "job"], field("Its kind", change="never")]
    template: Annotated[
        dict[str, Any], field("Its spec, as its kind has it; names in it are objects of the other cluster")
    ]
    resends: Annotated[int, field("How often it was to be created there again; set by the server", ge=0)] = 0
    abandoned: Annotated[bool, field("What runs there is left alone; set by the server")] = False


class DelegationStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[
        str, words("Pending", "Starting", "Running", "Stopped", "Done", "Failed", GONE, "Unknown", "Deleting")
    ] = "Pending"
    begun: bool = False  # it may have been sent
    uid: str = ""  # of the workload there; "": it never was there
    accepted: int = 0  # generation of this object that the other cluster took last
    tried: int = 0  # generation that it last refused
    resent: int = 0  # ``spec.resends`` when it was last created
    phase_there: str = ""
    node: str = ""  # there
    address: str = ""
    reason: str = ""
    message: str = ""


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
    if dig(obj, "status.phase") != GONE:
        raise IllegalTransition(
            f"delegation/{obj['name']} is {dig(obj, 'status.phase') or 'Pending'}: it isn't gone there",
            hint="only a workload that the other cluster no longer has is created there again",
        )
    return {**obj["spec"], "resends": int(dig(obj, "spec.resends") or 0) + 1}


def _abandon(obj: Object, _: Any) -> dict[str, Any]:
    return {**obj["spec"], "abandoned": True}


def _is_up(obj: Object | None) -> bool:
    return (
        obj is not None
        and dig(obj, "status.accepted", 0) >= obj.get("generation", 0)
        and read_phase(obj) in ("Running", "Done", "Stopped")
    )


DELEGATIONS_BY_CLUSTER = Index("delegations by name of their cluster")
_RUNS = msgspec.structs.replace(reaches("Running"), reached=_is_up)

DELEGATION = Kind(
    name="delegation",
    plural="delegations",
    title="delegation",
    summary="Workloads that a linked cluster runs for this one",
    spec=DelegationSpec,
    status=DelegationStatus,
    indexes={DELEGATIONS_BY_CLUSTER: lambda item: (item.spec(DelegationSpec).cluster,)},
    references=(Reference("cluster", "spec.cluster", lambda spec: [spec.cluster], blocks=True),),
    verbs=(
        Verb(
            "resend", "Create it there again, after the other cluster lost or deleted it", change=_resend, needs="write"
        ),
        Verb(
            "abandon",
            "Leave what runs there alone from now on; deleting the delegation then leaves it there, too",
            change=_abandon,
            needs="write",
        ),
    ),
    access=Access(readers="project", status_writer="delegations"),
    admission=Admission(
        check=check_delegation, server_fields=("resends", "abandoned"), made_fields=("resends", "abandoned")
    ),
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
    lifetime=Lifetime(goals={"create": _RUNS, "resend": _RUNS}, finalizers=("delegation",)),
)
