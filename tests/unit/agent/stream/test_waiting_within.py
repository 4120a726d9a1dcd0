"""Waiting with a limit, when the caller is cancelled in the moment in which the work fails."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from weft.agent.stream.wait import within
from weft.contracts.clock import SystemClock


async def test_a_failure_that_nobody_waits_for_any_more_is_not_reported_as_forgotten() -> None:
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    refused = asyncio.get_running_loop().create_future()

    async def dial() -> None:
        await refused

    caller = asyncio.ensure_future(within(SystemClock(), dial(), 60.0, "dialling"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    refused.set_exception(ConnectionRefusedError("refused"))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    assert caller.cancelled()
    del caller
    gc.collect()
    assert not said
