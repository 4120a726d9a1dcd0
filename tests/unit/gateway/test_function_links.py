"""A gateway's connections to the agents that run functions."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from weft.gateway.function.links import Links
from weft.objects.errors import Unavailable


async def test_an_agent_that_returns_in_the_moment_in_which_it_was_given_up_is_dialled() -> None:
    there, dialled = True, list[str]()

    async def dial(node: str, claims: object) -> Any:
        dialled.append(node)
        raise Unavailable("the agent isn't connected")

    class Clock:
        def elapsed(self) -> float:
            return 0.0

        async def sleep(self, seconds: float) -> None:
            nonlocal there
            if len(dialled) > 1:
                await asyncio.Event().wait()
            there = False
            asyncio.get_running_loop().call_soon(come_back)

    def come_back() -> None:
        nonlocal there
        there = True
        links.on_agent("n1")

    links = Links(dial, lambda node: there, cast(Any, None), cast(Any, Clock()))
    links.on_agent("n1")
    for _ in range(20):
        await asyncio.sleep(0)
    assert dialled == ["n1", "n1"]
    await links.close()
