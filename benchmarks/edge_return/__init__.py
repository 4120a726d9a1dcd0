"""1,000 edge nodes that were cut off return within one second: how soon all are Ready, and what that costs the server.

The whole server has one core, and its real API; the nodes are connections of this one process, on the other cores. Each has its own
certificate, runs a VM that only its report knows, and comes back as an agent does: its report first, with events that waited in its
outbox, then its watches, each on a connection of its own. They were silent until the server counted all of them as Autonomous.

With WEFT_BENCH_SHARE=0.5 the server has half of the core while they come back, by a control group.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import sqlite3
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec
import uvloop

from benchmarks.connection import Connection
from benchmarks.fabric import make_image, post
from benchmarks.fabric.enrolment import enrol
from benchmarks.fabric_server import FabricServer, cpu_seconds, running_server
from benchmarks.measurement import Figure, Measurement
from benchmarks.watchers.watcher import Watcher, watch
from weft.agent.node.enrolment import make_context, read_enrolment
from weft.agent.server.line import ServerLine
from weft.client.context import Context
from weft.client.tls import make_tls
from weft.contracts.clock import SystemClock
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.node import NodePool, NodeReport
from weft.objects.identity import Ref, new_uid
from weft.protocol.heartbeat import LEASE_SECONDS, Digest
from weft.protocol.report import NodeEvent, ReportAnswer, ReportBody

NODES = int(os.environ.get("WEFT_BENCH_NODES", "1000"))
SHARE = float(os.environ.get("WEFT_BENCH_SHARE", "1"))  # of a core, that the server has while they come back
EVENTS = 20  # that each node's outbox has
WITHIN_SECONDS = 1.0
GOAL_SECONDS = 60.0
PATIENCE_SECONDS = 240.0
SETTLE_SECONDS = 10.0
HEARTBEAT_SECONDS = 8.0
AT_ONCE = 20
BATCH = 500
AUTONOMY = 259_200.0
REASON = "Worked"
GIB = 1 << 30


class Outcome(msgspec.Struct):
    ready_seconds: float
    answered_seconds: float  # until the last node's report was answered
    followed_seconds: float  # until the last node's last watch was answered
    slowest_report: float  # with its tries
    tries: int  # that were made again, of all nodes
    cpu: list[float]  # seconds until all were Ready, by process
    kept: int  # events in the journal
    again: int  # of these, more than once


class FakeNode:
    """An agent's side of the protocol, without an agent."""

    def __init__(self, folder: Path) -> None:
        enrolment = read_enrolment(folder)
        self.name, self.uid = enrolment.node, enrolment.node_uid
        self._address = enrolment.address  # on loopback, below, since the server bounds what one address may have
        self._source = f"127.{enrolment.address.partition('.')[2]}"
        self._context: Context = make_context(folder, enrolment)
        self._tls: ssl.SSLContext = make_tls(self._context)
        self._line: Connection | None = None
        self._watches: list[Watcher] = []
        self._number, self._outbox, self._contact, self._epoch, self._cursor = 0, new_uid(), new_uid(), "", ""
        self._boot = new_uid()
        self._ranges = self._peers = ""  # the versions that it knows
        self.allocations: dict[str, AllocationReport] = {}

    async def open(self) -> None:
        if self._line is not None:
            self._line.close()  # an agent hangs up on who doesn't answer
        self._line = await Connection.open(self._context, self._tls, self._source)

    async def report(self, events: int = 0, *, about: bool = True) -> None:
        assert self._line is not None
        self._number += about
        node = NodeReport(
            version="0", address=self._address, addresses=[self._address], cpu=32.0, memory=64 * GIB, disk=1024 * GIB,
            accelerator="kvm", machines=["q35", "microvm"], pools=[NodePool(name="local", id=self.uid)], epoch=self._epoch,
            boot_id=self._boot, contact=self._contact,
        )  # fmt: skip
        body = ReportBody(
            node=node if about else None,
            version=f"{self._boot}.{self._number}",
            allocations=self.allocations if about else {},
            events=[
                NodeEvent("Normal", REASON, f"{self.name} {n}", Ref("node", self.name, self.uid), n, 3600.0 - n)
                for n in range(1, events + 1)
            ],
            outbox=self._outbox if events else "",
            digest=Digest(),
            ranges_version=self._ranges,
            peers_version=self._peers,
        )
        status, answer = await self._line.request("POST", f"/v1/nodes/{self.name}:report", msgspec.json.encode(body))
        if status != 200:
            raise ConnectionError(f"report: {status} {answer[:300]!r}")
        told = msgspec.json.decode(answer, type=ReportAnswer)
        self._ranges = told.ranges_version or self._ranges
        self._peers = told.peers.version if told.peers is not None else self._peers
        if events and told.through != events:
            raise ConnectionError(f"report: of {events} events the server has {told.through}")

    async def come_back(self, line: ServerLine) -> None:
        async with asyncio.timeout(line.connect_seconds):
            await self.open()
        await self._report_within(line, line.answer_seconds, EVENTS)

    async def beat(self, line: ServerLine) -> None:
        """A heartbeat, on another connection if the last one was closed or silent."""
        try:
            await self._report_within(line, line.connect_seconds, about=False)
        except (ConnectionError, TimeoutError):
            async with asyncio.timeout(line.connect_seconds):
                await self.open()
            raise

    async def _report_within(self, line: ServerLine, seconds: float, events: int = 0, *, about: bool = True) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.report(events, about=about)
        except TimeoutError:
            line.note_failure(unanswered=True)
            raise
        line.note_answer()

    async def read_own(self) -> None:
        """Take each of its allocations for running."""
        assert self._line is not None
        status, body = await self._line.request("GET", f"/v1/allocations?node={self.uid}")
        if status != 200:
            raise ConnectionError(f"allocations: {status} {body[:300]!r}")
        found = msgspec.json.decode(body)
        self._cursor, self._epoch = quote(found["cursor"]), found["cursor"].partition(":")[0]
        for one in found["items"]:
            spec = msgspec.convert(one["spec"], AllocationSpec)
            self.allocations[one["name"]] = AllocationReport(
                incarnation=spec.incarnation, state="running", desired_count=spec.desired_count, ready=True,
                boot_id=self._boot, accelerator="kvm", started_at=time.time(),
            )  # fmt: skip

    async def follow(self) -> None:
        """The agent's watches, each where its last one had come."""
        for watcher in self._watches:
            watcher.close()
        self._watches = []
        for what in (f"allocations?node={self.uid}&", "snapshots?", "publishedports?"):
            path = f"/v1/{what}watch=1&cursor={self._cursor}"
            self._watches.append(await watch(self._context, self._tls, path, lambda at: None, self._source))

    def close(self) -> None:
        """The line is cut."""
        if self._line is not None:
            self._line.close()
        for watcher in self._watches:
            watcher.close()
        self._line, self._watches, self._contact = None, [], new_uid()


