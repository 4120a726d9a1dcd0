"""Figures that need a process of their own: ``python -m benchmarks.placement.scale memory|warm|fill …`` prints one number."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.fabric_server import resident_bytes
from benchmarks.placement.load import GIB, make_snapshot
from benchmarks.placement_end_to_end import make_node
from weft.contracts.clock import SystemClock
from weft.contracts.journal import Event
from weft.contracts.store import MAX_WRITES, Put
from weft.informer.cache import Cache, whole
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import make_view
from weft.kinds.allocation import AllocatedImage, AllocationReport, AllocationSpec, Resources, allocation_name
from weft.launch.entry import SELDOM
from weft.objects.envelope import Envelope, encode_envelope
from weft.objects.identity import Ref, new_uid
from weft.scheduler.loop import Scheduler
from weft.store.sqlite import SqliteStore


def measure_memory(nodes: int, allocations: int) -> float:
    """Bytes that a snapshot takes."""
    make_snapshot(16)
    before = resident_bytes(os.getpid())
    snapshot = make_snapshot(nodes)
    draw = random.Random(4)
    for _ in range(allocations):
        amounts = (draw.randrange(1, 9) * 250, draw.randrange(1, 9) * GIB // 2, 10 * GIB)
        uid = snapshot.uids[draw.randrange(nodes)]
        snapshot.put_allocation(f"/allocation/-/{new_uid()}.{new_uid()}", uid, amounts)
    return resident_bytes(os.getpid()) - before


async def fill(file: Path, nodes: int, allocations: int) -> None:
    """A store with so much in it."""
    store = SqliteStore(file)
    await store.open()
    there = [make_node(number) for number in range(nodes)]
    objects = [*there, *(make_allocation(there[number % nodes], number) for number in range(allocations))]
    for start in range(0, len(objects), MAX_WRITES):
        await store.commit([Put(one.key, encode_envelope(one)) for one in objects[start : start + MAX_WRITES]])
    await store.close()


def make_allocation(node: Envelope, number: int) -> Envelope:
    owner = Ref("vm", f"w{number:06}", "default", new_uid())
    spec = AllocationSpec(
        node=node.name,
        node_uid=node.uid,
        workload=owner,
        workload_generation=1,
        incarnation=1,
        resources=Resources(cpu=1, memory=GIB, disk=2 * GIB),
        image=AllocatedImage(name="plain", uid=new_uid(), sha256="ab" * 32, size=GIB, url="/v1/blobs/x"),
    )
    return Envelope(
        kind="allocation",
        name=allocation_name(node.uid, new_uid()),
        uid=new_uid(),
        owner=owner,
        created_at=time.time(),
        spec=msgspec.Raw(msgspec.json.encode(spec)),
        report=msgspec.Raw(msgspec.json.encode(AllocationReport(incarnation=1, state="running"))),
        finalizers=["node"],
    )


class _Journal:
    def append(self, event: Event) -> None: ...


async def warm(file: Path, allocations: int) -> float:
    """CPU seconds from an open store to a scheduler that could decide: all read, all counted."""
    store, clock = SqliteStore(file), SystemClock()
    await store.open()
    begun = time.process_time()
    cache = Cache(store, make_view(), clock)
    following = asyncio.ensure_future(cache.run())
    await cache.catch_up()
    scheduler = Scheduler(LeaderLease(store, cache, _Journal(), clock, "controllers", "bench"))
    scheduler.intake.notice(whole(cache.view, ("node", "allocation", "vm")))
    took = time.process_time() - begun
    following.cancel()
    await store.close()
    if int(scheduler.snapshot.allocated[0].sum()) != allocations * 1000:
        raise SystemExit("not all is counted")
    return took


if __name__ == "__main__":
    gc.set_threshold(*SELDOM)  # as the server's processes
    what, *given = sys.argv[1:]
    if what == "memory":
        print(measure_memory(int(given[0]), int(given[1])))
    elif what == "fill":
        asyncio.run(fill(Path(given[0]), int(given[1]), int(given[2])))
    else:
        print(asyncio.run(warm(Path(given[0]), int(given[1]))))
