"""A proof of the soak: three projects share a cluster, with leases of all kinds and people who come and go, while its processes are
killed with -9; what was promised is kept, and nobody does what they may not.

``ROUNDS`` rounds, drawn from a seed: leases are asked for, extended, cancelled and deleted, rights are given and taken, all at
once, and a process is killed meanwhile. An oracle in plain Python (``oracle.py``) looks on from outside. A run that is interrupted
goes on where it was: ``.weft/soak-department.json`` (with new objects: the rounds count, not what stood).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from tests.cluster.cluster import Cluster, lay_out
from tests.registry import push_busybox, serve

from benchmarks.measurement import ROOT, Figure, Measurement
from benchmarks.soak.department.leases import KILLED_SECONDS, PROMISED, START_SECONDS, Book
from benchmarks.soak.department.oracle import (
    Held,
    count_core_seconds,
    find_double_booked,
    find_miscounted,
    find_over_quota,
    find_overdue,
    holds,
)
from benchmarks.soak.department.people import QUOTAS, People
from benchmarks.soak.landscape import Landscape
from benchmarks.soak.progress import keep_broken, read_progress
from benchmarks.soak.travellers import Broken
from weft.client import Client
from weft.objects.errors import WeftError

ROUNDS = int(os.environ.get("ROUNDS", "80"))
PROGRESS = ROOT / ".weft" / "soak-department.json"
IMAGE = "soak/department:1"
ACTS, LOOK_SECONDS, HEAL_SECONDS = 5, 0.7, 120.0
ROUND_SECONDS = 8.0  # at least: leases take their time
VM_EVERY, RUSH_EVERY = 4, 3  # rounds: one makes a VM, one has more creates at once than a quota allows
VICTIMS = {
    "server": "weft server",
    "api": "weft server api",
    "controllers": "weft server controllers",
    "gateway": "weft server gateway",
    "agent": "weft agent",
}
LOST_SECONDS, UNWRITTEN_SECONDS = 8.0, 70.0  # of what ended: the record's delay; all since the last write, after a kill
COUNTING = ("server", "controllers", "api")  # a kill of these may lose what accounting hasn't written yet


class Progress(msgspec.Struct):
    """What was proven up to ``rounds``."""

    seed: int
    rounds: int = 0
    killed: dict[str, int] = {}
    acts: dict[str, int] = {}
    ends: dict[str, int] = {}  # of promised leases, by whether they answered at their start
    requests: dict[str, int] = {}  # of those whose rights come and go
    looks: int = 0
    latest: list[float] = []
    longest_heal: float = 0.0
    broken: str = ""


class Department:
    """The three projects on one cluster, and what was seen of them so far."""

    def __init__(self, cluster: Cluster, progress: Progress, place: str, kept: Path = PROGRESS) -> None:
        self.cluster, self.progress, self._kept = cluster, progress, kept
        self.people = People(cluster)
        self.book = Book(cluster, self.people.clients, place)
        self.killed = Counter(progress.killed)
        self.book.ends.update(progress.ends)
        self.book.latest += progress.latest
        self.people.tally.update(progress.requests)
        self.book.acts = self.people.acts = Counter(progress.acts)
        self.kills: list[tuple[float, str]] = []
        self.held: dict[str, Held] = {}
        self.problems: list[str] = []
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._eyes = Client(self.people.context)
        self._counted: dict[str, float] = {}
        self._before: dict[str, float] = {}  # what accounting has of the same projects from before
        self._looked_at = 0.0
        self._past: list[Held] = []

    def run(self, rounds: int) -> None:
        """Raises Broken for the first promise that doesn't hold."""
        before = Landscape.look(self.cluster)
        self.people.move_in()
        self.cluster.ok("image", "build", "tiny", "-p", next(iter(QUOTAS)))
        self._before = self._counted = self._count()
        self._watcher.start()
        try:
            while self.progress.rounds < rounds:
                self.play(random.Random(f"{self.progress.seed}/{self.progress.rounds}"))
                self.progress.rounds += 1
                self.remember()
            self.finish()
        finally:
            self._over.set()
            self._watcher.join()
            self.book.close()
            self.people.close()
            self._eyes.close()
        self.remember()
        before.await_again(self.cluster)

    def play(self, draw: random.Random) -> None:
        """Some acts at once, a kill into them; then nothing is lost, and all that was seen was right."""
        number = self.progress.rounds
        acts = self.book.plan(draw, ACTS, vm=number % VM_EVERY == 0, rush=number % RUSH_EVERY == 1)
        acts += [self.people.plan(draw)]
        began = time.monotonic()
        with ThreadPoolExecutor(len(acts)) as pool:
            begun = [pool.submit(act) for act in acts]
            time.sleep(draw.random() * 1.5)
            victim = self.kill(draw)
            told = [one.result() for one in begun]
        told.append(self.people.plan(draw)())  # one that meets what was killed only just
        time.sleep(max(0.0, began + ROUND_SECONDS - time.monotonic()))
        self.settle()
        took = time.monotonic() - began
        self.progress.longest_heal = max(self.progress.longest_heal, took)
        states = Counter(one.verdict or one.mode for one in self.book.leases)
        print(
            f"  {self.progress.rounds + 1}: {', '.join(told)}; {victim} killed; {took:.1f} s; {dict(states)}",
            flush=True,
        )

    def kill(self, draw: random.Random) -> str:
        order = random.Random(self.progress.seed).sample(list(VICTIMS), len(VICTIMS))
        victim = order[self.progress.rounds % len(order)]
        pids = sorted(self.cluster.pids(VICTIMS[victim]))
        if not pids:
            return f"no {victim}"
        for pid in pids if victim == "server" else [draw.choice(pids)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kills.append((time.time(), victim))
        self.killed[victim] += 1
        if victim == "server":
            time.sleep(draw.random() * 3)
            self.cluster.up()
        return victim

    def settle(self) -> None:
        """Return when nothing is lost, refused or left over that shouldn't be; raises Broken if that doesn't come."""
        began = time.monotonic()
        while trouble := self._find_trouble():
            if time.monotonic() - began > HEAL_SECONDS:
                raise Broken(trouble)
            time.sleep(0.5)
        wrong = self.people.check() + self.take_problems()
        if wrong:
            raise Broken("; ".join(wrong[:5]))
        _, objects = self._read()
        for lease in self.book.list_over(objects):
            self.book.delete(lease)
        self.book.forget()

    def take_problems(self) -> list[str]:
        found = [*self.problems, *self.book.problems]
        self.problems, self.book.problems = [], []
        return found

    def finish(self) -> None:
        """Wait for the starts that are promised; then all of it goes."""
        self.await_(
            lambda: next(
                (f"{one} waits" for one in self.book.leases if one.mode in PROMISED and one.start and not one.verdict),
                "",
            )
        )
        for lease in self.book.leases:
            if not lease.deleted:
                self.book.delete(lease)
        self.settle()
        self._over.set()
        self._watcher.join()
        self.await_(self._find_miscounted)
        wrong = self.people.move_out() + self.take_problems()
        if wrong:
            raise Broken("; ".join(wrong[:5]))

    def await_(self, find_trouble: Any) -> None:
        began = time.monotonic()
        while trouble := find_trouble():
            if time.monotonic() - began > HEAL_SECONDS:
                raise Broken(trouble)
            time.sleep(0.5)

    def remember(self) -> None:
        done, book = self.progress, self.book
        done.killed, done.acts, done.ends, done.latest = (
            dict(self.killed),
            dict(book.acts),
            dict(book.ends),
            book.latest,
        )
        done.requests = dict(self.people.tally)
        self._kept.write_bytes(msgspec.json.encode(done))

    def _find_trouble(self) -> str:
        try:
            nodes, objects = self._read()
        except (WeftError, OSError) as problem:
            return f"the server says {problem}"
        for node in nodes:
            if node["status"]["phase"] != "Ready" or node["report"]["orphans"]:
                return f"node {node['name']} is {node['status']['phase']} with orphans {node['report']['orphans']}"
        over = find_over_quota(objects.values(), QUOTAS)  # nobody makes anything now
        return over[0] if over else self.book.find_lost(objects)

    def _read(self) -> tuple[list[Any], dict[tuple[str, str], Any]]:
        nodes = self._eyes.list("node").items
        found = [item for kind in ("container", "vm") for item in self._eyes.list(kind, all_projects=True).items]
        return nodes, {(one["kind"], one["name"]): one for one in found if one["project"] in QUOTAS}

    def _watch(self) -> None:
        """Look on, again and again."""
        while not self._over.wait(LOOK_SECONDS):
            try:
                nodes, objects = self._read()
                allocations = self._eyes.list("allocation").items
                counted = self._count()
            except (WeftError, OSError):
                continue
            now = time.time()
            self.progress.looks += 1
            self.problems += find_double_booked(allocations, nodes, now) + find_overdue(allocations, now)
            self.problems += [
                f"accounting of {project} shrank from {self._counted[project]:.1f} to {seconds:.1f} core-seconds"
                for project, seconds in counted.items()
                if seconds < self._counted[project] - 0.01
            ]
            self._counted = counted
            self._note_held(allocations, now)
            self.book.follow(objects, self.kills, now)

    def _count(self) -> dict[str, float]:
        return count_core_seconds(self._eyes.list("accountingrecord").items, QUOTAS)

    def _note_held(self, allocations: list[Any], now: float) -> None:
        seen = set()
        for one in allocations:
            spec, uid = one["spec"], one["uid"]
            begin = max(one["created_at"], (spec.get("lease") or {}).get("prepare_at", 0.0))
            if spec["workload"]["project"] not in QUOTAS or not holds(one) or begin > now:
                continue
            seen.add(uid)
            known = self.held.get(uid)
            if known is None:
                known = Held(spec["workload"]["project"], spec["resources"]["cpu"], begin, begin, now, now)
            elif known.until > known.last:  # it was suspended for another
                self._past.append(known)
                known = known._replace(earliest=self._looked_at, begin=now)
            self.held[uid] = known._replace(last=now, until=now)
        for uid in self.held.keys() - seen:
            if self.held[uid].until == self.held[uid].last:
                self.held[uid] = self.held[uid]._replace(until=now)
        self._looked_at = now

    def _find_miscounted(self) -> str:
        def lost(one: Held) -> float:
            near = any(one.last - 10.0 < at < one.until + 15.0 for at, what in self.kills if what in COUNTING)
            return UNWRITTEN_SECONDS if near else LOST_SECONDS

        told = [one._replace(last=max(one.begin, one.last - lost(one))) for one in (*self._past, *self.held.values())]
        try:
            counted = {project: seconds - self._before[project] for project, seconds in self._count().items()}
        except (WeftError, OSError) as problem:
            return f"the server says {problem}"
        wrong = find_miscounted(told, counted)
        return wrong[0] if wrong else ""


def measure() -> Measurement:
    begun = read_progress(PROGRESS, Progress, lambda kept: kept.rounds < ROUNDS and not kept.broken)
    print(f"department: seed {begun.seed}, from round {begun.rounds} of {ROUNDS}", flush=True)
    since, started = begun.rounds, time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="weft-soak-"))
    cluster = lay_out(folder)
    try:
        cluster.up()
        with serve(folder / "registry", cluster.host_address) as place:
            push_busybox(folder / "registry", f"{place}/{IMAGE}", ["httpd"], {})
            Department(cluster, begun, f"{place}/{IMAGE}").run(ROUNDS)
    except (Broken, AssertionError, WeftError, subprocess.TimeoutExpired) as problem:
        begun.broken = f"round {begun.rounds + 1}: {type(problem).__name__}: {problem}"
        keep_broken(PROGRESS, begun, begun.broken, cluster.state / "log")
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    return describe(begun, since, time.monotonic() - started)


