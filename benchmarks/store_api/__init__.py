"""Durable writes and reads through the API, against the store itself and against a bare server on the same stack.

One API server over TLS, as ``make up`` starts it; sixteen clients in this process, each with one kept connection.
Weft's turns and the peers' alternate.
"""

from __future__ import annotations

import contextlib
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec
import uvloop

from benchmarks.connection import Connection
from benchmarks.fabric_server import FabricServer, cpu_seconds, running_server
from benchmarks.measurement import ROOT, Figure, Measurement, spread
from benchmarks.store_api import load
from weft.client.context import Context
from weft.client.tls import make_tls

ROUNDS = 5
SECONDS = 2.0
BATCH = 500
CREATORS = 4


@contextlib.contextmanager
def running_bare(server: FabricServer) -> Iterator[tuple[Context, int]]:
    """Where the peer is, and its process."""
    file = server.folder / "bare.port"
    words = [sys.executable, "-m", "benchmarks.store_api.bare", str(server.folder), str(file)]
    process = subprocess.Popen(words, cwd=ROOT)
    try:
        while not (file.exists() and file.read_text()):
            time.sleep(0.05)
        yield msgspec.structs.replace(server.context, server=f"https://127.0.0.1:{file.read_text()}"), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


async def connect(context: Context) -> list[Connection]:
    tls = make_tls(context)
    return [await Connection.open(context, tls) for _ in range(load.CLIENTS)]


class Taken:
    """What the turns of one kind brought: rates per second, and the server's CPU seconds for each thing done."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.costs: list[float] = []

    async def turn(self, cpu: Callable[[], float], works: Sequence[load.Work], each: int = 1) -> None:
        """One turn more; ``each`` is how many things one work does."""
        before, begun = cpu(), time.perf_counter()
        self.rates.append(each * await load.rate_of(works, SECONDS))
        done = self.rates[-1] * (time.perf_counter() - begun)
        self.costs.append((cpu() - before) / done)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def cost(self) -> float:
        return statistics.median(self.costs)


async def run(server: FabricServer, bare: Context, bare_pid: int) -> tuple[list[float], dict[str, Taken]]:
    """The store's own rates, and what the turns of both servers brought."""
    store: list[float] = []
    taken = {name: Taken() for name in ("cas", "bare", "bare_write", "kept_write", "read", "create")}
    ours, peers = await connect(server.context), await connect(bare)
    status, body = await ours[0].request("POST", "/v1/projects/default/images", load.IMAGE)
    if status != 201:
        raise SystemExit(f"image: {status} {body[:300]!r}")
    for start in range(0, 1000, BATCH):
        await load.create(ours[0], [f"bench-{n}" for n in range(start, start + BATCH)])
    writers = [load.cas_writer(connection, n) for n, connection in enumerate(ours)]
    bare_writers = [load.cas_writer(connection, n) for n, connection in enumerate(peers)]
    kept_writers = [load.cas_writer(connection, n, load.KEPT) for n, connection in enumerate(peers)]

    def bare_cpu() -> float:
        return cpu_seconds(bare_pid)

    for turn in range(ROUNDS):
        store.append(await load.time_store(server.folder, SECONDS))
        await taken["cas"].turn(server.cpu_seconds, writers)
        await taken["bare_write"].turn(bare_cpu, bare_writers)
        await taken["kept_write"].turn(bare_cpu, kept_writers)
        await taken["bare"].turn(bare_cpu, [load.reader(c, n) for n, c in enumerate(peers)])
        await taken["read"].turn(server.cpu_seconds, [load.reader(c, n) for n, c in enumerate(ours)])
        creators = [creator(ours[n], turn, n) for n in range(CREATORS)]
        await taken["create"].turn(server.cpu_seconds, creators, BATCH)
    for connection in (*ours, *peers):
        connection.close()
    return store, taken


def creator(connection: Connection, turn: int, number: int) -> load.Work:
    count = 0

    async def work() -> None:
        nonlocal count
        count += 1
        await load.create(connection, [f"c-{turn}-{number}-{count}-{n}" for n in range(BATCH)])

    return work


def per_second(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f}/s ({min(values):,.0f}–{max(values):,.0f}, n={len(values)})"


def cost(taken: Taken) -> str:
    return spread(taken.costs, "µs", 1e6)


def measure() -> Measurement:
    with running_server("api") as server, running_bare(server) as (bare, bare_pid):
        store, taken = uvloop.run(run(server, bare, bare_pid))
    cas, read, create, peer, peer_write, kept = (
        taken[name] for name in ("cas", "read", "create", "bare", "bare_write", "kept_write")
    )
    return Measurement(
        "store_api",
        "One API server over TLS (SQLite, synchronous=FULL), 16 clients on kept connections in one other process, VMs of "
        "1 KB. CPU is of the whole server, its store included. For scale: Incus 6.0 on a machine like this creates 15–45 "
        "records/s, and answers 108 full lists/s at 100 instances.",
        [
            Figure(
                "durable single CAS writes",
                per_second(cas.rates),
                "bare Starlette + msgspec, nothing checked or kept " + per_second(peer_write.rates),
                f"{cas.rate / peer_write.rate:.0%}",
                "≥ 50 % of bare",
                cas.rate / peer_write.rate >= 0.5,
            ),
            Figure(
                "the same, beside a bare server that keeps what it is sent",
                per_second(cas.rates),
                "one SQLite commit a group, nothing checked " + per_second(kept.rates),
                f"{cas.rate / kept.rate:.0%}",
            ),
            Figure(
                "what of a bare server is left by one SQLite commit a group",
                per_second(kept.rates),
                "bare, nothing kept " + per_second(peer_write.rates),
                f"{kept.rate / peer_write.rate:.0%}",
            ),
            Figure(
                "the store itself, 16 tasks in one process",
                per_second(store),
            ),
            Figure(
                f"VMs created by :batch, {BATCH} a request, {CREATORS} clients",
                per_second(create.rates),
                "Incus 6.0: 15–45/s",
                goal="≥ 5,000/s",
                kept=create.rate >= 5000,
            ),
            Figure(
                "reads of one VM",
                per_second(read.rates),
                "bare Starlette + msgspec " + per_second(peer.rates),
                f"{read.rate / peer.rate:.0%}",
                "≥ 80 % of bare",
                read.rate / peer.rate >= 0.8,
            ),
            Figure("CPU of a write", cost(cas), "bare " + cost(peer_write), f"{cas.cost / peer_write.cost:.2f}×"),
            Figure("the same, where both are durable", cost(cas), "bare " + cost(kept), f"{cas.cost / kept.cost:.2f}×"),
            Figure("CPU of a VM created by :batch", cost(create)),
            Figure("CPU of a read", cost(read), "bare " + cost(peer), f"{read.cost / peer.cost:.2f}×"),
        ],
    )
