"""A request's soft wants as terms of its score: preferences, affinity, anti-affinity, spread, data at hand. Pure.

A preference has its own weight; each of the others weighs as much as the whole strategy, so that it outweighs any difference in
load.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np

from weft.contracts.policy import Column, PreferenceTerm, Reads, Request, SoftTerm, Table
from weft.scheduler.constraint.affinity import count_members, find_texts, group_word
from weft.scheduler.constraint.near_device import NearDevice
from weft.scheduler.constraint.relax import Preferred
from weft.scheduler.constraint.talkers import NearTalkers
from weft.scheduler.table.facts import name_alarm

WEIGHT = 1.0
LAST_WEIGHT = 10.0


class SoftTerms:
    """The terms of one sort that a request has, each as a column; each has its own weight, or (``once``) all have one."""

    def __init__(
        self,
        name: str,
        what: Literal["near", "apart", "spread", "data"],
        reads: Reads,
        columns: Callable[[Table, Sequence[SoftTerm]], list[Column]],
        *,
        once: bool = False,
    ) -> None:
        self.name, self.reads = name, reads
        self._what, self._columns, self._once = what, columns, once

    def asks(self, request: Request) -> Hashable:
        return self._find(request) or None

    def weight(self, request: Request) -> float:
        return WEIGHT if self._once else WEIGHT * len(self._find(request))

    def terms(self, table: Table, request: Request) -> list[Column]:
        return self._columns(table, self._find(request))

    def _find(self, request: Request) -> tuple[SoftTerm, ...]:
        return tuple([term for term in request.leans if term.what == self._what]) if request.leans else ()


def _score_affinity(table: Table, terms: Sequence[SoftTerm]) -> list[Column]:
    """100 where a member is."""
    return [
        Column(f"affinity {group_word(term.name)}", WEIGHT, np.where(table.members(term.name) > 0, 100.0, 0.0))
        for term in terms
    ]


def _score_anti_affinity(table: Table, terms: Sequence[SoftTerm]) -> list[Column]:
    """100 where no member is, half of it where one is, and so on."""
    return [
        Column(f"anti-affinity {group_word(term.name)}", WEIGHT, 100.0 / (1 + table.members(term.name)))
        for term in terms
    ]


def _score_spread(table: Table, terms: Sequence[SoftTerm]) -> list[Column]:
    """100 where the fewest members are, 0 where the most are and where the label is missing."""
    columns = []
    for term in terms:
        values = np.zeros(len(table.names))
        texts = find_texts(table, term.key)
        if texts is not None:
            has = texts.codes >= 0
            here = count_members(table, term.name, texts)[texts.codes[has]]
            values[has] = 100.0 * (here.max() - here) / max(1, here.max() - here.min()) if here.any() else 100.0
        columns.append(Column(f"spread {term.key}", WEIGHT, values))
    return columns


def _score_data(table: Table, terms: Sequence[SoftTerm]) -> list[Column]:
    """100 where all of the data is, less for each that isn't."""
    held = np.sum([table.holds(term.name) for term in terms], axis=0)
    return [Column("data at hand", WEIGHT, 100.0 * held / len(terms))]


class Unalarmed:
    """100 where the pools for its new disks are below their alarms: the others come last, whatever the strategy says."""

    name = "pool alarm"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return request.alarmed_pools or None

    def weight(self, request: Request) -> float:
        return LAST_WEIGHT

    def terms(self, table: Table, request: Request) -> list[Column]:
        values = np.full(len(table.names), 100.0)
        for pool in request.alarmed_pools:
            texts = table.text(name_alarm(pool))
            if texts is not None:
                values[texts.codes >= 0] = 0.0
        return [Column("pool below its alarm", LAST_WEIGHT, values)]


PREFERENCES: tuple[PreferenceTerm, ...] = (
    Preferred(now=False),
    Preferred(now=True),
    SoftTerms("affinity", "near", "row", _score_affinity),
    SoftTerms("anti-affinity", "apart", "row", _score_anti_affinity),
    SoftTerms("spread", "spread", "fabric", _score_spread),
    SoftTerms("data", "data", "facts", _score_data, once=True),
    NearTalkers(),
    NearDevice(),
    Unalarmed(),
)
