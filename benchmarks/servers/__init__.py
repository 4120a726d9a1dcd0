"""Three servers with all their processes over three etcd members, each killed with SIGKILL again and again under load:
what was lost or done twice, for how long nothing was written or read, and when another one leads; then reads of all three against
reads of one, on the same processors."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from tests.conformance.store.etcd_server import EtcdServer
from tests.history.run import find_cursor, read_log
from tests.history.store_log import find_wrong_commits
from tests.scenario.server.servers_lab import Server, make_token, read_servers, tried
from tests.scenario.server.test_server_log import until

from benchmarks.measurement import Figure, Measurement
from benchmarks.servers.load import PROJECT, Load, create_objects, find_gap, read, write
from weft.client.context import Context, hash_ca, read_context
from weft.launch.server.membership.join import join

KILLS = int(os.environ.get("WEFT_BENCH_KILLS", "20"))  # of each server
WRITERS, READERS = 3, 2
WATCHED_SECONDS = 12.0  # after a kill
READ_SECONDS = 8.0


class _Fabric:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.members = [EtcdServer(folder / name, name) for name in ("m1", "m2", "m3")]
        for member in self.members:
            member.members = {one.name: one.peer for one in self.members}
            member.start()
            stack.callback(member.end)
        store = f"etcd://{','.join(member.endpoint for member in self.members)}"
        stack.callback(lambda: [server.kill() for server in self.servers.values()])
        first = Server(folder / "s1", "--store", store)
        self.servers = {"s1": first}
        known: Context = until(lambda: tried(lambda: read_context(first.state / "context.json")))
        client = first.connect(known)
        until(lambda: tried(lambda: read_servers(client)) == {"s1": ("Ready", ["controllers"])})
        for name in ("s2", "s3"):
            join(folder / name, first.url, make_token(client, name), hash_ca(known.ca), name)
            self.servers[name] = Server(folder / name)
        self._known = known
        self.await_ready()
        create_objects(client, WRITERS)

    @property
    def context(self) -> Context:
        first, *others = [server.url for server in self.servers.values()]
        return msgspec.structs.replace(self._known, server=first, others=others)

    def ask(self, besides: str = "") -> dict[str, tuple[str, list[str]]]:
        """What a server says of all of them."""
        at = next(server for name, server in self.servers.items() if name != besides)
        return tried(lambda: read_servers(at.connect(self._known))) or {}

    def await_ready(self) -> None:
        until(lambda: [phase for phase, _ in self.ask().values()] == ["Ready"] * len(self.servers), 120.0)

    def kill(self, name: str) -> tuple[float, float | None]:
        """When it was killed, and after how many seconds another one led if it was this one."""
        led = bool(self.ask()[name][1])
        self.servers[name].kill()
        killed_at = time.monotonic()
        if not led:
            return killed_at, None

        def leads() -> bool:
            return any(leads for other, (_, leads) in self.ask(name).items() if other != name)

        until(leads, 60.0)
        return killed_at, time.monotonic() - killed_at

    def start(self, name: str) -> None:
        self.servers[name] = Server(self.servers[name].state)
        self.await_ready()


def measure() -> Measurement:
    draw = random.Random(1)
    with tempfile.TemporaryDirectory(prefix="weft-servers-") as folder, ExitStack() as stack:
        fabric = _Fabric(Path(folder), stack)
        endpoints = [member.endpoint for member in fabric.members]
        cursor = asyncio.run(find_cursor(endpoints))
        writers = [Load(fabric.context, number, write) for number in range(WRITERS)]
        readers = [Load(fabric.context, number, read) for number in range(READERS)]
        for load in (*writers, *readers):
            load.start()
        gaps: dict[str, list[float]] = {"write": [], "read": []}
        leads: list[float] = []
        for _ in range(KILLS):
            for name in draw.sample(sorted(fabric.servers), len(fabric.servers)):
                killed_at, after = fabric.kill(name)
                leads += [] if after is None else [after]
                time.sleep(max(0.0, killed_at + WATCHED_SECONDS - time.monotonic()))
                gaps["write"].append(find_gap(writers, killed_at, killed_at + WATCHED_SECONDS))
                gaps["read"].append(find_gap(readers, killed_at, killed_at + WATCHED_SECONDS))
                fabric.start(name)
        for load in (*writers, *readers):
            load.end()
        batches = asyncio.run(read_log(endpoints, cursor, [f"/disruptionbudget/{PROJECT}/"]))
        wrong = find_wrong_commits(batches, [told for load in writers for told in load.told])
        rates = _compare(fabric)
    made = sum(bool(told.done) for load in writers for told in load.told)
    return _describe(made, gaps, leads, wrong, rates)


def _compare(fabric: _Fabric) -> tuple[float, float]:
    """Reads a second of all servers, and of one when the others have ended."""
    rates = []
    for alone in (False, True):
        if alone:
            for name in ("s2", "s3"):
                fabric.servers.pop(name).kill()
        urls = [server.url for server in fabric.servers.values()]
        loads = [
            Load(msgspec.structs.replace(fabric.context, server=urls[n % len(urls)], others=[]), n % WRITERS, read)
            for n in range(6)
        ]
        for load in loads:
            load.start()
        time.sleep(READ_SECONDS)
        for load in loads:
            load.end()
        rates.append(sum(len(load.at) for load in loads) / READ_SECONDS)
    return rates[0], rates[1]


def _describe(
    made: int, gaps: dict[str, list[float]], leads: list[float], wrong: list[str], rates: tuple[float, float]
) -> Measurement:
    kills, ratio = len(gaps["write"]), rates[0] / rates[1]
    figures = [
        Figure("acknowledged writes lost or done twice", f"{len(wrong)} of {made}", goal="0", kept=not wrong),
        _describe_gap("longest time that a client wrote nothing after a kill, p50 and most", gaps["write"], 3.0),
        _describe_gap("longest time that a client read nothing after a kill, p50 and most", gaps["read"], 1.0),
        _describe_gap("another one leads after, p50 and most", leads, 15.0, most=True),
        Figure(
            "reads of three servers against one",
            f"{rates[0]:.0f}/s",
            f"{rates[1]:.0f}/s",
            f"{ratio:.2f} ×",
            "≥ 0.9 ×",
            ratio >= 0.9,
        ),
    ]
    summary = (
        f"{kills} times one of three servers was killed with all its processes, by SIGKILL, under {WRITERS} writers and {READERS} "
        f"readers; {len(leads)} times it was the one that led. The etcd has three members of its own. All on the same machine."
    )
    return Measurement("Three servers", summary + (f" Wrong: {'; '.join(wrong[:3])}." if wrong else ""), figures)


def _describe_gap(what: str, seconds: list[float], goal: float, *, most: bool = False) -> Figure:
    if not seconds:
        return Figure(what, "none")
    middle, longest = sorted(seconds)[len(seconds) // 2], max(seconds)
    kept: Any = (longest if most else middle) <= goal
    return Figure(what, f"{middle:.1f} s, {longest:.1f} s", goal=f"{'' if most else 'p50 '}≤ {goal:g} s", kept=kept)
