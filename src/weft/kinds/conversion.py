"""Conversion: a container continues as a VM, or a VM as a container: a new object on the same image takes over volumes, addresses
and published ports; the old one is kept, stopped, until people confirm. The conversions controller carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, note, text
from weft.kinds.parts.convert_verb import DEFAULT_TIMEOUT_SECONDS, KINDS, To
from weft.kinds.parts.goal import find_ended, reaches
from weft.kinds.parts.spec_conversion import refuse_untranslatable
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
)
from weft.objects.envelope import take_from_spec
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.identity import object_key
from weft.objects.schema import field

# Pending: not begun; Preparing: image and new object are created; Stopping: the old one stops; HandingOver: the new one has its
# volumes and addresses, the old place lets go; Undoing: all of that is reverted.
ConversionPhase = Literal[
    "Pending",
    "Preparing",
    "Stopping",
    "HandingOver",
    "Starting",
    "AwaitingConfirmation",
    "Undoing",
    "Confirmed",
    "Undone",
    "Failed",
]
ENDED = ("Confirmed", "Undone", "Failed")


class ConversionSpec(msgspec.Struct, kw_only=True):
    workload: Annotated[str, field("Workload to convert: container/NAME or vm/NAME, in this project", change="never")]
    to: Annotated[To, field("Kind to convert the workload to", change="never")]
    new_name: Annotated[
        str | None, field("Name of the new workload; the old one's if unset", change="never", name=True)
    ] = None
    memory: Annotated[
        int, field("Memory of the new workload; 0 lets weft choose", change="never", quantity="bytes")
    ] = 0
    disk: Annotated[
        int, field("Root disk of a new VM; 0 is the image's own size", change="never", quantity="bytes")
    ] = 0
    timeout_seconds: Annotated[
        float, field("Timeout until the new workload runs", change="never", quantity="duration")
    ] = DEFAULT_TIMEOUT_SECONDS
    confirm: Annotated[bool, field("Delete the old workload as soon as the new one runs")] = False


class ConversionActions(msgspec.Struct, kw_only=True):
    confirmed: Annotated[bool, field("Delete the old workload as soon as the new one runs")] = False
    undo: Annotated[bool, field("Go back to the old workload")] = False


class ConversionStatus(msgspec.Struct, kw_only=True):
    """Times are seconds since 1970."""

    phase: ConversionPhase = "Pending"
    new: str = ""  # ``vm/web``
    new_uid: str = ""  # uid of the new workload, once it exists
    old_uid: str = ""
    image: str = ""  # the Image of the VM's root disk
    made_image: bool = False  # the image was made for this conversion
    digest: str = ""  # digest of the container image, sha256:…
    was: Literal["", "run", "stop"] = ""  # ``run`` of the old workload's spec
    kept: dict[str, Any] | None = (
        None  # fields of the old workload's spec from before the hand-over; None before, and once it has them again
    )
    asked_at: float | None = None  # since when the old workload's node asks for its published TCP ports
    answered: list[int] | None = None  # those that answered before it stopped; None: not known yet
    left_out: list[str] = []  # what the new workload lacks
    ending: Literal["", "Undone", "Failed"] = ""  # the phase once everything is reverted
    reason: str = ""
    message: str = ""
    began_at: float | None = None
    stopped_at: float | None = None  # when the old workload stopped
    running_at: float | None = None  # when the new workload ran
    restarts: int = 0
    returned_at: float | None = None
    ended_at: float | None = None


def is_under_way(status: ConversionStatus) -> bool:
    return status.phase not in ENDED


def read_old(spec: ConversionSpec) -> tuple[str, str]:
    """Kind and name of what is converted."""
    kind, _, name = spec.workload.partition("/")
    return kind, name


def read_new(spec: ConversionSpec) -> tuple[str, str]:
    """Kind and name of what it becomes."""
    return spec.to, spec.new_name or read_old(spec)[1]


def check_conversion(spec: ConversionSpec) -> None:
    kind, name = read_old(spec)
    if kind not in KINDS or not name or "/" in name:
        raise InvalidInput(
            f"spec.workload: {spec.workload[:60]!r} names neither a container nor a VM",
            field="spec.workload",
            hint="write container/web or vm/web",
        )
    if spec.to == kind:
        hint = "weft convert container/web --to vm; for a container in a machine of its own, create it again with isolation vm"
        raise InvalidInput(f"spec.to: {spec.workload[:60]} is a {kind} already", field="spec.to", hint=hint)
    if spec.disk and spec.to != "vm":
        raise InvalidInput("spec.disk: a container has no root disk", field="spec.disk", hint="leave it out")
    if not 1 <= spec.timeout_seconds <= 86400:
        raise InvalidInput(
            f"spec.timeout_seconds: {spec.timeout_seconds:g} s is out of range",
            field="spec.timeout_seconds",
            hint="give 1s to 1d",
        )


def _confirm(obj: Object, _: Any) -> dict[str, Any]:
    phase, what = dig(obj, "status.phase", "Pending"), f"conversion/{obj['name']}"
    if phase != "Confirmed" and (phase in ENDED or phase == "Undoing" or dig(obj, "actions.undo")):
        raise IllegalTransition(
            f"{what} is being undone or has ended ({phase}): it can't be confirmed", hint="convert it again"
        )
    return {"confirmed": True}


def _undo(obj: Object, _: Any) -> dict[str, Any]:
    phase, what = dig(obj, "status.phase", "Pending"), f"conversion/{obj['name']}"
    if phase == "Confirmed":
        new = dig(obj, "status.new", "")
        back = dig(obj, "spec.workload", "").partition("/")[0]
        raise IllegalTransition(
            f"{what} is confirmed: the old workload is gone", hint=f"convert it back: weft convert {new} --to {back}"
        )
    return {"undo": True} if phase not in ENDED else {}


def _way(obj: Object) -> str:
    old, to = str(dig(obj, "spec.workload", "")), dig(obj, "spec.to", "")
    return f"{old} → {to}/{dig(obj, 'spec.new_name') or old.partition('/')[2]}"


def _pause(obj: Object) -> str:
    stopped, running = dig(obj, "status.stopped_at"), dig(obj, "status.running_at")
    return f"{running - stopped:.1f} s" if stopped and running else "–"


def _workloads(kind: str, spec: ConversionSpec) -> Sequence[str]:
    of_kind, name = read_old(spec)
    return [name] if of_kind == kind else []


def _agree(_: ConversionSpec, named: Mapping[str, Any]) -> None:
    for spec in named.values():
        refuse_untranslatable(spec)


CONVERSIONS_BY_WORKLOAD = Index("conversions by either workload")


def workload_keys(conversion: Stored) -> tuple[str, str]:
    """The keys of the workload that a Conversion converts, and of the new one."""
    spec, project = conversion.spec(ConversionSpec), conversion.envelope.project
    old, new = read_old(spec), read_new(spec)
    return object_key(old[0], project, old[1]), object_key(new[0], project, new[1])


CONVERSION = Kind(
    name="conversion",
    plural="conversions",
    title="conversion",
    summary="A conversion of a container to a VM, or of a VM to a container",
    spec=ConversionSpec,
    actions=ConversionActions,
    status=ConversionStatus,
    schema=2,
    upgrades=(take_from_spec(actions=ConversionActions),),
    indexes={CONVERSIONS_BY_WORKLOAD: workload_keys},
    references=tuple(
        Reference(kind, "spec.workload", partial(_workloads, kind), blocks=False, agree=_agree, agrees_once=True)
        for kind in KINDS
    ),
    verbs=(
        Verb("confirm", "Accept the new workload, and delete the old one", act=_confirm, needs="write"),
        Verb("undo", "Switch back to the old workload, and start it again", act=_undo, needs="write"),
    ),
    access=Access(readers="project", status_writer="conversions"),
    admission=Admission(check=check_conversion),
    display=Display(
        topic="Work and answers",
        columns=(
            NAME,
            Column("CONVERSION", _way),
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("PAUSE", _pause, align="right"),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
    lifetime=Lifetime(
        goals={
            "create": reaches("AwaitingConfirmation", "Confirmed", ends_refused=False),
            "confirm": reaches("Confirmed", ends_refused=False),
            "undo": reaches("Undone", ends_refused=False),
        },
        find_failure=find_ended(ENDED),
        operation=Operation(act="convert", cancel="undo", ended=ENDED),
        finalizers=("conversion",),
        history=History(
            index=CONVERSIONS_BY_WORKLOAD,
            word=lambda item: workload_keys(item)[0],
            has_ended=lambda item: not is_under_way(item.status(ConversionStatus)),
            ended_at=lambda item: item.status(ConversionStatus).ended_at,
        ),
    ),
)
