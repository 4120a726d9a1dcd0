"""Amounts that the allocations of each project take of the cluster together, counted when somebody asks.

Until then it is only written down which allocations have changed: where one project alone has work that waits, nobody asks.
"""

from __future__ import annotations

from weft.contracts.policy import Amounts
from weft.informer.view import Item, View
from weft.kinds.allocation import (
    AllocationReport,
    AllocationSpec,
    account,
    has_ended_for_good,
    is_lease_over,
)
from weft.scheduler.table.facts import Load, amounts_of

SHARED = ("cpu", "memory", "gpus")  # the resources that projects share
Held = tuple[int, int, int]  # thousandths of a core, bytes of memory, thousandths of a GPU
NOTHING: Held = (0, 0, 0)
MOST_CHANGED = 10_000  # allocations; after more all of them are read


class ProjectUsage:
    """``note`` what changes; ``used`` is right after ``refresh``."""

    def __init__(self) -> None:
        self.used: dict[str, Held] = {}
        self._held: dict[str, tuple[str, Held]] = {}  # by key of the allocation
        self._changed: dict[str, None] = {}
        self._unread = True  # all of them

    def note(self, key: str) -> None:
        """An allocation has come, changed or gone."""
        if not self._unread:
            self._changed[key] = None
            if len(self._changed) > MOST_CHANGED:
                self.used, self._held, self._changed, self._unread = {}, {}, {}, True

    def assume(self, key: str, project: str, amounts: Amounts, load: Load) -> None:
        """Count an allocation that isn't stored yet, until it is noted."""
        if not self._unread:
            self._put(key, project, (amounts[0], amounts[1], sum(share for _, share in load.gpus)))

    def refresh(self, view: View) -> None:
        if self._unread:
            self._unread = False
            self._changed = dict.fromkeys(view.of_kind("allocation"))
        for key in self._changed:
            item = view.get(key)
            self._put(key, *(read_held(item) if item is not None else ("", NOTHING)))
        self._changed.clear()

    def _put(self, key: str, project: str, held: Held) -> None:
        owner, before = self._held.pop(key, (project, NOTHING))
        self._add(owner, before, -1)
        if held != NOTHING:
            self._held[key] = project, held
            self._add(project, held, 1)

    def _add(self, project: str, held: Held, sign: int) -> None:
        cpu, memory, gpus = self.used.get(project, NOTHING)
        now = cpu + sign * held[0], memory + sign * held[1], gpus + sign * held[2]
        if now == NOTHING:
            self.used.pop(project, None)
        else:
            self.used[project] = now


def read_held(allocation: Item) -> tuple[str, Held]:
    """Its project, and what it takes of its node; of one in a slot of a reservation the slot has taken it."""
    spec, report = allocation.spec(AllocationSpec), allocation.report(AllocationReport)
    cpu, memory, _ = amounts_of(account(spec, report))
    over = spec.slot is not None or has_ended_for_good(spec, report) or is_lease_over(spec, report)
    return spec.workload.project or "", (cpu, memory, 0 if over else sum(gpu.share for gpu in spec.gpus))
