"""Devices that are asked again and again: each in a task that ends when it should."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from tests.conformance.device_contract import ONE, Heard

from weft.contracts.clock import SystemClock
from weft.contracts.device import Thing, Value
from weft.drivers.device.poll import Poller
from weft.objects.errors import Unavailable


@pytest.mark.parametrize("fails", [False, True])
async def test_it_closes_although_a_package_swallows_the_cancellation(fails: bool) -> None:
    asked = asyncio.Event()

    async def read(thing: Thing) -> Mapping[str, Value]:
        asked.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if fails:
                raise Unavailable("it doesn't answer") from None
        return {"t": 1.0}

    heard, poller = Heard(), Poller(read, SystemClock())
    poller.put(ONE)
    poller.observe(heard)
    await asked.wait()
    async with asyncio.timeout(5):
        await poller.close()
    assert heard.values == []
