"""What a request would rather have, as terms of its score: preferences, members near or apart, spread, data at hand. Pure.

A preference has its own weight; each of the others weighs as much as the whole strategy: what somebody names is worth a
node that is fuller by all there is.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

import numpy as np

from weft.contracts.policy import Column, PreferenceTerm, Reads, Request, SoftTerm, Table
from weft.scheduler.constraint.affinity import count_members, find_texts, group_word
from weft.scheduler.constraint.relax import Preferred

WEIGHT = 1.0


def _leans(request: Request, what: Literal["near", "apart", "spread", "data"]) -> tuple[SoftTerm, ...]:
    return tuple([lean for lean in request.leans if lean.what == what]) if request.leans else ()


class ToMembers:
    """100 where a member is."""

    name = "affinity"
    reads: Reads = "row"

    def asks(self, request: Request) -> Hashable:
        return _leans(request, "near") or None

    def weight(self, request: Request) -> float:
        return WEIGHT * len(_leans(request, "near"))

    def terms(self, table: Table, request: Request) -> list[Column]:
        return [
            Column(f"affinity {group_word(lean.name)}", WEIGHT, np.where(table.members(lean.name) > 0, 100.0, 0.0))
            for lean in _leans(request, "near")
        ]


class FromMembers:
    """100 where no member is, half of it where one is, and so on."""

    name = "anti-affinity"
    reads: Reads = "row"

    def asks(self, request: Request) -> Hashable:
        return _leans(request, "apart") or None

    def weight(self, request: Request) -> float:
        return WEIGHT * len(_leans(request, "apart"))

    def terms(self, table: Table, request: Request) -> list[Column]:
        return [
            Column(f"anti-affinity {group_word(lean.name)}", WEIGHT, 100.0 / (1 + table.members(lean.name)))
            for lean in _leans(request, "apart")
        ]


class Evenly:
    """100 where the fewest members are, 0 where the most are and where the label is missing."""

    name = "spread"
    reads: Reads = "fabric"

    def asks(self, request: Request) -> Hashable:
        return _leans(request, "spread") or None

    def weight(self, request: Request) -> float:
        return WEIGHT * len(_leans(request, "spread"))

    def terms(self, table: Table, request: Request) -> list[Column]:
        columns = []
        for lean in _leans(request, "spread"):
            values = np.zeros(len(table.names))
            texts = find_texts(table, lean.key)
            if texts is not None:
                has = texts.codes >= 0
                here = count_members(table, lean.name, texts)[texts.codes[has]]
                values[has] = 100.0 * (here.max() - here) / max(1, here.max() - here.min()) if here.any() else 100.0
            columns.append(Column(f"spread {lean.key}", WEIGHT, values))
        return columns


class ToData:
    """100 where all of the data is, less for each that isn't."""

    name = "data"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return _leans(request, "data") or None

    def weight(self, request: Request) -> float:
        return WEIGHT

    def terms(self, table: Table, request: Request) -> list[Column]:
        leans = _leans(request, "data")
        held = np.sum([table.holds(lean.name) for lean in leans], axis=0)
        return [Column("data at hand", WEIGHT, 100.0 * held / len(leans))]


PREFERENCES: tuple[PreferenceTerm, ...] = (
    Preferred(now=False),
    Preferred(now=True),
    ToMembers(),
    FromMembers(),
    Evenly(),
    ToData(),
)
