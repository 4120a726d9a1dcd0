"""Work that several want at once and that is done once: it ends when it is done, or when the last who wanted it has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_H = TypeVar("_H")


class Flight(Generic[_T, _H]):
    """``listeners`` are told of its progress."""

    def __init__(self) -> None:
        self.task: asyncio.Task[_T]
        self.waiting = 0
        self.listeners: list[Callable[[_H], None]] = []
        self.newest: _H | None = None

    def tell(self, news: _H) -> None:
        self.newest = news
        for listener in self.listeners:
            listener(news)


class SharedWork(Generic[_T, _H]):
    def __init__(self) -> None:
        self._flights: dict[Any, Flight[_T, _H]] = {}

    async def join(
        self,
        key: Any,
        begin: Callable[[Callable[[_H], None]], Coroutine[Any, Any, _T]],
        listener: Callable[[_H], None] | None = None,
    ) -> _T:
        """The result of the work called ``key``, begun unless it is under way; or its error."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = Flight()
            flight.task = asyncio.create_task(begin(flight.tell))
            flight.task.add_done_callback(lambda task: self._landed(key, task))
        if listener is not None:
            flight.listeners.append(listener)
            if flight.newest is not None:
                listener(flight.newest)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if listener is not None:
                flight.listeners.remove(listener)
            if not flight.waiting and not flight.task.done():
                self._drop(key, flight.task)
                flight.task.cancel()
                await asyncio.wait([flight.task])

    async def close(self) -> None:
        """End all."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _landed(self, key: Any, task: asyncio.Task[_T]) -> None:
        self._drop(key, task)
        if not task.cancelled():
            task.exception()  # whoever wants to know has it from the task

    def _drop(self, key: Any, task: asyncio.Task[_T]) -> None:
        if (flight := self._flights.get(key)) is not None and flight.task is task:
            del self._flights[key]
