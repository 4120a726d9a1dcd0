"""Amounts in constraints and labels: ``32GB``, ``500m`` of a core, ``8``. Both are read alike, so that they compare. Pure."""

from __future__ import annotations

import math
import re

from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_bytes, format_cpu, parse_bytes

_LONGEST = 64
_PLAIN = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")
_THOUSANDTHS = re.compile(r"(\d+(?:\.\d*)?|\.\d+)m")
_SIZE = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)\s*[KMGTPkmgtp](?:[Ii]?[Bb])?|\d+[Bb]")
_CORES = ("cpu", "cpu.free")
_BYTES = ("memory", "memory.free", "disk", "disk.free", "gpu.memory")


def read_amount(text: str, attribute: str = "") -> float | None:
    """The number in ``text``, sizes in bytes, cores as such; None if it is no number."""
    if len(text) > _LONGEST:
        return None
    stripped = text.strip()
    if _PLAIN.fullmatch(stripped):
        value = float(stripped)
        return value if math.isfinite(value) else None
    if attribute in _CORES:
        match = _THOUSANDTHS.fullmatch(stripped)
        return float(match[1]) / 1000 if match else None
    if not _SIZE.fullmatch(stripped):
        return None
    try:
        return float(parse_bytes(stripped))
    except InvalidInput:
        return None  # more than any machine has


def show_amount(value: float, attribute: str, like: str = "") -> str:
    """``value`` as people read it: a size where the attribute is one, or where ``like`` is written as one."""
    if attribute in _CORES:
        return format_cpu(value)
    if attribute in _BYTES or _SIZE.fullmatch(like.strip()):
        return format_bytes(value)
    return f"{value:.15g}"
