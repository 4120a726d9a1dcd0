"""kill -9 while a deployment is updated, each way, to good versions and bad ones: it ends in the right phase, and nobody notices.

Three containers behind an HTTP service are asked all the time. In each round they get another version by one of the strategies;
half of these crash, never answer, or fail a fifth of the requests. Processes are killed meanwhile. A good version must end
Promoted, a bad one RolledBack; no request may fail but those that a bad version answered; and as many instances as promised must
answer at every moment. A run that is interrupted goes on with the next round of the same seed, on a new cluster.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from tests.cluster.cluster import Cluster, lay_out
from tests.cluster.load import Load, Request, ask_steadily, await_answers
from tests.registry import push_busybox, serve

from benchmarks.measurement import ROOT, Figure, Measurement
from benchmarks.soak import Progress, Soak
from benchmarks.soak.progress import read_progress

ROUNDS = int(os.environ.get("WEFT_SOAK_ROUNDS", "24"))
REPLICAS, RATE = 3, 50.0
PATHS = ["/"] * 4 + ["/cgi-bin/buy"]
WINDOW = 60  # requests one after another, in which each instance with a share answers some
WARM_SECONDS = 3.0
MOST_KILLS, KILL_WITHIN_SECONDS = 3, 8.0
PATIENCE_SECONDS = 300.0
VICTIMS = ("server", "api", "controllers", "agent")
PROGRESS = ROOT / ".weft" / "soak-rollouts.json"
STRATEGIES = {
    "rolling": (),
    "blue-green": ("--traffic-split", "50%", "--keep-old", "5s"),
    "canary": ("--canary-percent", "50%"),
}
# Half of all versions are good. What each does in place of serving, and how its purchases end.
MANNERS = {
    "good": ("", "200 OK"),
    "crashes": ("exit 1", "200 OK"),
    "silent": ("sleep 3600", "200 OK"),
    "fails": ("", "500 No"),
}
SERVE = """mkdir -p /tmp/w/cgi-bin
echo VERSION/$(hostname) >/tmp/w/index.html
FIRST
cat >/tmp/w/cgi-bin/buy <<'CGI'
#!/bin/sh
printf 'Status: STATUS\\r\\n\\r\\n'
echo VERSION/$(hostname)
CGI
chmod +x /tmp/w/cgi-bin/buy
trap 'exit 0' TERM
httpd -f -p 8080 -h /tmp/w & wait"""


class Round(NamedTuple):
    strategy: str
    manner: str
    version: str

    @property
    def is_good(self) -> bool:
        return self.manner == "good"

    @property
    def command(self) -> str:
        first, status = MANNERS[self.manner]
        return SERVE.replace("VERSION", self.version).replace("FIRST", first).replace("STATUS", status)


class Standing(Progress):
    promoted: int = 0
    rolled_back: int = 0
    requests: int = 0
    failed: int = 0  # requests that a bad version answered with an error
    least: int = REPLICAS  # instances that answered, of all WINDOWs


def draw_round(seed: int, number: int) -> Round:
    draw = random.Random(f"{seed}/{number}")
    manner = draw.choice(sorted(MANNERS.keys() - {"good"})) if draw.random() < 0.5 else "good"
    return Round(sorted(STRATEGIES)[number % len(STRATEGIES)], manner, f"v{number + 2}")


def count_least(requests: Iterable[Request], window: int = WINDOW) -> int | None:
    """How many instances answered of the ``window`` requests one after another that the fewest did; None if fewer came."""
    recent, seen, least = deque[str](), Counter[str](), None
    for one in sorted(requests, key=lambda one: one.began + one.seconds):
        if one.failed or "/" not in one.said:
            continue
        recent.append(one.said)
        seen[one.said] += 1
        if len(recent) > window:
            gone = recent.popleft()
            seen[gone] -= 1
            if not seen[gone]:
                del seen[gone]
        if len(recent) == window:
            least = len(seen) if least is None else min(least, len(seen))
    return least


class Rollouts(Soak):
    def __init__(self, cluster: Cluster, begun: Standing, image: str) -> None:
        super().__init__(cluster, begun)
        self.done = begun
        port = cluster.free_port()
        service = ("--selector", "app=web", "--port", "80:8080", "--protocol", "http", "--drain", "2s")
        cluster.ok("service", "create", "web", *service, "--publish", f"{port}:80")
        first = Round("rolling", "good", f"v{begun.round + 1}")
        words = ("--image", image, "--memory", "32M", "--cpu", "0.1", "--label", "app=web", "--grace", "1s")
        words += ("--replicas", str(REPLICAS), "--min-healthy", "2s", "--rollback-on-failure", "--auto-promote")
        words += ("--health-check-timeout", "90s", "--success-threshold", "99%", "--monitor-duration", "20s")
        cluster.ok("deployment", "create", "web", *words, "--", "sh", "-c", first.command, timeout=300)
        self.version = first.version
        self.places = [f"{cluster.object('node', name)['report']['address']}:{port}" for name in ("n1", "n2", "n3")]
        await_answers(self.places)

    def run(self, rounds: int = ROUNDS) -> None:
        while self.round < rounds:
            one = draw_round(self.seed, self.round)
            with ask_steadily(self.places, RATE, PATHS) as load:
                time.sleep(WARM_SECONDS)
                began = time.monotonic()
                phase = self.update(one)
                took = time.monotonic() - began
                self.settle()
                settled = time.time()
                time.sleep(WARM_SECONDS)
            self.check(one, load, settled)
            self.done.promoted += one.is_good
            self.done.rolled_back += not one.is_good
            self.round += 1
            self.remember()
            print(
                f"  {self.round}/{rounds} {one.strategy}, {one.manner}: {phase} after {took:.0f} s, {self.done}",
                flush=True,
            )
        self.end()

    def remember(self) -> None:
        self.done.round, self.done.longest_heal = self.round, self.longest_heal
        self.done.killed, self.done.acts = dict(self.killed), dict(self.acts)
        PROGRESS.write_bytes(msgspec.json.encode(self.done))

    def update(self, one: Round) -> str:
        """The phase in which it ended, which is the right one."""
        draw = random.Random(f"{self.seed}/{self.round}/kills")
        words = ("--strategy", one.strategy, *STRATEGIES[one.strategy], "--detach", "--", "sh", "-c", one.command)
        before = self.read()["actions"]["rollout"]
        while self.read()["actions"]["rollout"] == before:
            # Refused: an earlier try of it was taken.
            self.ask("update", "deployment", "update", "web", *words)
        for _ in range(draw.randint(1, MOST_KILLS)):
            time.sleep(draw.random() * KILL_WITHIN_SECONDS)
            self.kill(draw, VICTIMS)
        wanted = "Promoted" if one.is_good else "RolledBack"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (status := self.read()["status"])["rollout"] == before or status["phase"] in ("Progressing", "Paused"):
            if time.monotonic() > deadline:
                self.give_up(f"{one} never ended: {status['phase']}: {status['message']}")
            time.sleep(0.5)
        if status["phase"] != wanted:
            self.give_up(f"{one} ended {status['phase']}, not {wanted}: {status['verdict']}")
        self.version = one.version if one.is_good else self.version
        return f"{status['phase']}: {status['verdict']}"

    def read(self) -> dict[str, Any]:
        """The deployment, asked for until the server answers."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (answer := self.cluster.run("get", "deployment", "web", "-o", "json")).returncode:
            if time.monotonic() > deadline:
                self.give_up(f"the server doesn't answer: {answer.stderr.decode()}")
            time.sleep(0.3)
        found: dict[str, Any] = json.loads(answer.stdout)
        return found

    def check(self, one: Round, load: Load, settled: float) -> None:
        """What the requests of the round show; ``settled``: since when they should come from one version (unix seconds)."""
        spoiled = [
            each for each in load.failures() if not (each.status == "500" and each.said.startswith(f"{one.version}/"))
        ]
        if spoiled:
            self.give_up(f"{one}: {len(spoiled)} of {len(load.requests)} requests failed: {spoiled[:5]}")
        least = count_least(load.requests)
        if least is None or least < REPLICAS - 1:
            self.give_up(f"{one}: only {least} instances answered at one time")
        self.done.least = min(self.done.least, least)
        self.done.requests += len(load.requests)
        self.done.failed += len(load.failures())
        last = load.said(settled)
        if {said.partition("/")[0] for said in last} != {self.version}:
            self.give_up(f"{one}: {dict(last)} answer, not {self.version} alone")

    def find_abort_reason(self) -> str:
        """The first thing that is not as wished, or nothing."""
        answers = [
            self.cluster.run("get", kind, "-o", "json") for kind in ("node", "container", "allocation", "deployment")
        ]
        if any(one.returncode for one in answers):
            return "the server doesn't answer"
        nodes, containers, allocations, deployments = (json.loads(one.stdout)["items"] for one in answers)
        for node in nodes:
            if node["status"]["phase"] != "Ready" or node["report"]["orphans"]:
                return f"node/{node['name']} is {node['status']['phase']} with orphans {node['report']['orphans']}"
        revisions = [one["status"]["revision"] for one in deployments]
        found = sorted((one["labels"]["weft/revision"], one["status"]["phase"]) for one in containers)
        if found != [(str(revision), "Running") for revision in revisions for _ in range(REPLICAS)]:
            return f"containers {found} of a deployment of revision {revisions}"
        if len(allocations) != len(containers) + 1:  # hello's
            return f"{len(allocations)} allocations for {len(containers)} containers and a VM"
        return ""

    def end(self) -> None:
        """Delete everything; nothing of it may be left."""
        self.ask("delete deployment", "deployment", "delete", "web", "--yes", "--detach")
        self.ask("delete service", "service", "delete", "web", "--yes", "--detach")
        self.settle()
        left = [str(path) for path in (self.cluster.state / "nodes").glob("*/containers/*")]
        if left:
            self.give_up(f"left over: {left}")

    def give_up(self, why: str) -> None:
        raise SystemExit(f"seed {self.seed}, round {self.round}: {why}\n{self.cluster.logs()}")


