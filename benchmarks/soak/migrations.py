"""A proof of the soak: guests that verify what they write move to and fro on a real cluster, and nothing is lost, doubled or
left behind.

``MOVES`` moves, drawn from a seed: most of them live, some kept slow, some cold, some cancelled half-way, a few with kill -9 of an
agent meanwhile. After each one: one QEMU for the guest, its node as its VM says, nothing of it on another one, its
disks and memory whole. A run that is interrupted goes on where it was: ``.weft/soak-migrations.json``.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from tests.cluster.cluster import Cluster, lay_out

from benchmarks.measurement import ROOT, Measurement
from benchmarks.soak.moved import Progress, describe
from benchmarks.soak.progress import keep_broken, read_progress
from benchmarks.soak.traces import NODES, Census, Holding, collect_marks, list_things, weigh
from benchmarks.soak.travellers import KINDS, SHARED, Broken, Traveller, build_programs

MOVES = int(os.environ.get("MOVES", "200"))
PROGRESS = ROOT / ".weft" / "soak-migrations.json"
# What becomes of a move by its number, in rounds of twenty; the others are plainly live.
OTHERS = {
    1: "slow", 11: "slow",
    4: "cold", 14: "cold",
    7: "cancelled", 17: "cancelled",
    2: "source agent killed", 12: "target agent killed",
}  # fmt: skip
SLOW = "12M"  # no more than one writer changes: the guest is held back, and takes most of a minute
LONG = "24M"  # long enough for what befalls it
LONGEST_DELAY_SECONDS = 4.0  # of what is done to a move, once it is under way
CLEAN_SECONDS, END_SECONDS = 30.0, 400.0


class Drawn(NamedTuple):
    how: str
    guest: int
    other_node: int
    delay_seconds: float


def draw(seed: int, number: int, guests: int) -> Drawn:
    """The move of this number; all guests come to all kinds of moves."""
    dice = random.Random(f"{seed}/{number}")
    how = OTHERS.get(number % 20, "live")
    return Drawn(how, (number + number // 20) % guests, dice.randrange(2), dice.random() * LONGEST_DELAY_SECONDS)


class Journeys:
    """The guests of one cluster, and what was seen of them so far."""

    def __init__(self, cluster: Cluster, progress: Progress) -> None:
        self.cluster, self.progress = cluster, progress
        self.census = Census()
        self.guests: list[Traveller] = []
        self.absent: list[str] = []
        self.at_rest: tuple[dict[str, Holding], dict[str, Holding]] = ({}, {})

    def run(self) -> None:
        """Raises Broken, with all of it told, for the first promise that doesn't hold."""
        landscape = {node: list_things(self.cluster, node) for node in NODES}
        before = weigh(self.cluster)
        self.arrive()
        while self.progress.migrations < MOVES:
            self.migrate(draw(self.progress.seed, self.progress.migrations, len(self.guests)))
            self.census.look(self.cluster)
            self.progress.migrations += 1
            PROGRESS.write_bytes(msgspec.json.encode(self.progress))
        for guest in self.guests:
            guest.settle()
            self._count(guest, "meanwhile")
            guest.delete()
        self.await_landscape(landscape)
        self.at_rest = before, weigh(self.cluster)

    def arrive(self) -> None:
        """Make the guests that can be made here."""
        with tempfile.TemporaryDirectory(prefix="weft-soak-") as folder:
            programs = build_programs(Path(folder))
        pools = [
            {pool["name"] for pool in (node["report"].get("pools") or ())}
            for node in self.cluster.json("get", "node")["items"]
        ]
        for kind in KINDS:
            if kind.pool and not all(kind.pool in offered for offered in pools):
                self.absent.append(f"{kind.name}: the nodes offer no pool {SHARED}")
            elif kind.image != "tiny" and (why := self._build(kind.image)):
                self.absent.append(f"{kind.name}: {why}")
            else:
                guest = Traveller(self.cluster, kind, programs)
                guest.create()
                self.guests.append(guest)
        for guest in self.guests:
            guest.settle()
        told = f"  guests {', '.join(guest.name for guest in self.guests)}"
        print(told + (f"; without {'; '.join(self.absent)}" if self.absent else ""), flush=True)

    def migrate(self, drawn: Drawn) -> None:
        guest = self.guests[drawn.guest]
        guest.settle()
        self._count(guest, "meanwhile")
        rounds, before, boot = guest.look(), guest.see(), guest.read_boot_id()
        places = guest.allocations()
        marks = set[str]().union(*map(collect_marks, places))
        target = [node for node in NODES if node != before["node"]][drawn.other_node]
        if drawn.how == "cold":
            guest.caller.rest()
        began = time.monotonic()
        migration = self._begin(guest, target, drawn.how)
        if drawn.how not in ("live", "slow", "cold"):
            self._disturb(guest, migration, drawn, before["node"], target, marks)
        ended = self._await_end(migration)
        took = time.monotonic() - began
        phase = ended["phase"]
        here = target if phase == "Succeeded" else before["node"]
        self._check_place(guest, here, marks)
        if guest.read_boot_id() == boot:
            guest.owe_rounds()
        elif drawn.how == "cold":
            guest.check_counters(rounds)
            guest.begin()
        else:
            raise Broken(f"{guest.name} was started again: {ended}")
        guest.check_disks()
        self._count(guest, drawn.how)
        guest.caller.go_on()
        self._note(guest, drawn, ended, took)

    def _begin(self, guest: Traveller, target: str, how: str) -> str:
        words = ["vm", "migrate", guest.name, "--to", target, "--detach", "--timeout", "300s", "-o", "name"]
        if how == "cold":
            words.append("--cold")
        elif how != "live":
            words += ["--bandwidth", SLOW if how == "slow" else LONG]
        return self.cluster.ok(*words).strip().rpartition("/")[2]

    def _disturb(
        self, guest: Traveller, migration: str, drawn: Drawn, source: str, target: str, marks: set[str]
    ) -> None:
        """Once it is under way, and some time after."""
        begun = time.monotonic()
        while (phase := self._read(migration)["phase"]) in ("Pending", "Preparing"):
            if time.monotonic() - begun > END_SECONDS:
                raise Broken(f"{migration} doesn't begin: {phase}")
            time.sleep(0.2)
        for place in guest.allocations():
            marks |= collect_marks(place)
        time.sleep(drawn.delay_seconds)
        if drawn.how == "cancelled":
            done = self.cluster.run("migration", "cancel", migration)
            if done.returncode not in (0, 5):  # 5: it is too late for that
                raise Broken(f"{migration} can't be cancelled: {done.stderr.decode()}")
            return
        node = source if drawn.how.startswith("source") else target
        for pid in self.cluster.pids(f"weft agent {node} "):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _await_end(self, migration: str) -> dict[str, Any]:
        began = time.monotonic()
        while (status := self._read(migration)).get("ended_at") is None:
            if time.monotonic() - began > END_SECONDS:
                raise Broken(f"{migration} doesn't end: {status}")
            time.sleep(0.4)
        return status

    def _read(self, migration: str) -> dict[str, Any]:
        for _ in range(20):  # who is killed takes the connections to it along
            done = self.cluster.run("get", f"migration/{migration}", "-o", "json")
            if done.returncode == 0:
                return dict(msgspec.json.decode(done.stdout)["status"])
            time.sleep(0.5)
        raise Broken(f"{migration} can't be read: {done.stderr.decode()}")

    def _check_place(self, guest: Traveller, here: str, marks: set[str]) -> None:
        """It runs there, once, and nothing of it is anywhere else, before long."""
        self.cluster.ok("wait", f"vm/{guest.name}", "--timeout", "120s", timeout=150)
        began = time.monotonic()
        while wrong := self._find_wrong(guest, here, marks):
            if time.monotonic() - began > CLEAN_SECONDS:
                raise Broken(f"{guest.name}: {wrong}")
            time.sleep(0.5)
        self.progress.longest_clean = max(self.progress.longest_clean, time.monotonic() - began)

    def _find_wrong(self, guest: Traveller, here: str, marks: set[str]) -> str:
        status, places = guest.see(), guest.allocations()
        for place in places:
            marks |= collect_marks(place)
        where = [place["spec"]["node"] for place in places]
        if (status["phase"], status["node"], where) != ("Running", here, [here]):
            return f"it should run on {here} and is {status['phase']} on {status['node']}, with allocations on {where}"
        if len(machines := self.cluster.pids("qemu-system", f"guest={guest.name}")) != 1:
            return f"it runs {len(machines)} times"
        for node in NODES:
            left = [thing for thing in list_things(self.cluster, node) if any(mark in thing for mark in marks)]
            if node != here and left:
                return f"it runs on {here}, and {node} has {sorted(left)[:6]}"
            if node == here and not left:
                return f"nothing of it is seen on {here}: {marks}"
        return ""

    def await_landscape(self, landscape: dict[str, set[str]]) -> None:
        """All is as before the guests came."""
        began = time.monotonic()
        while True:
            told = [
                f"{node}: {sorted(list_things(self.cluster, node) ^ landscape[node])[:8]}"
                for node in NODES
                if list_things(self.cluster, node) != landscape[node]
            ]
            orphans = [node["report"]["orphans"] for node in self.cluster.json("get", "node")["items"]]
            if not told and not any(orphans):
                return
            if time.monotonic() - began > 2 * CLEAN_SECONDS:
                raise Broken(f"the nodes aren't as they were: {told}, orphans {orphans}")
            time.sleep(1.0)

    def _build(self, image: str) -> str:
        """Why it can't be had, if so."""
        done = self.cluster.run("image", "build", image, timeout=1200)
        return "" if done.returncode == 0 else done.stderr.decode().strip()[-200:] or f"exit code {done.returncode}"

    def _count(self, guest: Traveller, how: str) -> None:
        self.progress.add(how, guest.caller.take())

    def _note(self, guest: Traveller, drawn: Drawn, ended: dict[str, Any], took: float) -> None:
        phase, actual = ended["phase"], ended.get("actual") or {}
        self.progress.note(drawn.how, phase, actual.get("pause_ms", 0))
        if phase == "Failed" and drawn.how in ("live", "slow", "cold"):
            self.progress.failed.append(f"{guest.name}: {ended['reason']}: {ended['message']}"[:200])
        plan = ended.get("plan") or {}
        print(
            f"  {self.progress.migrations + 1}/{MOVES} {guest.name} {drawn.how}: {phase} {ended['source']} → {ended['target']} "
            f"{plan.get('mode', '')} in {took:.1f} s, pause {actual.get('pause_ms', 0)} ms {guest.caller.problems[-1:]}",
            flush=True,
        )