async def do_all(nodes: Sequence[FakeNode], work: Callable[[FakeNode], Awaitable[None]]) -> None:
    """``work(node)`` for each, AT_ONCE at a time."""
    waiting = list(nodes)

    async def go() -> None:
        while waiting:
            await work(waiting.pop())

    await asyncio.gather(*[go() for _ in range(AT_ONCE)])


async def join(node: FakeNode) -> None:
    """Make the node Ready, and autonomous if it is silent."""
    await node.open()
    await node.read_own()
    await node.report()


async def wait_until(what: str, admin: Connection, path: str, count: int = NODES) -> float:
    """When the list at ``path`` had ``count`` objects."""
    begun = time.monotonic()
    while True:
        status, body = await admin.request("GET", f"{path}&limit=5000")
        found = len(msgspec.json.decode(body)["items"]) if status == 200 else 0
        if found >= count:
            return time.monotonic()
        if time.monotonic() - begun > PATIENCE_SECONDS:
            raise SystemExit(f"{what}: {found} of {count} after {PATIENCE_SECONDS:.0f} s")
        await asyncio.sleep(0.5)


async def wait_ready(file: Path) -> float:
    """When the store's file had all nodes as Ready: asking the server would be a part of its work."""
    begun = time.monotonic()
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as store:
        while True:
            (found,) = store.execute(
                "SELECT count(*) FROM latest JOIN version USING (position)"
                " WHERE latest.key >= '/node/' AND latest.key < '/node0' AND instr(version.value, ?)",
                (b'"phase":"Ready"',),
            ).fetchone()
            if found >= NODES:
                return time.monotonic()
            if time.monotonic() - begun > PATIENCE_SECONDS:
                raise SystemExit(f"nodes back: {found} of {NODES} after {PATIENCE_SECONDS:.0f} s")
            await asyncio.sleep(0.2)


