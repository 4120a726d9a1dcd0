"""What must never be: checked at every commit and at everything that happens to a guest.

``Witness`` sees every commit and who made it, and the guests themselves, on all nodes; it knows what the nodes can't:
whether the fabric had a reason. ``Processes`` are the machines' processes, whose numbers are used again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

import msgspec
from msgspec.structs import replace

from tests.simulation.disks import read_mark
from weft.agent.shape import ROOT_SERIAL
from weft.client.silence import PATIENCE_SECONDS
from weft.contracts.clock import Clock
from weft.contracts.host import Host
from weft.contracts.runtime import GuestState
from weft.drivers import processes
from weft.drivers.processes import ProcessId
from weft.drivers.runtime.fake.driver import FakeDriver, FakeGuest, FakeOrders
from weft.kinds.allocation import AllocationReport, AllocationSpec, account
from weft.kinds.migration import ENDED, MigrationStatus
from weft.kinds.node import NodeReport
from weft.kinds.registry import find_kind
from weft.kinds.workload import WorkloadStatus
from weft.objects.envelope import Condition, Envelope, decode_part

HERE = ("running", "starting", "paused")  # states of a guest that has a process
# Who may make, and who may remove, objects of a kind; who may write their spec. ``doors`` writes for people and nodes.
MAKERS = {
    "allocation": {"scheduler", "workload"},
    "endpoint": {"addresses", "workload"},
    "decision": {"scheduler"},
}
REMOVERS = {
    "allocation": {"workload"},
    "endpoint": {"addresses", "workload", "garbage"},
    "decision": {"workload", "garbage", "migrations"},
    "migration": {"migrations", "garbage"},
    "publication": {"doors", "workload", "garbage"},
    "vm": {"workload"},
}
SPEC_WRITERS = {
    "allocation": {"workload", "scheduler", "migrations"},
    "decision": {"scheduler", "migrations"},
    "endpoint": {"addresses"},
}
STATUS_WRITERS = {"endpoint": {"addresses"}, "publication": {"addresses"}, "token": {"doors"}}
MARKERS = {"allocation": {"workload", "migrations"}}


def _gets_place(was: Envelope, now: Envelope) -> bool:
    return decode_part(now.status, WorkloadStatus).incarnation > decode_part(was.status, WorkloadStatus).incarnation


def _only(envelope: Envelope, *types: str) -> list[Condition]:
    return [condition for condition in envelope.conditions if condition.type in types]


def _without(envelope: Envelope, *types: str) -> list[Condition]:
    return [condition for condition in envelope.conditions if condition.type not in types]


class Violation(Exception):
    """An invariant was broken."""


class Witness:
    """Raises Violation, and keeps the first: whoever was at it may catch the exception. ``on_break`` is called with each."""

    def __init__(self, on_break: Callable[[], None]) -> None:
        self._on_break = on_break
        self.violations: list[str] = []
        self.allocations: dict[str, Envelope] = {}  # in the store, by uid
        self.nodes: dict[str, NodeReport] = {}  # by uid
        self.workload_of: dict[str, str] = {}  # allocation uid → workload uid, for ever
        self.reasons: dict[str, set[str]] = {}  # allocation uid → why its guest may be ended
        self.incarnations: dict[str, int] = {}  # workload uid → its highest in this history
        self.forgotten: set[str] = set()  # uids of allocations that an older store didn't know
        self.restored_at = 0.0
        self.unheard: dict[str, str] = {}  # nodes that have not spoken since → the history that they spoke of last
        self.passed_over: set[str] = set()  # nodes that were lost for too long after a restore to be waited for
        self.node_uids: dict[str, str] = {}  # by name
        self.gave_up = False  # whether a node was given up, and what lay there with it, or a store was restored
        self.dark: set[str] = set()  # uids of nodes that are off, and are being given up
        self.boots: dict[str, int] = {}
        self.alive: dict[tuple[str, str], str] = {}  # (node, guest id) → allocation uid
        self.disks: dict[str, tuple[str, str]] = {}  # a disk that is written to → the guest that does
        self.came_to: Counter[str] = Counter()  # phases that Migrations came to, and why
        self.came_from: dict[str, str] = {}  # allocation uid that is, or was, a target → its source's
        self.boot_ids: dict[str, str] = {}  # allocation uid → of its guest when it last began to run
        self.roots: dict[str, str] = {}  # allocation uid → the mark of its root disk then
        self.data: dict[str, str] = {}  # volume uid → the mark of its disk, once a guest has run on it
        self.restarts: dict[str, int] = {}  # allocation uid → how often its guest was ended for a fresh start

    def note(self, what: str) -> None:
        self.violations.append(what)
        self._on_break()

    def fail(self, what: str) -> None:
        self.note(what)
        raise Violation(what)

    # Commits.

    def see_restore(self, allocations: Sequence[Envelope], nodes: Sequence[Envelope], now: float) -> None:
        """The store is an older one now, with these in it; what runs is what ran."""
        self.restored_at, self.gave_up = now, True
        self.unheard = {item.uid: decode_part(item.report, NodeReport).epoch for item in nodes}
        known = {item.uid: item for item in allocations}
        self.forgotten |= self.allocations.keys() - known.keys()
        self.allocations = known
        self.incarnations.clear()
        self.nodes = {item.uid: decode_part(item.report, NodeReport) for item in nodes}

    def note_time(self, now: float) -> None:
        """After a restore, nodes are waited for until it is known that they are lost. What runs there is passed over then:
        there may be a second one of it until the node is heard (docs/status.md)."""
        if now - self.restored_at >= PATIENCE_SECONDS:
            self.passed_over |= self.unheard.keys()

    def is_passed_over(self, where: str, allocation: str) -> bool:
        """Whether this is one that only a node knows of (``where`` is its name) which was silent for too long."""
        return allocation in self.forgotten and self.node_uids[where] in self.passed_over

    def see_commit(self, writer: str, was: Envelope | None, now: Envelope | None) -> None:
        envelope = now or was
        assert envelope is not None
        if writer != "setup":
            self._check_writer(writer, was, now)
        if envelope.kind == "allocation":
            self._see_allocation(was, now)
        elif envelope.kind == "node" and now is not None:
            report = self.nodes[now.uid] = decode_part(now.report, NodeReport)
            if report.epoch != self.unheard.get(now.uid, report.epoch):
                del self.unheard[now.uid]
        elif envelope.kind == "node" and was is not None:
            self.nodes.pop(was.uid, None)
            self.gave_up = True
            if self.unheard.pop(was.uid, None) is not None:
                self.passed_over.add(was.uid)  # people gave it up before it could say what lies there
        elif envelope.kind == "migration" and now is not None and was is not None:
            self._see_migration(was, now)
        elif envelope.kind == "vm" and now is None and was is not None:
            self._see_vm_gone(was)

    def _see_migration(self, was: Envelope, now: Envelope) -> None:
        before, after = decode_part(was.status, MigrationStatus), decode_part(now.status, MigrationStatus)
        if before.phase in ENDED and before != after:
            self.fail(f"migration {now.name} had {before.phase}, and is {after.phase} now")
        if before.phase != after.phase:
            self.came_to[f"{after.phase} {after.reason}".strip()] += 1

    def _check_writer(self, writer: str, was: Envelope | None, now: Envelope | None) -> None:
        envelope = now or was
        assert envelope is not None
        kind, what = envelope.kind, f"{envelope.kind} {envelope.name}"
        if was is None or (now is not None and now.uid != was.uid):
            self._may(writer, MAKERS.get(kind, {"doors"}), f"{what} was made")
            return
        if now is None:
            default = {"doors", "workload", "volumes", "networks", "images"}
            removers = REMOVERS.get(kind, default) | ({"doors"} if self.dark and kind == "allocation" else set())
            self._may(writer, removers, f"{what} was removed")
            return
        found = find_kind(kind)
        if kind == "vm" and writer == "scheduler" and _gets_place(was, now):
            # The same commit says what the controller makes of it, in that controller's words (decision 0034).
            status, ready = decode_part(now.status, WorkloadStatus), now.condition("Ready")
            if (status.phase, ready and ready.reason) != ("Prolog", "Prolog"):
                self.fail(f"{what} got a place and is told to be {status.phase}")
            told = ("Ready", "Current")
            was = replace(was, status=now.status, conditions=[*_without(was, *told), *_only(now, *told)])
        status_writers = STATUS_WRITERS.get(kind, {found.status_writer})
        changed = {
            "spec": (was.spec != now.spec or was.generation != now.generation, SPEC_WRITERS.get(kind, {"doors"})),
            "report": (was.report != now.report, {"doors"}),
            "status": (was.status != now.status, status_writers),
            "deletion mark": (was.deleting_since != now.deleting_since, MARKERS.get(kind, {"doors"})),
        }
        for part, (is_changed, writers) in changed.items():
            if is_changed:
                self._may(writer, writers, f"{part} of {what} was changed")
        for condition in now.conditions:
            if was.condition(condition.type) != condition:
                owner = found.conditions.get(condition.type, "nobody")
                self._may(writer, {owner}, f"condition {condition.type} of {what} was changed")

    def _may(self, writer: str, writers: set[str], what: str) -> None:
        if writer not in writers:
            self.fail(f"{what} by {writer}, not by {' or '.join(sorted(writers))}")

    def _see_allocation(self, was: Envelope | None, now: Envelope | None) -> None:
        if now is None:
            assert was is not None
            self.allocations.pop(was.uid, None)
            if decode_part(was.spec, AllocationSpec).node_uid in self.dark:
                self.reasons.setdefault(was.uid, set()).add("given up")
                return  # its node was given up, by someone who said that it is off
            report = decode_part(was.report, AllocationReport)
            if report.state != "released":
                self.fail(f"allocation {was.uid} was removed while {report.state}")
            if any(uid == was.uid for uid in self.alive.values()):
                self.fail(f"allocation {was.uid} was removed while its guest runs: an orphan")
            return
        spec = decode_part(now.spec, AllocationSpec)
        self.allocations[now.uid] = now
        self.boots[now.uid] = max(spec.boots, self.boots.get(now.uid, 0))
        reasons = self.reasons.setdefault(now.uid, set())
        if now.deleting_since is not None:
            reasons.add("deleted")
        if spec.wish != "run":
            reasons.add(spec.wish)
        if spec.role == "source" and spec.move is not None and spec.move.mode == "cold":
            reasons.add("moves cold")
        if spec.role == "target" and spec.move is not None:
            self.came_from[now.uid] = spec.move.peer_allocation
        known = now.uid in self.workload_of
        self.workload_of[now.uid] = spec.workload.uid
        if was is None or spec.resources != decode_part(was.spec, AllocationSpec).resources:
            self._check_placing(spec, adopted=was is None and known, fresh=was is None and not known)

    def _check_placing(self, spec: AllocationSpec, *, adopted: bool, fresh: bool) -> None:
        specs = [decode_part(a.spec, AllocationSpec) for a in self.allocations.values()]
        places = [item for item in self.allocations.values() if self.workload_of[item.uid] == spec.workload.uid]
        if not _is_one_place(places):
            self.fail(f"vm {spec.workload.name} was given two places")
        node = self.nodes.get(spec.node_uid)
        if node is None:
            self.fail(f"vm {spec.workload.name} was placed on a node that isn't there")
        latest = self.incarnations.get(spec.workload.uid, 0)
        if fresh and spec.incarnation <= latest:
            self.fail(f"vm {spec.workload.name} was placed anew as incarnation {spec.incarnation}, after {latest}")
        self.incarnations[spec.workload.uid] = max(latest, spec.incarnation)
        if adopted:
            return  # it was there before the store knew of it again, and took its room then
        reports = [decode_part(a.report, AllocationReport) for a in self.allocations.values()]
        both = zip(specs, reports, strict=True)
        here = [account(other, report) for other, report in both if other.node_uid == spec.node_uid]
        cpu, memory, disk = sum(r.cpu for r in here), sum(r.memory for r in here), sum(r.disk for r in here)
        for gpu in spec.gpus:
            there = (o for o in specs if o.node_uid == spec.node_uid)
            if sum(other.share for o in there for other in o.gpus if other.index == gpu.index) > 1000:
                self.fail(f"GPU {gpu.index} of node {spec.node} is given away twice")
        if node is not None and (cpu > node.cpu + 1e-6 or memory > node.memory or disk > node.disk):
            self.fail(f"node {spec.node} is over-committed: {cpu} of {node.cpu} cores, {memory} of {node.memory} bytes")

    def _see_vm_gone(self, was: Envelope) -> None:
        if was.deleting_since is None:
            self.fail(f"vm {was.name} was lost: nobody asked to delete it")
        for allocation in self.allocations.values():
            if self.workload_of[allocation.uid] == was.uid:
                self.fail(f"vm {was.name} is gone, its allocation {allocation.uid} is not")
        for (where, _), uid in self.alive.items():
            if self.workload_of.get(uid) == was.uid and not self.is_passed_over(where, uid):
                self.fail(f"vm {was.name} is gone, its guest runs: an orphan")

    # Guests.

    def see_guest(self, node: str, guest: FakeGuest) -> None:
        """The guest is like this now."""
        key = (node, guest.plan.id)
        if guest.state != "running":
            self.see_gone(key)
            return
        if key in self.alive:
            return
        uid = guest.plan.uid
        workload = self.workload_of.get(uid)
        if workload is None:
            self.fail(f"guest {guest.plan.name} on {node} was started without an allocation")
        for (where, _), other in self.alive.items():
            if self.workload_of.get(other) == workload and not (where != node and self.is_passed_over(where, other)):
                self.fail(f"vm {guest.plan.name} runs twice: on {where} and on {node}")
        if uid not in self.allocations and uid not in self.forgotten:
            self.fail(f"guest {guest.plan.name} on {node} was started when its allocation was gone: an orphan")
        for disk in guest.plan.disks:
            name = PurePath(disk.path).name
            writer = key if disk.read_only else self.disks.setdefault(name, key)
            if writer != key and not (writer[0] != node and self.is_passed_over(writer[0], self.alive[writer])):
                self.fail(f"disk {name} is written to by two guests: on {writer[0]} and on {node}")
        self.alive[key] = uid
        self._check_luggage(uid, guest)

    def _check_luggage(self, uid: str, guest: FakeGuest) -> None:
        """All that a guest had it has still, where it has moved to."""
        marks = {disk.serial: read_mark(disk.path) for disk in guest.plan.disks if not disk.read_only}
        root = marks[ROOT_SERIAL]
        source, came = self.came_from.get(uid), uid not in self.roots
        move = guest.move
        if came and source in self.roots:
            if self.roots[source] != root:
                self.fail(f"guest {guest.plan.name} moved without its root disk")
            if move is not None and self.boot_ids[source] != guest.boot_id:
                self.fail(f"guest {guest.plan.name} moved without its memory")
        self.roots[uid], self.boot_ids[uid] = root, guest.boot_id
        for disk in guest.plan.disks:
            volume = PurePath(disk.path).stem
            if not disk.read_only and disk.serial != ROOT_SERIAL:
                if self.data.setdefault(volume, marks[disk.serial]) != marks[disk.serial] and not self.gave_up:
                    self.fail(f"guest {guest.plan.name} runs without what was on its volume {volume}")

    def see_gone(self, key: tuple[str, str]) -> None:
        """The guest with this id on this node runs no more."""
        self.alive.pop(key, None)
        self.disks = {name: writer for name, writer in self.disks.items() if writer != key}

    def see_end(self, node: str, guest: FakeGuest, verb: str) -> None:
        """The agent has ended a running guest. A restart is a reason once for each time it was asked for."""
        uid = guest.plan.uid
        if self.reasons.get(uid):
            return
        self.restarts[uid] = self.restarts.get(uid, 0) + 1
        if self.restarts[uid] > self.boots.get(uid, 0):
            self.fail(f"guest {guest.plan.name} on {node}: {verb} without a reason")


def _is_one_place(places: list[Envelope]) -> bool:
    """Whether a workload may have these at once: one, or the two sides of a move; and what moves have left for a while."""
    specs = {place.uid: decode_part(place.spec, AllocationSpec) for place in places}
    left = {p.uid for p in places if p.deleting_since is None or specs[p.uid].role == "active"}
    targets = [uid for uid in left if specs[uid].role == "target"]
    moves = [specs[uid].move for uid in targets]
    others = left.difference(targets)
    return len(left) <= 1 or (len(moves) == 1 and moves[0] is not None and others == {moves[0].peer_allocation})


class Processes:
    """All processes of all machines. A pid is used again, by something else, when its process is gone."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._found: dict[int, ProcessId] = {}

    def inspect(self, pid: int) -> ProcessId | None:
        """``processes.inspect_process`` of these machines."""
        return self._found.get(pid)

    def begin(self, process: ProcessId) -> None:
        self._found.setdefault(process.pid, process)

    def end(self, process: ProcessId) -> None:
        if self._found.get(process.pid) == process:
            del self._found[process.pid]
            if self._draw.random() < 0.5:
                self._found[process.pid] = ProcessId(process.pid, process.start_ticks + 1)


