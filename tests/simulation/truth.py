"""What must never be: checked at every commit and at everything that happens to a guest.

``Ledger`` is the store's disk, which outlives its process; it sees every commit and who made it. ``Witness`` sees the
guests themselves, on all nodes, and knows what the nodes can't: whether the fabric had a reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from tests.simulation.virtual_loop import Part, part_here
from weft.contracts.clock import Clock
from weft.contracts.host import Host
from weft.contracts.runtime import GuestState
from weft.contracts.store import Delete, Precondition, Put, Write
from weft.drivers.runtime.fake.driver import FakeDriver, FakeGuest, FakeOrders
from weft.kinds.allocation import AllocationReport, AllocationSpec, account
from weft.kinds.node import NodeReport
from weft.kinds.registry import find_kind
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.identity import object_key
from weft.store.leases import LeaseTable
from weft.store.memory import MemoryStore
from weft.store.watches import Watches

# Who may make, and who may remove, objects of a kind; who may write their spec. ``doors`` writes for people and nodes.
MAKERS = {
    "allocation": {"scheduler", "workload"},
    "endpoint": {"addresses", "workload"},
    "decision": {"scheduler"},
}
REMOVERS = {
    "allocation": {"workload"},
    "endpoint": {"addresses", "workload", "garbage"},
    "decision": {"workload", "garbage"},
    "publication": {"doors", "workload", "garbage"},
    "vm": {"workload"},
}
SPEC_WRITERS = {"allocation": {"workload", "scheduler"}, "decision": {"scheduler"}, "endpoint": {"addresses"}}
STATUS_WRITERS = {"endpoint": {"addresses"}, "publication": {"addresses"}, "token": {"doors"}}
MARKERS = {"allocation": {"workload"}}


class Violation(Exception):
    """An invariant was broken."""


class Ledger(MemoryStore):
    """The store, which notes who writes what. ``end_process`` is what its process's end does to it."""

    def __init__(self, clock: Clock, witness: Witness) -> None:
        super().__init__(clock)
        self._witness = witness
        self._watches = _OwnedWatches(self._epoch, 0, self._replay)
        self.trace = hashlib.sha256()

    async def commit_as(
        self,
        writer: str,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        idempotency_key: str | None = None,
    ) -> int:
        before = {write.key: self._entries.get(write.key) for write in writes}
        revision_before = self._revision
        revision = await self.commit(writes, preconditions, idempotency_key=idempotency_key)
        if self._revision != revision_before:
            for write in writes:
                old = before[write.key]
                self._note(writer, write, None if old is None else old.value)
        return revision

    def _note(self, writer: str, write: Write, old: bytes | None) -> None:
        value = write.value if isinstance(write, Put) else b""
        self.trace.update(f"{self._clock.elapsed():.6f} {writer} {write.key} ".encode() + value)
        if write.key.startswith(("/enrolment/", "/-")):
            return
        was = None if old is None else decode_envelope(old)
        now = None if isinstance(write, Delete) else decode_envelope(write.value)
        self._witness.see_commit(writer, was, now)

    def end_process(self) -> None:
        self._leases = LeaseTable(self._clock, last_fence=self._leases._last_fence)

    def forget(self, part: Part) -> None:
        """Nobody of a dead process reads on."""
        self._watches.forget(part)  # type: ignore[attr-defined]

    def objects(self, kind: str) -> list[Envelope]:
        return [
            decode_envelope(entry.value, entry.revision)
            for key, entry in sorted(self._entries.items())
            if key.startswith(f"/{kind}/")
        ]


class _OwnedWatches(Watches):
    """Watches that know whose they are, and are told in the order in which they came."""

    def _join(self, prefix: str) -> Any:
        watcher = super()._join(prefix)
        watchers = self._by_prefix[prefix]
        if not isinstance(watchers, _Ordered):
            self._by_prefix[prefix] = _Ordered(watchers)  # type: ignore[assignment]
            watchers = self._by_prefix[prefix]
        watcher.part = part_here()  # type: ignore[attr-defined]
        watchers.add(watcher)
        return watcher

    def forget(self, part: Part) -> None:
        for watchers in list(self._by_prefix.values()):
            for watcher in [w for w in watchers if getattr(w, "part", None) is part]:
                self._leave(watcher)


class _Ordered(dict[Any, None]):
    """The few methods of a set that Watches uses, in order of arrival."""

    def __init__(self, items: Any) -> None:
        super().__init__(dict.fromkeys(items))

    def add(self, item: Any) -> None:
        self[item] = None

    def remove(self, item: Any) -> None:
        del self[item]


