"""Subjects that have a profile: VMs, containers, functions, and nodes, which are the sum of their guests; and when each is due.
Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import msgspec

from weft.controllers.profile.series import CPU, INVOCATIONS, Series
from weft.informer.view import Item, View
from weft.informer.workloads import is_test, spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_NODE, AllocationSpec
from weft.kinds.node import NodeReport
from weft.kinds.profile import NODE_PROFILE, WORKLOAD_PROFILE, ProfileStatus, ProfileTimes, name_profile
from weft.kinds.registry import WORKLOADS
from weft.objects.identity import object_key

LEAST_AGE_SECONDS = 300.0  # of an object, before it gets a profile
LOOK_SECONDS, SEARCH_SECONDS = 3600.0, 86_400.0
LEAST_SEARCHED_SECONDS = 4 * 3600.0  # of history, before cycles are looked for
_AHEAD_SECONDS = 60.0  # so much may a profile's time be ahead; more: the clock went back


class Subject(msgspec.Struct, frozen=True):
    """``item``: the workload or node. ``profile``: its present one, None: it has none. ``full``: as much as it may use."""

    item: Item
    profile: Item | None
    full: float = 0.0
    resource: str = CPU
    guests: tuple[tuple[Series, float], ...] | None = None  # of a node, and since when each exists (unix seconds)

    @property
    def guests_mark(self) -> str:
        """Mark of the guests on a node; "": it isn't a node."""
        return "" if self.guests is None else mark_guests(self.guests)

    @property
    def status(self) -> ProfileStatus:
        return self.profile.status(ProfileStatus) if self.profile is not None else ProfileStatus()

    @property
    def times(self) -> ProfileTimes:
        """Times of the profile. All subjects are read for these only: thousands of whole statuses would stay in memory."""
        return self.profile.status(ProfileTimes) if self.profile is not None else ProfileTimes()

    @property
    def series(self) -> Series:
        envelope = self.item.envelope
        return Series(envelope.project or "", envelope.kind, envelope.name)

    @property
    def what(self) -> str:
        return f"{self.item.envelope.kind}/{self.item.envelope.name}"


def profile_key(item: Item) -> str:
    """Key of the profile of a workload or a node."""
    envelope = item.envelope
    kind = WORKLOAD_PROFILE if envelope.project else NODE_PROFILE
    return object_key(kind.name, envelope.project, name_profile(envelope.kind, envelope.name))


def list_due(view: View, now: float) -> list[Subject]:
    """Those to look at now, the longest waiting first."""
    due = [one for one in list_subjects(view, now) if is_due(one.times, now)]
    due.sort(key=lambda one: (one.times.looked_at, one.item.key))
    return due


def is_due(status: ProfileTimes, now: float) -> bool:
    """Once an hour; a young workload, when it is a quarter older; and after the clock went back."""
    pause = min(LOOK_SECONDS, max(LEAST_AGE_SECONDS, status.history_seconds / 4))
    return now - status.looked_at >= pause or status.looked_at > now + _AHEAD_SECONDS


def mark_guests(guests: tuple[tuple[Series, float], ...]) -> str:
    names = sorted(f"{one.project}/{one.kind}/{one.name}" for one, _ in guests)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def is_to_search(status: ProfileStatus, history_seconds: float, now: float, guests: str = "") -> bool:
    """Whether to look for cycles, class and correlations, too: once a day, when there is twice the history, after a change (which
    has ``cycles_looked_at`` be 0), and of a node when it has other ``guests``."""
    if history_seconds < LEAST_SEARCHED_SECONDS:
        return False
    if guests != status.guests:
        return True
    at = status.cycles_looked_at
    return not 0 <= now - at < SEARCH_SECONDS or history_seconds >= 2 * status.cycles_history_seconds


def list_subjects(view: View, now: float) -> Iterator[Subject]:
    """Tasks of jobs and machines that test backups have no profile: they are gone before anything is known of them."""
    for kind, workload in WORKLOADS.items():
        for item in view.of_kind(kind).values():
            spec = spec_of(item)
            if _is_old_enough(item, now) and not workload.runs_once(spec) and not is_test(item):
                yield Subject(item, _find_profile(view, item), spec.cpu)
    for item in view.of_kind("function").values():
        if _is_old_enough(item, now):
            yield Subject(item, _find_profile(view, item), resource=INVOCATIONS)
    for item in view.of_kind("node").values():
        if _is_old_enough(item, now):
            cores = item.report(NodeReport).cpu
            yield Subject(item, _find_profile(view, item), cores, guests=list_guests(view, item))


def list_guests(view: View, node: Item) -> tuple[tuple[Series, float], ...]:
    """The workloads that are on a node now: their past, wherever it was, is the node's future."""
    specs = (item.spec(AllocationSpec) for item in view.find(ALLOCATIONS_BY_NODE, node.uid))
    refs = {(spec.workload.project or "", spec.workload.kind, spec.workload.name) for spec in specs if _is_here(spec)}
    found = []
    for project, kind, name in sorted(refs):
        item = view.get(object_key(kind, project, name))
        if item is not None:
            found.append((Series(project, kind, name), item.envelope.created_at))
    return tuple(found)


def list_orphaned(view: View) -> Sequence[Item]:
    """Profiles of nodes that are gone; the others' go with their workloads."""
    nodes = {item.uid for item in view.of_kind("node").values()}
    profiles = view.of_kind(NODE_PROFILE.name).values()
    return [item for item in profiles if item.envelope.owner is None or item.envelope.owner.uid not in nodes]


def _is_here(spec: AllocationSpec) -> bool:
    return spec.role in ("active", "source") and spec.desired == "run"


def _is_old_enough(item: Item, now: float) -> bool:
    return not item.deleting and now - item.envelope.created_at >= LEAST_AGE_SECONDS


def _find_profile(view: View, item: Item) -> Item | None:
    """None also for that of an object that had the name before: it says nothing of this one."""
    found = view.get(profile_key(item))
    return found if found is not None and found.envelope.owner == item.envelope.ref else None
