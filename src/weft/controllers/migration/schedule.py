"""A planned Migration's window, judged beside others planned for that time, and its forecast. Pure."""

from __future__ import annotations

import msgspec

from weft.controllers.allocation.active import active_allocation
from weft.informer.view import Item, View
from weft.insight.course import judge
from weft.kinds.allocation import AllocationSpec
from weft.kinds.migration import MigrationForecast, MigrationSpec, MigrationStatus, MigrationWindow, read_workload
from weft.kinds.profile import ProfileStatus, name_profile
from weft.objects.identity import object_key
from weft.transfer.history import foresee

_NAMED = 3  # most other migrations that a reason names


class Appointment(msgspec.Struct, frozen=True):
    """When a planned migration may be under way, and the nodes that it uses."""

    start: float
    end: float
    nodes: frozenset[str]

    def meets(self, other: Appointment) -> bool:
        return bool(self.nodes & other.nodes) and self.start < other.end and other.start < self.end


def read_appointment(item: Item) -> Appointment | None:
    """None for one that isn't planned for later."""
    status = item.status(MigrationStatus)
    return make_appointment(item.spec(MigrationSpec), status) if status.phase == "Planned" else None


def make_appointment(spec: MigrationSpec, status: MigrationStatus) -> Appointment:
    """Appointment from the earliest start to the forecast end; without a forecast it takes a second."""
    start = spec.not_before or 0.0
    latest = spec.not_after if spec.not_after is not None else start
    takes = status.forecast.duration_seconds if status.forecast is not None else None
    nodes = frozenset(name for name in (status.source, status.target) if name)
    return Appointment(start, latest + max(1.0, takes or 0.0), nodes)


def find_planned(view: View) -> list[str]:
    """The keys of all planned Migrations: the window of each depends on the others."""
    return [key for key, item in view.of_kind("migration").items() if read_appointment(item) is not None]


def judge_window(view: View, item: Item, status: MigrationStatus) -> MigrationWindow:
    """The window of ``item`` with the new ``status``."""
    spec = item.spec(MigrationSpec)
    window = MigrationWindow(start=spec.not_before or 0.0, end=spec.not_after)
    if not status.target:
        return msgspec.structs.replace(window, reason="no capacity is reserved")
    mine = make_appointment(spec, status)
    others = sorted(
        other.envelope.name
        for other in view.of_kind("migration").values()
        if other.uid != item.uid and (its := read_appointment(other)) is not None and mine.meets(its)
    )
    names = ", ".join(f"migration/{name}" for name in others[:_NAMED])
    names += f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    nodes = " and ".join(sorted(mine.nodes))
    reason = (
        f"also planned for {nodes} at that time: {names}"
        if others
        else f"nothing else is planned for {nodes} at that time"
    )
    quality = 1 / (1 + len(others))
    if spec.window == "auto":
        good, why = judge(_read_profile(view, item), window.start, window.end or window.start)
        quality, reason = quality * good, f"{why}; {reason}"
    return msgspec.structs.replace(window, quality=round(quality, 2), reason=reason)


def _read_profile(view: View, item: Item) -> ProfileStatus | None:
    kind, name = read_workload(item.spec(MigrationSpec))
    found = view.get(object_key("workloadprofile", item.envelope.project, name_profile(kind, name)))
    return found.status(ProfileStatus) if found is not None else None


def forecast_migration(view: View, item: Item, status: MigrationStatus) -> MigrationForecast | None:
    """The expected cost of ``item``; None while it has no source or no target."""
    spec = item.spec(MigrationSpec)
    kind, name = read_workload(spec)
    key = object_key(kind, item.envelope.project, name)
    workload = view.get(key)
    place = active_allocation(view, workload.uid) if workload is not None else None
    if place is None or not status.target or spec.mode == "storage":
        return None
    at = place.spec(AllocationSpec)
    return foresee(
        view,
        key,
        (at.node, status.target),
        mode=spec.mode,
        memory=at.resources.memory,
        bytes_per_second=spec.bytes_per_second,
    )
