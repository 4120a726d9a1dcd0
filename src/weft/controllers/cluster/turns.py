"""One task for each linked cluster, so that one which hangs delays no other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from weft.contracts.wakeup import Wake
from weft.informer.leader_lease import LeadershipLost

_log = logging.getLogger(__name__)


class Turns:
    """At most one turn at a time by key. One that is due while its task runs is made up for: ``wake`` rings when that ends.
    ``trouble``: what is logged of a turn that raised, about the cluster ``%s``."""

    def __init__(self, wake: Wake, trouble: str) -> None:
        self._wake, self._trouble = wake, trouble
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._missed = set[str]()

    def __len__(self) -> int:
        """Turns that are under way, or ended since ``collect``."""
        return len(self._tasks)

    def collect(self) -> None:
        """Forget the turns that have ended. Raises LeadershipLost if one did."""
        for key in [key for key, task in self._tasks.items() if task.done()]:
            self._tasks.pop(key).result()

    def begin(self, key: str, name: str, serve: Callable[[], Awaitable[None]]) -> None:
        """Begin the turn ``serve`` of ``key``, about the cluster ``name``, unless one is under way. Raises LeadershipLost if the
        one before did."""
        former = self._tasks.get(key)
        if former is not None and not former.done():
            self._missed.add(key)
            return
        if former is not None:
            former.result()
        self._tasks[key] = asyncio.create_task(self._take(key, name, serve))

    def repeat(self, key: str) -> None:
        """Have the turn that is under way followed by another one immediately."""
        self._missed.add(key)

    def cancel(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _take(self, key: str, name: str, serve: Callable[[], Awaitable[None]]) -> None:
        """Raises LeadershipLost, for which ``collect`` looks."""
        try:
            await serve()
        except LeadershipLost:
            self._wake.ring()
            raise
        except Exception:  # a defect here must not end the other controllers
            _log.exception(self._trouble, name)
        if key in self._missed:  # something may have changed since it began
            self._missed.discard(key)
            self._wake.ring()
