"""What one request adds to what the objects of a project count in its quota."""

from __future__ import annotations

from collections.abc import Mapping

from weft.api.state.counted_objects import Sum
from weft.kinds.quota import FIELDS


class Usage:
    """``sum`` is what the objects counted before, once that is needed."""

    def __init__(self) -> None:
        self.sum: Sum | None = None
        self.new: dict[str, Mapping[str, float]] = {}  # objects that the request makes, by key
        self._planned: dict[str, float] = dict.fromkeys(FIELDS, 0)
        self._more: dict[str, float] = dict.fromkeys(FIELDS, 0)  # only what it adds

    @property
    def total(self) -> Mapping[str, float]:
        """What the objects count once all of the request is carried out."""
        return self._beside_sum(self._planned)

    @property
    def bound(self) -> Mapping[str, float]:
        """At least what the objects count, whatever of the request is carried out."""
        return self._beside_sum(self._more)

    def add(self, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        """An object that counted ``before`` counts ``after`` from now on."""
        for name in FIELDS:
            change = after.get(name, 0) - before.get(name, 0)
            self._planned[name] += change
            self._more[name] += max(0, change)

    def _beside_sum(self, amounts: Mapping[str, float]) -> Mapping[str, float]:
        there = self.sum.total if self.sum is not None else {}
        return {name: there.get(name, 0) + amounts[name] for name in FIELDS}