async def keep_alive(nodes: Sequence[FakeNode], ended: asyncio.Event) -> None:
    """Heartbeats, spread evenly. None is cut off: the next request on its connection would read its answer."""
    while not ended.is_set():
        for node in nodes:
            if ended.is_set():
                break
            await asyncio.gather(node.report(about=False), asyncio.sleep(HEARTBEAT_SECONDS / len(nodes)))


async def run(server: FabricServer, folder: Path) -> Outcome:
    names = [f"n{n:04}" for n in range(NODES)]
    nodes = [FakeNode(one) for one in await enrol(server.context, names, folder)]
    admin = await Connection.open(server.context)
    await do_all(nodes, join)
    image = {"name": "none", "spec": {"url": f"file://{make_image(server.folder)}"}}
    await post(admin, "/v1/projects/default/images", image, 201)
    for name in names:
        status, body = await admin.request("PATCH", f"/v1/nodes/{name}", {"spec": {"autonomy_seconds": AUTONOMY}})
        if status != 200:
            raise SystemExit(f"PATCH: {status} {body[:300]!r}")
    ended = asyncio.Event()
    beating = asyncio.ensure_future(keep_alive(nodes, ended))
    await wait_until("nodes", admin, "/v1/nodes?fields=status.phase=Ready")
    await wait_until("image", admin, "/v1/projects/default/images?fields=status.phase=Available", 1)
    spec = {"image": "none", "cpu": 1, "memory": "256M", "networks": []}
    for start in range(0, NODES, BATCH):
        objects = [{"name": f"vm-{name}", "spec": {**spec, "node": name}} for name in names[start : start + BATCH]]
        await post(admin, "/v1/projects/default/vms:batch", {"objects": objects}, 200)
    await wait_until("allocations", admin, "/v1/allocations?")
    ended.set()
    await beating
    await do_all(nodes, FakeNode.read_own)
    await do_all(nodes, FakeNode.report)
    await wait_until("VMs", admin, "/v1/projects/default/vms?fields=status.phase=Running")
    for node in nodes:
        node.close()
    await asyncio.sleep(LEASE_SECONDS)
    await wait_until("silent nodes", admin, "/v1/nodes?fields=status.phase=Autonomous")
    await wait_until("VMs of silent nodes", admin, "/v1/projects/default/vms?fields=status.phase=Unknown")
    await asyncio.sleep(SETTLE_SECONDS)
    if SHARE < 1:
        server.limit(SHARE)
    return await come_back(server, nodes)


async def try_until(line: ServerLine, work: Callable[[], Awaitable[None]]) -> int:
    """As often as it fails, with an agent's pauses; how often it was tried again."""
    tries = 0
    while True:
        try:
            await work()
            return tries
        except (OSError, TimeoutError):
            tries += 1
            await asyncio.sleep(line.choose_pause(tries))


async def keep_beating(node: FakeNode, line: ServerLine) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        await try_until(line, lambda: node.beat(line))


