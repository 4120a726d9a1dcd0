"""Protocols that a gateway speaks. All but MQTT take packages of the extra ``edge``, and are loaded when a device needs them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
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

    def load_opcua() -> DeviceDriver:
        if importlib.util.find_spec("asyncua") is None:
            raise ModuleNotFoundError("asyncua is missing", name="asyncua")
        processes: Any = importlib.import_module("weft.drivers.device.process.driver")
        found = settings.opcua_hosts
        made: DeviceDriver = processes.ProcessDriver(
            "opcua", lambda descriptor: make_command("opcua", descriptor, found, local=local), clock
        )
        return made

    found = [
        mqtt,
        DeferredDriver("modbus", load_modbus),
        DeferredDriver("coap", load_coap, eager=bool(hosts)),
        DeferredDriver("opcua", load_opcua, eager=bool(settings.opcua_hosts)),
    ]
    return {driver.protocol: driver for driver in found}


def _import(protocol: str) -> Any:
    return importlib.import_module(f"weft.drivers.device.{protocol}.driver")


def make_command(protocol: str, descriptor: int, hosts: Sequence[str], *, local: bool) -> list[str]:
    """How a driver's own process is started, with the socket of that descriptor."""
    options = json.dumps({"hosts": list(hosts), "local": local})
    return [sys.executable, "-m", "weft.launch.edge.driver_process", protocol, str(descriptor), options]
