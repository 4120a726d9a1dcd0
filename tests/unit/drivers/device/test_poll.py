"""Devices that are asked again and again: each in a task that ends when it should."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from tests.conformance.device_contract import ONE, RecordingListener

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

    heard, poller = RecordingListener(), Poller(read, SystemClock())
    poller.put(ONE)
    poller.observe(heard)
    await asked.wait()
    async with asyncio.timeout(5):
        await poller.close()
    assert heard.values == []


async def test_what_is_refused_while_a_device_is_asked_is_told_after_its_values() -> None:
    poller = Poller(lambda thing: read(), SystemClock(), poll_seconds=0.05)
    told: list[str] = []

    class Listener(RecordingListener):
        def note_values(self, uid: str, values: Mapping[str, Value]) -> None:
            told.append(f"values {sorted(values)}")

        def note_refused(self, uid: str, reason: str, name: str = "") -> None:
            told.append(f"{reason} {name}")

    async def read() -> Mapping[str, Value]:
        poller.note_refused(ONE.uid, "payload", "door")
        return {"t": 1.0}

    poller.put(ONE)
    poller.observe(Listener())
    async with asyncio.timeout(10):
        while len(told) < 4:
            await asyncio.sleep(0.01)
    await poller.close()
    assert told[:4] == ["values ['t']", "payload door"] * 2
    poller.note_refused(ONE.uid, "payload", "later")  # as of an observation that comes by itself
    assert "payload later" not in told
