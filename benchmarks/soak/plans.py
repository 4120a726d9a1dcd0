"""kill -9 while plans of rebalancing are carried out and undone: each plan ends, and each VM runs once, where the plan says.

Five VMs begin on one node. In each round a plan is made and applied, and some process is killed meanwhile; when it is done, each
VM must run where its step says. Then the plan is undone, with another kill, and each VM must be back. A run that is interrupted
goes on with the next round of the same seed, on a new cluster.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from tests.cluster.cluster import Cluster, lay_out

from benchmarks.measurement import ROOT, Figure, Measurement
from benchmarks.soak import NAMES, Progress, Soak
from benchmarks.soak.progress import read_progress

ROUNDS = int(os.environ.get("WEFT_SOAK_ROUNDS", "12"))
CROWDED = NAMES[:5]
KILL_WITHIN_SECONDS = 4.0  # most of a plan's migrations
PATIENCE_SECONDS = 400.0
VICTIMS = ("server", "api", "controllers", "agent")
PROGRESS = ROOT / ".weft" / "soak-plans.json"


class Standing(Progress):
    migrated: int = 0  # steps that were carried out, or undone
    failed: int = 0  # that were not, and said why


class Plans(Soak):
    def __init__(self, cluster: Cluster, begun: Standing) -> None:
        super().__init__(cluster, begun)
        self.migrated, self.failed = begun.migrated, begun.failed

    def run(self) -> None:
        for name in CROWDED:
            self.cluster.ok("vm", "create", name, "--image", "tiny", "--memory", "256M")
            self.wishes[name] = "run"
        while self.round < ROUNDS:
            draw = random.Random(f"{self.seed}/{self.round}")
            self.crowd()
            plan = f"p{self.round}"
            self.cluster.ok("rebalance", "plan", plan, "--concurrent", str(draw.randint(1, 3)))
            self.carry_out(draw, plan, "apply", "Done", "to")
            self.carry_out(draw, plan, "undo", "Undone", "from")
            self.ask("delete plan", "rebalanceplan", "delete", plan, "--yes", "--detach")
            self.round += 1
            self.remember()
            print(
                f"  {self.round}/{ROUNDS}: {self.migrated} migrated, {self.failed} not, {dict(self.killed)}", flush=True
            )

    def remember(self) -> None:
        done = Standing(
            seed=self.seed,
            round=self.round,
            killed=dict(self.killed),
            acts=dict(self.acts),
            longest_heal=self.longest_heal,
            migrated=self.migrated,
            failed=self.failed,
        )
        PROGRESS.write_bytes(msgspec.json.encode(done))

    def crowd(self) -> None:
        for name in CROWDED:
            if self.cluster.json("get", f"vm/{name}")["status"]["node"] != "n1":
                self.cluster.ok("vm", "migrate", name, "--to", "n1")

    def carry_out(self, draw: random.Random, plan: str, act: str, end: str, key: str) -> None:
        """Apply or undo it under a kill; then each VM of a step that was carried out is at the node under ``key``."""
        began = time.monotonic()
        self.ask(act, "rebalance", act, plan, "--detach")
        time.sleep(draw.random() * KILL_WITHIN_SECONDS)
        self.kill(draw, VICTIMS)
        ended = self.wait_for_end(plan, end)
        self.settle()
        self.longest_heal = max(self.longest_heal, time.monotonic() - began)
        steps = ended["spec"]["steps"]
        if not steps:
            raise SystemExit(f"seed {self.seed}, round {self.round}: {plan} has nothing to migrate")
        for step, state in zip(steps, ended["status"]["steps"], strict=True):
            name = step["workload"].removeprefix("vm/")
            if state["state"] not in ("Done", "Back"):
                if not state["message"]:
                    raise SystemExit(f"seed {self.seed}, round {self.round}: {name} didn't migrate, without a word")
                self.failed += 1
            elif (node := self.cluster.json("get", f"vm/{name}")["status"]["node"]) != step[key]:
                raise SystemExit(f"seed {self.seed}, round {self.round}: {name} runs on {node}, not on {step[key]}")
            else:
                self.migrated += 1

    def wait_for_end(self, plan: str, end: str) -> dict[str, Any]:
        deadline, found = time.monotonic() + PATIENCE_SECONDS, dict[str, Any]()
        while time.monotonic() < deadline:
            answer = self.cluster.run("get", f"rebalanceplan/{plan}", "-o", "json")
            if answer.returncode == 0:
                found = json.loads(answer.stdout)
                if found["status"]["phase"] == end:
                    return found
            time.sleep(0.3)
        raise SystemExit(f"seed {self.seed}, round {self.round}: {plan} never became {end}: {found.get('status')}")


def measure() -> Measurement:
    begun = read_progress(PROGRESS, Standing, lambda kept: kept.round < ROUNDS)
    print(f"plans: seed {begun.seed}, from round {begun.round} of {ROUNDS}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="weft-soak-"))
    cluster = lay_out(folder)
    started = time.monotonic()
    try:
        cluster.up()
        soak = Plans(cluster, begun)
        soak.run()
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    killed = ", ".join(f"{number} {what}" for what, number in sorted(soak.killed.items()))
    return Measurement(
        "soak_plans",
        f"Seed {soak.seed}: kill -9 of {killed}, each while a plan is applied or undone; {time.monotonic() - started:.0f} s.",
        [
            # A VM that is lost, doubled or elsewhere, or a plan that doesn't end, ends the run without a figure.
            Figure("plans applied and undone", str(soak.round), goal=str(ROUNDS), kept=soak.round >= ROUNDS),
            Figure("migrations, each VM once at its place after it", str(soak.migrated)),
            Figure("migrations that failed, with a reason", str(soak.failed)),
            Figure("longest from the wish until all was as wished", f"{soak.longest_heal:.1f} s"),
        ],
    )
