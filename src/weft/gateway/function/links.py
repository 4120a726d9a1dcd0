"""Keeps a channel to each agent that serves functions: has it dial, and again after each loss. Woken when an agent connects."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from weft.contracts.clock import Clock
from weft.gateway.function.dispatcher import Dispatcher
from weft.gateway.function.instance.channel import Channel
from weft.gateway.stream.connection import StreamConnection
from weft.objects.errors import Unavailable, WeftError
from weft.protocol.invocations import VERB

log = logging.getLogger("weft.gateway.functions")
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0

Dial = Callable[[str, dict[str, object]], Awaitable[StreamConnection]]


class Links:
    """``dial`` has the agent of a node (uid) open a stream for claims; it raises Unavailable if the agent isn't connected."""

    def __init__(self, dial: Dial, is_there: Callable[[str], bool], dispatcher: Dispatcher, clock: Clock) -> None:
        self._dial, self._is_there, self._dispatcher, self._clock = dial, is_there, dispatcher, clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._channels: dict[str, Channel] = {}

    def on_agent(self, node: str) -> None:
        """An agent is connected, perhaps again: its former channel may be dead, so it dials another."""
        if (before := self._channels.get(node)) is not None:
            before.close()
        if node not in self._tasks:
            self._tasks[node] = asyncio.ensure_future(self._keep(node))

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, node: str) -> None:
        try:
            await self._keep_while_there(node)
        finally:  # in the same turn in which it saw that the agent is gone: the next one would have no link
            self._tasks.pop(node, None)

    async def _keep_while_there(self, node: str) -> None:
        pause = FIRST_PAUSE_SECONDS
        claims: dict[str, object] = {"node_uid": node, "allocation": "", "guest_id": "", "verb": VERB}
        while self._is_there(node):
            began = self._clock.elapsed()
            try:
                connection = await self._dial(node, claims)
                channel = self._channels[node] = Channel(node, connection)
                log.info("invocations go to node %s", node)
                try:
                    await self._dispatcher.serve(channel)
                finally:
                    del self._channels[node]
                    channel.close()
                log.info("the connection for invocations to node %s is lost", node)
            except Unavailable as problem:
                log.debug("node %s: %s", node, problem)
            except WeftError as problem:
                log.warning("node %s: %s", node, problem)
            if self._clock.elapsed() - began > LONGEST_PAUSE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
