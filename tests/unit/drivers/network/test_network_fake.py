"""The fake network driver keeps every driver's promises, and fails and waits when told to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.conformance.network import PORT, SEGMENT, NetworkPromises

from weft.contracts.driver.host import Capacity, Host
from weft.drivers.network.fake.driver import FakeNetwork
from weft.objects.errors import DriverFailed

HOST = Host(
    node="n1",
    node_uid="uid1",
    state_dir="/nowhere",
    run_dir="/nowhere",
    link_prefix="w1",
    underlay_address="10.99.0.1",
    underlay_link="up0",
    cgroup="weft/n1",
    capacity=Capacity(cpu=1, memory_bytes=1 << 30, disk_bytes=1 << 30),
)


class StoppedClock:
    """Time that passes only when someone sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def elapsed(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> StoppedClock:
    return StoppedClock()


@pytest.fixture
def driver(clock: StoppedClock) -> FakeNetwork:
    return FakeNetwork(HOST, clock)


@pytest.fixture
def reborn(driver: FakeNetwork, clock: StoppedClock) -> Callable[[], FakeNetwork]:
    return lambda: FakeNetwork(HOST, clock, driver.wire)


class TestFake(NetworkPromises):
    async def test_a_set_failure_is_met_once(self, driver: FakeNetwork) -> None:
        await driver.ensure_segment(SEGMENT)
        driver.failures["plug"] = [DriverFailed("no tap")]
        with pytest.raises(DriverFailed, match="no tap"):
            await driver.plug(PORT)
        assert await driver.plug(PORT) == "w1tport000001"
        assert driver.calls[-2:] == [("plug", PORT.id)] * 2

    async def test_a_set_delay_passes_on_the_clock(self, driver: FakeNetwork, clock: StoppedClock) -> None:
        driver.delays_seconds["ensure_segment"] = 2.5
        await driver.ensure_segment(SEGMENT)
        assert clock.seconds == 2.5

    async def test_damage_is_healed_once(self, driver: FakeNetwork) -> None:
        driver.wire.damage.append("DHCP and DNS of network blue")
        assert await driver.heal() == ["DHCP and DNS of network blue"]
        assert await driver.heal() == []
