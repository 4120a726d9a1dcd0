"""Tells one recipe of tiny from another, so that a cached bundle is built anew when its recipe has changed."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest_recipe() -> str:
    """SHA-256 (hex) over every source file of the recipe."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
