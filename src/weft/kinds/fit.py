"""Whether a VM's place still is what the VM asks for, and when it may be changed to be. Pure.

The scheduler writes such changes, as it alone knows whether there is room: those that a running machine can take at once,
the others together with the wish for a fresh start.
"""

from __future__ import annotations

from typing import Any

from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.vm import VmSpec
from weft.objects.changes import FieldChange, plan_change
from weft.objects.quantity import format_bytes


def plan_fit(place: AllocationSpec, wish: VmSpec, report: AllocationReport) -> list[FieldChange]:
    """What would have to change of the place, and what that takes."""
    if is_as_asked(place, wish):
        return []
    return plan_change(_fields_of(place), _wished(place, wish), VmSpec, report.room)


def is_as_asked(place: AllocationSpec, wish: VmSpec) -> bool:
    """Whether the place is just what the VM asks for: the quick look at what mostly is so."""
    has = place.resources
    return (
        has.cpu == wish.cpu
        and has.memory == wish.memory
        and has.disk >= wish.disk
        and place.machine == wish.machine
        and place.cpu_wish == wish.cpu_model
        and place.firmware == wish.firmware
        and place.screen == wish.screen
        and (place.iso.name if place.iso else None) == wish.iso
        and len(place.nics) == len(wish.networks)
        and all(
            text in (nic.network, f"{nic.network}:{nic.address}")
            for nic, text in zip(place.nics, wish.networks, strict=True)
        )
        and [volume.name for volume in place.volumes] == wish.volumes
    )


def find_fit(place: AllocationSpec, wish: VmSpec, report: AllocationReport) -> set[str]:
    """The fields in which the place is to become what is asked for now: all, with a fresh start; while its machine runs
    those that it can take."""
    if wish.run != "run":
        return set()
    changes = plan_fit(place, wish, report)
    fresh = wants_fresh_start(place, wish)
    return {field_of(change) for change in changes if fresh or (change.mode == "live" and place.wish == "run")}


def wants_fresh_start(place: AllocationSpec, wish: VmSpec) -> bool:
    return wish.run == "run" and (place.wish == "stop" or wish.boots > place.boots)


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


def _fields_of(place: AllocationSpec) -> dict[str, Any]:
    """What a place has, as a VM's spec says it."""
    return {
        "cpu": place.resources.cpu,
        "memory": place.resources.memory,
        "disk": place.resources.disk,
        "machine": place.machine,
        "cpu_model": place.cpu_wish,
        "firmware": place.firmware,
        "screen": place.screen,
        "iso": place.iso.name if place.iso else None,
        "networks": [f"{nic.network}:{nic.address}" for nic in place.nics],
        "volumes": [volume.name for volume in place.volumes],
    }


def _wished(place: AllocationSpec, wish: VmSpec) -> dict[str, Any]:
    """What a VM asks for, in the same words where it has it already."""
    has = _fields_of(place)
    asked = {field: getattr(wish, field) for field in has}
    asked["disk"] = max(wish.disk, place.resources.disk)
    plugged = dict(zip((nic.network for nic in place.nics), has["networks"], strict=True))
    asked["networks"] = [plugged.get(text, text) for text in wish.networks]
    return asked
