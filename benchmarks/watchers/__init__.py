"""One change told to 1,000 watchers: how soon each has it, and what each costs the server; plain, and over TLS.

The watchers are connections of this one process, so their own work is in the times.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from urllib.parse import quote

import msgspec
import uvloop

from benchmarks.connection import Connection
from benchmarks.fabric_server import FabricServer, running_server
from benchmarks.list import make_vm
from benchmarks.measurement import Figure, Measurement
from benchmarks.watchers.watcher import watch
from weft.client.tls import make_tls

WATCHERS = 1_000
CHANGES = 20
AT_ONCE = 50  # connections that are made together
PAUSE_SECONDS = 0.3
SETTLE_SECONDS = 1.0
GOAL_SECONDS = 0.150
GOAL_KB = 40.0
VMS = "/v1/projects/default/vms"


class Outcome(msgspec.Struct):
    delays: list[float]
    kilobytes_each: float
    cpu_milliseconds: float  # of the server, for one change


async def run(server: FabricServer, *, secure: bool) -> Outcome:
    tls = make_tls(server.context) if secure else None
    writer = await Connection.open(server.context, tls)
    _, body = await writer.request("GET", f"{VMS}?limit=1")
    cursor = quote(msgspec.json.decode(body)["cursor"])
    arrived: list[float] = []
    before = server.memory_bytes()
    watchers = []
    for _ in range(0, WATCHERS, AT_ONCE):
        begun = [watch(server.context, tls, f"{VMS}?watch=1&cursor={cursor}", arrived.append) for _ in range(AT_ONCE)]
        watchers += await asyncio.gather(*begun)
    delays: list[float] = []
    await asyncio.sleep(SETTLE_SECONDS)
    cpu = server.cpu_seconds()
    for count in range(CHANGES):
        await asyncio.sleep(PAUSE_SECONDS)
        arrived.clear()
        sent = time.perf_counter()
        status, body = await writer.request("PATCH", f"{VMS}/web-00001", {"labels": {"turn": str(count)}})
        if status != 200:
            raise SystemExit(f"PATCH: {status} {body[:300]!r}")
        while len(arrived) < WATCHERS:
            await asyncio.sleep(0.005)
            if time.perf_counter() - sent > 10:
                raise SystemExit(f"a change came to {len(arrived)} of {WATCHERS} watchers only")
        delays += [at - sent for at in arrived]
    cpu = server.cpu_seconds() - cpu
    after = server.memory_bytes()
    for watcher in watchers:
        watcher.close()
    writer.close()
    return Outcome(delays, (after - before) / 1024 / WATCHERS, cpu * 1000 / CHANGES)


def measure() -> Measurement:
    vms = [make_vm(n) for n in range(10)]
    command = [sys.executable, "-m", "benchmarks.watchers.plain_api"]
    with running_server(objects=vms, command=command) as server:
        plain = uvloop.run(run(server, secure=False))
    with running_server("api", vms) as server:
        secure = uvloop.run(run(server, secure=True))
    figures = []
    for what, outcome, binding in (("plain loopback", plain, True), ("TLS, as weft serves it", secure, False)):
        middle, late = statistics.median(outcome.delays), statistics.quantiles(outcome.delays, n=100)[98]
        figures.append(
            Figure(
                f"one change to {WATCHERS:,} watchers, {what}",
                f"p50 {middle * 1000:.0f} ms, p99 {late * 1000:.0f} ms; server {outcome.cpu_milliseconds:.0f} ms CPU",
                goal=f"p99 < {GOAL_SECONDS * 1000:.0f} ms",
                kept=late < GOAL_SECONDS if binding else None,
            )
        )
        figures.append(
            Figure(
                f"memory of the server for each, {what}",
                f"{outcome.kilobytes_each:.0f} KB",
                goal=f"< {GOAL_KB:.0f} KB" if binding else "–",
                kept=outcome.kilobytes_each < GOAL_KB if binding else None,
            )
        )
    return Measurement(
        "watchers",
        f"{CHANGES} changes, from before the request that makes one to its arrival at each watcher; all watchers are "
        "connections of one other process, whose work is in the times.",
        figures,
    )
