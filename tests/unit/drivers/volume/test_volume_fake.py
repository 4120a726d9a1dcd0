"""The fake volume driver keeps the contract's promises, and its own about delays and failures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.conformance.layers import LayerPromises
from tests.conformance.volume import BASE_BYTES, VolumePromises

from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.volume import VolumeDriver
from weft.drivers.volume.fake.driver import FakeShelf, FakeVolumes
from weft.objects.errors import DriverFailed

HOST = Host("n1", "node-1", "/nowhere", "/nowhere", "wtst", "10.99.0.1", "lo", "weft/t", Capacity(1, 1, 1))


class TestFake(VolumePromises, LayerPromises):
    @pytest.fixture
    def shelf(self) -> FakeShelf:
        return FakeShelf()

    @pytest.fixture
    def driver(self, shelf: FakeShelf) -> FakeVolumes:
        return FakeVolumes(HOST, SystemClock(), shelf)

    @pytest.fixture
    def reborn(self, shelf: FakeShelf) -> Callable[[], VolumeDriver]:
        return lambda: FakeVolumes(HOST, SystemClock(), shelf)

    @pytest.fixture
    def base(self, shelf: FakeShelf) -> str:
        shelf.bases["/nowhere/base"] = BASE_BYTES
        return "/nowhere/base"


async def test_a_failure_is_met_once_and_leaves_nothing() -> None:
    driver = FakeVolumes(HOST, SystemClock())
    driver.failures["ensure"] = [DriverFailed("the disk is full", reason="noSpace")]
    with pytest.raises(DriverFailed):
        await driver.ensure("a", size_bytes=1)
    assert (await driver.list(), (await driver.ensure("a", size_bytes=1)).size_bytes) == ([], 1)
