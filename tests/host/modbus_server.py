"""A Modbus TCP server of pymodbus, as a process that can be killed: ``python -m tests.host.modbus_server PORT``.

It has the registers that lines of JSON on its standard input give it ({"unit", "table", "address", "words"}), and those that were
written to it. It prints a line when it listens, and one for each line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

TABLES = {1: "coil", 5: "coil", 15: "coil", 2: "discrete", 4: "input", 3: "holding", 6: "holding", 16: "holding"}


class Registers:
    """In place of the package's own store: what nobody gave isn't there."""

    def __init__(self) -> None:
        self.words: dict[tuple[int, str, int], Any] = {}
        self.reads = 0

    def device_ids(self) -> list[int]:
        return [1, 2]

    async def async_getValues(self, unit: int, code: int, address: int, count: int = 1) -> Any:
        try:
            return [self.words[unit, TABLES[code], at] for at in range(address, address + count)]
        except KeyError:
            return ExcCodes.ILLEGAL_ADDRESS

    async def async_setValues(self, unit: int, code: int, address: int, values: Any) -> Any:
        self.put(unit, TABLES[code], address, values)
        return None

    def put(self, unit: int, table: str, address: int, values: Any) -> None:
        self.words.update({(unit, table, address + at): value for at, value in enumerate(values)})


async def main(port: int) -> None:
    server = ModbusTcpServer(
        SimDevice(1, simdata=[SimData(0, values=0, datatype=DataType.REGISTERS)]), address=("127.0.0.1", port)
    )
    registers: Any = Registers()
    server.context = registers
    await server.serve_forever(background=True)
    print("listens", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        for one in json.loads(line):
            registers.put(one["unit"], one["table"], one["address"], one["words"])
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
