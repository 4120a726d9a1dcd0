"""Turns of working on disks: an allocation's steps, or work in the background, which gives way to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Collection, Coroutine
from typing import Any

from weft.agent.state.allocation import LocalAllocation
from weft.kinds.allocation import ROOT, list_disks


class DiskTurns:
    """Disks go by their driver's ids."""

    def __init__(self) -> None:
        self._stepping: Counter[str] = Counter()
        self._alone = 0
        self._background: dict[asyncio.Future[None], frozenset[str]] = {}
        self._taken: Counter[str] = Counter()  # disks that somebody has for himself
        self._given_back = asyncio.Event()

    @contextlib.asynccontextmanager
    async def steps(self, disks: Collection[str], *, alone: bool = False) -> AsyncIterator[None]:
        """Work on these disks that doesn't wait: what is done to them in the background has ended before it begins, and nothing
        begins meanwhile. ``alone``: neither to any other disk, which may stand on the same layers."""
        while not self._taken.keys().isdisjoint(disks):
            self._given_back.clear()
            await self._given_back.wait()
        self._stepping.update(disks)
        self._alone += alone
        try:
            await self._end([task for task, its in self._background.items() if alone or not its.isdisjoint(disks)])
            yield
        finally:
            self._stepping.subtract(disks)
            self._stepping += Counter()  # drops those that nobody works on
            self._alone -= alone

    @contextlib.asynccontextmanager
    async def exclusive(self, disks: Collection[str]) -> AsyncIterator[bool]:
        """Work on these disks beside which nothing else is done to them: steps wait until it has ended. False: they are being
        worked on, so try again later."""
        if not self.is_free(disks):
            yield False
            return
        self._taken.update(disks)
        try:
            await self._end([task for task, its in self._background.items() if not its.isdisjoint(disks)])
            yield True
        finally:
            self._taken.subtract(disks)
            self._taken += Counter()
            self._given_back.set()

    def is_free(self, disks: Collection[str]) -> bool:
        busy = self._stepping.keys() | self._taken.keys()
        return not self._alone and busy.isdisjoint(disks)

    async def work(self, disks: Collection[str], work: Coroutine[Any, Any, None]) -> bool:
        """Do ``work`` on these disks in the background; whether it was done, or else was cancelled for steps. Raises its error."""
        if not self.is_free(disks):
            work.close()
            return False
        task = asyncio.ensure_future(work)
        self._background[task] = frozenset(disks)
        try:
            await asyncio.wait([task])
        finally:
            await self._end([task])
            del self._background[task]
        if task.cancelled():
            return False
        task.result()
        return True

    async def stop(self, disks: Collection[str]) -> None:
        """End what is done to these disks in the background."""
        await self._end([task for task, its in self._background.items() if not its.isdisjoint(disks)])

    async def _end(self, tasks: list[asyncio.Future[None]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def list_ids(local: LocalAllocation) -> dict[str, str]:
    """The disks of an allocation, ROOT or a volume's uid, and of each its driver's id."""
    return {disk: local.id if disk == ROOT else disk for disk in list_disks(local.spec)}
