"""One history: servers, clients, outages, and what is wrong with what the clients saw."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path

import msgspec

from tests.history.checker import Operation, find_broken
from tests.history.clients import FIRST, PROJECT, REGISTERS, SPEC, VMS, Asker, Record
from tests.history.fabric import Outages, Servers
from tests.history.store_log import find_wrong_commits
from tests.scenario.api_lab import make_image, make_vm
from weft.client.api import Client
from weft.contracts.store import Batch
from weft.store.etcd import EtcdStore

PREFIXES = [f"/{kind}/{PROJECT}/" for kind in ("disruptionbudget", "vm", "quota")]


class Outcome(msgspec.Struct):
    """``broken``: what has no order, one text each; ``wrong``: what the store's log has that must not be."""

    asked: int
    operations: int
    unknown: int  # changes of which nobody knows whether they were done
    commits: int
    outages: dict[str, int]
    broken: list[str]
    wrong: list[str]
    seconds: float


def run_history(
    folder: Path, seed: int, *, servers: int, clients: int, asks: int, most_seconds: float = 3.0, before: str = ""
) -> Outcome:
    """``asks`` operations of all clients together, while outages of up to ``most_seconds`` befall members and servers.
    ``before`` is Python that each API server runs first."""
    with ExitStack() as stack:
        fabric = Servers(folder, stack, servers, before)
        fabric.start()
        endpoints = [member.endpoint for member in fabric.members]
        cursor = asyncio.run(find_cursor(endpoints))
        _set_up(fabric)
        record, began = Record(), time.monotonic()
        askers = [
            Asker(fabric.context, f"c{number}", seed, math.ceil(asks / clients), record) for number in range(clients)
        ]
        outages = Outages(fabric, seed, most_seconds)
        for thread in (outages, *askers):
            thread.start()
        for asker in askers:
            asker.join()
        outages.end()
        for asker in askers:
            if asker.problem is not None:
                raise asker.problem
        seconds = time.monotonic() - began
        batches = asyncio.run(read_log(endpoints, cursor, PREFIXES))
    setup = [Operation("setup", f"r{n}", "write", 0.0, 0.0, makes=FIRST) for n in range(REGISTERS)]
    return Outcome(
        asked=record.asked,
        operations=len(record.operations),
        unknown=sum(one.done is None for one in record.told),
        commits=len(batches),
        outages=dict(Counter(outages.count)),
        broken=[describe(some) for some in find_broken([*setup, *record.operations])],
        wrong=find_wrong_commits(batches, record.told),
        seconds=seconds,
    )


def describe(operations: list[Operation]) -> str:
    """A history for people, one operation a line."""
    first = min(one.begin for one in operations if one.begin)
    lines = [f"{operations[0].key} has no order:"]
    for one in operations:
        until = f"{max(0.0, one.end - first):.3f}" if one.end < math.inf else "?"
        given = {name: value for name in ("is_", "is_not", "makes") if (value := getattr(one, name)) != "any value"}
        lines.append(f"  {max(0.0, one.begin - first):8.3f} to {until:>8} s  {one.client:>6} {one.what:8} {given}")
    return "\n".join(lines)


def _set_up(fabric: Servers) -> None:
    client = Client(fabric.context, patience_seconds=30.0)
    client.create({"kind": "project", "name": PROJECT, "spec": {}})
    client.project = PROJECT
    client.apply([{**make_image(), "project": PROJECT}])
    client.create({"kind": "quota", "name": "project", "spec": {"cpu": 6}})
    for number in range(REGISTERS):
        client.create({"kind": "disruptionbudget", "name": f"r{number}", "labels": {"by": FIRST}, "spec": SPEC})
    for number in range(VMS):
        client.create(make_vm(f"v{number}", networks=[], cpu=0.5, memory="128M"))
    client.close()


async def find_cursor(endpoints: Sequence[str]) -> str:
    """The present of the store in this etcd."""
    store = EtcdStore(endpoints, timeout_seconds=60.0)
    await store.open()
    try:
        return (await store.list("/")).cursor
    finally:
        await store.close()


async def read_log(endpoints: Sequence[str], cursor: str, prefixes: Sequence[str]) -> list[Batch]:
    """All commits from ``cursor`` on to keys that begin so."""
    store = EtcdStore(endpoints, timeout_seconds=60.0)
    await store.open()
    batches: list[Batch] = []
    try:
        for prefix in prefixes:
            newest = max([0, *(entry.revision for entry in (await store.list(prefix)).entries)])
            some: list[Batch] = []
            async with asyncio.timeout(120), aclosing(store.watch(prefix, cursor)) as following:
                while not some or some[-1].revision < newest:
                    some.append(await anext(following))
            batches += some
        return sorted(batches, key=lambda batch: batch.revision)
    finally:
        await store.close()
