"""Logs that a program appends to, which nobody reads to their beginning: of one that has grown long, the end is kept."""

from __future__ import annotations

import os
from pathlib import Path


def keep_end(log: Path, kept_bytes: int) -> int:
    """How many bytes were dropped. What is written in this moment may be lost. Raises OSError."""
    with open(log, "a+b") as file:
        dropped = file.seek(-kept_bytes, os.SEEK_END)
        end = file.read(kept_bytes)
        file.truncate(0)
        file.write(end)
    return dropped
