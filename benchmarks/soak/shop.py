"""The containers, VMs and jobs that the workloads' soak wishes for: what each should be by now, and whether it is."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from typing import Any

from tests.cluster.cluster import Cluster

from benchmarks.soak.refusals import is_taken
from benchmarks.soak.traces import NODES
from benchmarks.soak.travellers import Broken
from weft.client import Client
from weft.client.context import find_context
from weft.objects.errors import NotFound, WeftError

SAID = {"run": "Running", "stop": "Stopped"}
CONVERSION_ENDED, MIGRATION_ENDED = ("Confirmed", "Undone", "Failed"), ("Succeeded", "Failed", "Cancelled")
READ_SECONDS = 60.0
# Ends with 7 when told so by a file, which its next run takes away.
PROGRAM = "rm -f /die; trap 'exit 0' TERM; while [ ! -e /die ]; do sleep 0.2; done; exit 7"
# job → its script, its flags, and what it must come to: phase, tries by index.
JOBS: dict[str, tuple[str, tuple[str, ...], str, dict[str, str]]] = {
    "job": ("echo $WEFT_TASK_INDEX; sleep 0.5", ("--array", "0-3"), "Succeeded", {"1": "0-3"}),
    "job with a retry": (
        "test $WEFT_TASK_INDEX != 2 || test $WEFT_TRY = 2",
        ("--array", "0-3", "--parallelism", "2", "--retries", "2", "--backoff", "1s"),
        "Succeeded",
        {"1": "0-1,3", "2": "2"},
    ),
    "job that fails": ("exit 4", ("--retries", "1", "--backoff", "1s"), "Failed", {"2": "0"}),
    "job with a timeout": ("sleep 300", ("--job-timeout", "6s"), "TimedOut", {"1": "0"}),
}


class Errand:
    """One wish; ``follows`` is the object (kind, name) that tells its ``end``, if it has one."""

    def __init__(self, act: str, name: str, follows: tuple[str, str] | None = None, undo: bool = False) -> None:
        self.act, self.name, self.follows, self.undo = act, name, follows, undo
        self.end = ""

    def __str__(self) -> str:
        return f"{self.act} {self.name}{f' → {self.end}' if self.end else ''}"


class Ware:
    """A container, or the VM that it is for now. ``sure`` lines of its volume were acknowledged, ``asked`` ones perhaps written."""

    def __init__(self, name: str, *words: str, volume: bool = True, pinned: bool = False) -> None:
        self.name, self.words, self.volume, self.pinned = name, words, volume, pinned
        self.kind, self.wish = "container", "absent"
        self.asked, self.sure = 0, list[int]()


class Shop:
    def __init__(self, cluster: Cluster, image: str) -> None:
        self.cluster, self.image = cluster, image
        self.client = Client(find_context(folder=str(cluster.folder), environ={}))
        self.wares = [
            Ware("plain", "--memory", "48M", volume=False),
            Ware("shelf", "--memory", "48M", "--mount", "shelf:/srv"),
            Ware("safe", "--memory", "128M", "--isolation", "vm", "--mount", "safe:/srv"),
        ]
        if os.environ.get("CONTAINERD"):
            node = os.environ["CONTAINERD"].split(",")[0]
            self.wares.append(Ware("held", "--memory", "48M", "--node", node, "--mount", "held:/srv", pinned=True))
        for ware in self.wares:
            if ware.volume:
                cluster.ok("volume", "create", ware.name, "--size", "64M")
        self.jobs = 0

    def __str__(self) -> str:
        return " ".join(f"{ware.kind}/{ware.name}:{ware.wish}" for ware in self.wares)

    def wish(self, draw: random.Random) -> Errand:
        """Ask for something of one of them, and don't wait for it."""
        if draw.random() < 0.2:
            return self._run_job(draw)
        ware = draw.choice(self.wares)
        if ware.wish == "absent":
            return self._create(ware)
        if ware.wish == "stop":
            acts = ["start", "start", "delete", *([] if ware.pinned else ["migration"])]
        else:
            acts = ["stop", "restart", "delete", *(["write"] * 3 if ware.volume else [])]
            acts += ["crash"] if ware.kind == "container" else []
            acts += [] if ware.pinned else ["migration", "convert"]
        act = draw.choice(acts)
        if act in ("migration", "convert") and self._is_under_way(ware):
            act = "write" if ware.volume and ware.wish == "run" else "start"
        return self._do(ware, act, draw)

    def find_abort_reason(self, begun: list[Errand]) -> str:
        """The first thing that isn't as wished, or nothing."""
        try:
            for errand in begun:
                if trouble := self._follow(errand):
                    return trouble
            return self._find_wrong()
        except (WeftError, OSError) as problem:
            return f"the server says {problem}"

    def check_lines(self) -> int:
        """How many lines were found on the volumes of those that run; raises Broken where one is lost, doubled or displaced."""
        found = 0
        for ware in self.wares:
            if ware.wish != "run" or not ware.volume:
                continue
            began = time.monotonic()
            while (done := self._exec(ware, "cat /srv/lines 2>/dev/null; echo end")).returncode:
                if time.monotonic() - began > READ_SECONDS:
                    raise Broken(f"{ware.kind}/{ware.name} can't be looked into: {done.stderr.decode()}")
                time.sleep(0.5)
            lines = [int(line) for line in done.stdout.split()[:-1]]
            if lines != sorted(set(lines)) or set(ware.sure) - set(lines) or any(line > ware.asked for line in lines):
                raise Broken(f"{ware.kind}/{ware.name} holds {lines}, and was told {ware.sure}")
            found += len(lines)
        return found

    def close(self) -> None:
        """All of it goes."""
        for ware in self.wares:
            if ware.wish != "absent":
                self._ask(ware.kind, "delete", ware.name, "--yes")
        for ware in self.wares:
            if ware.volume:
                self._ask("volume", "delete", ware.name, "--yes")
        self.client.close()

    def _run_job(self, draw: random.Random) -> Errand:
        self.jobs += 1
        act, name = draw.choice(list(JOBS)), f"job{self.jobs}"
        script, words, _, _ = JOBS[act]
        size = ("--image", self.image, "--memory", "32M", "--cpu", "0.05", "--grace", "1s", "--detach")
        self._ask("job", "run", name, *size, "--arg", script, *words)
        return Errand(act, name, ("job", name))

    def _create(self, ware: Ware) -> Errand:
        words = [*ware.words, "--grace", "2s", "--restart", "on-failure", "--detach", "--arg", PROGRAM]
        self._ask("container", "create", ware.name, "--image", self.image, *words)
        ware.kind, ware.wish = "container", "run"
        return Errand("create", ware.name)

    def _do(self, ware: Ware, act: str, draw: random.Random) -> Errand:
        errand = Errand(act, ware.name)
        if act == "write":
            for _ in range(draw.randrange(1, 4)):
                ware.asked += 1
                if self._exec(ware, f"echo {ware.asked} >> /srv/lines; sync").returncode == 0:
                    ware.sure.append(ware.asked)
        elif act == "crash":
            self._exec(ware, "touch /die")
        elif act == "migration":
            node = self._object(ware.kind, ware.name)["status"]["node"]
            target = draw.choice([other for other in NODES if other != node])
            words = ("--cold",) if ware.kind == "vm" else ()
            errand.follows = self._begin("migration", ware.kind, "migrate", ware.name, "--to", target, *words)
        elif act == "convert":
            other = {"container": "vm", "vm": "container"}[ware.kind]
            errand.undo = draw.random() < 0.4
            errand.follows = self._begin("conversion", "convert", f"{ware.kind}/{ware.name}", "--to", other)
        elif self._ask(ware.kind, act, ware.name, *(["--yes"] if act == "delete" else []), "--detach"):
            ware.wish = {"start": "run", "restart": "run", "stop": "stop", "delete": "absent"}[act]
        if act in ("migration", "convert") and errand.follows is None:
            errand.end = "not just now"
        return errand

    def _begin(self, kind: str, *words: str) -> tuple[str, str] | None:
        """What there is to follow; None if it isn't legal just now."""
        done = self._ask(*words, "--detach", "-o", "name")
        return (kind, done.strip().rpartition("/")[2]) if done else None

    def _ask(self, *words: str) -> str:
        """What was said; "" when it isn't legal just now. The API server may be gone, so it is asked until it has accepted it."""
        creates = "create" in words[:2]
        for number in range(100):
            done = self.cluster.run(*words, *(("-o", "json") if creates else ()))
            taken = is_taken(done, creates=creates, asked_before=number > 0)
            if taken is not None:
                return (done.stdout.decode() or "taken") if taken else ""
            time.sleep(0.3)
        raise Broken(f"weft {' '.join(words)}: {done.stderr.decode()}")

    def _exec(self, ware: Ware, script: str) -> Any:
        return self.cluster.run(ware.kind, "exec", ware.name, "--", "sh", "-c", script, timeout=90)

    def _object(self, kind: str, name: str) -> dict[str, Any]:
        return dict(self.client.get(kind, name))

    def _items(self, kind: str) -> list[dict[str, Any]]:
        return [dict(item) for item in self.client.list(kind).items]

    def _is_under_way(self, ware: Ware) -> bool:
        mine = [item for item in self._items("migration") if item["spec"]["workload"].endswith(f"/{ware.name}")]
        return any(item["status"]["phase"] not in MIGRATION_ENDED for item in mine)

    def _follow(self, errand: Errand) -> str:
        """Why it hasn't ended yet, or nothing; what it came to is noted once."""
        if errand.follows is None or errand.end:
            return ""
        kind, name = errand.follows
        try:
            status = self._object(kind, name)["status"]
        except NotFound:
            status = {"phase": "gone"}
        phase = status["phase"]
        if kind == "job":
            return self._follow_job(errand, status)
        if kind == "conversion":
            if phase == "AwaitingConfirmation":
                self._ask("conversion", "undo" if errand.undo else "confirm", name)
                return f"{errand} is {phase}"
            if phase in CONVERSION_ENDED:
                ware = next(ware for ware in self.wares if ware.name == errand.name)
                if phase == "Confirmed":
                    ware.kind = {"container": "vm", "vm": "container"}[ware.kind]
                errand.end = phase if phase != "Failed" else f"Failed: {status.get('reason', '')}"
        elif phase in MIGRATION_ENDED:
            errand.end = phase if phase != "Failed" else f"Failed: {status.get('reason', '')}"
        return "" if errand.end else f"{errand} is {phase}"

    def _follow_job(self, errand: Errand, status: dict[str, Any]) -> str:
        _, _, wanted, tries = JOBS[errand.act]
        if status["phase"] in ("Pending", "Running"):
            return f"{errand} is {status['phase']}"
        lost = status.get("lost", 0)
        if status["phase"] != wanted or (status["tries"] != tries and not lost and wanted != "TimedOut"):
            raise Broken(f"{errand} has come to {status}")
        errand.end = f"{status['phase']}{', lost' if lost else ''}"
        self._ask("job", "delete", errand.name, "--yes", "--detach")
        return ""

    def _find_wrong(self) -> str:
        nodes = {node["name"]: node for node in self._items("node")}
        for name, node in nodes.items():
            if node["status"]["phase"] != "Ready" or node["report"]["orphans"]:
                return f"node {name} is {node['status']['phase']} with orphans {node['report']['orphans']}"
        there = {(kind, item["name"]): item for kind in ("container", "vm") for item in self._items(kind)}
        if here := [name for kind, name in there if kind == "container" and name.startswith("job")]:
            return f"tasks are left: {here}"
        for ware in self.wares:
            phases = {
                kind: there[kind, ware.name]["status"]["phase"]
                for kind in ("container", "vm")
                if (kind, ware.name) in there
            }
            wanted = {} if ware.wish == "absent" else {ware.kind: SAID[ware.wish]}
            if phases != wanted:
                return (
                    f"{ware.name} should be {wanted} and is {phases}: {[there[k, ware.name]['status'] for k in phases]}"
                )
        places = Counter(
            (place["spec"]["workload"]["kind"], place["spec"]["workload"]["name"])
            for place in self._items("allocation")
        )
        if places != Counter(there.keys()):
            return f"allocations {dict(places)} for {sorted(there)}"
        return ""
