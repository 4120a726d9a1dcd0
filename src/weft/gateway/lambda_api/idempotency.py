"""An SDK's own retries never run a function twice: AWS's SDKs send a call's id with each attempt, and a later attempt gets the
first one's answer. Kept for a while, bounded, in memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from weft.contracts.clock import Clock
from weft.objects.errors import WeftError
from weft.serving.answer import Answer

KEPT_SECONDS = 300.0
KEPT_BYTES = 32 * 2**20
_EACH_BYTES = 512  # what keeping one takes beside its body
Key = tuple[str, str, str]


class IdempotencyCache:
    """Answers by caller, the call's id and the path."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._under_way: dict[Key, asyncio.Task[Answer]] = {}
        self._kept: OrderedDict[Key, tuple[float, Answer | WeftError, int]] = OrderedDict()
        self._bytes = 0

    async def run(self, key: Key, invoke: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer of ``invoke``, or of an earlier attempt of the same call."""
        task = self._under_way.get(key)
        if task is None:
            known = self._find(key)
            if isinstance(known, WeftError):
                raise known
            if known is not None:
                return known
            task = self._under_way[key] = asyncio.ensure_future(self._finish(key, invoke))
        return await asyncio.shield(task)

    async def _finish(self, key: Key, invoke: Callable[[], Awaitable[Answer]]) -> Answer:
        try:
            answer = await invoke()
        except WeftError as problem:
            if (
                problem.token == "invocationLost"
            ):  # it may have run; after any other refusal the call may be tried again
                self._keep(key, problem, 0)
            raise
        finally:
            del self._under_way[key]
        self._keep(key, answer, len(answer.body))
        return answer

    def _find(self, key: Key) -> Answer | WeftError | None:
        self._drop_old()
        kept = self._kept.get(key)
        return None if kept is None else kept[1]

    def _keep(self, key: Key, what: Answer | WeftError, size: int) -> None:
        self._kept[key] = (self._clock.elapsed(), what, size + _EACH_BYTES)
        self._bytes += size + _EACH_BYTES
        self._drop_old()

    def _drop_old(self) -> None:
        before = self._clock.elapsed() - KEPT_SECONDS
        while self._kept:
            key, (at, _, size) = next(iter(self._kept.items()))
            if at >= before and self._bytes <= KEPT_BYTES:
                return
            del self._kept[key]
            self._bytes -= size
