"""Whether a workload's allocation still matches its spec, and when it may be updated in place. Pure.

The scheduler writes such changes, as only it knows the free capacity: those that a running machine can take at once, the others
together with a restart."""

from __future__ import annotations

from typing import Any

from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.parts.workload import WorkloadSpec
from weft.kinds.registry import BY_NAME, WORKLOADS
from weft.objects.quantity import format_bytes
from weft.objects.spec_change import FieldChange, plan_change


def plan_fit(place: AllocationSpec, spec: WorkloadSpec, report: AllocationReport) -> list[FieldChange]:
    """Changes that the allocation needs, and what each requires."""
    if is_as_asked(place, spec):
        return []
    has, asked = _compare(place, spec)
    return plan_change(has, asked, BY_NAME[place.workload.kind].spec, report.resize_limits)


def is_as_asked(place: AllocationSpec, spec: WorkloadSpec) -> bool:
    """Whether the allocation is what the spec requests: quick, since it mostly is."""
    has = place.resources
    return (
        has.cpu == spec.cpu
        and has.memory == spec.memory
        and len(place.nics) == len(spec.networks)
        and all(
            text in (nic.network, f"{nic.network}:{nic.address}")
            for nic, text in zip(place.nics, spec.networks, strict=True)
        )
        and WORKLOADS[place.workload.kind].is_same(place, spec)
    )


def find_fit(place: AllocationSpec, spec: WorkloadSpec, report: AllocationReport, starts: int) -> set[str]:
    """The fields of the allocation that follow the spec now: all, with a fresh start; while its machine runs
    those that it can take."""
    if spec.run != "run":
        return set()
    changes = plan_fit(place, spec, report)
    fresh = wants_fresh_start(place, spec, starts)
    return {field_of(change) for change in changes if fresh or (change.mode == "live" and place.desired == "run")}


def wants_fresh_start(place: AllocationSpec, spec: WorkloadSpec, starts: int) -> bool:
    """``starts``: the workload's counter of starts."""
    return spec.run == "run" and (place.desired == "stop" or starts > place.restart_generation)


def field_of(change: FieldChange) -> str:
    """The field of the spec that a change is of."""
    return change.path.partition(".")[2]


def describe_change(change: FieldChange) -> str:
    """``cpu 1 → 2``"""
    return f"{field_of(change)} {_show(change, change.old)} → {_show(change, change.new)}"


def _show(change: FieldChange, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if field_of(change) in ("memory", "disk"):
        return format_bytes(value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _compare(place: AllocationSpec, spec: WorkloadSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of the spec as an allocation has them and as the spec requests them; the same text where both agree."""
    has, asked = WORKLOADS[place.workload.kind].compare(place, spec)
    nics = [f"{nic.network}:{nic.address}" for nic in place.nics]
    plugged = dict(zip((nic.network for nic in place.nics), nics, strict=True))
    return (
        {"cpu": place.resources.cpu, "memory": place.resources.memory, **has, "networks": nics},
        {
            "cpu": spec.cpu,
            "memory": spec.memory,
            **asked,
            "networks": [plugged.get(text, text) for text in spec.networks],
        },
    )
