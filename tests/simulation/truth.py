"""What must never be: checked at every commit and at everything that happens to a guest.

``Witness`` sees every commit and who made it, and the guests themselves, on all nodes; it knows what the nodes can't:
whether the fabric had a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePath

from tests.simulation.disks import read_mark
from tests.simulation.placement import find_overcommitment, is_one_place
from tests.simulation.writers import find_wrong_writers
from weft.agent.workload.shape import ROOT_SERIAL
from weft.drivers.runtime.fake.driver import FakeGuest
from weft.informer.silent_nodes import PATIENCE_SECONDS
from weft.kinds.allocation import AllocationReport, AllocationSpec, is_slot
from weft.kinds.migration import ENDED, MigrationStatus
from weft.kinds.node import NodeReport, read_orphan
from weft.objects.envelope import Envelope, decode_part


class Violation(Exception):
    """An invariant was broken."""


class Witness:
    """Raises Violation, and keeps the first: whoever was at it may catch the exception. ``on_break`` is called with each."""

    def __init__(self, on_break: Callable[[], None]) -> None:
        self._on_break = on_break
        self.on_begin: Callable[[str, FakeGuest], None] = lambda node, guest: (
            None
        )  # hears of each guest that begins to run
        self.on_commit: Callable[[Envelope | None, Envelope | None], None] = lambda was, now: None
        self.wall: Callable[[], float] = lambda: 0.0  # seconds since 1970
        self.violations: list[str] = []
        self.allocations: dict[str, Envelope] = {}  # in the store, by uid
        self.nodes: dict[str, NodeReport] = {}  # by uid
        self.workload_of: dict[str, str] = {}  # allocation uid → workload uid, for ever
        self.reasons: dict[str, set[str]] = {}  # allocation uid → why its guest may be ended
        self.incarnations: dict[str, int] = {}  # workload uid → its highest in this history
        self.forgotten: set[str] = set()  # uids of allocations that an older store didn't know
        self.restored_at = 0.0
        self.epoch = ""  # of the store's present history, once there was another
        self.unheard: set[str] = set()  # uids of nodes that have not spoken in it yet
        self.passed_over: set[str] = set()  # nodes that were lost for too long after a restore to be waited for
        self.left_behind: dict[str, set[str]] = {}  # volume uid → nodes that were passed over when it was deleted
        self.node_uids: dict[str, str] = {}  # by name
        self.gave_up = False  # whether a node was given up, and what lay there with it, or a store was restored
        self.dark: set[str] = set()  # uids of nodes that are off, and are being given up
        self.untold: set[str] = set()  # uids of allocations that went with their node, which hasn't said that it knows
        self.given_up: set[str] = set()  # of those that went so in this history, by what the store remembers of it
        self.given_up_before: set[str] = (
            set()
        )  # and of those that did in another one, and that the store knows nothing of
        # Allocation uid → those of its VM's other guests that ran as it did when it was taken up: they may run on (docs/status.md).
        self.beside: dict[str, set[str]] = {}
        self.boots: dict[str, int] = {}
        self.alive: dict[tuple[str, str], str] = {}  # (node, guest id) → allocation uid
        self.disks: dict[str, tuple[str, str]] = {}  # a disk that is written to → the guest that does
        self.came_to: Counter[str] = Counter()  # phases that Migrations came to, and why
        self.came_from: dict[str, str] = {}  # allocation uid that is, or was, a target → its source's
        self.deleted: set[str] = set()  # uids of allocations that were to go, in this history or one before
        self.boot_ids: dict[str, str] = {}  # allocation uid → of its guest when it last began to run
        self.roots: dict[str, str] = {}  # allocation uid → the mark of its root disk then
        self.data: dict[str, str] = {}  # volume uid → the mark of its disk, once a guest has run on it
        self.restored: dict[str, set[int]] = {}  # allocation uid → the restores in place that it was to make
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
        self.unheard = {item.uid for item in nodes}
        known = {item.uid: item for item in allocations}
        self.forgotten |= self.allocations.keys() - known.keys()
        self.given_up_before |= self.given_up - known.keys()
        self.given_up.clear()
        self.allocations = known
        self.incarnations.clear()
        self.nodes = {item.uid: decode_part(item.report, NodeReport) for item in nodes}

    def note_time(self, now: float) -> None:
        """After a restore, nodes are waited for until it is known that they are lost. What runs there is passed over then:
        there may be a second one of it until the node is heard (docs/status.md)."""
        if now - self.restored_at >= PATIENCE_SECONDS:
            self.passed_over |= self.unheard

    def is_passed_over(self, where: str, allocation: str) -> bool:
        """Whether this is one that only a node knows of (``where`` is its name) which was silent for too long."""
        return allocation in self.forgotten and self.node_uids[where] in self.passed_over

    def see_commit(self, writer: str, was: Envelope | None, now: Envelope | None) -> None:
        envelope = now or was
        assert envelope is not None
        if writer != "setup":
            for wrong in find_wrong_writers(writer, was, now, giving_up=bool(self.dark)):
                self.fail(wrong)
        self.on_commit(was, now)
        if envelope.kind == "allocation":
            self._see_allocation(was, now)
        elif envelope.kind == "node" and now is not None:
            report = self.nodes[now.uid] = decode_part(now.report, NodeReport)
            if report.epoch == self.epoch:
                self.unheard.discard(now.uid)
            self.untold -= {orphan.uid for text in report.orphans if (orphan := read_orphan(text)) is not None}
        elif envelope.kind == "node" and was is not None:
            self.nodes.pop(was.uid, None)
            self.gave_up = True
            self.passed_over |= self.unheard & {was.uid}  # people gave it up before it could say what lies there
        elif envelope.kind == "migration" and now is not None and was is not None:
            self._see_migration(was, now)
        elif envelope.kind == "volume" and now is None:
            self.left_behind[envelope.uid] = self.unheard & self.passed_over
        elif envelope.kind == "vm" and now is None and was is not None:
            self._see_vm_gone(was)

    def _see_migration(self, was: Envelope, now: Envelope) -> None:
        before, after = decode_part(was.status, MigrationStatus), decode_part(now.status, MigrationStatus)
        if before.phase in ENDED and before != after:
            self.fail(f"migration {now.name} had {before.phase}, and is {after.phase} now")
        if before.phase != after.phase:
            self.came_to[f"{after.phase} {after.reason}".strip()] += 1

    def _see_allocation(self, was: Envelope | None, now: Envelope | None) -> None:
        if now is None:
            assert was is not None
            self.allocations.pop(was.uid, None)
            if decode_part(was.spec, AllocationSpec).node_uid in self.dark:
                self.reasons.setdefault(was.uid, set()).add("given up")
                self.untold.add(was.uid)
                self.given_up.add(was.uid)
                return  # its node was given up, by someone who said that it is off
            if is_slot(decode_part(was.spec, AllocationSpec)):
                return  # no node has anything of it
            report = decode_part(was.report, AllocationReport)
            if report.state != "released":
                self.fail(f"allocation {was.uid} was removed while {report.state}")
            if any(uid == was.uid for uid in self.alive.values()):
                self.fail(f"allocation {was.uid} was removed while its guest runs: an orphan")
            return
        spec = decode_part(now.spec, AllocationSpec)
        self.allocations[now.uid] = now
        self.boots[now.uid] = max(spec.restart_generation, self.boots.get(now.uid, 0))
        if spec.origin is not None and spec.origin.generation:
            self.restored.setdefault(now.uid, set()).add(spec.origin.generation)
        self.untold.discard(now.uid)
        self.given_up.discard(now.uid)
        reasons = self.reasons.setdefault(now.uid, set())
        if now.deleting_since is not None:
            reasons.add("deleted")
            self.deleted.add(now.uid)
        if spec.desired != "run":
            reasons.add(spec.desired)
        if spec.lease is not None and spec.lease.end is not None:
            reasons.add("its lease ends")
        if spec.lease is not None and spec.lease.suspension is not None:
            reasons.add("suspended for another")
        if spec.role == "source" and spec.migration is not None and spec.migration.mode == "cold":
            reasons.add("moves cold")
        if spec.role == "target" and spec.migration is not None:
            self.came_from[now.uid] = spec.migration.peer_allocation
        known = now.uid in self.workload_of
        self.workload_of[now.uid] = spec.workload.uid
        if was is None and known:
            running = {uid for uid in self.alive.values() if self.workload_of.get(uid) == spec.workload.uid}
            self.beside[now.uid] = running if now.uid in running else set()
        if was is None or spec.resources != decode_part(was.spec, AllocationSpec).resources:
            self._check_placing(was, spec, known=known)

    def _check_placing(self, was: Envelope | None, spec: AllocationSpec, *, known: bool) -> None:
        """A place that is made, adopted (it was ``known`` before the store knew of it again), or given another size."""
        name, node = spec.workload.name, self.nodes.get(spec.node_uid)
        slot = spec.role == "reserved"  # one of several of a reservation
        if not slot and not is_one_place(
            [a for a in self.allocations.values() if self.workload_of[a.uid] == spec.workload.uid]
        ):
            self.fail(f"vm {name} was given two places")
        if node is None and was is None:  # one that is there goes right after its node
            self.fail(f"vm {name} was placed on a node that isn't there")
        latest = self.incarnations.get(spec.workload.uid, 0)
        if was is None and not known and not slot and spec.incarnation <= latest:
            self.fail(f"vm {name} was placed anew as incarnation {spec.incarnation}, after {latest}")
        self.incarnations[spec.workload.uid] = max(latest, spec.incarnation)
        if node is not None and not (was is None and known):  # that took its room before
            for what in find_overcommitment(node, spec, was, list(self.allocations.values()), self.wall()):
                self.fail(what)

    def _see_vm_gone(self, was: Envelope) -> None:
        if was.deleting_since is None:
            self.fail(f"vm {was.name} was lost: nobody asked to delete it")
        for allocation in self.allocations.values():
            if self.workload_of[allocation.uid] == was.uid:
                self.fail(f"vm {was.name} is gone, its allocation {allocation.uid} is not")
        for (where, _), uid in self.alive.items():
            unknown = self.is_passed_over(where, uid) or uid in self.untold  # it ends once its node is heard
            if self.workload_of.get(uid) == was.uid and not unknown:
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
        # It ended there, and its node has not been told of the second one.
        again = self.is_passed_over(node, uid) and self.node_uids[node] in self.unheard
        for (where, _), other in self.alive.items():
            passed_over = again or self.is_passed_over(where, other)
            gone = self.untold | self.given_up_before  # nobody knows any more that people gave it up (docs/status.md)
            unknown = passed_over or not gone.isdisjoint((uid, other)) or other in self.beside.get(uid, ())
            unknown = unknown and where != node
            if self.workload_of.get(other) == workload and not unknown:
                self.fail(f"vm {guest.plan.name} runs twice: on {where} and on {node}")
        if uid not in self.allocations and uid not in self.forgotten | self.untold:
            self.fail(f"guest {guest.plan.name} on {node} was started when its allocation was gone: an orphan")
        for disk in guest.plan.disks:
            name = PurePath(disk.path).name
            if (
                self.gave_up
            ):  # an older store may begin a node's own volume anew: two files then, of which people are told (0044)
                name = disk.path
            writer = key if disk.read_only else self.disks.setdefault(name, key)
            if writer != key and not (writer[0] != node and self.is_passed_over(writer[0], self.alive[writer])):
                self.fail(f"disk {name} is written to by two guests: on {writer[0]} and on {node}")
        self.on_begin(node, guest)
        self.alive[key] = uid
        self._check_luggage(uid, guest)

    def _check_luggage(self, uid: str, guest: FakeGuest) -> None:
        """All that a guest had it has still, where it has moved to."""
        marks = {disk.serial: read_mark(disk.path) for disk in guest.plan.disks if not disk.read_only}
        root = marks[ROOT_SERIAL]
        source, came = self.came_from.get(uid), uid not in self.roots
        migration = guest.migration
        place = self.allocations.get(uid)
        # An older store may list it again as a guest that is there, when its disk went with it: that begins anew (0044).
        anew = uid in self.deleted and place is not None and decode_part(place.spec, AllocationSpec).role == "active"
        if came and not anew and source in self.roots:
            if self.roots[source] != root:
                self.fail(f"guest {guest.plan.name} moved without its root disk")
            if migration is not None and self.boot_ids[source] != guest.boot_id:
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
        """The agent has ended a running guest. A restart or a restore is a reason once for each time it was asked for."""
        uid = guest.plan.uid
        if self.reasons.get(uid):
            return
        self.restarts[uid] = self.restarts.get(uid, 0) + 1
        if self.restarts[uid] > self.boots.get(uid, 0) + len(self.restored.get(uid, ())):
            self.fail(f"guest {guest.plan.name} on {node}: {verb} without a reason")
