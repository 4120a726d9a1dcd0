"""Work that several callers want at once is done once, and cancelled when the last caller has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_H = TypeVar("_H")


class SharedTask(Generic[_T, _H]):
    """``listeners`` get its progress."""

    def __init__(self) -> None:
        self.task: asyncio.Task[_T]
        self.waiting = 0
        self.listeners: list[Callable[[_H], None]] = []
        self.newest: _H | None = None

    def report(self, news: _H) -> None:
        self.newest = news
        for listener in self.listeners:
            listener(news)


class SharedWork(Generic[_T, _H]):
    def __init__(self) -> None:
        self._tasks: dict[Any, SharedTask[_T, _H]] = {}

    async def join(
        self,
        key: Any,
        begin: Callable[[Callable[[_H], None]], Coroutine[Any, Any, _T]],
        listener: Callable[[_H], None] | None = None,
    ) -> _T:
        """The result of the work called ``key``, begun unless it is under way; or its error."""
        shared = self._tasks.get(key)
        if shared is None:
            shared = self._tasks[key] = SharedTask()
            shared.task = asyncio.create_task(begin(shared.report))
            shared.task.add_done_callback(lambda task: self._on_done(key, task))
        if listener is not None:
            shared.listeners.append(listener)
            if shared.newest is not None:
                listener(shared.newest)
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if listener is not None:
                shared.listeners.remove(listener)
            if not shared.waiting and not shared.task.done():
                self._drop(key, shared.task)
                shared.task.cancel()
                await asyncio.wait([shared.task])

    async def close(self) -> None:
        """End all."""
        tasks = [shared.task for shared in self._tasks.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _on_done(self, key: Any, task: asyncio.Task[_T]) -> None:
        self._drop(key, task)
        if not task.cancelled():
            task.exception()  # those who want it have it from the task

    def _drop(self, key: Any, task: asyncio.Task[_T]) -> None:
        if (shared := self._tasks.get(key)) is not None and shared.task is task:
            del self._tasks[key]
