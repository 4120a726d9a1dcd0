"""The verb ``convert`` of VMs and containers: what it takes, and the Conversion that it makes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.fields.cells import dig
from weft.kinds.record import Object, Verb
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import IllegalTransition
from weft.objects.identity import cut_name
from weft.objects.lifecycle import Phase, describe_phase
from weft.objects.schema import field

DEFAULT_TIMEOUT_SECONDS = 600.0
KINDS = ("vm", "container")
# A suspended workload would lose its memory; a lost one may still run somewhere.
_CAN = (Phase.RUNNING, Phase.BOOT, Phase.PROLOG, Phase.STOPPED, Phase.FAILED, Phase.PENDING, Phase.HOLD)

To = Literal["vm", "container"]


class ConvertInput(msgspec.Struct, kw_only=True):
    """Input of a conversion, as in ConversionSpec."""

    to: Annotated[To, field("Kind to convert the workload to")]
    new_name: Annotated[str | None, field("Name of the new workload; the old one's if unset", name=True)] = None
    memory: Annotated[int, field("Memory of the new workload; 0 lets weft choose", quantity="bytes")] = 0
    disk: Annotated[int, field("Root disk of a new VM; 0 is the image's own size", quantity="bytes")] = 0
    timeout_seconds: Annotated[float, field("Timeout until the new workload runs", quantity="duration")] = (
        DEFAULT_TIMEOUT_SECONDS
    )
    confirm: Annotated[bool, field("Delete the old workload as soon as the new one runs")] = False


def make_conversion(obj: Object, given: ConvertInput, mark: str) -> dict[str, Any]:
    """The manifest of the Conversion that the verb makes; ``mark`` makes its name unique. Raises IllegalTransition for a
    workload that can't be converted now."""
    name, phase = obj["name"], dig(obj, "status.phase", "Pending")
    what, migration = f"{obj['kind']}/{name}", dig(obj, "status.migration", "")
    refuse_converting(obj)
    refuse_fenced(obj)
    refuse_guarded(obj)
    if migration:
        raise IllegalTransition(
            f"{what} is migrating: migration/{migration}",
            reason="isMigrating",
            hint=f"weft wait migration/{migration}, or: weft migration cancel {migration}",
            details={"migration": migration},
        )
    if phase not in _CAN:
        raise IllegalTransition(
            f"{what} is {describe_phase(phase)}: it can't be converted",
            hint=f"weft stop {what}" if phase == Phase.SUSPENDED else "convert it while it runs or is stopped",
            details={"phase": str(phase), "verb": "convert"},
        )
    return {
        "kind": "conversion",
        "name": cut_name(name, f"-{mark}"),
        "spec": {**msgspec.to_builtins(given), "workload": what},
    }


def refuse_converting(obj: Object) -> None:
    """Raises IllegalTransition for both workloads of a Conversion under way: undoing it must stay possible."""
    under_way = dig(obj, "status.conversion", "")
    if under_way:
        raise IllegalTransition(
            f"{obj['kind']}/{obj['name']} {describe_role(obj)} conversion/{under_way}",
            reason="isConverting",
            hint=f"weft conversion confirm {under_way}, or: weft conversion undo {under_way}",
            details={"conversion": under_way},
        )


class _Converting(msgspec.Struct):
    """The fields of a workload's status about a Conversion."""

    conversion: str = ""
    converts_to: str = ""


def guard_converting(workload: Envelope) -> None:
    """``refuse_converting`` for a workload as it is stored."""
    status = decode_part(workload.status, _Converting)
    if status.conversion:
        refuse_converting({"kind": workload.kind, "name": workload.name, "status": msgspec.to_builtins(status)})


class _Arriving(msgspec.Struct):
    """The mark of a VM about a migration from another cluster."""

    arrives: str = ""


def guard_workload(workload: Envelope) -> None:
    """Raises IllegalTransition for a stored workload that people may neither change nor delete now: it is part of a Conversion, or
    on its way here from another cluster."""
    guard_converting(workload)
    if arrives := decode_part(workload.marks, _Arriving).arrives:
        raise describe_arrival(f"{workload.kind}/{workload.name}", arrives)


def describe_arrival(what: str, arrival: str) -> IllegalTransition:
    """The refusal for a VM that runs at another cluster still."""
    return IllegalTransition(
        f"{what} is on its way here from another cluster, and doesn't run here yet",
        reason="arrives",
        hint=f"weft wait arrival/{arrival}, or: weft arrival cancel {arrival}",
        details={"arrival": arrival},
    )


def describe_departure(what: str, where: str) -> IllegalTransition:
    """The refusal for what is left of a VM that migrated to another cluster: CLUSTER/PROJECT/NAME, or the cluster alone."""
    cluster, _, rest = where.partition("/")
    return IllegalTransition(
        f"{what} migrated to cluster {cluster}{rest and f', where it is {rest}'}: nothing of it is left here",
        reason="departed",
        hint="use it there; weft vm delete frees its name here",
        details={"departed": where},
    )


def refuse_departed(obj: Object) -> None:
    """Raises IllegalTransition for what is left of a VM that migrated to another cluster."""
    if where := dig(obj, "marks.departed", ""):
        raise describe_departure(f"{obj['kind']}/{obj['name']}", where)


def describe_fence(what: str, replication: str) -> IllegalTransition:
    """The refusal for a VM whose copy at another cluster is, or may be, the one that writes."""
    return IllegalTransition(
        f"{what} was left to another cluster by replication/{replication}: only one of both may run",
        reason="fenced",
        hint=f"weft describe replication/{replication} says where it is, and how it comes back",
        details={"replication": replication},
    )


def refuse_fenced(obj: Object) -> None:
    """Raises IllegalTransition for a VM that was left to another cluster, migrated there, or isn't here yet."""
    what = f"{obj['kind']}/{obj['name']}"
    if fenced := dig(obj, "marks.fenced", ""):
        raise describe_fence(what, fenced)
    refuse_departed(obj)
    if arrives := dig(obj, "marks.arrives", ""):
        raise describe_arrival(what, arrives)


def refuse_guarded(obj: Object) -> None:
    """Raises IllegalTransition for a VM whose replica may take over: what it became would run unguarded."""
    if dig(obj, "marks.guard", ""):
        raise IllegalTransition(
            f"{obj['kind']}/{obj['name']} has a replica that takes over automatically",
            reason="guarded",
            hint="pause its replication first: weft replication pause NAME",
        )


def refuse_replaced(obj: Object) -> None:
    """Raises IllegalTransition for the old workload of a Conversion, which has no volumes and addresses any more, and for a VM that
    was left to another cluster."""
    refuse_fenced(obj)
    if dig(obj, "status.converts_to", ""):
        refuse_converting(obj)


def describe_role(obj: Object) -> str:
    new = dig(obj, "status.converts_to", "")
    return f"is handed over to {new} by" if new else "is being made by"


CONVERT = Verb(
    "convert",
    "Convert a container to a VM, or a VM to a container",
    input=ConvertInput,
    make=make_conversion,
    needs="write",
)
