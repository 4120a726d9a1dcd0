"""An OPC UA server of asyncua, as a process that can be killed: ``python -m tests.host.opcua_server PORT``.

Its nodes ``ns=2;s=DEVICE.NAME`` have no value until a line of JSON on standard input gives them one ({node: value}; null takes it
away), or somebody writes it. It prints a line when it listens, and one for each line.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any

from asyncua import Server, ua

TYPES = {
    "t": ua.VariantType.Double,
    "fan": ua.VariantType.Boolean,
    "door": ua.VariantType.String,
    "level": ua.VariantType.Int16,
}
NONE = {"t": 0.0, "fan": False, "door": "", "level": 0}
logging.disable(logging.CRITICAL)


async def main(port: int) -> None:
    server: Any = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{port}/weft")
    await server.register_namespace("weft:tests")
    nodes: dict[str, Any] = {}
    for device in ("one", "other"):
        folder = await server.nodes.objects.add_object(2, device)
        for name, type_ in TYPES.items():
            node = await folder.add_variable(ua.NodeId(f"{device}.{name}", 2), name, NONE[name], type_)
            await node.set_writable()
            nodes[f"{device}.{name}"] = node

    async def put(name: str, value: Any) -> None:
        leaf = name.partition(".")[2]
        status = ua.StatusCodes.Good if value is not None else ua.StatusCodes.BadWaitingForInitialData
        variant = ua.Variant(NONE[leaf] if value is None else (float(value) if leaf == "t" else value), TYPES[leaf])
        await nodes[name].write_value(ua.DataValue(variant, StatusCode=ua.StatusCode(status)))

    for name in nodes:
        await put(name, None)
    async with server:
        print("listens", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            for name, value in json.loads(line).items():
                await put(name, value)
            print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
