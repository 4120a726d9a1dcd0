"""The verbs of a workload's lease: to extend it, and to end it early."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from weft.kinds.fields.cells import dig
from weft.kinds.fields.lease import LONGEST_SECONDS
from weft.kinds.record import Object, Verb
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.quantity import format_duration
from weft.objects.schema import field

_OVER = ("Done", "Rejected", "Cancelled")


class ExtendLeaseInput(msgspec.Struct, kw_only=True):
    by: Annotated[float, field("How much longer it has its place", quantity="period")]


def _read_lease(obj: Object, act: str) -> dict[str, Any]:
    """The lease in its spec. Raises IllegalTransition for one that is over."""
    what, lease = f"{obj['kind']}/{obj['name']}", obj["spec"].get("lease")
    if lease is None and (reservation := obj["spec"].get("reservation")):
        raise IllegalTransition(
            f"{what} is in reservation/{reservation} and ends with that: its lease can't be {act} alone",
            reason="noLease",
            hint=f"weft reservation extend {reservation} --by 30m" if act == "extended" else f"weft stop {what}",
        )
    if lease is None:
        raise IllegalTransition(
            f"{what} has no lease", reason="noLease", hint="weft lease list shows those that have one"
        )
    state = dig(obj, "status.lease.state", "Requested")
    if lease.get("cancelled"):
        state = "Cancelled"
    if state in _OVER:
        raise IllegalTransition(
            f"the lease of {what} is {state.lower()}: it can't be {act}",
            reason="leaseOver",
            hint=f"create another workload; {what} keeps its disks until it is deleted",
        )
    return dict(lease)


def _extend(obj: Object, given: ExtendLeaseInput) -> dict[str, Any]:
    lease, what = _read_lease(obj, "extended"), f"{obj['kind']}/{obj['name']}"
    if lease.get("duration") is None:
        raise IllegalTransition(f"the lease of {what} has no end", reason="noEnd", hint="there is nothing to extend")
    if given.by < 1.0:
        raise InvalidInput(
            f"by: {format_duration(given.by)} is less than a second", field="by", hint="give a duration like 30m"
        )
    if lease["duration"] + given.by > LONGEST_SECONDS:
        raise InvalidInput(
            f"by: {format_duration(given.by)} would make it {format_duration(lease['duration'] + given.by)} long",
            field="by",
            hint="give a duration like 30m; a lease lasts a year at most",
        )
    return {**obj["spec"], "lease": {**lease, "duration": lease["duration"] + given.by}}


def _cancel(obj: Object, _: Any) -> dict[str, Any]:
    return {**obj["spec"], "lease": {**_read_lease(obj, "cancelled"), "cancelled": True}}


LEASE_VERBS = (
    Verb(
        "extend-lease",
        "Give the workload its place for longer",
        input=ExtendLeaseInput,
        change=_extend,
        needs="write",
    ),
    Verb("cancel-lease", "End the workload's lease now; it keeps its disks", change=_cancel, needs="write"),
)
