"""Which protocols a gateway speaks. All but MQTT take packages of the extra ``edge``, and are loaded when a device needs them."""

from __future__ import annotations

import importlib
from typing import Any

from weft.contracts.clock import Clock
from weft.contracts.device import DeviceDriver
from weft.drivers.device.deferred import DeferredDriver
from weft.launch.edge.configuration import Settings


def make_drivers(mqtt: DeviceDriver, settings: Settings, clock: Clock) -> dict[str, DeviceDriver]:
    """The drivers, by protocol."""
    hosts, local = settings.coap_hosts, settings.local_devices

    def load_modbus() -> DeviceDriver:
        made: DeviceDriver = _import("modbus").ModbusDriver(clock, local=local)
        return made

    def load_coap() -> DeviceDriver:
        made: DeviceDriver = _import("coap").CoapDriver(clock, hosts, local=local)
        return made

    found = [mqtt, DeferredDriver("modbus", load_modbus), DeferredDriver("coap", load_coap, eager=bool(hosts))]
    return {driver.protocol: driver for driver in found}


def _import(protocol: str) -> Any:
    return importlib.import_module(f"weft.drivers.device.{protocol}.driver")
