"""Tells a node at once that its next report would be answered with other orders than the last: a line in its watch of allocations.

Woken by the caches of orders, in this process: a node's watch and its report reach the same one. A ring that is lost costs the time
until the next heartbeat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NodeBells:
    """Listeners for a node, by the node's uid."""

    def __init__(self) -> None:
        self._listening: dict[str, dict[object, Callable[[], None]]] = {}

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self._listening)

    def listen(self, node_uid: str, ring: Callable[[], None]) -> Callable[[], None]:
        """Call ``ring`` for each change of the node's orders, until what is returned is called."""
        mark = object()
        self._listening.setdefault(node_uid, {})[mark] = ring

        def leave() -> None:
            rings = self._listening.get(node_uid, {})
            rings.pop(mark, None)
            if not rings:
                self._listening.pop(node_uid, None)

        return leave

    def ring(self, node_uid: str) -> None:
        for ring in list(self._listening.get(node_uid, {}).values()):
            ring()

    def follow(self, find: Callable[[str], T | None], whose: Callable[[T], str]) -> Callable[[str], None]:
        """Function to call with each key whose order may have changed. ``find`` gives the present one, ``whose`` its node's uid."""
        known: dict[str, T] = {}

        def note(key: str) -> None:
            before, now = known.pop(key, None), find(key)
            if now is not None:
                known[key] = now
            if now != before:
                for node_uid in {whose(order) for order in (before, now) if order is not None}:
                    self.ring(node_uid)

        return note