def measure() -> Measurement:
    begun = read_progress(PROGRESS, Standing, lambda kept: kept.round < ROUNDS)
    print(f"rollouts: seed {begun.seed}, from round {begun.round} of {ROUNDS}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="weft-soak-"))
    folder.chmod(0o755)
    cluster = lay_out(folder)
    started = time.monotonic()
    try:
        cluster.up()
        with serve(folder / "registry", cluster.host_address) as place:
            image = f"{place}/soak/shop:1"
            push_busybox(folder / "registry", image, ["sh", "-c"], {})
            Rollouts(cluster, begun, image).run()
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    return describe(begun, time.monotonic() - started)


def describe(done: Standing, seconds: float) -> Measurement:
    killed = ", ".join(f"{n} {what}" for what, n in sorted(done.killed.items()))
    return Measurement(
        "soak_rollouts",
        f"Seed {done.seed}: rolling, blue-green and canary updates of {REPLICAS} containers in turn under {RATE:.0f} requests a "
        f"second, with kill -9 of {killed} meanwhile; {seconds:.0f} s. A wrong phase, a request lost, fewer instances than "
        "promised or data left over end the run without a figure.",
        [
            Figure("good versions, each promoted", str(done.promoted)),
            Figure("versions that crash, are silent or fail requests, each rolled back", str(done.rolled_back)),
            Figure(
                f"requests of {done.requests} that failed, but for {done.failed} that a bad version answered",
                "0",
                goal="0",
                kept=True,
            ),
            Figure(
                f"fewest instances that answered, of {REPLICAS}",
                str(done.least),
                goal=f"≥ {REPLICAS - 1}",
                kept=done.least >= REPLICAS - 1,
            ),
            Figure("longest wait until all was as wished", f"{done.longest_heal:.1f} s"),
        ],
    )