def measure() -> Measurement:
    begun = read_progress(PROGRESS, Progress, lambda kept: kept.migrations < MOVES and not kept.broken)
    print(f"migrations: seed {begun.seed}, from move {begun.migrations} of {MOVES}", flush=True)
    folder, since = Path(tempfile.mkdtemp(prefix="weft-soak-")), begun.migrations
    cluster = lay_out(folder)
    started = time.monotonic()
    journeys = Journeys(cluster, begun)
    try:
        cluster.up()
        journeys.run()
    except (Broken, AssertionError, subprocess.TimeoutExpired) as problem:
        begun.broken = f"move {begun.migrations + 1}: {problem}"
        keep_broken(PROGRESS, begun, begun.broken, cluster.state / "log")
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    kinds = ", ".join(f"{number} {how}" for how, number in sorted(Counter(begun.kinds).items()))
    summary = (
        f"Seed {begun.seed}: {kinds}; {time.monotonic() - started:.0f} s"
        + (f", after {since} moves of a run before it" if since else "")
        + (f". Without {'; '.join(journeys.absent)}" if journeys.absent else "")
        + (f". Broken: {begun.broken}" if begun.broken else ".")
    )
    return Measurement(
        "Live moves, 200 and more", summary, describe(begun, MOVES, journeys.census.grown(), journeys.at_rest)
    )
