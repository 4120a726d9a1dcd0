"""A proof of the soak: two clusters and a witness, as processes of this machine, fail over while they are killed, frozen, and cut
off from each other.

Three VMs count, ten times a second: each number is on the guest's disk before the guest says it, by UDP, to this process. Two VMs
are taken over automatically, one is promoted by a recovery plan. ``ROUNDS`` rounds, drawn from a seed; after each one, all VMs run
once, have replicas at the other cluster again, and lack no more than was stated. A run that is interrupted goes on where it was,
with new clusters: ``.weft/soak-sites.json``. ``WEFT_SOAK_MINUTES`` ends a run early, after a whole round.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from tests.cluster.cluster import Cluster, lay_out
from tests.cluster.second import with_second

from benchmarks.measurement import ROOT, Measurement
from benchmarks.soak.progress import keep_broken, read_progress
from benchmarks.soak.sites.eyes import Eyes
from benchmarks.soak.sites.faults import BY_PEOPLE, LEFT, Fault, draw_fault
from benchmarks.soak.sites.figures import MOST_HEAL, Progress, describe
from benchmarks.soak.sites.oracle import Life, Passage, judge_loss
from benchmarks.soak.sites.place import (
    Lines,
    Process,
    Site,
    Witness,
    await_linked,
    heal,
    make_sites,
    send_signal,
)
from benchmarks.soak.travellers import Broken
from weft.kinds.fields.cluster.link import ARMED, AUTOMATIC
from weft.objects.errors import WeftError
from weft.objects.quantity import parse_duration

ROUNDS = int(os.environ.get("WEFT_SOAK_ROUNDS", "18"))
MINUTES = float(os.environ.get("WEFT_SOAK_MINUTES", "40"))
ROUND_SECONDS = 200.0  # one isn't begun that would end later than that
PROGRESS = ROOT / ".weft" / "soak-sites.json"
AUTOMATIC_VMS, PLANNED_VM = ("db", "web"), "desk"
VMS = (*AUTOMATIC_VMS, PLANNED_VM)
RPO = 20.0
HEARD_SECONDS = 3.0  # a guest that runs says something in this time
SLACK_SECONDS = 1.5  # of a stated loss: seconds are rounded, and a number is heard a moment after its disk has it
BOTH_SECONDS = 60.0  # a VM that people promoted may run beside its former one for so long after that is back
CLEAN_SECONDS = 120.0
_STATED = re.compile(r"in the last ([0-9hms .]+) is lost")


class Soak:
    """The sites with their VMs, and what was seen of them."""

    def __init__(self, cluster: Cluster, sites: tuple[Site, Site], witness: Witness, progress: Progress) -> None:
        self.cluster, self.sites, self.witness, self.progress = cluster, sites, witness, progress
        self.by_name = {site.name: site for site in sites}
        self.lines = Lines(sites, witness)
        self.eyes = Eyes(
            [site.address for site in sites],
            {site.name: site.network for site in sites},
            {site.name: site.mark for site in sites},
        )
        self.ordered: dict[str, str] = {}  # what people did to a VM in this round, by its name: handed over, promoted
        self.promised: dict[
            str, tuple[float, float]
        ] = {}  # of a VM that people promoted: when, and the loss that was stated
        self._judged = self._doubled = 0

    def move_in(self) -> None:
        self.witness.begin()
        for site in self.sites:
            self.witness.add(site)
        self.eyes.begin()
        program = self.cluster.folder / "beacon"
        source = Path(__file__).with_name("beacon.c")
        subprocess.run(["gcc", "-O2", "-static", "-s", "-o", str(program), str(source)], check=True)
        places = " ".join(site.address for site in self.sites)
        for name in VMS:
            self.cluster.ok("vm", "create", name, "--image", "tiny", "--memory", "96M")
            self.cluster.ok("vm", "cp", str(program), f"{name}:/root/beacon")
            start = f"#!/bin/sh\\nexec /root/beacon {name} /root/count {self.eyes.port} {places}\\n"
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
        home = self._find_home(AUTOMATIC_VMS[0])
        self.ordered, self.promised = {}, {}
        at = time.time()
        print(f"  {self.progress.rounds + 1}: {home.name}: {fault}", flush=True)
        if fault.kind in BY_PEOPLE:
            self._play_people(fault, home)
        else:
            self._befall(fault, home)
        ended = time.monotonic()
        self._settle()
        healed = time.monotonic() - ended
        told = self._judge(at)
        kept = self.progress
        kept.heals.append(round(healed, 1))
        kept.seconds += time.monotonic() - began
        kept.kinds = dict(Counter(kept.kinds) + Counter([fault.kind]))
        print(
            f"     {'; '.join(told) or 'nothing moved'}; protected after {healed:.1f} s; {kept.looks:,} looks",
            flush=True,
        )

    # --- what befalls them

    def _befall(self, fault: Fault, home: Site) -> None:
        other, site = self.by_name[home.other], home if fault.where == LEFT else self.by_name[home.other]
        names = {"home": home.name, "other": other.name}
        with ExitStack() as undo:
            match fault.kind:
                case "cut off":
                    ways = [(home.name, "witness"), (home.name, other.name), (other.name, home.name)]
                    undo.enter_context(self.lines.cut(ways, fault.how))
                case "line":
                    ways = [(names[source], names[target]) for source, target in fault.ways]
                    undo.enter_context(self.lines.cut(ways, fault.how))
                case "frozen":
                    undo.enter_context(_frozen([*home.list_processes("server"), *home.list_processes("agents")]))
                case "all frozen":
                    undo.enter_context(_frozen(home.list_processes("all")))
                case "killed":
                    undo.enter_context(self._killed(home))
                case "witness":
                    self._stop_witness(fault.how)
                    undo.callback(self._mend_witness)
                case "one process":
                    processes = site.list_processes(fault.what)
                    if fault.how == "freeze":
                        undo.enter_context(_frozen(processes))
                    else:
                        self._kill(processes, fault.what)
            self._wait(fault, home)
        if trouble := heal(self.cluster):
            raise Broken(trouble)

    def _wait(self, fault: Fault, home: Site) -> None:
        """To its end, with what comes besides."""
        began = time.monotonic()
        people: threading.Thread | None = None
        if fault.kind == "all frozen" and self._find_home(PLANNED_VM) is home:
            people = threading.Thread(
                target=self._promote_by_plan, args=(self.by_name[home.other], began + fault.seconds)
            )
            people.start()
        for extra in sorted(fault.extras):
            time.sleep(max(0.0, began + extra.after - time.monotonic()))
            if extra.what == "witness":
                self.witness.send(signal.SIGKILL)
                self.witness.begin()
                self._count("witness")
            else:
                site = home if extra.where == LEFT else self.by_name[home.other]
                self._kill(site.list_processes(extra.what), extra.what)
                if extra.what == "server":
                    heal(self.cluster)
        time.sleep(max(0.0, began + fault.seconds - time.monotonic()))
        if people is not None:
            people.join()

    @contextlib.contextmanager
    def _killed(self, home: Site) -> Iterator[None]:
        """The server once, since nothing begins it again; agents and one of the guard again and again."""
        over = threading.Event()

        def kill() -> None:
            while not over.is_set():
                send_signal(home.list_processes("agents"), signal.SIGKILL)
                send_signal(home.list_processes("guard")[:1], signal.SIGKILL)
                over.wait(1.0)

        self._kill(home.list_processes("server"), "server")
        thread = threading.Thread(target=kill)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _kill(self, processes: list[Process], what: str) -> None:
        if send_signal(processes, signal.SIGKILL):
            self._count(what)

    def _count(self, what: str) -> None:
        self.progress.killed = dict(Counter(self.progress.killed) + Counter([what]))

    def _stop_witness(self, how: str) -> None:
        self.witness.send(signal.SIGKILL if how == "kill" else signal.SIGSTOP)

    def _mend_witness(self) -> None:
        self.witness.send(signal.SIGCONT)
        self.witness.begin()

    # --- what people do

    def _promote_by_plan(self, site: Site, until: float) -> None:
        """Once they are let: while the witness still gets word from the other cluster, they aren't."""
        site.run("recovery", "create", "desk", "--group", PLANNED_VM)
        while time.monotonic() < until:
            at = time.time()
            done = site.run("recovery", "failover", "desk", "-o", "json")
            with contextlib.suppress(ValueError, LookupError, TypeError):
                report = msgspec.json.decode(done.stdout)
                if report["phase"] == "Passed":
                    self.ordered[PLANNED_VM] = "promoted"
                    self.promised[PLANNED_VM] = (at, float(report["vms"][0]["age_seconds"]))
                    break
            time.sleep(2.0)
        site.run("recovery", "delete", "desk", "--yes")

    def _play_people(self, fault: Fault, home: Site) -> None:
        """All VMs at once are handed over, or handed over and taken back, while processes are killed."""
        word = "handed over" if fault.kind == "hand-over" else "taken back"
        self.ordered = dict.fromkeys(VMS, word)
        threads = [threading.Thread(target=self._hand_over, args=(name, fault.kind)) for name in VMS]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        for extra in sorted(fault.extras):
            time.sleep(max(0.0, began + extra.after / 6 - time.monotonic()))
            if extra.what == "witness":
                self.witness.send(signal.SIGKILL)
                self.witness.begin()
                self._count("witness")
            else:
                site = home if extra.where == LEFT else self.by_name[home.other]
                self._kill(site.list_processes(extra.what), extra.what)
                if extra.what == "server":
                    heal(self.cluster)
        for thread in threads:
            thread.join()

    def _hand_over(self, name: str, kind: str) -> None:
        site = self._find_home(name)
        other = self.by_name[site.other]
        self._insist(
            site, "replication", "hand-over", name, done=lambda: _phase(site.find("replication", name)) == "HandedOver"
        )
        if kind == "hand-over":
            self._insist(other, "replica", "promote", name, done=lambda: _phase(other.find("vm", name)) == "Running")
            return
        self._insist(
            site, "replication", "take-back", name, done=lambda: not _dig(site.find("vm", name), "spec", "fenced")
        )
        self._insist(site, "vm", "start", name, done=lambda: _phase(site.find("vm", name)) == "Running")

    def _insist(self, site: Site, *words: str, done: Any) -> None:
        """Give the command until it is done: servers are killed meanwhile."""
        ends, said = time.monotonic() + MOST_HEAL, b""
        while time.monotonic() < ends:
            with contextlib.suppress(WeftError, OSError, subprocess.TimeoutExpired):
                if done():
                    return
                said = site.run(*words, "--timeout", "30s", timeout=60).stderr
            time.sleep(0.5)
        with self.eyes.lock:
            self.eyes.chronicle.problems.append(f"{site.name}: {' '.join(words)}: {said.decode()[-400:]}")

    # --- what must hold

    def _find_home(self, name: str) -> Site:
        with self.eyes.lock:
            newest = self.eyes.chronicle.find_newest(name)
        return self.by_name[newest.site] if newest is not None else self.sites[0]

    def _settle(self) -> None:
        """Return once each VM runs, once, and its replica at the other site is as young as it shall be; what it needs for that is
        made here, as people do. Raises Broken if that doesn't come."""
        began, trouble = time.monotonic(), ""
        while time.monotonic() - began < MOST_HEAL:
            try:
                trouble = next((why for name in VMS if (why := self._find_trouble(name))), "")
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
            return f"{name} isn't heard" + (f"; it was at {newest.site}" if newest is not None else "")
        guests = self.eyes.list_guests().get(name, [])
        if len(guests) != 1 or guests[0].site != newest.site:
            return f"{name} is heard at {newest.site}, and has the processes {guests}"
        home = self.by_name[newest.site]
        if (phase := _phase(home.find("vm", name))) != "Running":
            return f"vm/{name} at {home.name} is {phase}, and runs"
        there = self.by_name[home.other].find("vm", name)
        if there is not None and not (_phase(there) == "Stopped" and _dig(there, "spec", "fenced")):
            return f"vm/{name} at {home.other} is {_phase(there)}, fenced by {_dig(there, 'spec', 'fenced')!r}"
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
            found = [*self.eyes.chronicle.problems]
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
        promoted = {name for name, word in self.ordered.items() if word == "promoted"}
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
        order = self.ordered.get(vm, "")
        if passage.former.site == passage.next.site:
            kept.back += order == "taken back"
            kept.again += order != "taken back"
            wrong = f"{vm} began again at {passage.next.site} and lacks {passage.lost} numbers" if passage.lost else ""
            return wrong, f"{vm} began again at {passage.next.site}"
        if order == "handed over":
            kept.handed += 1
            wrong = f"{vm} was handed over, {where}, and lacks {passage.lost} numbers" if passage.lost else ""
            return wrong, f"{vm} handed over, {where}"
        said = self.promised.get(vm) if order == "promoted" else self._read_stated(passage)
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
                    if item["name"] in (*VMS, "desk") and not item.get("deleting_since"):
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


