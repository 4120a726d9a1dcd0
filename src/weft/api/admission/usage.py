"""What a project's objects count in its quota, as one request sees it."""

from __future__ import annotations

from collections.abc import Mapping

from weft.kinds.quota import add_up


class Usage:
    """What the objects of a project count together, as stored and as this request plans them."""

    def __init__(self, amounts: Mapping[str, Mapping[str, float]], image_sizes: Mapping[str, int]) -> None:
        self._amounts = dict(amounts)
        self.image_sizes = image_sizes
        self.total = add_up(amounts.values())

    def of(self, key: str) -> Mapping[str, float]:
        """What one object counts."""
        return self._amounts.get(key, {})

    def put(self, key: str, amounts: Mapping[str, float]) -> None:
        """The object at ``key`` counts this from now on."""
        taken = {name: -amount for name, amount in self.of(key).items()}
        self.total = add_up((self.total, taken, amounts))
        self._amounts[key] = amounts
