"""Waiting for something with a limit, on a Clock that tests can drive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from weft.contracts.clock import Clock, SystemClock
from weft.objects.errors import TimedOut

T = TypeVar("T")


async def wait_for_event(clock: Clock, event: asyncio.Event, seconds: float | None) -> bool:
    """Whether ``event`` was set within ``seconds`` (None: wait for ever)."""
    if seconds is None or event.is_set():
        await event.wait()
        return True
    if isinstance(
        clock, SystemClock
    ):  # the loop's own time: a timer costs a third of two tasks, and each guest waits so
        if seconds <= 0:
            await clock.sleep(0.0)
            return event.is_set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await event.wait()
        return event.is_set()
    waiting = asyncio.ensure_future(event.wait())
    limit = asyncio.ensure_future(clock.sleep(max(0.0, seconds)))
    try:
        await asyncio.wait((waiting, limit), return_when=asyncio.FIRST_COMPLETED)
        return event.is_set()
    finally:
        waiting.cancel()
        limit.cancel()


async def run_until_first_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Run ``works`` side by side until one of them ends, cancel the others, and raise what it raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def within(clock: Clock, work: Coroutine[Any, Any, T], seconds: float, what: str) -> T:
    """The result of ``work``; raises TimedOut naming ``what``, and cancels it, after ``seconds``."""
    working = asyncio.ensure_future(work)
    limit = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait((working, limit), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise TimedOut(f"{what} took longer than {seconds:g} s")
        return working.result()
    finally:
        limit.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
