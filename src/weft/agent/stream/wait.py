"""Waiting with a limit, on a Clock that tests can drive."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from weft.contracts.clock import Clock
from weft.objects.errors import TimedOut

T = TypeVar("T")


async def run_until_first_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Run ``works`` concurrently until one of them ends, cancel the others, and raise its error."""
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
        elif not working.cancelled():
            working.exception()  # nobody else looks at it when the caller is cancelled just then
