"""The fake driver promises what every driver of devices does."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from tests.conformance.device_contract import ONE, OTHER, DeviceDriverContract

from weft.contracts.clock import SystemClock
from weft.contracts.device import AnnouncedDevice, Thing, Value
from weft.drivers.device.fake.driver import FakeDriver


class FakePeer:
    one, other, announces = ONE, OTHER, True

    def __init__(self) -> None:
        self.driver = FakeDriver(SystemClock())

    async def say(self, thing: Thing, values: Mapping[str, Value]) -> None:
        self.driver.report(thing.uid, values)

    async def announce(self, found: AnnouncedDevice) -> None:
        self.driver.announce(found)

    async def cut(self) -> None:
        self.driver.cut()

    async def mend(self) -> None:
        self.driver.mend()


@pytest.fixture
def peer() -> FakePeer:
    return FakePeer()


class TestFakeDriver(DeviceDriverContract):
    pass
