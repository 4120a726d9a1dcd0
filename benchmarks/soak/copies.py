"""kill -9 while snapshots and backups are taken, restored and deleted: what is restored has what its VM had at that instant.

A VM keeps a number on its root disk and on a volume. In each round it gets the next one, a snapshot (with or without memory) or a
backup is taken, and some process is killed meanwhile. Every third round one of those that are kept is restored under a new name,
and a process is killed meanwhile, too; others are deleted, anywhere in their chain. A run that is interrupted goes on with the next
round of the same seed, on a new cluster.
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
from benchmarks.soak import Progress, Soak
from benchmarks.soak.progress import read_progress

ROUNDS = int(os.environ.get("WEFT_SOAK_ROUNDS", "40"))
RESTORE_EVERY = 3
KEPT = 4  # before one is deleted
KILL_WITHIN_SECONDS = 1.5
PATIENCE_SECONDS = 240.0
VICTIMS = ("server", "api", "controllers", "agent", "qemu")
PROGRESS = ROOT / ".weft" / "soak-copies.json"
HOW = {
    "snapshot": ("vm", "snapshot", "keeper", "--name"),
    "memory": ("vm", "snapshot", "keeper", "--memory", "--name"),
    "backup": ("backup", "create", "vm/keeper", "--to", "safe", "--name"),
}


class Standing(Progress):
    right: int = 0  # copies that were restored, and had what they must
    failed: int = 0  # that could not be taken, and said why


class Copies(Soak):
    def __init__(self, cluster: Cluster, begun: Standing, repository: Path) -> None:
        super().__init__(cluster, begun)
        self.right, self.failed = begun.right, begun.failed
        self.kept: dict[tuple[str, str], int] = {}  # by kind and name: the number that it must have
        cluster.ok("backuprepository", "create", "safe", "--url", f"dir://{repository}")
        cluster.ok("volume", "create", "numbers", "--size", "16M")
        cluster.ok("vm", "create", "keeper", "--image", "tiny", "--memory", "128M", "--volume", "numbers")

    def run(self, rounds: int = ROUNDS) -> None:
        while self.round < rounds:
            draw = random.Random(f"{self.seed}/{self.round}")
            self.take(draw, draw.choice(sorted(HOW)))
            if self.round % RESTORE_EVERY == RESTORE_EVERY - 1 and self.kept:
                self.restore(draw)
            if len(self.kept) > KEPT:
                kind, name = draw.choice(sorted(self.kept))
                del self.kept[kind, name]
                self.ask(f"delete {kind}", kind, "delete", name, "--yes", "--detach")
            self.round += 1
            self.remember()
            print(f"  {self.round}/{rounds}: {self.right} copies right, {self.failed} not taken", flush=True)
        self.end()

    def remember(self) -> None:
        done = Standing(
            seed=self.seed,
            round=self.round,
            killed=dict(self.killed),
            acts=dict(self.acts),
            longest_heal=self.longest_heal,
            right=self.right,
            failed=self.failed,
        )
        PROGRESS.write_bytes(msgspec.json.encode(done))

    def take(self, draw: random.Random, how: str) -> None:
        number, name = self.round + 1, f"{how}-{self.round}"
        self.tell(
            "keeper", f"echo {number} >/root/number; echo {number} | dd of=/dev/vdb conv=notrunc 2>/dev/null; sync"
        )
        kind = "backup" if how == "backup" else "snapshot"
        self.ask(f"create {how}", *HOW[how], name, "--detach")
        time.sleep(draw.random() * KILL_WITHIN_SECONDS)
        self.kill(draw, VICTIMS)
        status = self.wait_for(kind, name, ("Ready", "Failed"))
        if status["phase"] == "Ready":
            self.kept[kind, name] = number
            return
        if not status.get("message"):
            self.give_up(f"{kind}/{name} failed without a word: {status}")
        self.failed += 1
        self.ask(f"delete {kind}", kind, "delete", name, "--yes", "--detach")

    def restore(self, draw: random.Random) -> None:
        (kind, source), copy = draw.choice(sorted(self.kept)), f"copy-{self.round}"
        words = ("backup", "restore", source) if kind == "backup" else ("vm", "restore", "keeper", "--snapshot", source)
        self.ask("create restored", *words, "--new-name", copy, "--detach")
        time.sleep(draw.random() * KILL_WITHIN_SECONDS)
        self.kill(draw, VICTIMS)
        self.wait_for("vm", copy, ("Running",))
        found = self.tell(copy, "cat /root/number; head -n 1 /dev/vdb").split()
        if found != [str(self.kept[kind, source])] * 2:
            self.give_up(f"{copy} of {kind}/{source} has {found}, not {self.kept[kind, source]} on both disks")
        self.right += 1
        self.ask("delete restored", "vm", "delete", copy, "--yes", "--detach")
        self.wait_for("vm", copy, ())
        self.ask("delete volume", "volume", "delete", f"{copy}-numbers", "--yes", "--detach")

    def end(self) -> None:
        """Delete everything; nothing of it may be left."""
        for kind, name in sorted(self.kept):
            self.ask(f"delete {kind}", kind, "delete", name, "--yes", "--detach")
        self.ask("delete keeper", "vm", "delete", "keeper", "--yes", "--snapshots", "--detach")
        self.wait_for("vm", "keeper", ())
        self.ask("delete volume", "volume", "delete", "numbers", "--yes", "--detach")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := self.find_left():
            if time.monotonic() > deadline:
                self.give_up(f"left over: {left}")
            time.sleep(1)
        self.ask("delete repository", "backuprepository", "delete", "safe", "--yes", "--detach")
        self.settle()

    def find_left(self) -> list[str]:
        found = []
        for kind in ("snapshot", "backup"):
            answer = self.cluster.run("get", kind, "-o", "json")
            if answer.returncode:
                return ["the server doesn't answer"]
            found += [f"{kind}/{item['name']}" for item in json.loads(answer.stdout)["items"]]
        answer = self.cluster.run("get", "node", "-o", "json")
        if answer.returncode == 0:
            reports = [node["report"] for node in json.loads(answer.stdout)["items"]]
            found += [f"kept {one['uid']}" for report in reports for one in report.get("snapshots", ())]
        return found

    def tell(self, vm: str, line: str) -> str:
        """What a shell in the guest printed; asked again until the guest and the way to it are there."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (done := self.cluster.run("vm", "exec", vm, "--", "sh", "-c", line)).returncode:
            if time.monotonic() > deadline:
                self.give_up(f"vm/{vm} doesn't answer: {done.stderr.decode()}")
            time.sleep(0.5)
        return done.stdout.decode()

    def wait_for(self, kind: str, name: str, phases: tuple[str, ...]) -> dict[str, Any]:
        """Its status, once it has one of ``phases``; () waits until it is gone."""
        deadline, status = time.monotonic() + PATIENCE_SECONDS, dict[str, Any]()
        while time.monotonic() < deadline:
            answer = self.cluster.run("get", kind, "-o", "json")
            if answer.returncode == 0:
                found = {item["name"]: item for item in json.loads(answer.stdout)["items"]}.get(name)
                if found is None and not phases:
                    return {}
                status = found["status"] if found is not None else {}
                if status.get("phase") in phases:
                    return status
            time.sleep(0.3)
        self.give_up(f"{kind}/{name} never became {' or '.join(phases) or 'absent'}: {status}")
        raise AssertionError

    def give_up(self, why: str) -> None:
        raise SystemExit(f"seed {self.seed}, round {self.round}: {why}\n{self.cluster.logs()}")


def measure() -> Measurement:
    begun = read_progress(PROGRESS, Standing, lambda kept: kept.round < ROUNDS)
    print(f"copies: seed {begun.seed}, from round {begun.round} of {ROUNDS}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="weft-soak-"))
    cluster = lay_out(folder)
    started = time.monotonic()
    try:
        cluster.up()
        soak = Copies(cluster, begun, cluster.make_folder("repository"))
        soak.run()
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    killed = ", ".join(f"{n} {what}" for what, n in sorted(soak.killed.items()))
    acts = ", ".join(f"{n} {what}" for what, n in sorted(soak.acts.items()))
    return Measurement(
        "soak_copies",
        f"Seed {soak.seed}: kill -9 of {killed}, each while a snapshot or a backup is taken or restored; {acts}; "
        f"{time.monotonic() - started:.0f} s.",
        [
            # A copy with anything else, or data left over in the end, ends the run without a figure.
            Figure("copies restored, each with what its VM had", str(soak.right), goal="≥ 10", kept=soak.right >= 10),
            Figure("snapshots and backups that failed, with a reason", str(soak.failed)),
            Figure("longest wait until all was as wished", f"{soak.longest_heal:.1f} s"),
        ],
    )