def describe(progress: Progress, since: int, seconds: float) -> Measurement:
    whole = progress.rounds >= ROUNDS and not progress.broken
    ends, requests = Counter(progress.ends), Counter(progress.requests)
    told = ", ".join(f"{number} {what}" for what, number in sorted(progress.acts.items()))
    killed = ", ".join(f"{number} {what}" for what, number in sorted(progress.killed.items()))
    starts = ends["in time"] + ends["late, killed"] + ends["missed, told"] + ends["missed"]
    latest = progress.latest or [0.0]
    return Measurement(
        "A department under kills",
        f"Seed {progress.seed}, three projects: {told}; kill -9 of {killed}; {seconds:.0f} s"
        + (f", after {since} rounds of a run before it" if since else "")
        + (f". Broken: {progress.broken}" if progress.broken else "."),
        [
            Figure(
                "rounds after which nothing was lost, and all was as acknowledged",
                str(progress.rounds),
                goal=str(ROUNDS),
                kept=whole,
            ),
            Figure(
                f"promised leases that answered within {START_SECONDS:g} s after their start, and not before",
                f"{ends['in time']} of {starts}",
            ),
            Figure(
                f"the same, within {START_SECONDS + KILLED_SECONDS:g} s: an agent or the server was killed then",
                str(ends["late, killed"]),
            ),
            Figure(
                "missed their start: with a reason, without",
                f"{ends['missed, told']}, {ends['missed']}",
                goal="–, 0",
                kept=not ends["missed"],
            ),
            Figure("start → answers, median and longest", f"{statistics.median(latest):.1f} s, {max(latest):.1f} s"),
            Figure(
                "looks that found a node promised twice, or a quota exceeded",
                f"0 of {progress.looks}" if whole else "?",
                goal="0",
                kept=whole,
            ),
            Figure(
                "requests of people whose rights came and went: allowed, refused; none otherwise from 1 s after the change on",
                f"{requests['allowed']}, {requests['refused']}",
                kept=whole,
            ),
            Figure(
                "writes found in the audit log as they were answered", str(requests["audited"]), goal="all", kept=whole
            ),
            Figure("longest round until all was as acknowledged", f"{progress.longest_heal:.1f} s"),
        ],
    )
