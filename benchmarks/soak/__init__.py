"""kill -9 again and again, on a real cluster, while guests come, go, stop and sleep; then everything must be as wished.

``make soak`` runs it in full (``ROUNDS`` kills), the test suite in a short form (``tests/cluster/test_bad_days.py``). Every
fourth kill falls into a create: some time after it was asked for, drawn from the seed, and the VM must come to run as if
nothing had been. A run that is interrupted goes on where it was: what was done is kept in ``.weft/soak.json``. The seed is
printed; the same seed makes the same choices (what they meet is the machine's).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
from tests.cluster.cluster import Cluster, lay_out

from benchmarks.measurement import ROOT, Figure, Measurement
from benchmarks.soak.progress import read_progress
from benchmarks.soak.refusals import is_taken

ROUNDS = int(os.environ.get("WEFT_SOAK_ROUNDS", "80"))
CHECK_EVERY = 8
ASKED_AT_MOST, ASKED_EVERY_SECONDS = 400, 0.3
HALF_WAY_EVERY = 4
HALF_WAY_SECONDS = 3.0  # a create on a quiet machine
HALF_WAY_VICTIMS = ("server", "api", "controllers", "agent", "qemu")
NAMES = [f"s{n}" for n in range(6)]
PROGRESS = ROOT / ".weft" / "soak.json"
# What is killed, and the words of its command line.
VICTIMS = {
    "server": ["weft server --state"],
    "api": ["weft server api"],
    "controllers": ["weft server controllers"],
    "gateway": ["weft server gateway"],
    "agent": ["weft agent"],
    "qemu": ["qemu-system"],
    "dnsmasq": ["dnsmasq"],
}


class Progress(msgspec.Struct):
    """What was done up to ``round``; ``half_way`` counts the creates that were cut off and finished."""

    seed: int
    round: int = 0
    killed: dict[str, int] = {}
    acts: dict[str, int] = {}
    half_way: int = 0
    longest_heal: float = 0.0


class Soak:
    """``wishes`` is what each VM should be by now: run, stop, suspend, or absent."""

    def __init__(self, cluster: Cluster, begun: Progress) -> None:
        self.cluster = cluster
        self.seed, self.round = begun.seed, begun.round
        self.wishes: dict[str, str] = {}
        self.killed, self.acts = Counter(begun.killed), Counter(begun.acts)
        self.half_way, self.longest_heal = begun.half_way, begun.longest_heal

    def run(self) -> None:
        while self.round < ROUNDS:
            draw = random.Random(f"{self.seed}/{self.round}")
            if self.round % HALF_WAY_EVERY == 1:
                self.kill_half_way(draw)
            else:
                self.act(draw)
                time.sleep(draw.random() * 2)
                self.kill(draw)
            self.round += 1
            if self.round % CHECK_EVERY == 0 or self.round == ROUNDS:
                self.settle()
                self.remember()
                print(f"  {self.round}/{ROUNDS} kills, all as wished: {self.wishes}", flush=True)

    def remember(self) -> None:
        """What was proven so far: a run that is interrupted begins with the kill after it."""
        done = Progress(self.seed, self.round, dict(self.killed), dict(self.acts), self.half_way, self.longest_heal)
        PROGRESS.write_bytes(msgspec.json.encode(done))

    def kill_half_way(self, draw: random.Random) -> None:
        """A create, and one of the processes at work on it killed at some moment of it: it is finished all the same."""
        name = f"h{self.round}"
        self.ask("create", "vm", "create", name, "--image", "tiny", "--memory", "128M", "--detach")
        time.sleep(draw.random() * HALF_WAY_SECONDS)
        cut_off = self.kill(draw, HALF_WAY_VICTIMS)
        gives_up_at = time.monotonic() + 180
        while (done := self.cluster.run("wait", f"vm/{name}", "--for=phase=Running", "--timeout", "60s")).returncode:
            if time.monotonic() > gives_up_at:
                raise SystemExit(f"seed {self.seed}, round {self.round}: {name} was cut off: {done.stderr.decode()}")
            time.sleep(0.3)
        self.half_way += cut_off
        self.ask("delete", "vm", "delete", name, "--yes", "--detach")

    def act(self, draw: random.Random) -> None:
        """One wish; the server may be gone, so it is asked until it has taken it."""
        name = draw.choice(NAMES)
        wish = self.wishes.get(name, "absent")
        if wish == "absent":
            self.ask("create", "vm", "create", name, "--image", "tiny", "--memory", "128M", "--detach")
            self.wishes[name] = "run"
        elif draw.random() < 0.35:
            self.ask("delete", "vm", "delete", name, "--yes", "--detach")
            self.wishes[name] = "absent"
        elif wish == "run":
            phase = (self.cluster.run("wait", f"vm/{name}", "--for=phase=Running", "--timeout", "60s")).returncode
            verb = draw.choice(["stop", "suspend"])
            if phase == 0 and self.ask(verb, "vm", verb, name, "--detach"):
                self.wishes[name] = verb
        elif self.ask("start", "vm", "start", name, "--detach"):
            self.wishes[name] = "run"

    def ask(self, act: str, *words: str) -> bool:
        """True when the server took it (a repeat may find it done already), False when it is not legal just now."""
        for _ in range(ASKED_AT_MOST):
            done = self.cluster.run(*words, "-o", "json")
            # Its wishes say that nobody has the name: what is there is what it has asked for.
            taken = is_taken(done, creates=act == "create", asked_before=True)
            self.acts[act] += taken is True
            if taken is not None:
                return taken
            time.sleep(ASKED_EVERY_SECONDS)
        raise SystemExit(f"seed {self.seed}, round {self.round}: weft {' '.join(words)}: {done.stderr.decode()}")

    def kill(self, draw: random.Random, victims: Sequence[str] = tuple(VICTIMS)) -> bool:
        """Whether there was anything to kill."""
        victim = draw.choice(victims)
        pids = self.cluster.pids(*VICTIMS[victim])
        if victim != "server":
            pids = [draw.choice(sorted(pids))] if pids else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.killed[victim] += bool(pids)
        if victim == "server":
            self.cluster.up()
        return bool(pids)

    def settle(self) -> None:
        begun = time.monotonic()
        while trouble := self.find_abort_reason():
            if time.monotonic() - begun > 180:
                raise SystemExit(f"seed {self.seed}, round {self.round}: {trouble}\n{self.cluster.logs()}")
            time.sleep(0.5)
        self.longest_heal = max(self.longest_heal, time.monotonic() - begun)

    def find_abort_reason(self) -> str:
        """The first thing that is not as wished, or nothing."""
        answers = [self.cluster.run("get", kind, "-o", "json") for kind in ("vm", "node", "allocation")]
        if any(a.returncode for a in answers):
            return "the server doesn't answer"
        vms, nodes, allocations = ({i["name"]: i for i in json.loads(a.stdout)["items"]} for a in answers)
        if trouble := [
            n for n, node in nodes.items() if node["status"]["phase"] != "Ready" or node["report"]["orphans"]
        ]:
            return f"nodes not Ready or with orphans: {trouble}"
        wanted = {"run": "Running", "stop": "Stopped", "suspend": "Suspended"}
        for name in [*NAMES, "hello"]:
            wish = self.wishes.get(name, "run" if name == "hello" else "absent")
            guests = self.cluster.pids("qemu-system", f"guest={name}")
            if wish == "absent":
                if name in vms or guests:
                    return f"{name} should be gone: {vms.get(name, {}).get('status')}, guests {guests}"
            elif name not in vms or vms[name]["status"]["phase"] != wanted[wish]:
                return f"{name} should be {wanted[wish]}: {vms.get(name, {}).get('status')}"
            elif len(guests) != (wish == "run"):
                return f"{name} is {wanted[wish]} with {len(guests)} guests"
        owners = Counter(a["spec"]["workload"]["name"] for a in allocations.values())
        if owners != Counter(vms.keys()):
            return f"allocations {owners} for VMs {sorted(vms)}"
        return ""


def measure() -> Measurement:
    begun = read_progress(PROGRESS, Progress, lambda kept: kept.round < ROUNDS)
    print(f"soak: seed {begun.seed}, from round {begun.round} of {ROUNDS}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="weft-soak-"))
    cluster = lay_out(folder)
    started = time.monotonic()
    try:
        cluster.up()
        soak = Soak(cluster, begun)
        soak.run()
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    killed = ", ".join(f"{n} {what}" for what, n in sorted(soak.killed.items()))
    acts = ", ".join(f"{n} {what}" for what, n in sorted(soak.acts.items()))
    return Measurement(
        "soak",
        f"Seed {soak.seed}: kill -9 of {killed}; meanwhile {acts}; {time.monotonic() - started:.0f} s"
        + (f", after {begun.round} kills of a run before it." if begun.round else "."),
        [
            Figure(
                "kills after which all was as wished",
                str(sum(soak.killed.values())),
                goal="≥ 50",
                kept=sum(soak.killed.values()) >= 50,
            ),
            Figure("creates killed half-way, all finished", str(soak.half_way), goal="≥ 14", kept=soak.half_way >= 14),
            Figure("longest wait until all was as wished", f"{soak.longest_heal:.1f} s"),
        ],
    )
