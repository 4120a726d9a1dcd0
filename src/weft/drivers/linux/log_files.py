"""Logs that a program appends to: of a long one only the end is kept."""

from __future__ import annotations

import os
from pathlib import Path


def keep_end(log: Path, kept_bytes: int) -> int:
    """Returns how many bytes were dropped. Lines written at this moment may be lost. Raises OSError."""
    with open(log, "a+b") as file:
        dropped = file.seek(-kept_bytes, os.SEEK_END)
        end = file.read(kept_bytes)
        file.truncate(0)
        file.write(end)
    return dropped