async def come_back(server: FabricServer, nodes: Sequence[FakeNode]) -> Outcome:
    draw, reported, followed, tries, clock = random.Random(1), list[float](), list[float](), list[int](), SystemClock()
    cpu, begun = [cpu_seconds(pid) for pid in server.pids], time.monotonic()
    slowest = 0.0

    async def come(node: FakeNode) -> None:
        nonlocal slowest
        await asyncio.sleep(draw.uniform(0.0, WITHIN_SECONDS))
        sent, line = time.monotonic(), ServerLine(clock, node.name)
        again = await try_until(line, lambda: node.come_back(line))
        reported.append(time.monotonic())
        slowest = max(slowest, reported[-1] - sent)
        async with asyncio.TaskGroup() as group:  # it reports while it reads, for ever
            group.create_task(keep_beating(node, line))
            again += await try_until(line, node.follow)
            tries.append(again)
            followed.append(time.monotonic())

    coming = [asyncio.ensure_future(come(node)) for node in nodes]
    ready = await wait_ready(server.folder / "store.db")
    used = [cpu_seconds(pid) - before for pid, before in zip(server.pids, cpu, strict=True)]
    admin = await Connection.open(server.context)  # the server has closed one that was silent for so long
    await wait_until("VMs back", admin, "/v1/projects/default/vms?fields=status.phase=Running")
    while len(followed) < len(nodes):
        for one in coming:
            if one.done():
                one.result()  # its error
        await asyncio.sleep(0.2)
    for one in coming:
        one.cancel()
    await asyncio.gather(*coming, return_exceptions=True)
    with sqlite3.connect(f"file:{server.folder / 'journal.db'}?mode=ro", uri=True) as journal:
        kept, counted = journal.execute("SELECT count(*), sum(count) FROM event WHERE reason = ?", (REASON,)).fetchone()
    return Outcome(
        ready - begun, max(reported) - begun, max(followed) - begun, slowest, sum(tries), used, kept, counted - kept
    )


def measure() -> Measurement:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])  # which the server inherits
    try:
        with tempfile.TemporaryDirectory(prefix="weft-edge-", dir="/dev/shm") as name, running_server() as server:
            os.sched_setaffinity(0, cores[1:] or cores)
            outcome = uvloop.run(run(server, Path(name)))
    finally:
        os.sched_setaffinity(0, cores)
    by_process = " + ".join(f"{seconds:.1f}" for seconds in outcome.cpu)
    sent = NODES * EVENTS
    return Measurement(
        "edge_return",
        f"{NODES:,} autonomous nodes with a VM each, whose lines all work again within {WITHIN_SECONDS:.0f} s; each reports "
        f"itself, its VM and {EVENTS} events that waited, then follows the server. Real API over TLS on loopback, SQLite. "
        f"The server (supervisor, API server, gateway and controllers together) has {'one' if SHARE == 1 else f'{SHARE:g} of a'} "
        "core; the nodes are connections of one process on the others, without agents.",
        [
            Figure(
                "all nodes Ready",
                f"{outcome.ready_seconds:.1f} s",
                goal=f"≤ {GOAL_SECONDS:.0f} s",
                kept=outcome.ready_seconds <= GOAL_SECONDS,
            ),
            Figure(
                "last report answered", f"{outcome.answered_seconds:.1f} s (slowest {outcome.slowest_report:.1f} s)"
            ),
            Figure("last watch answered", f"{outcome.followed_seconds:.1f} s ({outcome.tries} tries again in all)"),
            Figure(
                "CPU of the server until all were Ready",
                f"{sum(outcome.cpu):.1f} s ({by_process})",
                goal="≤ 1 core",
                kept=sum(outcome.cpu) <= outcome.ready_seconds * 1.05,
            ),
            Figure(
                "events that came",
                f"{outcome.kept:,} of {sent:,}, {outcome.again} twice",
                goal="all, once",
                kept=outcome.kept == sent and not outcome.again,
            ),
        ],
    )
