"""Soft constraints: what they add to a score, and when they are given up. Pure.

The strategy's score counts 1 and each preference its weight: the sum, divided by all weights, stays within 0–100. A preference is
given up while more of the fabric's scarcest resource is allocated than its priority bears: the lowest priority first, so that the
strategy alone decides where capacity is scarce.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import msgspec
import numpy as np

from weft.contracts.policy import RESOURCES, Column, Reads, Request, Table
from weft.language.tree import Preference, show_short
from weft.scheduler.constraint.match import find_meeting, reads_capacity

BEARS = (0.80, 0.90, 0.95)  # by priority 0, 1, 2; a higher one is never given up


class Pressure(msgspec.Struct, frozen=True):
    """The scarcest resource of all nodes that take workloads, and which share of it is allocated."""

    resource: str
    share: float


def measure_pressure(table: Table) -> Pressure:
    """How scarce capacity is."""
    open_ = table.online & ~table.cordoned
    found = Pressure("cpu", 0.0)
    for row, resource in enumerate(RESOURCES):
        capacity = int(table.capacity[row, open_].sum())
        if capacity:
            found = max(found, Pressure(resource, int(table.allocated[row, open_].sum()) / capacity), key=_share)
    free = table.gpu_free[open_]
    devices = int((free >= 0).sum())
    if devices:
        found = max(found, Pressure("gpu", 1.0 - int(np.maximum(free, 0).sum()) / (1000 * devices)), key=_share)
    return found


def relax(request: Request, table: Table) -> tuple[Request, tuple[str, ...]]:
    """The request without the preferences that are given up now, and a sentence on each of these."""
    if not request.preferences:
        return request, ()
    pressure = measure_pressure(table)
    given_up = find_given_up(request.preferences, pressure)
    if not given_up:
        return request, ()
    left = tuple(preference for preference in request.preferences if preference not in given_up)
    sentences = tuple(describe_given_up(preference, pressure) for preference in given_up)
    return msgspec.structs.replace(request, preferences=left), sentences


def find_given_up(preferences: Sequence[Preference], pressure: Pressure) -> list[Preference]:
    """Preferences given up at this pressure."""
    return [p for p in preferences if p.priority < len(BEARS) and pressure.share > BEARS[p.priority]]


def describe_given_up(preference: Preference, pressure: Pressure) -> str:
    """The sentence for the event and the decision."""
    return (
        f"preference {show_short(preference.expression)} was given up: {pressure.share:.0%} of the fabric's {pressure.resource} "
        f"is allocated, and priority {preference.priority} counts up to {BEARS[preference.priority]:.0%}"
    )


class Preferred:
    """100 where a preference is met: preferences on facts, or (``now``) on free capacity."""

    def __init__(self, *, now: bool) -> None:
        self.name = "free preference" if now else "preference"
        self.reads: Reads = "row" if now else "facts"
        self._now = now

    def asks(self, request: Request) -> Hashable:
        return self._mine(request) or None

    def weight(self, request: Request) -> float:
        return sum([preference.weight for preference in self._mine(request)])

    def terms(self, table: Table, request: Request) -> list[Column]:
        columns = []
        for preference in self._mine(request):
            met = find_meeting(preference.expression, table).astype(np.float64)
            columns.append(Column(show_short(preference.expression), preference.weight, 100.0 * met))
        return columns

    def _mine(self, request: Request) -> tuple[Preference, ...]:
        if not request.preferences:
            return ()
        return tuple([p for p in request.preferences if reads_capacity(p.expression) == self._now])


def _share(pressure: Pressure) -> float:
    return pressure.share
