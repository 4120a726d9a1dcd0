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
