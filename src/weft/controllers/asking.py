"""Runs a controller that asks other processes: linked clusters, witnesses, receivers, registries, databases.

Such a controller has turns, one at a time for each key, beside those of its other keys: who answers late delays nobody else. A turn
that takes too long is ended, and one that fails comes again after a pause. What concerns a key whose turn is under way gives it
another one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from weft.controllers.loop import BATCH, Queue
from weft.informer.cache import whole
from weft.informer.leader_lease import LeaderLease, LeadershipLost
from weft.informer.trace.commits import Work, work
from weft.informer.view import Changed, View
from weft.objects.errors import StoreUnavailable

TURN_SECONDS = 300.0
TRY_AGAIN_SECONDS = 5.0  # after a turn that failed
Later = Mapping[str, float]

_log = logging.getLogger(__name__)


@runtime_checkable
class Asking(Protocol):
    """Work for ``run_asking``. A turn returns after how many seconds which keys have their next one; a key that isn't named waits
    until ``route`` names it.
    """

    name: str
    kinds: Sequence[str] = ()  # whose changes ``route`` gets
    always: Sequence[str] = ()  # keys that have a turn at the start
    turn_seconds: float | None = TURN_SECONDS  # None: as long as it takes

    def begin(self) -> None:
        """Called before the first turn."""
        return

    def route(self, view: View, change: Changed) -> Iterable[str]:
        """Keys that have a turn because of this change. May note the change, and has no other effect."""
        return ()

    async def take_turn(self, key: str) -> Later:
        """Ask, and note what was answered. Raises LeadershipLost."""

    async def end(self) -> None:
        """Called after the last turn."""
        return


async def run_asking(controller: Asking, lease: LeaderLease) -> None:
    """Give ``controller`` its turns while ``lease`` is held; raises LeadershipLost (in an ExceptionGroup) at its end."""
    view, queue = lease.cache.view, Queue(lease.clock)
    under_way, missed = set[str](), set[str]()

    def notice(changes: Sequence[Changed]) -> None:
        for change in changes:
            queue.add(controller.route(view, change))

    async def take(key: str) -> None:
        work.set(Work(f"controller: {controller.name}"))
        later = await _take_turn(controller, key)
        under_way.discard(key)
        for other, seconds in later.items():
            queue.add_later(other, seconds)
        if key in missed:
            missed.discard(key)
            queue.add([key])

    controller.begin()
    unsubscribe = lease.cache.subscribe(notice, controller.kinds)
    try:
        async with asyncio.TaskGroup() as group:
            notice(whole(view, controller.kinds))
            queue.add(controller.always)
            while True:
                for key in await queue.take(BATCH):
                    if key in under_way:
                        missed.add(key)
                        continue
                    under_way.add(key)
                    queue.drop_later(key)
                    group.create_task(take(key))
    finally:
        unsubscribe()
        await controller.end()


async def _take_turn(controller: Asking, key: str) -> Later:
    """When the next ones are."""
    try:
        async with asyncio.timeout(controller.turn_seconds):
            return await controller.take_turn(key)
    except (LeadershipLost, asyncio.CancelledError):
        raise
    except StoreUnavailable:
        pass
    except TimeoutError:
        _log.warning("%s: a turn of %s took too long", controller.name, key)
    except Exception:  # a defect must neither end the other controllers nor keep other keys from their turns
        _log.exception("%s: a turn of %s failed", controller.name, key)
    return {key: TRY_AGAIN_SECONDS}
