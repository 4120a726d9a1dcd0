"""Steps about one key each, which are sent to etcd together when there are many: a request costs etcd and this process far more
than one key of it does, and a server of a thousand nodes reads and renews hundreds of keys a second.

A step is sent by itself when few are waiting. Steps that arrive while two transactions are running share the next one (group
commit): the slower etcd is, the more steps each transaction holds, so a busy store doesn't get more requests.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from weft.store.etcd.connection import EtcdConnection

_MOST_UNDER_WAY = 2
_MOST_STEPS = 90  # etcd takes 128 in a transaction, with those of the transactions in it
_MOST_BYTES = 500_000  # etcd takes 1.5 MB


class Outcome(NamedTuple):
    """``response`` is a ResponseOp; ``revision``: that of the whole transaction."""

    response: Any
    revision: int


class _Step(NamedTuple):
    key: bytes
    operation: Any  # a RequestOp
    outcome: asyncio.Future[Outcome]


class Gathering:
    """Steps over ``connection``. Each is done after it was asked for, or not at all."""

    def __init__(self, connection: EtcdConnection) -> None:
        self._connection = connection
        self._waiting = deque[_Step]()
        self._under_way = 0
        self._tasks = set[asyncio.Task[None]]()  # the loop itself keeps none from being collected

    async def do(self, key: bytes, operation: Any) -> Outcome:
        """Do a RequestOp that reads or writes ``key`` alone, and may be done more than once. Raises what ``transact`` does; a
        failure is that of all steps that wait for it."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Step(key, operation, outcome))
        if self._under_way < _MOST_UNDER_WAY:
            self._under_way += 1
            task = asyncio.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await outcome

    async def _work(self) -> None:
        try:
            await self._send_all()
        finally:  # in the same turn in which it saw that nobody waits: who comes later would wait for it in vain
            self._under_way -= 1

    async def _send_all(self) -> None:
        while steps := self._take():
            try:
                answer = await self._connection.transact([], [step.operation for step in steps], [])
            except Exception as problem:
                # those that wait have waited as long: each would take the whole time again, one after the other
                for step in (*steps, *self._waiting):
                    if not step.outcome.done():
                        step.outcome.set_exception(problem)
                self._waiting.clear()
                return
            for step, response in zip(steps, answer.responses, strict=True):
                if not step.outcome.done():
                    step.outcome.set_result(Outcome(response, answer.header.revision))

    def _take(self) -> Sequence[_Step]:
        """The next steps that somebody waits for, with a key of its own each: etcd refuses to write one twice."""
        steps: dict[bytes, _Step] = {}
        size = 0
        while self._waiting and len(steps) < _MOST_STEPS and self._waiting[0].key not in steps and size < _MOST_BYTES:
            step = self._waiting.popleft()
            if not step.outcome.done():
                steps[step.key] = step
                size += step.operation.ByteSize()
        return list(steps.values())
