"""Choose which of a workload's allocations counts. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from weft.informer.view import Item, View
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationSpec


def active_allocation(view: View, workload_uid: str) -> Item | None:
    """The workload's active allocation."""
    return find_active(view.find(ALLOCATIONS_BY_WORKLOAD, workload_uid))


def find_active(allocations: Iterable[Item]) -> Item | None:
    """The active allocation of the highest incarnation."""
    active = [item for item in allocations if item.spec(AllocationSpec).role in ("active", "source")]
    return max(active, key=lambda item: item.spec(AllocationSpec).incarnation, default=None)
