"""What one request adds to what the objects of a project count in its quota."""

from __future__ import annotations

from collections.abc import Mapping

from weft.api.state.counted_objects import Sum
from weft.kinds.quota import FIELDS, PROJECT

_Amounts = dict[str, dict[str, float]]  # by account and field


class Usage:
    """``sum`` is what the objects counted before, once that is needed."""

    def __init__(self) -> None:
        self.sum: Sum | None = None
        self.new: dict[
            str, tuple[str, Mapping[str, float]]
        ] = {}  # objects that the request makes, by key: user, amounts
        self._planned: _Amounts = {}
        self._more: _Amounts = {}  # only what it adds

    def find_total(self, account: str) -> Mapping[str, float]:
        """What the objects of an account count once all of the request is carried out."""
        return self._beside_sum(account, self._planned.get(account, {}))

    @property
    def bound(self) -> Mapping[str, Mapping[str, float]]:
        """At least what the objects count, by account, whatever of the request is carried out."""
        there = self.sum.total if self.sum is not None else {}
        return {**there, **{account: self._beside_sum(account, more) for account, more in self._more.items()}}

    def add(self, user: str, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        """An object that ``user`` created, and that counted ``before``, counts ``after`` from now on."""
        for account in {PROJECT, user}:
            planned = self._planned.setdefault(account, dict.fromkeys(FIELDS, 0))
            added = self._more.setdefault(account, dict.fromkeys(FIELDS, 0))
            for name in FIELDS:
                change = after.get(name, 0) - before.get(name, 0)
                planned[name] += change
                added[name] += max(0, change)

    def _beside_sum(self, account: str, amounts: Mapping[str, float]) -> Mapping[str, float]:
        there = self.sum.total.get(account, {}) if self.sum is not None else {}
        return {name: there.get(name, 0) + amounts.get(name, 0) for name in FIELDS}
