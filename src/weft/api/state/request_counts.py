"""How many requests were answered, and how long that took: for ``GET /metrics``."""

from __future__ import annotations

from collections import Counter

_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}  # a stranger's others count as one


class RequestCounts:
    def __init__(self) -> None:
        self.by_code: Counter[tuple[str, int]] = Counter()  # by method and status
        self.seconds = 0.0

    def add(self, method: str, status: int, seconds: float) -> None:
        self.by_code[method if method in _METHODS else "other", status] += 1
        self.seconds += seconds
