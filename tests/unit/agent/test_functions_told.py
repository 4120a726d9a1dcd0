"""What a node tells of what it has prepared, and what it lets go of: of this agent's making and of the one's before it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from weft.agent.functions.functions import Functions
from weft.agent.functions.parts import Parts
from weft.agent.functions.pool import Room
from weft.client.invocations import Drop, FromAgent, Moved, Standing
from weft.contracts.clock import SystemClock
from weft.contracts.function import Instance, Isolation, Ready, Recipe, Roots


class Copier:
    """A driver with templates: ``kept`` are those that it has."""

    isolation: Isolation = "vm"

    def __init__(self, *kept: str) -> None:
        self.kept = set(kept)
        self.changed: Callable[[], None] = lambda: None

    async def probe(self) -> str:
        return ""

    async def recover(self) -> int:
        return 0

    async def start(self, id: str, recipe: Recipe, roots: Roots) -> Instance:
        raise AssertionError("nobody asked for one")

    async def forget(self, digest: str) -> None:
        self.kept.discard(digest)
        self.changed()

    async def close(self) -> None: ...

    async def capture(self, recipe: Recipe, roots: Roots) -> None: ...

    async def keep_ready(self, recipe: Recipe, roots: Roots, count: int) -> int:
        return 0

    def count_ready(self) -> dict[str, Ready]:
        return {"old": Ready(2, 80 << 20)}

    def bound_ready(self, memory: int) -> None: ...

    def templates(self) -> set[str]:
        return self.kept

    def follow(self, changed: Callable[[], None]) -> None:
        self.changed = changed


async def test_templates_of_an_agent_before_are_told_at_once_and_go_when_nothing_names_them(tmp_path: Path) -> None:
    driver, heard = Copier("old", "gone"), list[FromAgent]()
    parts = Parts(str(tmp_path), "n1", None, None, set)  # type: ignore[arg-type]
    functions = Functions({"vm": driver}, parts, lambda: Room(4.0, 1 << 30), SystemClock())
    await functions.start()
    functions.connect(heard.append)
    (standing,) = (one for one in heard if isinstance(one, Standing))
    assert standing.recipes == ["gone", "old"]
    counted = functions.count()
    assert (counted.busy, counted.ready, counted.memory) == (0, 2, 80 << 20)
    functions.take(Drop("gone"))  # this agent was never told of it
    async with asyncio.timeout(60):
        while driver.kept != {"old"} or not any(isinstance(one, Moved) and one.dropped == ["gone"] for one in heard):
            await asyncio.sleep(0.01)
    await functions.close()
