"""CoAP devices of aiocoap, as a process that can be killed: ``python -m tests.host.coap_server PORT PORT``, a device at each.

They have what lines of JSON on standard input give them ({"device": 0 or 1, "values"}), and what was put. It prints a line when it
listens, and one for each line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import aiocoap
from aiocoap import resource

OBSERVABLE = ("t", "fan", "door")


class Held(resource.ObservableResource):
    """A value as JSON; ``silent``: it changes without a word to observers."""

    def __init__(self, silent: bool = False) -> None:
        super().__init__()
        self.value: Any = None
        self.silent = silent

    def put(self, value: Any) -> None:
        self.value = value
        if not self.silent:
            self.updated_state()

    async def render_get(self, request: aiocoap.Message) -> aiocoap.Message:
        if self.value is None:
            return aiocoap.Message(code=aiocoap.NOT_FOUND)
        if isinstance(self.value, str) and self.value.startswith("raw:"):
            return aiocoap.Message(payload=self.value.removeprefix("raw:").encode("latin-1"), content_format=0)
        return aiocoap.Message(payload=json.dumps(self.value).encode(), content_format=50)

    async def render_put(self, request: aiocoap.Message) -> aiocoap.Message:
        self.put(json.loads(request.payload))
        return aiocoap.Message(code=aiocoap.CHANGED)


async def main(ports: list[int]) -> None:
    devices, contexts = [], []
    for port in ports:
        held: dict[str, Held] = {name: Held() for name in OBSERVABLE}
        held["quiet"] = Held(silent=True)
        site = resource.Site()
        site.add_resource([".well-known", "core"], resource.WKCResource(site.get_resources_as_linkheader))
        for name, one in held.items():
            site.add_resource(["v", name], one)
        context = await aiocoap.Context.create_server_context(site, bind=("127.0.0.1", port), transports=["udp6"])
        contexts.append(context)  # one that nobody holds is closed
        devices.append(held)
    print("listens", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        given = json.loads(line)
        for name, value in given["values"].items():
            devices[given["device"]][name].put(value)
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main([int(port) for port in sys.argv[1:]]))