@contextlib.contextmanager
def _frozen(processes: list[Process]) -> Iterator[None]:
    send_signal(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        send_signal(processes, signal.SIGCONT)


def _phase(item: dict[str, Any] | None) -> str:
    return str(_dig(item, "status", "phase") or "absent")


def _dig(item: dict[str, Any] | None, *names: str) -> Any:
    found: Any = item
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def list_left(folder: Path, sites: tuple[Site, Site]) -> list[str]:
    """What is left of both sites on this machine, once they have ended."""
    left = [f"process {one.pid} of {site.name}" for site in sites for one in site.list_processes("all")]
    left += [f"/run/{site.mark}" for site in sites if Path("/run", site.mark).exists()]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    for site in sites:
        prefix = site.topology["link_prefix"]
        left += [f"table of {site.name}" for line in tables.splitlines() if site.topology["id"] in line]
        left += [f"link {line.split()[1]}" for line in links.splitlines() if line.split()[1].startswith(prefix)]
        left += [f"namespace {line}" for line in spaces.splitlines() if line.startswith(prefix)]
    return left


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
            soak = Soak(cluster, sites, witness, begun)
            stack.callback(soak.eyes.close)
            stack.callback(soak.lines.close)
            try:
                soak.run(until)
                soak.move_out()
            except (Broken, AssertionError, WeftError, subprocess.TimeoutExpired) as problem:
                begun.broken = f"round {begun.rounds + 1}: {type(problem).__name__}: {problem}"
                _keep(cluster, sites, begun)
    finally:
        cluster.down()
        left = list_left(folder, sites) if sites is not None else []
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
