"""Several policies as one: each policy's own score, which goes from 0 to 100, is a term with the strategy's weight.

Reads as much as the one of them that reads most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.contracts.policy import Column, Occasion, Policy, Reads, Request, Table

_CURIOSITY: tuple[Reads, ...] = ("facts", "row", "outlook", "fabric")


class Combined:
    """``parts``: policies and their weights, which come to 1."""

    def __init__(self, name: str, parts: Sequence[tuple[Policy, float]]) -> None:
        whole = sum(weight for _, weight in parts)
        self.name = name
        self.reads: Reads = max((policy.reads for policy, _ in parts), key=_CURIOSITY.index)
        self._parts = [(policy, weight / whole) for policy, weight in parts]

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        return [_join(policy, weight, policy.terms(table, request, occasion)) for policy, weight in self._parts]


def uses_outlook(policy: Policy) -> bool:
    """Whether it, or a part of it, uses the outlook."""
    parts = policy._parts if isinstance(policy, Combined) else []
    return policy.reads == "outlook" or any(uses_outlook(part) for part, _ in parts)


def _join(policy: Policy, weight: float, columns: Sequence[Column]) -> Column:
    """The score that ``columns`` make, as one column."""
    total = sum(column.weight for column in columns)
    values = np.zeros_like(columns[0].values)
    for column in columns:
        values = values + (column.weight / total) * column.values
    return Column(policy.name, round(weight, 6), values)