class Witness:
    """Raises Violation, and keeps the first: whoever was at it may catch the exception."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.allocations: dict[str, Envelope] = {}  # in the store, by uid
        self.nodes: dict[str, NodeReport] = {}  # by uid
        self.workload_of: dict[str, str] = {}  # allocation uid → workload uid, for ever
        self.reasons: dict[str, set[str]] = {}  # allocation uid → why its guest may be ended
        self.boots: dict[str, int] = {}
        self.alive: dict[tuple[str, str], str] = {}  # (node, guest id) → allocation uid
        self.restarts: dict[str, int] = {}  # allocation uid → how often its guest was ended for a fresh start

    def fail(self, what: str) -> None:
        self.violations.append(what)
        raise Violation(what)

    # Commits.

    def see_commit(self, writer: str, was: Envelope | None, now: Envelope | None) -> None:
        envelope = now or was
        assert envelope is not None
        if writer != "setup":
            self._check_writer(writer, was, now)
        if envelope.kind == "allocation":
            self._see_allocation(was, now)
        elif envelope.kind == "node" and now is not None:
            self.nodes[now.uid] = decode_part(now.report, NodeReport)
        elif envelope.kind == "vm" and now is None and was is not None:
            self._see_vm_gone(was)

    def _check_writer(self, writer: str, was: Envelope | None, now: Envelope | None) -> None:
        envelope = now or was
        assert envelope is not None
        kind, what = envelope.kind, f"{envelope.kind} {envelope.name}"
        if was is None or (now is not None and now.uid != was.uid):
            self._may(writer, MAKERS.get(kind, {"doors"}), f"{what} was made")
            return
        if now is None:
            default = {"doors", "workload", "volumes", "networks", "images"}
            self._may(writer, REMOVERS.get(kind, default), f"{what} was removed")
            return
        found = find_kind(kind)
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
            report = decode_part(was.report, AllocationReport)
            if report.state != "released":
                self.fail(f"allocation {was.uid} was removed while {report.state}")
            if any(uid == was.uid for uid in self.alive.values()):
                self.fail(f"allocation {was.uid} was removed while its guest runs: an orphan")
            return
        spec = decode_part(now.spec, AllocationSpec)
        self.allocations[now.uid] = now
        self.workload_of[now.uid] = spec.workload.uid
        self.boots[now.uid] = max(spec.boots, self.boots.get(now.uid, 0))
        reasons = self.reasons.setdefault(now.uid, set())
        if now.deleting_since is not None:
            reasons.add("deleted")
        if spec.wish != "run":
            reasons.add(spec.wish)
        if was is None:
            self._check_placing(now, spec)

    def _check_placing(self, now: Envelope, spec: AllocationSpec) -> None:
        specs = [decode_part(a.spec, AllocationSpec) for a in self.allocations.values()]
        if sum(other.workload.uid == spec.workload.uid for other in specs) > 1:
            self.fail(f"vm {spec.workload.name} was given two places")
        node = self.nodes.get(spec.node_uid)
        if node is None:
            self.fail(f"vm {spec.workload.name} was placed on a node that isn't there")
        here = [account(other) for other in specs if other.node_uid == spec.node_uid]
        cpu, memory, disk = sum(r.cpu for r in here), sum(r.memory for r in here), sum(r.disk for r in here)
        if node is not None and (cpu > node.cpu + 1e-6 or memory > node.memory or disk > node.disk):
            self.fail(f"node {spec.node} is over-committed: {cpu} of {node.cpu} cores, {memory} of {node.memory} bytes")

    def _see_vm_gone(self, was: Envelope) -> None:
        if was.deleting_since is None:
            self.fail(f"vm {was.name} was lost: nobody asked to delete it")
        for allocation in self.allocations.values():
            if self.workload_of[allocation.uid] == was.uid:
                self.fail(f"vm {was.name} is gone, its allocation {allocation.uid} is not")
        for uid in self.alive.values():
            if self.workload_of.get(uid) == was.uid:
                self.fail(f"vm {was.name} is gone, its guest runs: an orphan")

    # Guests.

    def see_guest(self, node: str, guest: FakeGuest) -> None:
        """The guest is like this now."""
        key = (node, guest.plan.id)
        if guest.state != "running":
            self.alive.pop(key, None)
            return
        if key in self.alive:
            return
        uid = guest.plan.uid
        workload = self.workload_of.get(uid)
        if workload is None:
            self.fail(f"guest {guest.plan.name} on {node} was started without an allocation")
        for (where, _), other in self.alive.items():
            if self.workload_of.get(other) == workload:
                self.fail(f"vm {guest.plan.name} runs twice: on {where} and on {node}")
        if uid not in self.allocations:
            self.fail(f"guest {guest.plan.name} on {node} was started when its allocation was gone: an orphan")
        self.alive[key] = uid

    def see_end(self, node: str, guest: FakeGuest, verb: str) -> None:
        """The agent has ended a running guest. A restart is a reason once for each time it was asked for."""
        uid = guest.plan.uid
        if self.reasons.get(uid):
            return
        self.restarts[uid] = self.restarts.get(uid, 0) + 1
        if self.restarts[uid] > self.boots.get(uid, 0):
            self.fail(f"guest {guest.plan.name} on {node}: {verb} without a reason")


class WatchedDriver(FakeDriver):
    """The fake runtime, under the witness's eyes."""

    def __init__(self, host: Host, clock: Clock, orders: FakeOrders, witness: Witness) -> None:
        super().__init__(host, clock, orders)
        self._node, self._witness = host.node, witness

    def _end(self, guest_id: str, state: GuestState, reason: str | None) -> None:
        guest = self._read(guest_id)
        if guest is not None and guest.state == "running" and reason in (None, "stopRequested"):
            self._witness.see_end(self._node, guest, state)
        super()._end(guest_id, state, reason)

    def _write(self, guest: FakeGuest) -> None:
        self._witness.see_guest(self._node, guest)
        super()._write(guest)


def find_vm(ledger: Ledger, name: str) -> Envelope | None:
    key = object_key("vm", "default", name)
    return next((vm for vm in ledger.objects("vm") if vm.key == key), None)


def read_raw(part: msgspec.Raw) -> Any:
    return msgspec.json.decode(part)
