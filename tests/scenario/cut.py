"""Kills an agent after any of the effects of a step: the call hangs until the agent is gone. "Before" is after the one before."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from weft.agent.state.allocation_state import AllocationState
from weft.drivers.runtime.fake.driver import FakeDriver
from weft.drivers.runtime.fake.snapshot import FakeSnapshots
from weft.drivers.volume.fake.layers import FakeLayers, FakeTaking

MOST_CUTS = 80
EFFECTS: tuple[tuple[type, str], ...] = (
    *((FakeLayers, name) for name in ("begin_layer", "finish_layer", "undo_layer", "keep", "keep_present")),
    *((FakeLayers, name) for name in ("replace", "clone", "drop")),
    (FakeTaking, "take"),
    (FakeSnapshots, "take"),
    (FakeSnapshots, "forget"),
    (FakeDriver, "remove"),
    (AllocationState, "save"),
)


class Cut:
    """``reached`` once the call is there at which the agent dies."""

    def __init__(self, at: int) -> None:
        self.left, self.reached, self.where = at, False, ""

    async def pass_(self, where: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.reached, self.where = True, where
        if self.left <= 0:
            await asyncio.Event().wait()


@contextlib.contextmanager
def cut(at: int) -> Iterator[Cut]:
    """The ``at``-th effect from now on is the last."""
    cut = Cut(at)
    with contextlib.ExitStack() as patches:
        for owner, name in EFFECTS:
            patches.enter_context(mock.patch.object(owner, name, _wrap(getattr(owner, name), cut, name)))
        yield cut


def _wrap(real: Callable[..., Any], cut: Cut, name: str) -> Callable[..., Any]:
    async def call(*args: Any, **more: Any) -> Any:
        result = await real(*args, **more)
        await cut.pass_(name)
        return result

    return call
