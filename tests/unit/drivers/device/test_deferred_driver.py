"""A driver that is loaded when a device needs it, and one whose package is missing."""

from __future__ import annotations

import pytest
from tests.conformance.device_contract import ONE, RecordingListener

from weft.contracts.clock import SystemClock
from weft.contracts.device import DeviceDriver
from weft.drivers.device.deferred import DeferredDriver
from weft.drivers.device.fake.driver import FakeDriver
from weft.objects.errors import NotFound, Unavailable


async def test_a_package_that_is_missing_is_named_with_its_extra() -> None:
    def load() -> DeviceDriver:
        raise ModuleNotFoundError("No module named 'pymodbus'", name="pymodbus")

    driver, heard = DeferredDriver("modbus", load), RecordingListener()
    driver.observe(heard)
    assert heard.lines == [""]
    await driver.connect(ONE)
    remedy = "modbus needs the Python package pymodbus, which is missing: pip install '.[edge]' in weft's clone"
    assert (heard.reach, heard.lines[-1], await driver.probe()) == ({ONE.uid: remedy}, remedy, remedy)
    with pytest.raises(Unavailable, match="edge"):
        await driver.write(ONE.uid, "c", {"fan": True}, 30.0)
    await driver.disconnect(ONE.uid)
    await driver.close()


async def test_it_is_loaded_by_its_first_device_and_hears_from_then_on() -> None:
    made: list[FakeDriver] = []

    def load() -> DeviceDriver:
        made.append(FakeDriver(SystemClock()))
        return made[0]

    driver, heard = DeferredDriver("fake", load), RecordingListener()
    driver.observe(heard)
    assert await driver.discover() == [] and not made
    with pytest.raises(NotFound):
        await driver.read(ONE.uid, ["t"])
    await driver.connect(ONE)
    made[0].report(ONE.uid, {"t": 1.0})
    assert heard.values == [(ONE.uid, {"t": 1.0})] and len(made) == 1
    assert await driver.read(ONE.uid, ["t"]) == {"t": 1.0}
