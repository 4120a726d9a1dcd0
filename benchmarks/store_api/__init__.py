"""Durable writes and reads through the API, against the store itself and against a bare server on the same stack.

One doors process over TLS, as ``make up`` starts it; sixteen clients in this process, each with one kept connection.
Weft's turns and the peers' alternate.
"""

from __future__ import annotations

import contextlib
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec
import uvloop

from benchmarks.connection import Connection
from benchmarks.fabric_server import FabricServer, running_server
from benchmarks.measurement import ROOT, Figure, Measurement
from benchmarks.store_api import load
from weft.client.context import Context
from weft.client.tls import make_tls

ROUNDS = 5
SECONDS = 2.0
BATCH = 500
CREATORS = 4


@contextlib.contextmanager
def running_bare(server: FabricServer) -> Iterator[Context]:
    file = server.folder / "bare.port"
    words = [sys.executable, "-m", "benchmarks.store_api.bare", str(server.folder), str(file)]
    process = subprocess.Popen(words, cwd=ROOT)
    try:
        while not (file.exists() and file.read_text()):
            time.sleep(0.05)
        yield msgspec.structs.replace(server.context, server=f"https://127.0.0.1:{file.read_text()}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


async def connect(context: Context) -> list[Connection]:
    tls = make_tls(context)
    return [await Connection.open(context, tls) for _ in range(load.CLIENTS)]


async def run(server: FabricServer, bare: Context) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in ("store", "cas", "bare", "bare_write", "read", "create")}
    ours, peers = await connect(server.context), await connect(bare)
    status, body = await ours[0].request("POST", "/v1/projects/default/images", load.IMAGE)
    if status != 201:
        raise SystemExit(f"image: {status} {body[:300]!r}")
    for start in range(0, 1000, BATCH):
        await load.create(ours[0], [f"bench-{n}" for n in range(start, start + BATCH)])
    writers = [load.cas_writer(connection, n) for n, connection in enumerate(ours)]
    bare_writers = [load.cas_writer(connection, n) for n, connection in enumerate(peers)]
    for turn in range(ROUNDS):
        rates["store"].append(await load.time_store(server.folder, SECONDS))
        rates["cas"].append(await load.rate_of(writers, SECONDS))
        rates["bare_write"].append(await load.rate_of(bare_writers, SECONDS))
        rates["bare"].append(await load.rate_of([load.reader(c, n) for n, c in enumerate(peers)], SECONDS))
        rates["read"].append(await load.rate_of([load.reader(c, n) for n, c in enumerate(ours)], SECONDS))
        rates["create"].append(
            BATCH * await load.rate_of([creator(ours[n], turn, n) for n in range(CREATORS)], SECONDS)
        )
    for connection in (*ours, *peers):
        connection.close()
    return rates


def creator(connection: Connection, turn: int, number: int) -> load.Work:
    count = 0

    async def work() -> None:
        nonlocal count
        count += 1
        await load.create(connection, [f"c-{turn}-{number}-{count}-{n}" for n in range(BATCH)])

    return work


def per_second(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f}/s ({min(values):,.0f}–{max(values):,.0f}, n={len(values)})"


def measure() -> Measurement:
    with running_server("doors") as server, running_bare(server) as bare:
        rates = uvloop.run(run(server, bare))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    written, read = middle["cas"] / middle["store"], middle["read"] / middle["bare"]
    bound = middle["bare_write"] / middle["store"]
    return Measurement(
        "store_api",
        "One doors process over TLS (SQLite, synchronous=FULL), 16 clients on kept connections in one other process, VMs of "
        "1 KB. For scale: Incus 6.0 on a machine like this creates 15–45 records/s, and answers 108 full lists/s at 100 "
        "instances.",
        [
            Figure(
                "durable single CAS writes",
                per_second(rates["cas"]),
                "the store itself, 16 tasks " + per_second(rates["store"]),
                f"{written:.0%}",
                "≥ 60 % of the store",
                written >= 0.6,
            ),
            Figure(
                "the same requests to a server that neither checks nor keeps anything",
                per_second(rates["bare_write"]),
                ratio=f"{bound:.0%}",
                goal="what this stack can reach",
            ),
            Figure(
                f"VMs created by :batch, {BATCH} a request, {CREATORS} clients",
                per_second(rates["create"]),
                "Incus 6.0: 15–45/s",
                goal="≥ 5,000/s",
                kept=middle["create"] >= 5000,
            ),
            Figure(
                "reads of one VM",
                per_second(rates["read"]),
                "bare Starlette + msgspec " + per_second(rates["bare"]),
                f"{read:.0%}",
                "≥ 80 % of bare",
                read >= 0.8,
            ),
        ],
    )
