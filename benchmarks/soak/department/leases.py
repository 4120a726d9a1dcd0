"""The leases that a department's people ask for: what each was acknowledged to be, and whether it answers from its start on."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster

from weft.client import Client
from weft.objects.errors import Forbidden, InvalidInput, NotFound, WeftError

MODES = ("immediate", "best-effort", "reservation", "reservation", "deadline")
ACTS = ("create", "create", "create", "create", "create", "extend", "extend", "cancel", "delete")
PROMISED = ("reservation", "deadline")
OVER = ("Done", "Rejected", "Cancelled")
HELD = ("Scheduled", "Preparing", "Active")
MEMORY_BYTES, VM_BYTES = 32 << 20, 128 << 20
CORES = (1.0, 2.0, 3.0, 5.0, 7.0)
RUSHED, RUSH, RUSH_CORES = "arts", 4, 4.0  # beyond its quota
GRACE_SECONDS = 1.0
START_SECONDS = 5.0  # after its start, by which a promised lease answers
KILLED_SECONDS = 25.0  # more, where an agent was killed around it
PROBED_SECONDS = 8.0  # before its start it is asked for the first time
PROBE = Path(__file__).with_name("probe.py")
SERVES = "#!/bin/sh\nhttpd -p 80 -h /tmp\n"


class Lease:
    """One workload with a lease, as it was acknowledged."""

    def __init__(self, project: str, kind: str, name: str, asked: dict[str, Any]) -> None:
        self.project, self.kind, self.name, self.mode = project, kind, name, str(asked["mode"])
        self.duration, self.asked_start = float(asked["duration"]), asked.get("start")
        self.deadline = asked.get("deadline_at")
        self.cancelled = self.deleted = self.given_up = False
        self.start: float | None = None  # as promised
        self.probe: subprocess.Popen[str] | None = None
        self.verdict = ""  # of its start: in time, late, told, none

    def __str__(self) -> str:
        return f"{self.kind}/{self.name} of {self.project} ({self.mode})"


class Book:
    """All leases of three projects; ``clients`` are their people's."""

    def __init__(self, cluster: Cluster, clients: dict[str, Client], image: str) -> None:
        self.cluster, self.clients, self.image = cluster, clients, image
        self.leases: list[Lease] = []
        self.acts, self.ends = Counter[str](), Counter[str]()
        self.latest: list[float] = []  # from a start to the first answer
        self.problems: list[str] = []
        self._lock, self._count = threading.Lock(), 0

    def plan(self, draw: random.Random, number: int, *, vm: bool, rush: bool) -> list[Any]:
        """``number`` acts to carry out at once; each takes nothing and is repeated until it is answered. ``rush``: and more creates
        in one project than its quota allows."""
        acts: list[Any] = [self._plan_create(draw, False, RUSHED) for _ in range(RUSH if rush else 0)]
        free = [one for one in self.leases if not one.deleted]
        draw.shuffle(free)
        for place in range(number):
            act = draw.choice(ACTS)
            if act == "create" or not free or (vm and place == 0):
                acts.append(self._plan_create(draw, vm and place == 0))
            else:
                lease, by = free.pop(), draw.choice((3.0, 6.0, 12.0))
                acts.append(
                    {
                        "extend": lambda one=lease, by=by: self._extend(one, by),
                        "cancel": lambda one=lease: self._cancel(one),
                    }.get(act, lambda one=lease: self.delete(one))
                )
        return acts

    def _plan_create(self, draw: random.Random, vm: bool, rushed: str = "") -> Any:
        self._count += 1
        project, mode = draw.choice(list(self.clients)), "reservation" if vm else draw.choice(MODES)
        ahead, duration = draw.uniform(12.0, 25.0), draw.uniform(8.0, 30.0)
        if vm:
            project, ahead = next(iter(self.clients)), 40.0
        spec: dict[str, Any] = {"cpu": draw.choice(CORES), "grace": GRACE_SECONDS, "networks": ["default"]}
        kind = "vm" if vm else "container"
        if vm:
            spec |= {"image": "tiny", "memory": VM_BYTES, "user_data": SERVES, "cpu": 1.0}
        else:
            spec |= {"image": self.image, "args": ["-f", "-p", "80", "-h", "/bin"], "memory": MEMORY_BYTES}
        if rushed:
            project, spec["cpu"] = rushed, RUSH_CORES
        name = f"{mode}-{self._count}"

        def create() -> str:
            lease: dict[str, Any] = {"mode": mode, "duration": round(duration, 1)}
            if mode == "reservation":
                lease["start"] = round(time.time() + ahead, 3)
            if mode == "deadline":
                lease["deadline_at"] = round(time.time() + ahead + 2 * duration, 3)
            made = Lease(project, kind, name, lease)
            manifest = {"kind": kind, "name": name, "project": project, "spec": {**spec, "lease": lease}}
            try:
                self.clients[project].create(manifest)
            except Forbidden as problem:
                if problem.token != "quotaExceeded":
                    raise
                return self._note(f"create {mode}, quotaExceeded")
            except InvalidInput as problem:
                if not (problem.field or "").startswith("spec.lease."):
                    raise
                return self._note(f"create {mode}, too late")  # nobody answered until its start had passed
            with self._lock:
                self.leases.append(made)
            return self._note(f"create {mode}")

        return create

    def _extend(self, lease: Lease, by: float) -> str:
        return self._change(lease, "extend", {"by": by})

    def _cancel(self, lease: Lease) -> str:
        return self._change(lease, "cancel", {})

    def _change(self, lease: Lease, act: str, given: dict[str, Any]) -> str:
        lease.given_up |= act == "cancel"
        try:
            found = self.clients[lease.project].verb(
                lease.kind, lease.name, f"{act}-lease", given, project=lease.project
            )
        except NotFound:
            return self._note(f"{act}, gone")
        except WeftError as problem:
            if problem.token not in ("leaseOver", "noEnd"):
                raise
            return self._note(f"{act}, {problem.token}")
        asked = found["spec"]["lease"]
        if act == "cancel":
            lease.cancelled = True
        elif abs(asked["duration"] - lease.duration - given["by"]) > 0.01:
            self.problems.append(
                f"{lease} lasts {asked['duration']:g} s: {lease.duration:g} and {given['by']:g} were asked"
            )
        lease.duration = asked["duration"]
        return self._note(act)

    def delete(self, lease: Lease) -> str:
        lease.deleted = True
        try:
            self.clients[lease.project].delete(lease.kind, lease.name, project=lease.project)
        except NotFound:
            self.problems.append(f"{lease} was lost: it is deleted, and wasn't there")
        return self._note("delete")

    def _note(self, act: str) -> str:
        with self._lock:
            self.acts[act] += 1
        return act

    def follow(self, objects: dict[tuple[str, str], Any], kills: list[tuple[float, str]], now: float) -> None:
        """What is seen of them at ``now``: note promises, ask those that are about to start, judge those that have."""
        for lease in list(self.leases):
            obj = objects.get((lease.kind, lease.name))
            status = (obj["status"].get("lease") or {}) if obj is not None else {}
            if lease.mode not in PROMISED:
                continue
            if lease.start is None and status.get("state") in HELD and status.get("start"):
                lease.start = float(status["start"])
                if lease.asked_start is not None and abs(lease.start - lease.asked_start) > 0.01:
                    self.problems.append(f"{lease} starts at {lease.start}, not {lease.asked_start}")
            if lease.start is None or lease.verdict:
                continue
            if lease.given_up or lease.deleted:
                self._end(lease, "given up")
            elif status.get("start") and abs(float(status["start"]) - lease.start) > 0.01:
                self.problems.append(f"{lease} was promised {lease.start}, and now {status['start']}")
                self._end(lease, "moved")
            elif obj is not None and lease.probe is None and now > lease.start - PROBED_SECONDS:
                self._begin(lease, obj["status"])
            self._judge(lease, obj, kills, now)

    def _begin(self, lease: Lease, status: dict[str, Any]) -> None:
        address, start = status.get("address"), lease.start or 0.0
        router = find_router(self.cluster, status["node"], address) if address and status.get("node") else None
        if router is None:
            return
        until = start + START_SECONDS + KILLED_SECONDS
        words = [*router, sys.executable, "-I", "-S", str(PROBE), address, str(start), str(until)]
        lease.probe = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def _judge(self, lease: Lease, obj: Any, kills: list[tuple[float, str]], now: float) -> None:
        start = lease.start or 0.0
        killed = any(
            start - KILLED_SECONDS < at < start + START_SECONDS for at, what in kills if what in ("agent", "server")
        )
        least = START_SECONDS + (KILLED_SECONDS if killed else 0.0)
        over = lease.probe is not None and lease.probe.poll() is not None
        if lease.verdict or (not over and now < start + least + 2.0):
            return
        answers = self._end(lease, "")
        if early := [at for at in answers if at < start]:
            self.problems.append(f"{lease} answered {start - early[0]:.2f} s before its start")
        late = min((at for at in answers if at >= start), default=float("inf")) - start
        if late <= least:
            self.latest.append(late)
            self._end(lease, "in time" if late <= START_SECONDS else "late, killed")
        elif obj is None or (lease.probe is None and lease.duration < least):
            self._end(lease, "not asked in time")
        elif told := tell_why(obj):
            print(f"  {lease} missed its start ({late:.1f} s): {told}", flush=True)
            self._end(lease, "missed, told")
        else:
            self._end(lease, "missed")
            self.problems.append(f"{lease} has not answered {late:.1f} s after its start: {json.dumps(obj['status'])}")

    def _end(self, lease: Lease, verdict: str) -> list[float]:
        if verdict:
            lease.verdict = verdict
            self.ends[verdict] += 1
        if lease.probe is None:
            return []
        lease.probe.terminate()
        if lease.probe.stdout is None or lease.probe.stdout.closed:
            return []
        with lease.probe.stdout as out:
            answers = [float(line) for line in out.read().split()]
        lease.probe.wait()
        return answers

    def find_lost(self, objects: dict[tuple[str, str], Any]) -> str:
        """The first lease that isn't as it was acknowledged, or nothing."""
        for lease in self.leases:
            obj = objects.get((lease.kind, lease.name))
            if lease.deleted:
                if obj is not None:
                    return f"{lease} should be gone: {obj['status']['phase']}"
                continue
            if obj is None:
                return f"{lease} is lost"
            asked = obj["spec"]["lease"]
            if (asked["duration"], asked["cancelled"]) != (lease.duration, lease.cancelled):
                return f"{lease} was to last {lease.duration}, cancelled {lease.cancelled}: {asked}"
            state = (obj["status"].get("lease") or {}).get("state", "Requested")
            if lease.cancelled and state != "Cancelled":
                return f"{lease} was cancelled and is {state}"
            if lease.mode == "immediate" and state in ("Requested", "Scheduled"):
                return f"{lease} is {state}"
        return ""

    def forget(self) -> None:
        self.leases = [one for one in self.leases if not one.deleted or (one.start is not None and not one.verdict)]

    def list_over(self, objects: dict[tuple[str, str], Any]) -> list[Lease]:
        """Those that nothing comes of any more."""
        states = {key: (obj["status"].get("lease") or {}).get("state") for key, obj in objects.items()}
        return [
            one
            for one in self.leases
            if not one.deleted and states.get((one.kind, one.name)) in OVER and (one.start is None or one.verdict)
        ]

    def close(self) -> None:
        for lease in self.leases:
            self._end(lease, "")


def tell_why(obj: Any) -> str:
    """What an object says of a start that it missed."""
    lease = obj["status"].get("lease") or {}
    placed = next((one for one in obj["conditions"] if one["type"] == "Placed" and one["status"] == "False"), None)
    return str(lease.get("message") or obj["status"].get("message") or (placed or {}).get("message") or "")


def find_router(cluster: Cluster, node: str, address: str) -> list[str] | None:
    """What runs a command in the router of the network of ``address``, on a node; None if there is none."""
    pid = str(json.loads((cluster.state / "run" / f"init-{node}.pid").read_bytes())["pid"])
    inside = ["nsenter", "-t", pid, "-m", "-n"]
    listed = subprocess.run([*inside, "ip", "netns", "list"], capture_output=True, text=True).stdout.splitlines()
    for name in (line.split()[0] for line in listed if line):
        words = [*inside, "ip", "netns", "exec", name]
        shown = subprocess.run([*words, "ip", "-br", "addr"], capture_output=True, text=True).stdout
        if f" {address.rpartition('.')[0]}.1/" in shown:
            return words
    return None
