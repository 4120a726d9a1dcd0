"""50,000 workloads onto 5,000 nodes through the whole server, from the first request to the last durable binding.

The nodes are there and Ready, and nothing more: no agent acts on what it is given. The workloads come by ``:batch`` over TLS
and have no networks, so that a binding is one decision: what is counted is allocations in the store's file. Where the
time went is told by process.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.connection import Connection
from benchmarks.fabric import make_image
from benchmarks.fabric_server import FabricServer, cpu_seconds, running_server
from benchmarks.measurement import Figure, Measurement
from weft.client.tls import make_tls
from weft.contracts.clock import SystemClock
from weft.contracts.store import MAX_WRITES, Put, epoch_of
from weft.kinds.node import NodeReport, NodeSpec, NodeStatus
from weft.objects.envelope import Condition, Envelope, encode_envelope, merge_part
from weft.objects.identity import new_uid
from weft.protocol.heartbeat import LEASE_PREFIX
from weft.store.remote import RemoteStore

NODES = int(os.environ.get("WEFT_BENCH_NODES", "5000"))
WORKLOADS = int(os.environ.get("WEFT_BENCH_WORKLOADS", "50000"))
GOAL = 3_000  # bindings a second
BATCH = 500
CONNECTIONS = 4
PATIENCE_SECONDS = 600.0
GIB = 2**30


def make_node(number: int) -> Envelope:
    report = NodeReport(
        version="0",
        address=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
        cpu=32.0 if number % 3 else 64.0,
        memory=128 * GIB,
        disk=4096 * GIB,
        accelerator="kvm",
        machines=["q35", "microvm"],
    )
    return Envelope(
        kind="node",
        name=f"n{number:05}",
        uid=new_uid(),
        created_at=time.time(),
        labels={"zone": "abc"[number % 3]},
        spec=msgspec.Raw(msgspec.json.encode(NodeSpec())),
        status=msgspec.Raw(msgspec.json.encode(NodeStatus(phase="Ready"))),
        report=msgspec.Raw(msgspec.json.encode(report)),
        conditions=[Condition("Ready", "True", "Ready", "", time.time())],
    )


async def provide_image(server: FabricServer) -> None:
    """A bundle that no guest will boot, fetched by the server."""
    connection = await Connection.open(server.context)
    spec = {"url": f"file://{make_image(server.folder)}"}
    await connection.request("POST", "/v1/projects/default/images", {"name": "plain", "spec": spec})
    while True:
        _, body = await connection.request("GET", "/v1/projects/default/images/plain")
        if msgspec.json.decode(body)["status"]["phase"] == "Available":
            break
        await asyncio.sleep(0.2)
    connection.close()


async def create_all(server: FabricServer) -> None:
    draw = random.Random(1)
    names = iter(range(0, WORKLOADS, BATCH))
    tls = make_tls(server.context)

    async def work() -> None:
        connection = await Connection.open(server.context, tls)
        for first in names:
            objects = []
            for number in range(first, min(first + BATCH, WORKLOADS)):
                spec = {"image": "plain", "cpu": draw.choice([0.5, 1, 2]), "memory": draw.choice(["1G", "2G", "4G"])}
                objects.append({"name": f"w{number:06}", "spec": {**spec, "networks": []}})
            status, body = await connection.request("POST", "/v1/projects/default/vms:batch", {"objects": objects})
            if status != 200 or b'"error":{' in body:
                raise SystemExit(f"batch: {status} {body[:600]!r}")
        connection.close()

    await asyncio.gather(*[work() for _ in range(CONNECTIONS)])


def count_bound(file: Path) -> int:
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as store:
        found: int = store.execute(
            "SELECT count(*) FROM latest WHERE key >= '/allocation/' AND key < '/allocation0'"
        ).fetchone()[0]
    return found


async def wait_bound(server: FabricServer) -> float:
    """When the last one stood in the file."""
    begun = time.monotonic()
    while count_bound(server.folder / "store.db") < WORKLOADS:
        if time.monotonic() - begun > PATIENCE_SECONDS:
            raise SystemExit(f"{count_bound(server.folder / 'store.db')} of {WORKLOADS} after {PATIENCE_SECONDS:.0f} s")
        await asyncio.sleep(0.1)
    return time.monotonic()


async def place_all(server: FabricServer, nodes: Sequence[Envelope]) -> tuple[float, float]:
    """Seconds until the last was created, and bound."""
    store = RemoteStore(server.folder / "store.sock", SystemClock())
    history = epoch_of((await store.list("/node/", limit=1)).cursor)
    for start in range(0, len(nodes), MAX_WRITES):  # as agents do, or they would be waited for
        part = nodes[start : start + MAX_WRITES]
        for node in part:
            node.report = merge_part(node.report, {"epoch": history})
        await store.commit([Put(node.key, encode_envelope(node)) for node in part])
    for node in nodes:
        await store.grant(f"{LEASE_PREFIX}{node.uid}", "bench", 3600.0)
    await store.close()
    await provide_image(server)
    await asyncio.sleep(3.0)
    begun = time.monotonic()
    bound = asyncio.ensure_future(wait_bound(server))
    await create_all(server)
    created = time.monotonic()
    return created - begun, await bound - begun


def measure() -> Measurement:
    nodes = [make_node(number) for number in range(NODES)]
    with running_server("", nodes) as server:
        before = {pid: cpu_seconds(pid) for pid in server.pids}
        created, bound = asyncio.run(place_all(server, nodes))
        used = {pid: cpu_seconds(pid) - before.get(pid, 0.0) for pid in server.pids}
    rate = WORKLOADS / bound
    by_process = ", ".join(f"{seconds:.1f}" for seconds in used.values())
    return Measurement(
        "placement_end_to_end",
        f"{WORKLOADS:,} workloads by :batch ({BATCH} a request, {CONNECTIONS} connections) onto {NODES:,} nodes that are there "
        "and Ready; durable in SQLite with synchronous=FULL. Server and client share the machine.",
        [
            Figure("bindings a second", f"{rate:,.0f}/s", goal=f"≥ {GOAL:,}/s", kept=rate >= GOAL),
            Figure("first request → last created / last durable binding", f"{created:.1f} s / {bound:.1f} s"),
            Figure("CPU of the server's processes (supervisor, api, controllers, gateway)", f"{by_process} s"),
        ],
    )
