"""The dashboard's server: a page of a table of 10,000 VMs, how soon a tab sees a change, and what 200 open tabs cost."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from urllib.parse import quote, urlencode

import msgspec
import uvloop

from benchmarks.connection import Connection
from benchmarks.dashboard.tab import Tab, open_tab
from benchmarks.fabric_server import FabricServer, running_server
from benchmarks.list import make_vm
from benchmarks.measurement import Figure, Measurement, spread
from weft.client.context import Context
from weft.client.tls import make_tls

VMS = 10_000
PAGE = 200
REPEATS = 15
GOAL_PAGE_SECONDS = 0.050
TABS = 200
TABS_OF_A_TOKEN = 8
CHANGES_A_SECOND = 5
SECONDS = 20
SETTLE_SECONDS = 3.0
GOAL_SEEN_SECONDS = 0.300
GOAL_CORE = 0.25
SHOW = {"table": {"kinds": "vm", "limit": PAGE}, "summary": {}}
TABLES = {  # a first page each, as somebody asks for it who hasn't before
    "by name": {"sort": "NAME"},
    "by address, turned round": {"sort": "-ADDRESS"},
    "with a filter, by age": {"sort": "AGE", "filter": "n7 web"},
}


async def time_pages(server: FabricServer) -> dict[str, tuple[float, list[float]]]:
    """Of each table, seconds of the first request for it, and of further ones."""
    connection = await Connection.open(server.context)
    await get(connection, "/v1/dashboard/table?kinds=vm&limit=1")  # the server reads the VMs
    took = {}
    for what, query in TABLES.items():
        seconds = []
        for number in range(REPEATS + 1):
            offset = number * PAGE if number < 3 else 0
            begun = time.perf_counter()
            body = await get(
                connection,
                "/v1/dashboard/table?" + urlencode({"kinds": "vm", "limit": PAGE, "offset": offset, **query}),
            )
            seconds.append(time.perf_counter() - begun)
            if len(msgspec.json.decode(body)["rows"]) != PAGE:
                raise SystemExit(f"{what}: {body[:300]!r}")
        took[what] = (seconds[0], seconds[1:])
    connection.close()
    return took


async def get(connection: Connection, path: str) -> bytes:
    status, body = await connection.request("GET", path)
    if status != 200:
        raise SystemExit(f"{path}: {status} {body[:300]!r}")
    return body


async def make_tokens(server: FabricServer) -> list[Context]:
    """One for eight tabs each; every other one sees a single project."""
    connection = await Connection.open(server.context)
    made = []
    for number in range(-(-TABS // TABS_OF_A_TOKEN)):
        spec = {"use": "access", "role": "viewer", **({"project": "default"} if number % 2 else {})}
        status, body = await connection.request(
            "POST", "/v1/tokens", {"kind": "token", "name": f"tab{number}", "spec": spec}
        )
        if status != 201:
            raise SystemExit(f"token: {status} {body[:300]!r}")
        made.append(msgspec.structs.replace(server.context, token=msgspec.json.decode(body)["secret"]))
    connection.close()
    return made


async def watch(server: FabricServer) -> tuple[list[float], list[float], float, float]:
    """Seconds until one tab, and until each of many, has a change; cores that many tabs take; bytes of each."""
    tls, path = make_tls(server.context), f"/v1/dashboard/stream?show={quote(json.dumps(SHOW))}"
    tokens = await make_tokens(server)
    writer = await Connection.open(server.context, tls)
    alone = [await open_tab(tokens[0], tls, path)]
    await asyncio.sleep(SETTLE_SECONDS)
    first, _ = await change(server, writer, alone, 2)
    before = server.memory_bytes()
    tabs = alone + [await open_tab(tokens[n // TABS_OF_A_TOKEN], tls, path) for n in range(1, TABS)]
    await asyncio.sleep(SETTLE_SECONDS)
    memory = (server.memory_bytes() - before) / TABS
    delays, cores = await change(server, writer, tabs, CHANGES_A_SECOND)
    for tab in tabs:
        tab.close()
    writer.close()
    return first, delays, cores, memory


async def change(
    server: FabricServer, writer: Connection, tabs: list[Tab], a_second: float
) -> tuple[list[float], float]:
    """Change VMs of the first page for a while: seconds until a tab has each, and the cores of the server's processes."""
    sent: dict[int, float] = {}
    cpu, begun = server.cpu_seconds(), time.perf_counter()
    for number in range(int(SECONDS * a_second)):
        await asyncio.sleep(max(0.0, begun + number / a_second - time.perf_counter()))
        at, path = time.perf_counter(), f"/v1/projects/default/vms/web-{number % PAGE:05}"
        status, body = await writer.request("PATCH", path, {"labels": {"turn": str(number)}})
        if status != 200:
            raise SystemExit(f"PATCH: {status} {body[:300]!r}")
        sent[msgspec.json.decode(body)["revision"]] = at
    await asyncio.sleep(1.0)
    cores = (server.cpu_seconds() - cpu) / (time.perf_counter() - begun)
    missed = sum(revision not in tab.seen for tab in tabs for revision in sent)
    if missed:
        raise SystemExit(f"{missed} of {len(sent) * len(tabs)} changes were never seen")
    return [tab.seen[revision] - at for tab in tabs for revision, at in sent.items()], cores


def measure() -> Measurement:
    with running_server("api", [make_vm(number) for number in range(VMS)]) as server:
        pages = uvloop.run(time_pages(server))
        alone, many, cores, memory = uvloop.run(watch(server))
    figures = [
        Figure(
            f"{PAGE} of {VMS:,} rows, {what}",
            f"{spread(again)}; the first time {first * 1000:.0f} ms",
            goal=f"≤ {GOAL_PAGE_SECONDS * 1000:.0f} ms",
            kept=statistics.median(again) <= GOAL_PAGE_SECONDS,
        )
        for what, (first, again) in pages.items()
    ]
    for what, delays in (("one open", alone), (f"{TABS} open", many)):
        late = statistics.quantiles(delays, n=100)[98]
        figures.append(
            Figure(
                f"a change seen, {what}",
                f"p50 {statistics.median(delays) * 1000:.0f} ms, p99 {late * 1000:.0f} ms",
                goal=f"≤ {GOAL_SEEN_SECONDS * 1000:.0f} ms",
                kept=late <= GOAL_SEEN_SECONDS,
            )
        )
    figures.append(
        Figure(
            f"{TABS} open, {CHANGES_A_SECOND} changes a second",
            f"{cores:.1%} of a core, {memory / 1024:.0f} KB each",
            goal=f"≤ {GOAL_CORE:.0%} of a core",
            kept=cores <= GOAL_CORE,
        )
    )
    return Measurement(
        "dashboard",
        f"The API server with {VMS:,} VMs in SQLite, over TLS. A tab shows {PAGE} rows and the summary; a change is a PATCH of a "
        "row that is shown, from before the request to its row's arrival. The tabs are connections of one other process, with "
        f"{-(-TABS // TABS_OF_A_TOKEN)} tokens, half of them of one project. The CPU time is all of the server's, requests and TLS "
        "included.",
        figures,
    )
