"""A proof of the soak: two clusters and a witness, as processes of this machine, fail over while they are killed, frozen, and cut
off from each other.

Three VMs count, ten times a second: each number is on the guest's disk before the guest says it, by UDP, to this process. Two VMs
are taken over automatically, one is promoted by a recovery plan. ``ROUNDS`` rounds, drawn from a seed; after each one, all VMs run
once, have replicas at the other cluster again, and lack no more than was stated. A run that is interrupted goes on where it was,
with new clusters: ``.weft/soak-sites.json``. ``WEFT_SOAK_MINUTES`` ends a run early, after a whole round.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import msgspec
from tests.cluster.cluster import Cluster, lay_out
from tests.cluster.second import with_second

from benchmarks.measurement import ROOT, Measurement
from benchmarks.soak.progress import keep_broken, read_progress
from benchmarks.soak.sites.acts import AUTOMATIC_VMS, VMS, Acts
from benchmarks.soak.sites.eyes import Eyes
from benchmarks.soak.sites.faults import Fault, draw_fault
from benchmarks.soak.sites.figures import MOST_HEAL, Progress, describe
from benchmarks.soak.sites.oracle import Life, Passage, judge_loss
from benchmarks.soak.sites.place import (
    Outside,
    Site,
    Witness,
    await_linked,
    dig,
    find_phase,
    list_left,
    make_outside,
    make_sites,
    open_line,
)
from benchmarks.soak.travellers import Broken
from weft.kinds.fields.cluster.link import ARMED, AUTOMATIC
from weft.objects.errors import WeftError
from weft.objects.quantity import parse_duration

ROUNDS = int(os.environ.get("WEFT_SOAK_ROUNDS", "18"))
MINUTES = float(os.environ.get("WEFT_SOAK_MINUTES", "40"))
ROUND_SECONDS = 150.0  # one isn't begun that would end later than that
PROGRESS = ROOT / ".weft" / "soak-sites.json"
RPO = 20.0
HEARD_SECONDS = 3.0  # a guest that runs says something in this time
SLACK_SECONDS = 1.5  # of a stated loss: seconds are rounded, and a number is heard a moment after its disk has it
BOTH_SECONDS = 60.0  # a VM that people promoted may run beside its former one for so long after that is back
CLEAN_SECONDS = 120.0
_STATED = re.compile(r"in the last ([0-9hms .]+) is lost")


class Soak:
    """The sites with their VMs, and what was seen of them."""

    def __init__(
        self, cluster: Cluster, sites: tuple[Site, Site], witness: Witness, outside: Outside, progress: Progress
    ) -> None:
        self.cluster, self.sites, self.witness, self.progress = cluster, sites, witness, progress
        self.by_name = {site.name: site for site in sites}
        self.eyes = Eyes(open_line(outside), outside.sources, {site.name: site.mark for site in sites})
        self.acts = Acts(cluster, sites, witness, self.eyes)
        self._judged = self._doubled = 0

    def move_in(self) -> None:
        self.witness.begin()
        for site in self.sites:
            self.witness.add(site)
        self.eyes.begin()
        program = self.cluster.folder / "beacon"
        source = Path(__file__).with_name("beacon.c")
        subprocess.run(["gcc", "-O2", "-static", "-s", "-o", str(program), str(source)], check=True)
        address, port = self.eyes.place
        for name in VMS:
            self.cluster.ok("vm", "create", name, "--image", "tiny", "--memory", "128M")
            self.cluster.ok("vm", "cp", str(program), f"{name}:/root/beacon")
            start = f"#!/bin/sh\\nexec /root/beacon {name} /root/count {port} {address}\\n"
            place = "/etc/weft/start.d/beacon"
            script = f"mkdir -p /etc/weft/start.d; printf '{start}' > {place}; chmod +x {place}; sync"
            self.cluster.ok("vm", "exec", name, "--", "sh", "-c", f"{script}; {place} >/dev/null 2>&1 </dev/null &")
        self._settle()

    def run(self, until: float) -> None:
        """Rounds until then, by the monotonic clock. Raises Broken for the first promise that doesn't hold."""
        self.move_in()
        while self.progress.rounds < ROUNDS and time.monotonic() + ROUND_SECONDS < until:
            self.play(draw_fault(self.progress.seed, self.progress.rounds))
            self.progress.rounds += 1
            PROGRESS.write_bytes(msgspec.json.encode(self.progress))

    def play(self, fault: Fault) -> None:
        began = time.monotonic()
        home = self.acts.find_home(AUTOMATIC_VMS[0])
        at = time.time()
        print(f"  {self.progress.rounds + 1}: {home.name}: {fault}", flush=True)
        self.acts.perform(fault, home)
        ended = time.monotonic()
        self._settle()
        healed = time.monotonic() - ended
        told = self._judge(at)
        kept = self.progress
        kept.heals.append(round(healed, 1))
        kept.seconds += time.monotonic() - began
        kept.kinds = dict(Counter(kept.kinds) + Counter([fault.kind]))
        kept.killed = dict(Counter(kept.killed) + self.acts.killed)
        self.acts.killed.clear()
        print(
            f"     {'; '.join(told) or 'nothing moved'}; protected after {healed:.1f} s; {kept.looks:,} looks",
            flush=True,
        )

    def _settle(self) -> None:
        """Return once each VM runs, once, and its replica at the other site is as young as it shall be; what it needs for that is
        made here, as people do. Raises Broken if that doesn't come."""
        began, trouble = time.monotonic(), ""
        while time.monotonic() - began < MOST_HEAL:
            try:
                trouble = "; ".join(
                    why for name in VMS if (why := self._find_trouble(name))
                )  # of all: each gets what it needs
                if not trouble:
                    return
            except (WeftError, OSError) as problem:
                trouble = str(problem)
            self._raise_problems()
            time.sleep(1.0)
        raise Broken(f"not protected after {MOST_HEAL:g} s: {trouble}; {await_linked(self.sites, 0.1)}")

    def _find_trouble(self, name: str) -> str:
        with self.eyes.lock:
            newest = self.eyes.chronicle.find_newest(name)
        if newest is None or time.time() - newest.last_at > HEARD_SECONDS:
            where = (
                f"; it was at {newest.site}" if newest is not None else f"; heard was {self.eyes.strange or 'nothing'}"
            )
            return f"{name} isn't heard{where}"
        guests = self.eyes.list_guests().get(name, [])
        if len(guests) != 1 or guests[0].site != newest.site:
            return f"{name} is heard at {newest.site}, and has the processes {guests}"
        home = self.by_name[newest.site]
        if (phase := find_phase(home.find("vm", name))) != "Running":
            return f"vm/{name} at {home.name} is {phase}, and runs"
        there = self.by_name[home.other].find("vm", name)
        if there is not None and not (find_phase(there) == "Stopped" and dig(there, "marks", "fenced")):
            return f"vm/{name} at {home.other} is {find_phase(there)}, fenced by {dig(there, 'marks', 'fenced')!r}"
        replication = home.find("replication", name)
        automatic = name in AUTOMATIC_VMS
        if replication is None:
            spec = {"of": f"vm/{name}", "cluster": home.other, "rpo": RPO, "automatic": automatic}
            home.client.create({"kind": "replication", "name": name, "spec": spec})
            return f"replication/{name} at {home.name} is new"
        status = replication["status"]
        if status["phase"] != "Replicating":
            return f"replication/{name} at {home.name} is {status['phase']}: {status.get('message')}"
        conditions = {one["type"]: one for one in replication.get("conditions") or ()}
        armed = conditions.get(AUTOMATIC) or {}
        if automatic and armed.get("reason") != ARMED:
            return f"replication/{name} at {home.name} is {armed.get('reason')}: {armed.get('message')}"
        return ""

    def _raise_problems(self) -> None:
        with self.eyes.lock:
            found = [*self.eyes.chronicle.problems, *self.acts.problems]
        if found:
            raise Broken("; ".join(found[:5]))

    def _judge(self, at: float) -> list[str]:
        """What became of the VMs since then, in words. Raises Broken."""
        kept, found, told = self.progress, list[str](), list[str]()
        with self.eyes.lock:
            chronicle = self.eyes.chronicle
            passages, self._judged = chronicle.passages[self._judged :], len(chronicle.passages)
            doubles, processes = chronicle.list_doubles(at), list(self.eyes.doubles[self._doubled :])
            self._doubled = len(self.eyes.doubles)
            kept.looks, kept.slipped = kept.looks + self.eyes.looks, kept.slipped + chronicle.count_slipped(at)
            self.eyes.looks = 0
            kept.beats += chronicle.take_beats()
        self._raise_problems()
        promoted = {name for name, word in self.acts.ordered.items() if word == "promoted"}
        for life, seconds in doubles:
            found += self._judge_double(life, seconds, promoted)
        found += sorted({f"two processes of {name} ran at once" for _, name in processes if name not in promoted})
        for passage in passages:
            kept.lives += 1
            wrong, words = self._judge_passage(passage, at)
            found += [wrong] if wrong else []
            told.append(words)
        if found:
            raise Broken("; ".join(found[:5]))
        return told

    def _judge_double(self, life: Life, seconds: float, promoted: set[str]) -> list[str]:
        if life.vm in promoted and seconds <= BOTH_SECONDS:
            self.progress.both.append(round(seconds, 1))
            return []
        return [f"two guests of {life.vm} spoke at once for {seconds:.1f} s: that of {life.site} went on"]

    def _judge_passage(self, passage: Passage, fault_at: float) -> tuple[str, str]:
        """What is wrong; and what happened."""
        kept, vm, where = self.progress, passage.vm, f"{passage.former.site} → {passage.next.site}"
        order = self.acts.ordered.get(vm, "")
        if passage.former.site == passage.next.site:
            kept.back += order == "taken back"
            kept.again += order != "taken back"
            wrong = f"{vm} began again at {passage.next.site} and lacks {passage.lost} numbers" if passage.lost else ""
            return wrong, f"{vm} began again at {passage.next.site}"
        if order == "handed over":
            kept.handed += 1
            wrong = f"{vm} was handed over, {where}, and lacks {passage.lost} numbers" if passage.lost else ""
            return wrong, f"{vm} handed over, {where}"
        said = self.acts.promised.get(vm) if order == "promoted" else self._read_stated(passage)
        if said is None:
            return f"{vm} went {where}, and nothing says why", ""
        said_at, stated = said
        kept.taken += order != "promoted"
        kept.promoted += order == "promoted"
        at_fault = max(0.0, fault_at - passage.kept_at)
        kept.lost_at_fault.append(round(at_fault, 1))
        kept.stated_over.append(round(stated - (said_at - passage.kept_at), 1))
        wrong = judge_loss(passage, said_at, stated, SLACK_SECONDS)
        if not wrong and at_fault > RPO:
            wrong = f"{vm} lost {at_fault:.1f} s before the fault, of an RPO of {RPO:g} s"
        ended = passage.next.first_at - passage.last_at
        return wrong, (
            f"{vm} {order or 'taken over'}, {where}, {passage.next.first_at - fault_at:.1f} s after the fault, {ended:.1f} s after "
            f"its last word; it lacks {passage.lost} numbers, {at_fault:.1f} s before the fault, {stated:g} s stated"
        )

    def _read_stated(self, passage: Passage) -> tuple[float, float] | None:
        """When the take-over was, and the loss that its event states."""
        site = self.by_name[passage.next.site]
        for event in reversed(list(site.client.events(about=f"replica/default/{passage.vm}", limit=1000))):
            stated = _STATED.search(str(event.get("message")))
            if (
                event.get("reason") == "TookOver"
                and stated
                and passage.former.first_at < event["at"] <= passage.next.first_at
            ):
                return float(event["at"]), parse_duration(stated[1].strip(), "lost")
        return None

    def move_out(self) -> None:
        """All VMs go; nothing of them may be left at either site. Raises Broken."""
        began = time.monotonic()
        while True:
            try:
                trouble = self._clear()
            except (WeftError, OSError) as problem:
                trouble = str(problem)
            if not trouble:
                return
            if time.monotonic() - began > CLEAN_SECONDS:
                raise Broken(f"something is left: {trouble}")
            time.sleep(1.0)

    def _clear(self) -> str:
        for site in self.sites:
            for kind in ("replication", "vm", "replica", "recoveryplan"):
                for item in site.client.list(kind).items:
                    if item["name"] in VMS and not item.get("deleting_since"):
                        site.client.delete(kind, item["name"])
        for site in self.sites:
            for kind in ("replication", "vm", "replica", "snapshot", "volume"):
                left = [item["name"] for item in site.client.list(kind).items if item["name"] != "hello"]
                if kind == "snapshot":
                    for name in left:
                        if name.partition("-")[0] in VMS and "-before-" in name:  # kept for people
                            site.client.delete(kind, name)
                if left:
                    return f"{site.name} has {kind} {left[:4]}"
            for node in site.client.list("node").items:
                if node["report"]["orphans"]:
                    return f"{site.name}: node {node['name']} has orphans {node['report']['orphans']}"
        return next((f"guest {name} runs" for name in self.eyes.list_guests() if name in VMS), "")


