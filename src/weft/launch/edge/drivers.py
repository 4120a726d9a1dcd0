"""Which protocols a gateway speaks. All but MQTT take packages of the extra ``edge``, and are loaded when a device needs them."""

from __future__ import annotations

from weft.contracts.clock import Clock
from weft.contracts.device import DeviceDriver
from weft.drivers.device.deferred import DeferredDriver
from weft.launch.edge.configuration import Settings


def make_drivers(mqtt: DeviceDriver, settings: Settings, clock: Clock) -> dict[str, DeviceDriver]:
    """The drivers, by protocol."""

    def load_modbus() -> DeviceDriver:
        from weft.drivers.device.modbus.driver import ModbusDriver  # noqa: PLC0415 - takes memory and an extra

        return ModbusDriver(clock, local=settings.local_devices)

    found: list[DeviceDriver] = [mqtt, DeferredDriver("modbus", load_modbus)]
    return {driver.protocol: driver for driver in found}
