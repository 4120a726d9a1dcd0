"""A driver of the gateway in a process of its own: ``python -m weft.launch.edge.driver_process PROTOCOL DESCRIPTOR OPTIONS``.

OPTIONS is JSON: {"hosts": […], "local": false}."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import signal
import sys
from collections.abc import Sequence

from weft.contracts.clock import SystemClock
from weft.contracts.device import DeviceDriver
from weft.drivers.device.process.host import confine, serve

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def main(argv: Sequence[str]) -> None:
    protocol, descriptor, options = argv[0], int(argv[1]), json.loads(argv[2])
    logging.basicConfig(level=logging.WARNING, format=LOG_FORMAT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is for the gateway, which closes the socket
    confine()
    asyncio.run(_serve(protocol, descriptor, options["hosts"], local=options["local"]))


async def _serve(protocol: str, descriptor: int, hosts: Sequence[str], *, local: bool) -> None:
    clock, driver = SystemClock(), importlib.import_module(f"weft.drivers.device.{protocol}.driver")
    made: DeviceDriver = (
        driver.FakeDriver(clock) if protocol == "fake" else driver.OpcuaDriver(clock, hosts, local=local)
    )
    await serve(made, descriptor)


if __name__ == "__main__":
    main(sys.argv[1:])