class WatchedDriver(FakeDriver):
    """The fake runtime, under the witness's eyes. A guest's file may say that it runs when its process is long gone: as
    the driver of real guests it believes the process, by the real comparison."""

    def __init__(self, host: Host, clock: Clock, orders: FakeOrders, witness: Witness, found: Processes) -> None:
        super().__init__(host, clock, orders)
        self._node, self._witness, self._found = host.node, witness, found

    def kill_process(self, guest_id: str) -> None:
        """The guest's process is gone; nobody has noticed yet."""
        guest = super()._read(guest_id)
        if guest is not None and guest.state in HERE:
            self._found.end(_process_of(guest))
            self._witness.see_gone((self._node, guest_id))

    def kill_all(self) -> None:
        """The machine's power is gone."""
        for path in sorted(self._folder.glob("*.json")):
            self.kill_process(path.stem)

    def states(self) -> dict[str, str]:
        """Allocation uid → state of each guest here, ``dead`` if it is said to run and its process isn't there."""
        found = {}
        for path in sorted(self._folder.glob("*.json")):
            guest = FakeDriver._read(self, path.stem)
            if guest is not None:
                dead = guest.state in HERE and self._found.inspect(guest.pid) != _process_of(guest)
                found[guest.plan.uid] = "dead" if dead else guest.state
        return found

    def _read(self, guest_id: str) -> FakeGuest | None:
        guest = super()._read(guest_id)
        if guest is not None and guest.state in HERE and not processes.is_alive(_process_of(guest)):
            guest.state, guest.reason, guest.ready = "failed", "killed", False
            self._write(guest)
        return guest

    def _end(self, guest_id: str, state: GuestState, reason: str | None) -> None:
        guest = self._read(guest_id)
        if guest is not None and guest.state in HERE:
            if reason in (None, "stopRequested") and guest.state == "running":
                self._witness.see_end(self._node, guest, state)
            self._found.end(_process_of(guest))
        super()._end(guest_id, state, reason)

    def _write(self, guest: FakeGuest) -> None:
        if guest.state in HERE:
            self._found.begin(_process_of(guest))
        elif guest.reason == "moved":
            self._found.end(_process_of(guest))
        if guest.state == "paused" and guest.move is not None:
            _copy_disks(guest, guest.move.to)
        self._witness.see_guest(self._node, guest)
        super()._write(guest)


def _copy_disks(guest: FakeGuest, to: str) -> None:
    """What the machines do with the disks of a guest that is handed over."""
    target = msgspec.json.decode(Path(to).read_bytes(), type=FakeGuest)
    theirs = {disk.serial: disk.path for disk in target.plan.disks}
    for disk in guest.plan.disks:
        if not disk.read_only:
            Path(theirs[disk.serial]).write_bytes(Path(disk.path).read_bytes())


def _process_of(guest: FakeGuest) -> ProcessId:
    return ProcessId(guest.pid, round(guest.started_at * 100))