def measure() -> Measurement:
    begun = read_progress(PROGRESS, Progress, lambda kept: kept.rounds < ROUNDS and not kept.broken)
    print(f"failovers of real processes: seed {begun.seed}, from round {begun.rounds} of {ROUNDS}", flush=True)
    since, until = begun.rounds, time.monotonic() + MINUTES * 60
    folder = Path(tempfile.mkdtemp(prefix="weft-soak-"))
    folder.chmod(0o755)
    cluster = lay_out(folder)
    sites: tuple[Site, Site] | None = None
    try:
        cluster.up()
        with with_second(cluster), ExitStack() as stack:
            sites = make_sites(cluster)
            witness = Witness(folder)
            stack.callback(witness.close)
            soak = Soak(cluster, sites, witness, stack.enter_context(make_outside(sites)), begun)
            stack.callback(soak.eyes.close)
            stack.callback(soak.acts.lines.close)
            try:
                soak.run(until)
                soak.move_out()
            except (Broken, AssertionError, WeftError, subprocess.TimeoutExpired) as problem:
                begun.broken = f"round {begun.rounds + 1}: {type(problem).__name__}: {problem}"
                _keep(cluster, sites, begun)
    finally:
        cluster.down()
        left = list_left(sites) if sites is not None else []
        shutil.rmtree(folder, ignore_errors=True)
    if left and not begun.broken:
        begun.broken = f"left on this machine: {', '.join(left)}"
    return describe(begun, ROUNDS, RPO, since)


def _keep(cluster: Cluster, sites: tuple[Site, Site], progress: Progress) -> None:
    """The logs of both."""
    logs = cluster.state / "log"
    for site in sites[1:]:
        shutil.copytree(site.state / "log", logs / site.name, dirs_exist_ok=True)
    keep_broken(PROGRESS, progress, progress.broken, logs)
