"""What the clients of the benchmark do: sixteen of them at once, each with a connection and objects of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from benchmarks.connection import Connection
from weft.contracts.clock import SystemClock
from weft.contracts.store import AtRevision, Put
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope, encode_envelope
from weft.store.sqlite import SqliteStore

CLIENTS = 16
IMAGE = {"name": "bench", "spec": {"url": "file:///bench.qcow2"}}
VMS = "/v1/projects/default/vms"
KEPT = "/v1/projects/default/kept"  # of the peer, where writes are durable
Work = Callable[[], Awaitable[object]]


def make_vm(number: int) -> Envelope:
    """A VM as it is stored, of about the size that a running one has."""
    spec = VmSpec(image="bench", networks=[])
    status = WorkloadStatus(
        phase="Running", node="n1", address="10.214.0.7", steps=[{"stage": "boot", "seconds": 1.0}] * 4
    )
    return Envelope(
        kind="vm",
        name=f"bench-{number}",
        uid="0" * 36,
        project="default",
        created_at=1.0,
        spec=msgspec.Raw(msgspec.json.encode(spec)),
        status=msgspec.Raw(msgspec.json.encode(status)),
    )


async def rate_of(works: Sequence[Work], seconds: float) -> float:
    """How often per second the ``works``, each again and again and all at once, were done."""
    done = 0
    ends_at = time.perf_counter() + seconds

    async def repeat(work: Work) -> None:
        nonlocal done
        while time.perf_counter() < ends_at:
            await work()
            done += 1

    begun = time.perf_counter()
    await asyncio.gather(*[repeat(work) for work in works])
    return done / (time.perf_counter() - begun)


async def time_store(folder: Path, seconds: float) -> float:
    """CAS writes per second of the bare store: clients that are tasks in its own process."""
    store = SqliteStore(folder / "bare.db", SystemClock())
    await store.open()

    def writer(number: int) -> Work:
        key, value, revision = f"/vm/default/w-{number}", encode_envelope(make_vm(number)), 0

        async def write() -> None:
            nonlocal revision
            revision = await store.commit([Put(key, value)], [AtRevision(key, revision)] if revision else [])

        return write

    try:
        return await rate_of([writer(n) for n in range(CLIENTS)], seconds)
    finally:
        await store.close()


def cas_writer(connection: Connection, number: int, where: str = VMS) -> Work:
    """A client that changes its VM if it still is at the generation it has seen last."""
    path, generation = f"{where}/bench-{number}", 1

    async def write() -> None:
        nonlocal generation
        spec = {"image": "bench", "networks": [], "grace": 1 + generation % 1000}
        status, body = await connection.request("PUT", path, {"generation": generation, "spec": spec})
        generation += 1
        if status != 200 or msgspec.json.decode(body, type=Envelope).generation != generation:
            raise SystemExit(f"PUT {path}: {status} {body[:300]!r}")

    return write


def reader(connection: Connection, number: int) -> Work:
    """A client that reads one VM after the other."""
    count = number

    async def read() -> None:
        nonlocal count
        count = (count + 61) % 1000
        status, body = await connection.request("GET", f"{VMS}/bench-{count}")
        if status != 200:
            raise SystemExit(f"GET: {status} {body[:300]!r}")

    return read


async def create(connection: Connection, names: Sequence[str]) -> None:
    """Make VMs with one request."""
    objects = [{"name": name, "spec": {"image": "bench", "networks": []}} for name in names]
    status, body = await connection.request("POST", f"{VMS}:batch", {"objects": objects})
    if status != 200 or b'"error"' in body:
        raise SystemExit(f"batch: {status} {body[:500]!r}")
