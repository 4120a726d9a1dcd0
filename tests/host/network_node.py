"""A node's share of the lab: runs the drivers of networks and proxies in the namespaces it was started in and obeys JSON lines.

Started by ``network_lab``; its arguments are the Host, and how many connections a
guest may have (0: the driver's choice). Being the first process of its pid namespace, its end takes
with it all that the driver started.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Host
from weft.contracts.driver.network import Filter, Forward, Port, Segment
from weft.contracts.proxy import Proxy
from weft.drivers.linux.programs import Finished
from weft.drivers.network.bridge import kernel
from weft.drivers.network.bridge.driver import BridgeNetwork
from weft.drivers.proxy.haproxy.driver import HaproxyDriver
from weft.objects.errors import WeftError

ARGUMENTS: dict[str, Any] = {
    "ensure_segment": Segment,
    "remove_segment": str,
    "plug": Port,
    "unplug": str,
    "ensure_forwards": list[Forward],
    "ensure_filters": list[Filter],
    "list": Port,
    "read_refused": list[str],
    "name_router": str,
    "proxy.ensure": Proxy,
    "proxy.remove": str,
    "proxy.read": str,
}
SEVERAL: dict[str, Any] = {
    "ensure_refused": (list[str], list[str]),
    "switch": (Port, str),
    "seed": (Port, list[str]),
    "count_older": (str, str),
    "read_fill": (),
}
PARTS = {
    "name_router": "gateways",
    "list": "flows",
    "seed": "flows",
    "count_older": "flows",
    "read_refused": "seen",
    "read_fill": "connections",
}


def count_programs() -> list[str]:
    """The list to which the name of each program is added that the driver starts."""
    started: list[str] = []
    run = kernel.run_program

    async def run_counted(argv: Sequence[str], *words: str, **more: Any) -> Finished:
        started.append(argv[0])
        return await run(argv, *words, **more)

    kernel.run_program = run_counted
    return started


STARTED = count_programs()


def meddle(script: str) -> None:
    """Run a script just before the driver changes links the next time: between its look and what it does."""
    change = kernel.perform_links

    async def perform(lines: list[str]) -> None:
        if lines:
            kernel.perform_links = change
            subprocess.run(["bash", "-ec", script], check=True)
        await change(lines)

    kernel.perform_links = perform


async def answer(driver: BridgeNetwork, proxies: HaproxyDriver, line: str) -> dict[str, Any]:
    order = msgspec.json.decode(line)
    method, argument = order["method"], order.get("argument")
    if method == "shell":  # the lab looks at, or breaks, what the driver made
        done = subprocess.run(["bash", "-c", argument], capture_output=True, text=True)
        return {"value": done.stdout, "problem": done.stderr, "code": done.returncode}
    if method == "meddle":
        meddle(argument)
        return {}
    arguments = [msgspec.convert(argument, ARGUMENTS[method])] if method in ARGUMENTS else []
    if method in SEVERAL:
        arguments = [msgspec.convert(one, type) for one, type in zip(argument or (), SEVERAL[method], strict=True)]
    if method.startswith("proxy."):
        verb = getattr(proxies, method.removeprefix("proxy."))
    else:
        verb = getattr(driver if hasattr(driver, method) else getattr(driver, PARTS[method]), method)
    STARTED.clear()
    start = time.monotonic()
    try:
        value = verb(*arguments)
        value = await value if inspect.isawaitable(value) else value
    except WeftError as problem:
        return {"error": problem.to_dict()}
    return {"value": msgspec.to_builtins(value), "seconds": time.monotonic() - start, "programs": STARTED}


async def serve(host: Host, most_connections: int | None) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"], check=True)
    driver, proxies = BridgeNetwork(host, most_connections), HaproxyDriver(host, SystemClock())
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if msgspec.json.decode(line)["method"] == "restart":
            driver, proxies = BridgeNetwork(host, most_connections), HaproxyDriver(host, SystemClock())
            print("{}", flush=True)
            continue
        print(msgspec.json.encode(await answer(driver, proxies, line)).decode(), flush=True)


def reap(child: int) -> None:
    """Be the init of the pid namespace: daemons the driver starts become ours, and must not stay as zombies."""
    while os.wait()[0] != child:
        pass


if __name__ == "__main__":
    if child := os.fork():
        reap(child)
    else:
        asyncio.run(serve(msgspec.json.decode(sys.argv[1], type=Host), int(sys.argv[2]) or None))
