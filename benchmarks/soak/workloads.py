"""A proof of the soak: containers (plain, held by containerd, in machines of their own) and jobs come, go, crash, move and become
VMs, while agents, API, controllers, gateway and containerd are killed with -9; all is as wished, and at last nothing is left.

``ROUNDS`` rounds, drawn from a seed: two wishes, a kill into them, then all must be as wished, and each volume hold each line
that was ever acknowledged, once and in order. A run that is interrupted goes on where it was: ``.weft/soak-workloads.json``
(with new objects: the rounds count, not what stood).
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

import msgspec
from tests.cluster.cluster import Cluster, lay_out
from tests.registry import push_busybox, serve

from benchmarks.measurement import ROOT, Figure, Measurement
from benchmarks.soak.landscape import Landscape
from benchmarks.soak.moved import describe_memory
from benchmarks.soak.progress import keep_broken, read_progress
from benchmarks.soak.shop import Shop
from benchmarks.soak.traces import Census
from benchmarks.soak.travellers import Broken

ROUNDS = int(os.environ.get("ROUNDS", "120"))
PROGRESS = ROOT / ".weft" / "soak-workloads.json"
HEAL_SECONDS = 240.0
VICTIMS = {
    "agent": "weft agent",
    "api": "weft server api",
    "controllers": "weft server controllers",
    "gateway": "weft server gateway",
    "containerd": "containerd --config",
    "machine": "qemu-system",
}


class Progress(msgspec.Struct):
    """What was proven up to ``rounds``: ``errands`` by what was asked for and how it ended, ``lines`` that were looked for."""

    seed: int
    rounds: int = 0
    killed: dict[str, int] = {}
    errands: dict[str, int] = {}
    lines: int = 0
    longest_heal: float = 0.0
    broken: str = ""


class Soak:
    """The shop of one cluster, and what was seen of it so far."""

    def __init__(self, cluster: Cluster, progress: Progress, image: str) -> None:
        self.cluster, self.progress, self.shop = cluster, progress, Shop(cluster, image)
        self.census = Census()
        self.killed = Counter(progress.killed)
        self.errands = Counter(progress.errands)

    def run(self) -> None:
        """Raises Broken for the first promise that doesn't hold."""
        before = Landscape.look(self.cluster)
        while self.progress.rounds < ROUNDS:
            self.play(random.Random(f"{self.progress.seed}/{self.progress.rounds}"))
            self.census.look(self.cluster)
            self.progress.rounds += 1
            self.remember()
        self.shop.close()
        before.await_again(self.cluster)

    def play(self, draw: random.Random) -> None:
        """Two wishes, a kill into them; then all is as wished."""
        begun = [self.shop.wish(draw) for _ in range(2)]
        time.sleep(draw.random() * 2.5)
        victim = self.kill(draw)
        began = time.monotonic()
        while trouble := self.shop.find_abort_reason(begun):
            if time.monotonic() - began > HEAL_SECONDS:
                raise Broken(f"{trouble}\nafter {', '.join(map(str, begun))}, {victim} killed")
            time.sleep(0.5)
        took = time.monotonic() - began
        self.progress.longest_heal = max(self.progress.longest_heal, took)
        self.progress.lines += self.shop.check_lines()
        for errand in begun:
            self.errands[f"{errand.act}{f' ({errand.end})' if errand.end else ''}"] += 1
        print(
            f"  {self.progress.rounds + 1}/{ROUNDS} {', '.join(map(str, begun))}; {victim} killed; {took:.1f} s; "
            f"{self.shop}",
            flush=True,
        )

    def kill(self, draw: random.Random) -> str:
        victim = draw.choice(list(VICTIMS))
        pids = sorted(self.cluster.pids(VICTIMS[victim]))
        if victim == "machine":  # hello's is no part of this
            pids = sorted(set(pids) - set(self.cluster.pids("guest=hello")))
        if not pids:
            return f"no {victim}"
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(pids), signal.SIGKILL)
        self.killed[victim] += 1
        return victim

    def remember(self) -> None:
        self.progress.killed, self.progress.errands = dict(self.killed), dict(self.errands)
        PROGRESS.write_bytes(msgspec.json.encode(self.progress))


def measure() -> Measurement:
    begun = read_progress(PROGRESS, Progress, lambda kept: kept.rounds < ROUNDS and not kept.broken)
    print(f"workloads: seed {begun.seed}, from round {begun.rounds} of {ROUNDS}", flush=True)
    since, started = begun.rounds, time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="weft-soak-"))
    cluster = lay_out(folder)
    os.environ.setdefault("CONTAINERD", "n3" if shutil.which("containerd") else "")
    soak: Soak | None = None
    try:
        cluster.up()
        with serve(folder / "registry", cluster.host_address) as place:
            image = f"{place}/soak/shop:1"
            push_busybox(folder / "registry", image, ["sh", "-c"], {})
            soak = Soak(cluster, begun, image)
            soak.run()
    except (Broken, AssertionError, subprocess.TimeoutExpired) as problem:
        begun.broken = f"round {begun.rounds + 1}: {problem}"
        keep_broken(PROGRESS, begun, begun.broken, cluster.state / "log")
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    return describe(begun, soak, since, time.monotonic() - started)


def describe(progress: Progress, soak: Soak | None, since: int, seconds: float) -> Measurement:
    whole = progress.rounds >= ROUNDS and not progress.broken
    figures = [
        Figure("rounds after which all was as wished", str(progress.rounds), goal=str(ROUNDS), kept=whole),
        Figure(
            "lines on volumes, each there once and in its order, looked for",
            str(progress.lines),
            goal="all",
            kept=whole,
        ),
        Figure(
            f"processes, mounts, control groups, loop devices, files, links left of the last {progress.rounds - since} rounds",
            "0" if whole else "?",
            goal="0",
            kept=whole,
        ),
        Figure("longest until all was as wished", f"{progress.longest_heal:.1f} s"),
    ]
    figures += describe_memory(soak.census.grown() if soak is not None else [], "rounds")
    told = ", ".join(f"{number} {what}" for what, number in sorted(progress.errands.items()))
    killed = ", ".join(f"{number} {what}" for what, number in sorted(progress.killed.items()))
    summary = (
        f"Seed {progress.seed}: {told}; kill -9 of {killed}; {seconds:.0f} s"
        + (f", after {since} rounds of a run before it" if since else "")
        + (f". Broken: {progress.broken}" if progress.broken else ".")
    )
    return Measurement("Containers, jobs and conversions under kills", summary, figures)
