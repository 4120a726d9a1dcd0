"""The workloads that wait for a place: new ones in the order they came, refused ones in classes of equal requests.

A class shares one verdict. It sleeps until a node appears or gains capacity that it would fit, so ten thousand workloads that fit
nowhere cost one check of the nodes that changed. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

from weft.contracts.policy import Request
from weft.scheduler.engine.explain import Explanation


class Refused:
    """The class of the workloads that were refused for the same ``request``, with the ``explanation``."""

    __slots__ = ("explanation", "keys", "request")

    def __init__(self, request: Request, explanation: Explanation) -> None:
        self.request = request
        self.explanation = explanation
        self.keys: OrderedDict[str, None] = OrderedDict()


class Queue:
    def __init__(self) -> None:
        self._fresh: OrderedDict[str, None] = OrderedDict()
        self._refused: dict[Request, Refused] = {}
        self._class_of: dict[str, Refused] = {}
        self._awake: OrderedDict[Request, Refused] = OrderedDict()

    def __len__(self) -> int:
        return len(self._fresh) + len(self._class_of)

    @property
    def ready(self) -> bool:
        """Whether ``take`` would return any."""
        return bool(self._fresh or self._awake)

    def offer(self, key: str) -> None:
        """Queue a new or changed workload."""
        self.forget(key)
        self._fresh[key] = None

    def forget(self, key: str) -> None:
        """Remove a workload that needs no place, or not now."""
        self._fresh.pop(key, None)
        refused = self._class_of.pop(key, None)
        if refused is not None:
            refused.keys.pop(key, None)
            if not refused.keys:
                self._refused.pop(refused.request, None)
                self._awake.pop(refused.request, None)

    def take(self, most: int) -> list[str]:
        """The next workloads to decide on: of one class that was woken, else new ones."""
        while self._awake:
            request, refused = self._awake.popitem(last=False)
            keys = list(islice(refused.keys, most))
            rest = len(refused.keys) > len(keys)
            for key in keys:
                del refused.keys[key], self._class_of[key]
            # Without its verdict the class is decided anew; the rest of it follows if there is capacity left.
            self._refused.pop(request, None)
            if rest:
                self._awake[request] = refused
            if keys:
                return keys
        keys = list(islice(self._fresh, most))
        for key in keys:
            del self._fresh[key]
        return keys

    def verdict(self, request: Request) -> Explanation | None:
        """The verdict on equal requests, if it still holds."""
        refused = self._refused.get(request)
        return None if refused is None else refused.explanation

    def refuse(self, key: str, request: Request, explanation: Explanation) -> None:
        """Put a workload into its class, which sleeps until ``wake``."""
        refused = self._refused.get(request)
        if refused is None:
            # The rest of a class that was awake goes back to sleep with the new verdict.
            refused = self._awake.pop(request, None) or Refused(request, explanation)
            refused.explanation = explanation
            self._refused[request] = refused
        refused.keys[key] = None
        self._class_of[key] = refused

    def asleep(self) -> Iterable[Request]:
        """The classes that wait for capacity."""
        return list(self._refused)

    def wake(self, request: Request) -> None:
        """Queue a class: there may be capacity for it."""
        refused = self._refused.pop(request, None)
        if refused is not None:
            self._awake[request] = refused
