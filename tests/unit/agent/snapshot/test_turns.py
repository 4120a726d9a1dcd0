"""Work on disks in the background gives way to the steps of allocations."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from weft.agent.snapshot.turns import DiskTurns
from weft.objects.errors import DriverFailed


class Copy:
    """Work that goes on until it is let end, and takes its time to stop."""

    def __init__(self) -> None:
        self.begun, self.may_end, self.running = asyncio.Event(), asyncio.Event(), False

    async def run(self) -> None:
        self.running = True
        self.begun.set()
        try:
            await self.may_end.wait()
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
            self.running = False


async def test_work_has_ended_before_a_step_on_its_disk_begins() -> None:
    turns, copy = DiskTurns(), Copy()
    working = asyncio.ensure_future(turns.work(["root", "data"], copy.run()))
    await copy.begun.wait()
    async with turns.steps(["data"]):
        assert not copy.running
        assert await working is False
        assert await turns.work(["root", "data"], copy.run()) is False  # nor does it begin again meanwhile
        assert not copy.running
    copy.may_end.set()
    assert await turns.work(["root", "data"], copy.run()) is True


async def test_work_goes_on_while_other_disks_have_steps_unless_they_want_to_be_alone() -> None:
    turns, copy = DiskTurns(), Copy()
    working = asyncio.ensure_future(turns.work(["root"], copy.run()))
    await copy.begun.wait()
    async with turns.steps(["other"]):
        assert copy.running
    async with turns.steps(["other"], alone=True):
        assert not copy.running and not turns.is_free(["third"])
    assert await working is False and turns.is_free(["root", "other", "third"])


async def test_two_steps_on_one_disk_keep_work_away_until_both_have_ended() -> None:
    turns = DiskTurns()
    async with turns.steps(["root"]):
        async with turns.steps(["root"]):
            pass
        assert not turns.is_free(["root"])
    assert turns.is_free(["root"])


async def test_steps_wait_for_whoever_has_a_disk_for_himself_and_work_gives_way_to_him() -> None:
    turns, copy = DiskTurns(), Copy()
    working = asyncio.ensure_future(turns.work(["data"], copy.run()))
    await copy.begun.wait()
    stepped = asyncio.Event()

    async def step() -> None:
        async with turns.steps(["root", "data"]):
            stepped.set()

    async with turns.exclusive(["data"]) as has_it:
        assert has_it and not copy.running and await working is False
        stepping = asyncio.ensure_future(step())
        await asyncio.sleep(0.01)
        assert not stepped.is_set() and not turns.is_free(["data"]) and turns.is_free(["other"])
        async with turns.exclusive(["data"]) as has_it_too, turns.steps(["other"]):
            assert not has_it_too
    await stepping
    async with turns.steps(["data"]), turns.exclusive(["data"]) as has_it:
        assert not has_it
    assert turns.is_free(["root", "data"])


async def test_work_ends_with_the_one_that_waits_for_it_and_its_error_arrives() -> None:
    turns, copy = DiskTurns(), Copy()
    working = asyncio.ensure_future(turns.work(["root"], copy.run()))
    await copy.begun.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert not copy.running

    async def fail() -> None:
        raise DriverFailed("no space")

    with pytest.raises(DriverFailed, match="no space"):
        await turns.work(["root"], fail())
