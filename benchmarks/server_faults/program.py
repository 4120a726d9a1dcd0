"""The servers, their clients and the faults, in namespaces that end with this program; prints an Outcome."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import msgspec
from tests.history.store_log import find_wrong_commits
from tests.scenario.server.servers_lab import Fabric, read_servers, tried
from tests.scenario.server.test_server_log import until

from benchmarks.server_faults import Outcome, Row
from benchmarks.servers.load import PROJECT, Load, create_objects, find_gap, read, write
from weft.client.api import Client
from weft.contracts.clock import SystemClock
from weft.contracts.store import Batch
from weft.launch.store.engine import read_member_tls
from weft.launch.store.member import read_member
from weft.objects.errors import WeftError
from weft.store.etcd import EtcdStore, wire
from weft.store.etcd.connection import EtcdConnection

WRITERS, READERS = 3, 2
AFTER_SECONDS = 10.0
NET = "10.98.0"
QUOTA = "64M"
DISK = "700M"  # seven files of 64 MB of etcd's log, and three times the quota: the store, its copy, and some to spare
LIBRARY = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
ONLY = os.environ.get("WEFT_BENCH_FAULTS", "")  # a regular expression: the faults that are wanted
Undo = Callable[[], object]


def run(*words: str, given: str = "") -> None:
    subprocess.run(words, check=True, input=given.encode(), stdout=sys.stderr)


def make_network(count: int) -> None:
    """A namespace for each server, on one bridge with this program."""
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "tmpfs", "none", "/run/netns")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "br0", "type", "bridge")
    run("ip", "addr", "add", f"{NET}.254/24", "dev", "br0")
    run("ip", "link", "set", "br0", "up")
    # a server's first start is prepared from here, and tries its address
    Path("/proc/sys/net/ipv4/ip_nonlocal_bind").write_text("1")
    for n in range(1, count + 1):
        run("ip", "netns", "add", f"s{n}")
        run("ip", "link", "add", f"v{n}", "type", "veth", "peer", "name", "eth0", "netns", f"s{n}")
        run("ip", "link", "set", f"v{n}", "master", "br0", "up")
        run("ip", "-n", f"s{n}", "addr", "add", f"{NET}.{n}/24", "dev", "eth0")
        run("ip", "-n", f"s{n}", "link", "set", "eth0", "up")
        run("ip", "-n", f"s{n}", "link", "set", "lo", "up")


def drop(name: str, *hooks: str, share: int = 100) -> Undo:
    """Drop this share of the packets that reach (input), or leave (output), a server."""
    chains = " ".join(
        f'chain {hook} {{ type filter hook {hook} priority 0; {"iif" if hook == "input" else "oif"} "eth0"'
        f" numgen random mod 100 >= {100 - share} drop; }};"
        for hook in hooks
    )
    run("ip", "netns", "exec", name, "nft", "-f", "-", given=f"table inet fault {{ {chains} }}")
    return lambda: run("ip", "netns", "exec", name, "nft", "delete", "table", "inet", "fault")


class Log(threading.Thread):
    """All commits to what the clients write, from the store itself."""

    def __init__(self, state: Path) -> None:
        super().__init__(daemon=True)
        member = read_member(state)
        self.endpoints = member.endpoints
        self.tls = read_member_tls(state, member, SystemClock())
        self.batches: list[Batch] = []
        self.problem = ""
        self.begun = threading.Event()

    def run(self) -> None:
        try:
            asyncio.run(self._follow())
        except WeftError as problem:
            self.problem = problem.message

    async def _follow(self) -> None:
        store = EtcdStore(self.endpoints, tls=self.tls, timeout_seconds=60.0, keepalive_seconds=2.0)
        await store.open()
        cursor = (await store.list("/")).cursor
        self.begun.set()
        async with aclosing(store.watch(f"/disruptionbudget/{PROJECT}/", cursor)) as following:
            async for batch in following:
                self.batches.append(batch)

    def find_leader(self) -> str:
        """The server whose member of the store leads."""

        async def ask() -> str:
            for number, endpoint in enumerate(sorted(self.endpoints), 1):
                connection = EtcdConnection([endpoint], self.tls, 3.0)
                await connection.open()
                said = await connection.maintain("Status", wire.StatusRequest())
                await connection.close()
                if said.leader == said.header.member_id:
                    return f"s{number}"
            raise AssertionError("no member leads")

        return asyncio.run(ask())


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("s1", "s2", "s3"):
            (folder / f"{name}.clock").write_text("+0\n")
        self.fabric = Fabric(folder, NET, self._enter, ("--store-quota", QUOTA))
        self.fabric.begin()
        self.fabric.join(2)
        self.fabric.join(3)
        client = self.fabric.client("s1")
        create_objects(client, WRITERS)
        context = self.fabric.follow().context
        self.log = Log(folder / "s1")
        self.log.start()
        self.log.begun.wait(60)
        self.writers = [Load(context, number, write) for number in range(WRITERS)]
        self.readers = [Load(context, number, read) for number in range(READERS)]
        self.large = Client(context, timeout_seconds=5.0)
        self.rows: list[Row] = []

    def _enter(self, name: str) -> list[str]:
        """The words before a server's command; what its join wrote for etcd is put on a small disk before."""
        etcd = self.folder / name / "etcd"
        if not etcd.is_mount():
            written = etcd.rename(etcd.with_name("written"))
            etcd.mkdir(mode=0o700)
            run("mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "none", str(etcd))
            run("cp", "-a", f"{written}/.", str(etcd))
            shutil.rmtree(written)
        clock = f"FAKETIME_TIMESTAMP_FILE={self.folder / name}.clock"
        more = ("FAKETIME_CACHE_DURATION=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1")
        return ["ip", "netns", "exec", name, "env", f"LD_PRELOAD={LIBRARY}", clock, *more]

    def await_ready(self) -> None:
        def are_ready() -> bool:
            found = [tried(lambda name=name: read_servers(self.fabric.client(name))) for name in self.fabric.servers]
            return all(one and [phase for phase, _ in one.values()] == ["Ready"] * 3 for one in found)

        until(are_ready, 120.0)

    def find_leading(self) -> str:
        """The server whose controllers lead."""

        def find() -> str:
            found = tried(lambda: read_servers(self.fabric.follow())) or {}
            return next((name for name, (_, leads) in found.items() if leads), "")

        return str(until(find, 60.0))

    def befall(self, what: str, seconds: float, act: Callable[[], Undo]) -> None:
        """One fault for so long, with the clients at work."""
        if not re.search(ONLY, what):
            return
        self.await_ready()
        time.sleep(2)
        refused = sum((load.refused for load in self.writers), Counter[str]())
        begun = time.monotonic()
        undo = act()
        time.sleep(max(0.0, begun + seconds - time.monotonic()))
        undo()
        mended = time.monotonic()
        time.sleep(AFTER_SECONDS)
        more = sum((load.refused for load in self.writers), Counter[str]()) - refused
        gaps = [find_gap(loads, begun, time.monotonic()) for loads in (self.writers, self.readers)]
        later = find_gap(self.writers, mended, time.monotonic())
        full = {reason: count for reason, count in more.items() if reason == "storeFull"}
        self.rows.append(Row(what, gaps[0], gaps[1], full))
        print(
            f"{what}: writes {gaps[0]:.1f} s, reads {gaps[1]:.1f} s, {dict(more)}, after {later:.1f} s", file=sys.stderr
        )

    def freeze(self, name: str) -> Undo:
        self.fabric.servers[name].kill(signal.SIGSTOP)
        return lambda: self.fabric.servers[name].kill(signal.SIGCONT)

    def set_clock(self, name: str, hours: int) -> Undo:
        path = self.folder / f"{name}.clock"
        path.write_text(f"{hours:+d}h\n")
        return lambda: path.write_text("+0\n")

    def fill_disk(self, name: str) -> Undo:
        """Leave its etcd no space at all; a few large values make it notice."""
        path = self.folder / name / "etcd" / "fill"
        with path.open("wb") as file, suppress(OSError):
            while True:
                file.write(b"x" * 65_536)
                file.flush()
        for number in range(60):
            self.write_large(number)
        return path.unlink

    def write_large(self, number: int) -> None:
        values = {"a": f"{number:06}" + "x" * 60_000}
        self.large.put({"kind": "secret", "name": "large", "project": PROJECT, "spec": {"values": values}})

    def fill_store(self) -> Undo:
        try:
            for number in range(5_000):
                self.write_large(number)
        except WeftError as problem:
            print(f"{problem.reason}: {problem.message}; {problem.hint}", file=sys.stderr)
        return lambda: time.sleep(10)

    def run(self) -> Outcome:
        for load in (*self.writers, *self.readers):
            load.start()
        others: dict[str, Callable[[], str]] = {
            "the leader": self.find_leading,
            "etcd's leader": self.log.find_leader,
            "a follower": lambda: next(
                n for n in ("s3", "s2", "s1") if n not in (self.find_leading(), self.log.find_leader())
            ),
        }
        for who, find in others.items():
            self.befall(f"{who} frozen for 25 s, then awake", 25.0, lambda find=find: self.freeze(find()))
        for who, find in list(others.items())[1:]:
            for share in (30, 50):
                text = f"{who}: {share} % of packets lost each way"
                self.befall(text, 20.0, lambda f=find, s=share: drop(f(), "input", "output", share=s))
            self.befall(f"{who} hears nobody", 20.0, lambda find=find: drop(find(), "input"))
            self.befall(f"nobody hears {who}", 20.0, lambda find=find: drop(find(), "output"))
        for hours in (1, -1):
            self.befall(
                f"the leader's clock {hours:+d} h", 20.0, lambda h=hours: self.set_clock(self.find_leading(), h)
            )
        self.befall("the disk of etcd's leader full", 20.0, lambda: self.fill_disk(self.log.find_leader()))
        self.befall("the store's quota used up", 20.0, self.fill_store)
        self.await_ready()
        for load in (*self.writers, *self.readers):
            load.end()
        time.sleep(3)
        told = [one for load in self.writers for one in load.told]
        wrong = find_wrong_commits(self.log.batches, told)
        wrong += [f"the log ended: {self.log.problem}"] if self.log.problem else []
        return Outcome(self.rows, sum(bool(one.done) for one in told), wrong)

    def end(self) -> None:
        for server in self.fabric.servers.values():
            server.kill(signal.SIGCONT)
            server.kill()


def main() -> int:
    make_network(3)
    with tempfile.TemporaryDirectory(prefix="weft-faults-") as folder:
        bench: Any = None
        try:
            bench = Bench(Path(folder))
            sys.stdout.buffer.write(msgspec.json.encode(bench.run()))
        finally:
            if bench is not None:
                bench.end()
            for name in ("s1", "s2", "s3"):
                subprocess.run(["umount", "-l", str(Path(folder) / name / "etcd")], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
