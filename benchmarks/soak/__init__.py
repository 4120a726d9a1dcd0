"""kill -9 again and again, on a real cluster, while guests come, go, stop and sleep; then everything must be as wished.

``make soak`` runs it in full (``ROUNDS`` kills), the test suite in a short form (``tests/cluster/test_bad_days.py``). A run that is
interrupted goes on where it was: seed and round are kept in ``.weft/soak.json``. The seed is printed; the same seed makes the same
choices (what they meet is the machine's).
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
from pathlib import Path

from tests.cluster.cluster import Cluster, lay_out

from benchmarks.measurement import ROOT, Figure, Measurement

ROUNDS = int(os.environ.get("WEFT_SOAK_ROUNDS", "80"))
CHECK_EVERY = 8
NAMES = [f"s{n}" for n in range(6)]
PROGRESS = ROOT / ".weft" / "soak.json"
# What is killed, and the words of its command line.
VICTIMS = {
    "server": ["weft server --state"],
    "doors": ["weft server doors"],
    "deciders": ["weft server deciders"],
    "gateway": ["weft server gateway"],
    "agent": ["weft agent"],
    "qemu": ["qemu-system"],
    "dnsmasq": ["dnsmasq"],
}


class Soak:
    """``wishes`` is what each VM should be by now: run, stop, suspend, or absent."""

    def __init__(self, cluster: Cluster, seed: int, begun: int) -> None:
        self.cluster = cluster
        self.seed, self.round = seed, begun
        self.wishes: dict[str, str] = {}
        self.killed: Counter[str] = Counter()
        self.acts: Counter[str] = Counter()
        self.longest_heal = 0.0

    def run(self) -> None:
        while self.round < ROUNDS:
            draw = random.Random(f"{self.seed}/{self.round}")
            self.act(draw)
            time.sleep(draw.random() * 2)
            self.kill(draw)
            self.round += 1
            if self.round % CHECK_EVERY == 0 or self.round == ROUNDS:
                self.settle()
                PROGRESS.write_text(json.dumps({"seed": self.seed, "round": self.round}))
                print(f"  {self.round}/{ROUNDS} kills, all as wished: {self.wishes}", flush=True)

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
        for _ in range(100):
            done = self.cluster.run(*words)
            if done.returncode in (0, 3) or (act == "create" and done.returncode == 5):
                self.acts[act] += 1
                return True
            if done.returncode == 5:
                return False
            time.sleep(0.3)
        raise SystemExit(f"seed {self.seed}, round {self.round}: weft {' '.join(words)}: {done.stderr.decode()}")

    def kill(self, draw: random.Random) -> None:
        victim = draw.choice(list(VICTIMS))
        pids = self.cluster.pids(*VICTIMS[victim])
        if victim != "server":
            pids = [draw.choice(sorted(pids))] if pids else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.killed[victim] += bool(pids)
        if victim == "server":
            self.cluster.up()

    def settle(self) -> None:
        begun = time.monotonic()
        while trouble := self.find_trouble():
            if time.monotonic() - begun > 180:
                raise SystemExit(f"seed {self.seed}, round {self.round}: {trouble}\n{self.cluster.logs()}")
            time.sleep(0.5)
        self.longest_heal = max(self.longest_heal, time.monotonic() - begun)

    def find_trouble(self) -> str:
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
    kept = json.loads(PROGRESS.read_text()) if PROGRESS.exists() else {}
    begun = kept.get("round", 0) if kept.get("round", ROUNDS) < ROUNDS else 0
    seed = int(os.environ.get("WEFT_SOAK_SEED", kept.get("seed") if begun else random.randrange(10**6)))
    print(f"soak: seed {seed}, from round {begun} of {ROUNDS}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="weft-soak-"))
    cluster = lay_out(folder)
    started = time.monotonic()
    try:
        cluster.up()
        soak = Soak(cluster, seed, begun)
        soak.run()
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    killed = ", ".join(f"{n} {what}" for what, n in sorted(soak.killed.items()))
    acts = ", ".join(f"{n} {what}" for what, n in sorted(soak.acts.items()))
    return Measurement(
        "soak",
        f"Seed {seed}: kill -9 of {killed}; meanwhile {acts}; {time.monotonic() - started:.0f} s.",
        [
            Figure(
                "kills after which all was as wished",
                str(sum(soak.killed.values())),
                goal="≥ 50",
                kept=sum(soak.killed.values()) >= 50,
            ),
            Figure("longest wait until all was as wished", f"{soak.longest_heal:.1f} s"),
        ],
    )
