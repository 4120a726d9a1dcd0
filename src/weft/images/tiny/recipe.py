"""Identifies a recipe of tiny, so that a cached bundle is built anew when its recipe has changed."""

from __future__ import annotations

from pathlib import Path

from weft.images import parts


def digest_recipe() -> str:
    """SHA-256 (hex) over every source file of the recipe."""
    return parts.digest_recipe(Path(__file__).parent)
