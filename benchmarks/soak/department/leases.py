"""The leases that a department's people ask for: what each was acknowledged to be, and whether it answers from its start on."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster

from benchmarks.soak.department.lease import WITHIN, Lease
from benchmarks.soak.department.loss import Loss
from benchmarks.soak.department.oracle import Gang
from benchmarks.soak.department.reserved import Reservations
from weft.client import Client
from weft.objects.errors import Forbidden, InvalidInput, NotFound, WeftError

MODES = ("immediate", "best-effort", "reservation", "reservation", "deadline")
ACTS = (
    *("create", "create", "create", "create", "create", "gang", "gang", "reserve", "reserve"),
    *("extend", "extend", "cancel", "delete"),
)
PROMISED = ("reservation", "deadline", WITHIN)
CEILINGS: dict[str, int | None] = {"physics": None, "biology": 10, "arts": 0}  # of priorities, by project
CLASSES = {"study": 5, "urgent": 40}
OVER = ("Done", "Rejected", "Cancelled")
HELD = ("Scheduled", "Preparing", "Active")
MEMORY_BYTES, VM_BYTES = 32 << 20, 128 << 20
CORES = (1.0, 2.0, 3.0, 5.0, 7.0)
RUSHED, RUSH, RUSH_CORES = "arts", 4, 4.0  # beyond its quota
GRACE_SECONDS = 1.0
START_SECONDS = 5.0  # after its start, by which a promised lease answers
KILLED_SECONDS = 25.0  # more, where an agent was killed around it
AT_ONCE_SECONDS = 20.0  # more, where it began as soon as there was capacity, with nothing prepared
AWAY_SECONDS = 50.0  # more, where a node was lost: that is known after 30 s
PROBED_SECONDS = 8.0  # before its start it is asked for the first time
PROBE = Path(__file__).with_name("probe.py")
SERVES = "#!/bin/sh\nhttpd -p 80 -h /tmp\n"


class Book:
    """All leases of three projects; ``clients`` are their people's."""

    def __init__(self, cluster: Cluster, clients: dict[str, Client], image: str, loss: Loss) -> None:
        self.cluster, self.clients, self.image, self.loss = cluster, clients, image, loss
        self.reserved = Reservations(self)
        self.leases: list[Lease] = []
        self.acts, self.ends = Counter[str](), Counter[str]()
        self.latest: list[float] = []  # from a start to the first answer
        self.problems: list[str] = []
        self.gangs: dict[str, Gang] = {}
        self.ahead = (12.0, 25.0)  # seconds from a request to the start that it asks for
        self._lock, self._count = threading.Lock(), 0

    def plan(self, draw: random.Random, number: int, *, vm: bool, rush: bool) -> list[Any]:
        """``number`` acts to carry out at once; each takes nothing and is repeated until it is answered. ``rush``: and more creates
        in one project than its quota allows."""
        acts: list[Any] = [self._plan_create(draw, False, RUSHED) for _ in range(RUSH if rush else 0)]
        free = [one for one in self.leases if not one.deleted]
        draw.shuffle(free)
        for place in range(number):
            act = draw.choice(ACTS)
            if act == "gang":
                acts.append(self._plan_gang(draw))
            elif act == "reserve":
                acts.append(self.reserved.plan(draw))
            elif act == "create" or not free or (vm and place == 0):
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

    def plan_guarded(self, project: str, labels: dict[str, str], cpu: float) -> Callable[[], str]:
        """One more VM that gives way to others, as far as the budget with these labels lets it."""
        lease = {"mode": "best-effort"}
        spec = {"image": "tiny", "memory": VM_BYTES, "cpu": cpu, "grace": GRACE_SECONDS, "networks": ["default"]}
        made = Lease(project, "vm", self.name("guarded"), lease)
        return lambda: self.create(made, {**spec, "lease": lease}, "create guarded", labels)

    def _plan_create(self, draw: random.Random, vm: bool, rushed: str = "") -> Callable[[], str]:
        project, mode = draw.choice(list(self.clients)), "reservation" if vm else draw.choice(MODES)
        ahead, duration = draw.uniform(*self.ahead), draw.uniform(8.0, 30.0)
        wanted = draw.choice((0, 0, -7, 5, "study", 25, "urgent"))
        if vm:
            project, ahead = next(iter(self.clients)), 40.0
        spec = self.plain(draw.choice(CORES))
        if vm:
            spec |= {"image": "tiny", "memory": VM_BYTES, "user_data": SERVES, "cpu": 1.0}
            del spec["args"]
        if rushed:
            wanted, project, spec["cpu"] = 0, rushed, RUSH_CORES
        name = self.name(mode)

        def create() -> str:
            asked = self._ask_for(mode, ahead, duration)
            made = Lease(project, "vm" if vm else "container", name, asked)
            made.priority = CLASSES.get(str(wanted), wanted)  # type: ignore[arg-type]
            which = {"priority_class": wanted} if wanted in CLASSES else {"priority": wanted}
            return self.create(made, {**spec, "lease": {**asked, **which}}, f"create {mode}")

        return create

    def _plan_gang(self, draw: random.Random) -> Callable[[], str]:
        """Two or three containers that have their leases together; where one of them isn't admitted, none is left."""
        project, mode, count = draw.choice(list(self.clients)), draw.choice(MODES), draw.choice((2, 3))
        ahead, duration = draw.uniform(*self.ahead), draw.uniform(8.0, 30.0)
        gang, cores = self.name("gang"), [draw.choice(CORES[:3]) for _ in range(count)]

        def create() -> str:
            asked = self._ask_for(mode, ahead, duration)
            self.gangs[gang] = Gang(count, [f"{gang}-{number}" for number in range(count)])
            members = [Lease(project, "container", name, asked) for name in self.gangs[gang].members]
            for member, cpu in zip(members, cores, strict=True):
                member.gang = gang
                told = self.create(member, {**self.plain(cpu), "lease": asked, "gang": f"{gang}:{count}"}, "")
                if told:
                    for one in members[: members.index(member)]:
                        self.delete(one)
                    return self.note(f"create gang{told}")
            return self.note("create gang")

        return create

    def name(self, what: str) -> str:
        self._count += 1
        return f"{what.replace(' ', '-')}-{self._count}"

    def plain(self, cpu: float) -> dict[str, Any]:
        """The spec of a container that answers on its port."""
        shape = {"cpu": cpu, "memory": MEMORY_BYTES, "grace": GRACE_SECONDS, "networks": ["default"]}
        return {"image": self.image, "args": ["-f", "-p", "80", "-h", "/bin"], **shape}

    def _ask_for(self, mode: str, ahead: float, duration: float) -> dict[str, Any]:
        lease: dict[str, Any] = {"mode": mode, "duration": round(duration, 1)}
        if mode == "reservation":
            lease["start"] = round(time.time() + ahead, 3)
        if mode == "deadline":
            lease["deadline_at"] = round(time.time() + ahead + 2 * duration, 3)
        return lease

    def create(self, made: Lease, spec: dict[str, Any], act: str, labels: dict[str, str] | None = None) -> str:
        """What was done; why not, after a comma. Without an ``act`` only that is told, and nothing is counted."""
        manifest = {"kind": made.kind, "name": made.name, "project": made.project, "labels": labels or {}, "spec": spec}
        ceiling, why = CEILINGS.get(made.project), ""
        try:
            self.clients[made.project].create(manifest)
            if ceiling is not None and made.priority > ceiling:
                self.problems.append(f"{made} was admitted with priority {made.priority}, above {ceiling}")
        except Forbidden as problem:
            why = problem.token
            if why not in ("quotaExceeded", "priorityCeiling"):
                raise
            if why == "priorityCeiling" and (ceiling is None or made.priority <= ceiling):
                self.problems.append(f"{made} was refused with priority {made.priority}: {problem}")
        except InvalidInput as problem:
            if not (problem.field or "").startswith(("spec.lease.", "spec.reservation")):
                raise
            why = "too late"  # nobody answered until its start had passed, or its reservation was refused
        if not why:
            with self._lock:
                self.leases.append(made)
        told = f", {why}" if why else ""
        return self.note(act + told) if act else told

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
            return self.note(f"{act}, gone")
        except WeftError as problem:
            if problem.token not in ("leaseOver", "noEnd", "noLease"):
                raise
            return self.note(f"{act}, {problem.token}")
        asked = found["spec"]["lease"]
        if act == "cancel":
            lease.cancelled = True
        elif lease.duration is None or abs(asked["duration"] - lease.duration - given["by"]) > 0.01:
            self.problems.append(
                f"{lease} lasts {asked['duration']:g} s: {lease.duration} and {given['by']:g} were asked"
            )
        lease.duration = asked["duration"]
        return self.note(act)

    def delete(self, lease: Lease) -> str:
        lease.deleted = True
        try:
            self.clients[lease.project].delete(lease.kind, lease.name, project=lease.project)
        except NotFound:
            self.problems.append(f"{lease} was lost: it is deleted, and wasn't there")
        return self.note("delete")

    def note(self, act: str) -> str:
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
                if lease.mode == WITHIN and lease.start != lease.asked_start:
                    self._end(
                        lease, "begun before it was asked for"
                    )  # its reservation has, or a lost slot is elsewhere
                elif lease.asked_start is not None and abs(lease.start - lease.asked_start) > 0.01:
                    self.problems.append(f"{lease} starts at {lease.start}, not {lease.asked_start}")
            if lease.start is None or lease.verdict:
                continue
            if lease.given_up or lease.deleted:
                self._end(lease, "given up")
            elif status.get("start") and abs(float(status["start"]) - lease.start) > 0.01:
                if lease.mode == "reservation" or not self.loss.met(now - AWAY_SECONDS, now):
                    self.problems.append(f"{lease} was promised {lease.start}, and now {status['start']}")
                self._end(lease, "moved")
            elif obj is not None and now > lease.start - PROBED_SECONDS:
                self._ask(lease, obj["status"])
            self._judge(lease, obj, kills, now)

    def _ask(self, lease: Lease, status: dict[str, Any]) -> None:
        """Ask it where it is; one that was there before and is here now hasn't begun twice."""
        node, address, start = status.get("node") or "", status.get("address"), lease.start or 0.0
        if not node or not address or node == lease.node:
            return
        if lease.probe is not None:
            lease.answers += self._end(lease, "")
            if begun := [at for at in lease.answers if at >= start]:
                self.problems.append(f"{lease} began on {lease.node} at {begun[0]:.1f}, and is given {node} too")
        router = find_router(self.cluster, node, address)
        if router is None:
            return
        until = start + START_SECONDS + (AWAY_SECONDS if self.loss.away or lease.node else KILLED_SECONDS)
        words = [*router, sys.executable, "-I", "-S", str(PROBE), address, str(start), str(until)]
        lease.node, lease.probe = (
            node,
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True),
        )

    def _judge(self, lease: Lease, obj: Any, kills: list[tuple[float, str]], now: float) -> None:
        start = lease.start or 0.0
        killed = any(
            start - KILLED_SECONDS < at < start + START_SECONDS for at, what in kills if what in ("agent", "server")
        )
        least = START_SECONDS + (KILLED_SECONDS if killed else AT_ONCE_SECONDS if lease.mode == "deadline" else 0.0)
        if lost := self.loss.met(start - AWAY_SECONDS, start + least):
            least = START_SECONDS + AWAY_SECONDS
        over = lease.probe is not None and lease.probe.poll() is not None
        if lease.verdict or (not over and now < start + least + 2.0):
            return
        answers = [*lease.answers, *self._end(lease, "")]
        if over and lost and not any(at >= start for at in answers) and now < start + least + 2.0:
            return
        if early := [at for at in answers if at < start]:
            self.problems.append(f"{lease} answered {start - early[0]:.2f} s before its start")
        late = min((at for at in answers if at >= start), default=float("inf")) - start
        if late <= least:
            self.latest.append(late)
            late_why = "late, node lost" if lost else "late, killed" if killed else "late, begun at once"
            self._end(lease, "in time" if late <= START_SECONDS else late_why)
        elif obj is None or (lease.probe is None and (lease.duration or 0.0) < least and not lost):
            self._end(lease, "not asked in time")
        elif (told := tell_why(obj)).startswith("its lease ended") and (lease.duration or 0.0) < least:
            self._end(lease, "ended before it was due")
        elif told and not told.startswith("its lease ended"):
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
            away = obj is not None and obj["status"].get("node") == self.loss.away and bool(self.loss.away)
            if lease.deleted:
                if obj is not None and not away:
                    return f"{lease} should be gone: {obj['status']['phase']}"
                continue
            if obj is None:
                return f"{lease} is lost"
            if away or lease.mode == WITHIN:
                continue
            asked = obj["spec"]["lease"]
            if (asked["duration"], asked["cancelled"], asked["priority"]) != (
                lease.duration,
                lease.cancelled,
                lease.priority,
            ):
                return f"{lease} was to last {lease.duration}, cancelled {lease.cancelled}, {lease.priority}: {asked}"
            state = (obj["status"].get("lease") or {}).get("state", "Requested")
            if lease.cancelled and state != "Cancelled":
                return f"{lease} was cancelled and is {state}"
            if lease.mode == "immediate" and state in ("Requested", "Scheduled"):
                return f"{lease} is {state}"
        return self.reserved.find_lost(objects)

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
    placed = next((one for one in obj["conditions"] if one["type"] == "Placed" and one["reason"] != "Placed"), None)
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
