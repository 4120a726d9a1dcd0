"""Values read or written lately, by key, as far as they fit: what hasn't been used for longest goes first."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")
D = TypeVar("D")
_ENTRY_BYTES = 300  # beside key and value: the objects that hold them


class Bounded(Generic[T]):
    """Bounded values: of all that is ``put``, about ``max_bytes``. ``dropped`` counts those that didn't fit."""

    def __init__(self, max_bytes: int) -> None:
        self.dropped = 0
        self._max_bytes = max_bytes
        self._kept: dict[str, tuple[T, int]] = {}
        self._bytes = 0

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def find(self, key: str, default: D) -> T | D:
        """Value put there last; it counts as used."""
        try:
            found = self._kept.pop(key)
        except KeyError:
            return default
        self._kept[key] = found
        return found[0]

    def put(self, key: str, value: T, size_bytes: int) -> None:
        """``size_bytes`` are the value's own."""
        size = _ENTRY_BYTES + 2 * len(key) + size_bytes
        if key in self._kept:
            self._bytes -= self._kept.pop(key)[1]
        self._kept[key] = value, size
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._bytes -= self._kept.pop(next(iter(self._kept)))[1]
            self.dropped += 1

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0
