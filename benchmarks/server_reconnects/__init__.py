"""A thousand agents at three servers that keep a member of the store each, one of which is killed: when all their heartbeats count
again at another one, and when all are at its gateway again once it is back."""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from tests.scenario.server.servers_lab import Fabric, fabric_in, tried
from tests.scenario.server.test_server_log import until

from benchmarks.connection import Connection
from benchmarks.fabric import running_agents
from benchmarks.fabric import until as until_there
from benchmarks.fabric.enrolment import enrol
from benchmarks.measurement import Figure, Measurement
from weft.agent.node.enrolment import FILE, read_enrolment
from weft.client.context import Context
from weft.contracts.clock import SystemClock
from weft.contracts.store import Lease
from weft.objects.errors import StoreUnavailable
from weft.protocol.heartbeat import LEASE_PREFIX, LEASE_SECONDS
from weft.store.remote import RemoteStore

AGENTS = int(os.environ.get("WEFT_BENCH_AGENTS", "1000"))
MOST_SECONDS = 10.0
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 90.0
ONLINE_SECONDS = 600.0
SETTLE_SECONDS = 20.0


class Reconnects(msgspec.Struct):
    """Seconds after the kill: when the heartbeat of each agent that was at the killed server counted again, and of all agents;
    ``back``: after its start, when all agents were at its gateway; ``lost``: nodes that were NotReady meanwhile."""

    moved: list[float]
    all: list[float]
    back: float
    lost: int


def count_connections(port: int) -> int:
    """Established ones to this port, on any address of this machine."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(words[1].endswith(f":{port:04X}") and words[3] == "01" for words in map(str.split, lines))


def spread(folders: list[Path], fabric: Fabric) -> None:
    """Let a third of the nodes know each server first."""
    servers = list(fabric.servers.values())
    for number, folder in enumerate(folders):
        order = servers[number % 3 :] + servers[: number % 3]
        first, *others = [server.url for server in order]
        gateway, *gateways = [server.gateway for server in order]
        there = msgspec.structs.replace(
            read_enrolment(folder), server=first, others=tuple(others), gateway=gateway, gateways=tuple(gateways)
        )
        (folder / FILE).write_bytes(msgspec.json.encode(there))


async def follow(store: RemoteStore, killed_at: float, names: set[str]) -> dict[str, float]:
    """When the heartbeat of each node first counted after the kill, in seconds after that."""
    found: dict[str, float] = {}
    while len(found) < len(names):
        now = time.monotonic()
        assert now - killed_at < PATIENCE_SECONDS, f"{len(found)} of {len(names)} came back"
        leases: Sequence[Lease] = ()
        with suppress(StoreUnavailable):
            leases = await store.leases(LEASE_PREFIX)
        for lease in leases:
            renewed_at = now - (LEASE_SECONDS - lease.remaining_seconds)
            # read a moment late at most: one from just before the kill isn't counted
            if renewed_at > killed_at + POLL_SECONDS:
                found.setdefault(lease.name.removeprefix(LEASE_PREFIX), time.monotonic() - killed_at)
        await asyncio.sleep(POLL_SECONDS)
    return found


async def run(fabric: Fabric, folder: Path) -> Reconnects:
    names = [f"n{n:04}" for n in range(AGENTS)]
    folders = await enrol(fabric.context, names, folder)
    spread(folders, fabric)
    uids = [read_enrolment(one).node_uid for one in folders]
    third = fabric.servers["s3"]
    here = Context(
        server=third.url, ca=fabric.context.ca, token=fabric.context.token, server_name=fabric.context.server_name
    )
    admin = await Connection.open(here)
    with running_agents(folders, "--gateways"):
        await until_there("nodes online", admin, "/v1/nodes?fields=status.phase=Ready", AGENTS, ONLINE_SECONDS)
        store = RemoteStore(third.state / "store.sock", SystemClock())
        await store.open()
        port = int(fabric.servers["s1"].gateway.rpartition(":")[2])
        await asyncio.sleep(SETTLE_SECONDS)
        await store.leases(LEASE_PREFIX)
        fabric.servers["s1"].kill()
        killed_at = time.monotonic()
        found = await follow(store, killed_at, set(uids))
        _, body = await admin.request("GET", "/v1/nodes?fields=status.phase=NotReady")
        lost = len(msgspec.json.decode(body)["items"])
        fabric.servers["s1"].start()
        begun = time.monotonic()
        while count_connections(port) < AGENTS and time.monotonic() - begun < PATIENCE_SECONDS:
            await asyncio.sleep(POLL_SECONDS)
        back = time.monotonic() - begun
        await store.close()
    moved = [found[uid] for number, uid in enumerate(uids) if number % 3 == 0]
    return Reconnects(moved, list(found.values()), back, lost)


def measure() -> Measurement:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with (
        tempfile.TemporaryDirectory(prefix="weft-reconnects-", dir="/dev/shm") as nodes,
        tempfile.TemporaryDirectory(prefix="weft-reconnects-") as folder,
        fabric_in(Path(folder)) as fabric,
    ):
        fabric.begin()
        fabric.join(2)
        fabric.join(3)
        until(lambda: tried(lambda: len(fabric.client("s3").list("server").items) == 3))
        outcome = asyncio.run(run(fabric, Path(nodes)))
    return Measurement(
        "Agents of a server that dies",
        f"{AGENTS:,} enrolled agents with fake drivers, a third at each of three servers with a member of the store each, on one"
        " machine; one server is killed with all its processes.",
        [
            Figure(
                "heartbeats of the agents that were there count again at another server after",
                f"{statistics.median(outcome.moved):.1f} s, {max(outcome.moved):.1f} s at most",
                goal=f"≤ {MOST_SECONDS:g} s",
                kept=max(outcome.moved) <= MOST_SECONDS,
            ),
            Figure("heartbeats of all agents", f"{max(outcome.all):.1f} s at most"),
            Figure("nodes NotReady then", str(outcome.lost), goal="0", kept=not outcome.lost),
            Figure("all connected to its gateway after its start", f"{outcome.back:.1f} s"),
        ],
    )
