"""A proof of the soak: three projects share a cluster, with leases of all kinds, gangs, reservations and people who come and go,
while its processes are killed with -9 and nodes are lost; what was promised is kept, and nobody does what they may not.

``ROUNDS`` rounds, drawn from a seed: leases are asked for, extended, cancelled and deleted, rights are given and taken, all at
once, and a process is killed meanwhile. For some rounds a node is cut off or without power. An oracle in plain Python
(``oracle.py``) looks on from outside. A run that is interrupted goes on where it was: ``.weft/soak-department.json`` (with new
objects: the rounds count, not what stood).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
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

from benchmarks.measurement import ROOT, Measurement
from benchmarks.soak.department.figures import Progress, describe
from benchmarks.soak.department.leases import CEILINGS, PROMISED, Book
from benchmarks.soak.department.loss import Loss
from benchmarks.soak.department.oracle import (
    Held,
    count_core_seconds,
    find_above_ceiling,
    find_double_booked,
    find_full_slots,
    find_half_reserved,
    find_miscounted,
    find_over_budget,
    find_over_quota,
    find_overdue,
    find_split_gangs,
    find_twice_placed,
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
ROUND_SECONDS, SHORT_SECONDS = 8.0, 6.0  # at least: leases take their time; in the short form
SLOW_SECONDS = 12.0  # a longer round says what it waited for
VM_EVERY, RUSH_EVERY = 4, 3  # rounds: one makes a VM, one has more creates at once than a quota allows
LOSS_EVERY, LOSS_FROM, LOSS_TO = 6, 1, 4  # of so many rounds a node is lost in the one, and comes back in the other
GUARDED, GUARD, GUARDED_CORES, MOST_HITS = 2, {"app": "guarded"}, 3.0, 3  # VMs with a budget that lets one be down
VICTIMS = {
    "server": "weft server",
    "api": "weft server api",
    "controllers": "weft server controllers",
    "gateway": "weft server gateway",
    "agent": "weft agent",
}
LOST_SECONDS, UNWRITTEN_SECONDS = 8.0, 70.0  # of what ended: the record's delay; all since the last write, after a kill
COUNTING = ("server", "controllers", "api")  # a kill of these may lose what accounting hasn't written yet


class Department:
    """The three projects on one cluster, and what was seen of them so far."""

    def __init__(
        self, cluster: Cluster, progress: Progress, place: str, kept: Path = PROGRESS, *, short: bool = False
    ) -> None:
        self._short = short  # no node is lost, and no VM suspended; all else is there, and begins sooner
        self.cluster, self.progress, self._kept = cluster, progress, kept
        self.people = People(cluster)
        self.loss = Loss(cluster, self.people.admin)
        self.book = Book(cluster, self.people.clients, place, self.loss)
        self._hits_told, self._waited_for = 0, ""
        if short:
            self.book.ahead = (7.0, 12.0)
        self._hits = Counter[str]()  # by name of a VM with a budget, how often it was suspended for others
        self._suspects: set[str] = set()  # what was wrong at the last look, in lists that are of different moments
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
        budget = {"selector": GUARD, "max_unavailable": 1}
        first = next(iter(QUOTAS))
        self.people.admin.create({"kind": "disruptionbudget", "name": "guarded", "project": first, "spec": budget})
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
            self.loss.restore()
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
        kept = [act() for act in self._plan_guarded()]  # before others take the quota
        with ThreadPoolExecutor(len(acts)) as pool:
            begun = [pool.submit(act) for act in acts]
            time.sleep(draw.random() * 1.5)
            victim = self.kill(draw)
            told = [*kept, *(one.result() for one in begun)]
        if number % LOSS_EVERY == LOSS_FROM and not self._short:
            told.append(self.loss.begin(draw, number // LOSS_EVERY + self.progress.seed))
        told.append(self.people.plan(draw)())  # one that meets what was killed only just
        time.sleep(max(0.0, began + (SHORT_SECONDS if self._short else ROUND_SECONDS) - time.monotonic()))
        if number % LOSS_EVERY == LOSS_TO:
            self._end_loss()
        self.settle()
        took = time.monotonic() - began
        self.progress.longest_heal = max(self.progress.longest_heal, took)
        states = Counter(one.verdict or one.mode for one in self.book.leases)
        waited = f", at last for {self._waited_for}" if self._waited_for and took > SLOW_SECONDS else ""
        print(
            f"  {self.progress.rounds + 1}: {', '.join(told)}; {victim} killed; {took:.1f} s{waited}; {dict(states)}",
            flush=True,
        )

    def kill(self, draw: random.Random) -> str:
        order = random.Random(self.progress.seed).sample(list(VICTIMS), len(VICTIMS))
        victim = order[self.progress.rounds % len(order)]
        if victim == "server" and self.loss.away:
            victim = "api"  # nothing would begin the server anew before all nodes are there
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

    def _plan_guarded(self) -> list[Any]:
        """Two VMs that give way to others stay; those that did so too often are replaced."""
        living = [one for one in self.book.leases if one.name.startswith("guarded") and not one.deleted]
        worn = [one for one in living if self._hits[one.name] >= MOST_HITS or one.given_up]
        acts: list[Any] = [lambda one=one: self.book.delete(one) for one in worn]
        lacking = (0 if self._short else GUARDED) - len(living) + len(worn)
        return acts + [self.book.plan_guarded(next(iter(QUOTAS)), GUARD, GUARDED_CORES) for _ in range(lacking)]

    def _end_loss(self) -> None:
        if self.loss.away:
            way = self.loss.way
            self.loss.end()
            self.progress.lost = dict(Counter(self.progress.lost) + Counter([way]))

    def settle(self) -> None:
        """Return when nothing is lost, refused or left over that shouldn't be; raises Broken if that doesn't come."""
        began, self._waited_for = time.monotonic(), ""
        while trouble := self._find_trouble():
            self._waited_for = trouble
            if time.monotonic() - began > HEAL_SECONDS:
                raise Broken(trouble)
            time.sleep(0.5)
        wrong = self.people.check() + self.take_problems()
        if wrong:
            raise Broken("; ".join(wrong[:5]))
        _, objects = self._read()
        for lease in self.book.list_over(objects):
            self.book.delete(lease)
        self.book.reserved.clear(objects)
        self.book.forget()

    def take_problems(self) -> list[str]:
        found = [*self.problems, *self.book.problems, *self.loss.problems]
        self.problems, self.book.problems, self.loss.problems = [], [], []
        return found

    def finish(self) -> None:
        """Wait for the starts that are promised; then all of it goes."""
        self._end_loss()
        self.await_(
            lambda: next(
                (f"{one} waits" for one in self.book.leases if one.mode in PROMISED and one.start and not one.verdict),
                "",
            )
        )
        for lease in self.book.leases:
            if not lease.deleted:
                self.book.delete(lease)
        self.await_(self._clear_reserved)
        self.settle()
        self._over.set()
        self._watcher.join()
        self.await_(self._find_miscounted)
        wrong = self.people.move_out() + self.take_problems()
        if wrong:
            raise Broken("; ".join(wrong[:5]))

    def _clear_reserved(self) -> str:
        try:
            _, objects = self._read()
            self.book.reserved.clear(objects, all_of_them=True)
        except (WeftError, OSError) as problem:
            return f"the server says {problem}"
        return next((f"{one} is in use" for one in self.book.reserved.made if not one.deleted), "")

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
        done.suspended += self._hits.total() - self._hits_told
        self._hits_told = self._hits.total()
        done.requests = dict(self.people.tally)
        self._kept.write_bytes(msgspec.json.encode(done))

    def _find_trouble(self) -> str:
        try:
            nodes, objects = self._read()
        except (WeftError, OSError) as problem:
            return f"the server says {problem}"
        for node in nodes:
            if node["name"] != self.loss.away and (node["status"]["phase"] != "Ready" or node["report"]["orphans"]):
                return f"node {node['name']} is {node['status']['phase']} with orphans {node['report']['orphans']}"
        if len(nodes) < 3 and not self.loss.away:
            return f"only {[node['name'] for node in nodes]} are there"
        over = find_over_quota(objects.values(), QUOTAS)  # nobody makes anything now
        return over[0] if over else self.book.find_lost(objects)

    def _read(self) -> tuple[list[Any], dict[tuple[str, str], Any]]:
        nodes = self._eyes.list("node").items
        found = [
            item
            for kind in ("container", "vm", "reservation")
            for item in self._eyes.list(kind, all_projects=True).items
        ]
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
            self.problems += find_double_booked(allocations, nodes, now)
            self.problems += find_overdue(allocations, now, self.loss.list_near(now))
            self.problems += find_twice_placed(allocations) + find_full_slots(allocations)
            self.problems += find_above_ceiling(self._list_workloads(objects), CEILINGS)
            self._look_at_gangs(allocations)
            self._look_at_guarded(allocations)
            reserved = [obj for (kind, _), obj in objects.items() if kind == "reservation"]
            suspects = set(find_half_reserved(allocations, reserved))
            self.problems += suspects & self._suspects
            self._suspects = suspects
            self.problems += [
                f"accounting of {project} shrank from {self._counted[project]:.1f} to {seconds:.1f} core-seconds"
                for project, seconds in counted.items()
                if seconds < self._counted[project] - 0.01
            ]
            self._counted = counted
            self._note_held(allocations, now)
            self.book.follow(objects, self.kills, now)

    @staticmethod
    def _list_workloads(objects: dict[tuple[str, str], Any]) -> list[Any]:
        return [obj for (kind, _), obj in objects.items() if kind != "reservation"]

    def _look_at_gangs(self, allocations: list[Any]) -> None:
        """Each until it was whole, or people have taken a member out of it."""
        broken = {one.gang for one in list(self.book.leases) if one.gang and (one.deleted or one.given_up)}
        whole, split = find_split_gangs(
            allocations, {name: gang for name, gang in list(self.book.gangs.items()) if name not in broken}
        )
        self.problems += split
        for name in whole | broken:
            self.book.gangs.pop(name, None)

    def _look_at_guarded(self, allocations: list[Any]) -> None:
        names = {one.name for one in list(self.book.leases) if one.name.startswith("guarded")}
        self.problems += find_over_budget(allocations, names, 1)
        for one in allocations:
            name, lease = one["spec"]["workload"]["name"], one["spec"].get("lease")
            if name in names and lease is not None:
                self._hits[name] = max(self._hits[name], lease.get("suspensions", 0))

    def _count(self) -> dict[str, float]:
        return count_core_seconds(self._eyes.list("accountingrecord").items, QUOTAS)

    def _note_held(self, allocations: list[Any], now: float) -> None:
        seen = set()
        for one in allocations:
            spec, uid = one["spec"], one["uid"]
            begin = max(one["created_at"], (spec.get("lease") or {}).get("prepare_at", 0.0))
            if spec["workload"]["project"] not in QUOTAS or not holds(one) or begin > now:
                continue
            if spec.get("slot") or not (
                spec["role"] in ("active", "source") or spec["workload"]["kind"] == "reservation"
            ):
                continue  # the slot counts, or the other side of the migration
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
    return describe(begun, ROUNDS, since, time.monotonic() - started)
