"""A proof of the soak: functions of all three isolations are invoked without a pause, now and later, while gateway, agents and
instances are killed with -9; each call gets an answer or a typed error, none runs twice unasked, and in the end nothing is left.

``KILLS`` kills, drawn from a seed. What ran is counted by a witness outside, which the code tells before it does anything. A run
that is interrupted goes on where it was: ``.weft/soak-functions.json``.
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
from typing import Any

import msgspec
from tests.cluster.cluster import Cluster, lay_out

from benchmarks.measurement import ROOT, Figure, Measurement
from benchmarks.soak.invokers import CODE, Invoker, Witness
from benchmarks.soak.landscape import Landscape
from benchmarks.soak.moved import describe_memory
from benchmarks.soak.progress import keep_broken, read_progress
from benchmarks.soak.traces import NODES, Census, list_processes
from benchmarks.soak.travellers import Broken
from benchmarks.soak.verdicts import Kill, count_heard, judge_call, judge_event

KILLS = int(os.environ.get("KILLS", "100"))
INVOKERS = 3
ISOLATIONS = ("process", "container", "vm")
PROGRESS = ROOT / ".weft" / "soak-functions.json"
BETWEEN_SECONDS, BACK_SECONDS, QUIET_SECONDS = 6.0, 60.0, 180.0
MAX_REASONS = 5
INSTANCES = ("-m awslambdaric", "-name fn")  # in the command lines of what runs functions' code


class Progress(msgspec.Struct):
    """What was proven up to ``kills``: ``heard`` by callers, ``ran`` by the witness, ``dead`` letters."""

    seed: int
    kills: int = 0
    killed: dict[str, int] = {}
    heard: dict[str, int] = {}
    ran: int = 0
    events: int = 0
    again: int = 0
    broken: str = ""


class Soak:
    """Three functions of one cluster, those who call them, and what was killed meanwhile."""

    def __init__(self, cluster: Cluster, progress: Progress) -> None:
        self.cluster, self.progress = cluster, progress
        self.census, self.kills = Census(), list[Kill]()
        self.functions = [f"soak-{isolation}" for isolation in ISOLATIONS]
        self.witness = Witness(cluster.host_address)

    def run(self) -> None:
        """Raises Broken with all of it told when a promise doesn't hold."""
        before = Landscape.look(self.cluster)
        self.create()
        endpoint, seed = self.endpoint(), self.progress.seed
        invokers = [Invoker(seed, number, self.functions, endpoint) for number in range(1, INVOKERS + 1)]
        try:
            while self.progress.kills + len(self.kills) < KILLS and not self.find_wrong(invokers):
                self.kill(random.Random(f"{self.progress.seed}/{self.progress.kills + len(self.kills)}"))
                self.census.look(self.cluster)
                heard = count_heard([call for invoker in invokers for call in invoker.calls])
                print(f"  {self.progress.kills + len(self.kills)}/{KILLS} kills; {dict(heard)}", flush=True)
        finally:
            for invoker in invokers:
                invoker.close()
        if any(invoker.hangs for invoker in invokers):
            raise Broken("a caller waits for ever")
        self.await_quiet(invokers)
        self.note(invokers)
        for name in self.functions:
            self.cluster.ok("function", "dead-letters", name, "--purge")
            self.cluster.ok("delete", f"function/{name}", "--yes")
        self.witness.close()
        before.await_again(self.cluster)

    def create(self) -> None:
        folder = self.cluster.folder / "code" / "soak"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "app.py").write_text(CODE)
        wish = [
            "--code",
            str(folder),
            "--handler",
            "app.handler",
            "--memory",
            "128M",
            "--cpu",
            "0.2",
            "--timeout",
            "20s",
        ]
        wish += ["--network", "default", "--retries", "1", "--max-concurrent", "6"]
        wish += ["--env", f"WITNESS={self.witness.address}", "--env", f"PORT={self.witness.port}"]
        for name, isolation in zip(self.functions, ISOLATIONS, strict=True):
            self.cluster.ok("function", "create", name, *wish, "--isolation", isolation, timeout=900)

    def endpoint(self) -> dict[str, str]:
        """What the commands print for a program: address, CA, a key."""
        words = (("function", "endpoint", "-o", "env"), ("token", "create", "soak", "--access-key"))
        lines = [line for said in words for line in self.cluster.ok(*said).splitlines()]
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def kill(self, draw: random.Random) -> None:
        """One of them, and wait until it is back: what is killed together is no part of the promise."""
        time.sleep(BETWEEN_SECONDS * draw.random())
        what = draw.choice(["gateway", "agent", "runtime"])
        node = draw.choice(NODES)
        pids = self.cluster.pids({"gateway": "weft server gateway"}.get(what, f"weft agent {node} "))
        if what == "runtime":
            running = [pair for other in NODES for pair in list_processes(self.cluster, other).items()]
            instances = [pid for pid, words in running if any(mark in words for mark in INSTANCES)]
            what, pids = ("runtime", instances) if instances else ("agent", pids)
        if not pids:
            raise Broken(f"there is no {what} of {node}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(sorted(pids)), signal.SIGKILL)
        self.kills.append(Kill(what, time.monotonic()))
        began = time.monotonic()
        while not self.is_whole():
            if time.monotonic() - began > BACK_SECONDS:
                raise Broken(f"{what} {node} doesn't come back")
            time.sleep(0.5)

    def is_whole(self) -> bool:
        """The gateway answers, and hears all nodes."""
        done = self.cluster.run("function", "metrics", self.functions[0], "-o", "json")
        if done.returncode:
            return False
        return all(node["status"]["phase"] == "Ready" for node in self.cluster.json("get", "node")["items"])

    def find_wrong(self, invokers: list[Invoker]) -> list[str]:
        """Of calls that nothing can happen to any more."""
        calls = [call for invoker in invokers for call in list(invoker.calls) if call.how != "event"]
        return [wrong for call in calls if (wrong := judge_call(call, self.witness.seen[call.n], self.kills))]

    def await_quiet(self, invokers: list[Invoker]) -> None:
        """Every event has run or is a dead letter; then all calls are judged."""
        calls = [call for invoker in invokers for call in invoker.calls]
        began = time.monotonic()
        while True:
            wrong = self.find_wrong(invokers)
            letters = self.read_letters()
            events = [call for call in calls if call.how == "event"]
            late = [
                w
                for call in events
                if (w := judge_event(call, self.witness.seen[call.n], call.n in letters, self.kills))
            ]
            if not late or time.monotonic() - began > QUIET_SECONDS:
                break
            time.sleep(2.0)
        if wrong or late:
            told = [*wrong[:MAX_REASONS], *late[:MAX_REASONS]]
            raise Broken(f"{len(wrong)} calls and {len(late)} events: {'; '.join(told)}; kills {self.kills[-30:]}")

    def read_letters(self) -> set[int]:
        found: set[int] = set()
        for name in self.functions:
            listed: list[dict[str, Any]] = self.cluster.json("function", "dead-letters", name)["items"]
            found |= {msgspec.json.decode(item["payload"])["n"] for item in listed}
        return found

    def note(self, invokers: list[Invoker]) -> None:
        progress, calls = self.progress, [call for invoker in invokers for call in invoker.calls]
        progress.kills += len(self.kills)
        progress.killed = dict(Counter(progress.killed) + Counter(kill.what for kill in self.kills))
        progress.heard = dict(Counter(progress.heard) + Counter(count_heard(calls)))
        progress.ran += self.witness.seen.total()
        events = [call for call in calls if call.heard == "accepted"]
        progress.events += len(events)
        progress.again += sum(max(0, self.witness.seen[call.n] - (1 if call.act == "well" else 2)) for call in events)
        self.kills.clear()
        PROGRESS.write_bytes(msgspec.json.encode(progress))


def measure() -> Measurement:
    begun = read_progress(PROGRESS, Progress, lambda kept: kept.kills < KILLS and not kept.broken)
    print(f"functions: seed {begun.seed}, from kill {begun.kills} of {KILLS}", flush=True)
    since, started = begun.kills, time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="weft-soak-"))
    cluster = lay_out(folder)
    soak: Soak | None = None
    try:
        cluster.up()
        soak = Soak(cluster, begun)
        soak.run()
    except (Broken, AssertionError, subprocess.TimeoutExpired) as problem:
        begun.broken = f"kill {begun.kills + len(soak.kills if soak else [])}: {problem}"
        keep_broken(PROGRESS, begun, begun.broken, cluster.state / "log")
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    return describe(begun, soak, since, time.monotonic() - started)


