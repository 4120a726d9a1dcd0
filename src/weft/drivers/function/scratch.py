"""How much an instance may keep in /tmp."""

from __future__ import annotations

from weft.contracts.driver.function import Recipe


def bound_scratch(recipe: Recipe) -> int:
    """Pure. Bytes of /tmp, which lies in memory: at most half of what the function has, so that a full one doesn't end it."""
    return min(recipe.scratch, recipe.memory // 2)
