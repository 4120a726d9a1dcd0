"""Waiting for an event with a limit, by the system's clock: it costs a timer, and is neither deaf nor early."""

from __future__ import annotations

import asyncio

import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.wakeup import Wake, wait_for_event


async def test_a_wait_makes_no_task_and_ends_with_the_event() -> None:
    event = asyncio.Event()
    waiting = asyncio.ensure_future(wait_for_event(SystemClock(), event, 3600.0))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {waiting, asyncio.current_task()}
    event.set()
    assert await waiting is True


async def test_a_wake_up_call_makes_no_task_either_and_is_remembered_once() -> None:
    wake = Wake(SystemClock())
    waiting = asyncio.ensure_future(wake.wait(3600.0))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {waiting, asyncio.current_task()}
    wake.ring()
    await waiting
    wake.ring()
    await wake.wait(3600.0)
    again = asyncio.ensure_future(wake.wait(3600.0))
    await asyncio.sleep(0)
    assert not again.done()
    again.cancel()


async def test_a_wait_ends_with_its_time() -> None:
    assert await wait_for_event(SystemClock(), asyncio.Event(), 0.01) is False
    assert await wait_for_event(SystemClock(), asyncio.Event(), -1.0) is False


async def test_an_event_in_the_same_turn_as_the_end_of_the_time_is_heard() -> None:
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    waiting = asyncio.ensure_future(wait_for_event(SystemClock(), event, 0.0))
    loop.call_soon(event.set)
    assert await waiting is True


async def test_a_wait_that_is_called_off_is_over() -> None:
    waiting = asyncio.ensure_future(wait_for_event(SystemClock(), asyncio.Event(), 3600.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