def describe(progress: Progress, soak: Soak | None, since: int, seconds: float) -> Measurement:
    whole = progress.kills >= KILLS and not progress.broken
    figures = [
        Figure("kills", str(progress.kills), goal=str(KILLS), kept=whole),
        Figure(
            "calls with neither answer nor typed error, or run twice unasked",
            "0" if whole else "?",
            f"of {sum(progress.heard.values())}",
            goal="0",
            kept=whole,
        ),
        Figure(
            "events accepted that neither ran nor are dead letters",
            "0" if whole else "?",
            f"of {progress.events}",
            goal="0",
            kept=whole,
        ),
        Figure("runs of events beyond those promised, after kills", str(progress.again)),
        Figure(
            f"instances, mounts, control groups, files, links left of the last {progress.kills - since} kills",
            "0" if whole else "?",
            goal="0",
            kept=whole,
        ),
    ]
    figures += describe_memory(soak.census.grown() if soak is not None else [], "kills")
    heard = ", ".join(f"{number} {what}" for what, number in sorted(progress.heard.items(), key=lambda pair: -pair[1]))
    killed = ", ".join(f"{number} {what}" for what, number in sorted(progress.killed.items()))
    summary = (
        f"Seed {progress.seed}: in processes, containers and machines; callers heard: {heard}; kill -9 of {killed}; {seconds:.0f} s"
        + (f", after {since} kills of a run before it" if since else "")
        + (f". Broken: {progress.broken}" if progress.broken else ".")
    )
    return Measurement("Functions under kills", summary, figures)
