"""Tenants: reservations and the workloads in them, of one's own project or shared by another; VMs with a disruption budget, and
others that preempt them; and a bursar who lowers what each user may have, under what they have.

``Capacity`` looks at each commit, and at each guest that begins: nothing is given twice, over time or now.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from tests.simulation.connections import Line
from tests.simulation.people import MIB, TOKEN, VMS, insist
from weft.drivers.runtime.fake.driver import FakeGuest
from weft.kinds.allocation import AllocationReport, AllocationSpec, account_within
from weft.kinds.fields.lease import LEASE_ENDED
from weft.kinds.parts.sharing import read_shares
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.quota import QuotaSpec
from weft.kinds.reservation import ReservationSpec, ReservationStatus
from weft.objects.envelope import Envelope, decode_part
from weft.objects.quantity import format_moment

if TYPE_CHECKING:
    from tests.simulation.fabric import Fabric

RESERVATIONS = "/v1/projects/{}/reservations"
LABELS = {"app": "guarded"}
BUDGET = {"selector": LABELS, "max_unavailable": 1}
LIMITS = (4, 6, 9, 14)  # VMs that a user may have
STALE_SECONDS = 5.0  # that controllers may not know yet of a share that was taken back
LATE_SECONDS = 90.0
RESERVERS, GUARDED, URGENT = ("ada", "bob", "cleo"), ("g1", "g2", "g3"), ("u1", "u2")
OPEN = ("Scheduled", "Active")
EPSILON = 1e-6


class Capacity:
    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._places: dict[str, Envelope] = {}  # allocations by name
        self._promised: dict[str, tuple[float | None, float | None]] = {}  # reservation uid → start and end
        self._unshared: dict[str, float] = {}  # reservation uid → when it was shared with nobody any more

    def see_begin(self, node: str, guest: FakeGuest) -> None:
        fabric, witness = self._fabric, self._fabric.witness
        allocation = witness.allocations.get(guest.plan.uid)
        spec = decode_part(allocation.spec, AllocationSpec) if allocation is not None else None
        if spec is not None and spec.lease is not None and fabric.clock.now() < spec.lease.start - 1.0:
            witness.fail(f"vm {guest.plan.name} begins on {node} before {format_moment(spec.lease.start)}")
        running = [guest.plan.uid, *(uid for (where, _), uid in witness.alive.items() if where == node)]
        places = [
            decode_part(witness.allocations[uid].spec, AllocationSpec) for uid in running if uid in witness.allocations
        ]
        capacity = next(one for one in fabric.nodes if one.name == node).host.capacity
        if sum(place.resources.cpu for place in places) > capacity.cpu + EPSILON:
            told = ", ".join(f"{place.workload.name} {place.resources.cpu:g}" for place in places)
            witness.fail(f"node {node} runs more than it has: {told}")

    def see_commit(self, was: Envelope | None, now: Envelope | None) -> None:
        envelope = now or was
        assert envelope is not None
        match envelope.kind:
            case "allocation":
                self._see_allocation(was, now)
            case "reservation" if now is not None:
                self._see_reservation(was, now)
            case "vm" if was is None and now is not None:
                self._see_created(now)

    def _see_allocation(self, was: Envelope | None, now: Envelope | None) -> None:
        fabric = self._fabric
        if now is None:
            assert was is not None
            self._places.pop(was.name, None)
            spec = decode_part(was.spec, AllocationSpec)
            if spec.role == "reserved" and self._is_open(spec.workload.uid):
                fabric.wishes["slot re-planned"] += 1
            return
        self._places[now.name] = now
        spec = decode_part(now.spec, AllocationSpec)
        if was is None and spec.slot is not None:
            self._check_slot(spec)
        former = decode_part(was.spec, AllocationSpec).lease if was is not None else None
        if (
            spec.lease is not None
            and spec.lease.suspension is not None
            and (former is None or former.suspension is None)
        ):
            fabric.wishes["suspended"] += 1
            self._check_budget()

    def _check_slot(self, spec: AllocationSpec) -> None:
        """One that was given a place in a slot: the slot has it, is there, and is for its project."""
        witness, name = self._fabric.witness, spec.workload.name
        self._fabric.wishes["within"] += 1
        found = self._places.get(spec.slot or "")
        if found is None:
            return witness.fail(f"vm {name} was placed in a slot that isn't there")
        slot = decode_part(found.spec, AllocationSpec)
        inside = []
        for place in self._places.values():
            other = decode_part(place.spec, AllocationSpec)
            if other.slot == spec.slot:
                inside.append(account_within(other, decode_part(place.report, AllocationReport)))
        if sum(one.cpu for one in inside) > slot.resources.cpu + EPSILON:
            witness.fail(f"the slot of {slot.workload.name} on {slot.node} is given to too many with vm {name}")
        if slot.node != spec.node:
            witness.fail(f"vm {name} is on {spec.node}, its slot on {slot.node}")
        project, since = slot.workload.project, self._unshared.get(slot.workload.uid)
        late = since is not None and self._fabric.clock.now() > since + STALE_SECONDS
        if project != spec.workload.project and late and spec.incarnation == 1:  # who was placed before keeps it
            witness.fail(f"vm {name} was placed in {project}/{slot.workload.name}, which isn't shared any more")

    def _check_budget(self) -> None:
        down = []
        guarded = {vm.uid for vm in self._fabric.ledger.notes.objects("vm") if vm.labels == LABELS}
        for place in self._places.values():
            spec = decode_part(place.spec, AllocationSpec)
            suspended = spec.lease is not None and spec.lease.suspension is not None and spec.role != "target"
            if suspended and place.deleting_since is None and spec.workload.uid in guarded:
                down.append(spec.workload.name)
        if len(down) > 1:
            self._fabric.witness.fail(f"{', '.join(sorted(down))} are suspended at once: their budget lets one be down")

    def _see_reservation(self, was: Envelope | None, now: Envelope) -> None:
        status = decode_part(now.status, ReservationStatus)
        shared = bool(read_shares(now.spec))
        if was is not None and read_shares(was.spec) and not shared:
            self._unshared[now.uid] = self._fabric.clock.now()
        if status.start is None:
            return
        times = (status.start, status.end)
        if self._promised.setdefault(now.uid, times) != times:
            self._fabric.witness.fail(f"reservation {now.name} was promised {self._promised[now.uid]}, and now {times}")
        if status.state == "Rejected":
            self._fabric.witness.fail(f"reservation {now.name} was accepted, and is refused now")

    def _see_created(self, vm: Envelope) -> None:
        """An object is admitted by the limits that the store has with it."""
        notes = self._fabric.ledger.notes
        quota = next((one for one in notes.objects("quota") if one.project == vm.project), None)
        limit = decode_part(quota.spec, QuotaSpec).per_user.instances if quota is not None else None
        mine = [one for one in notes.objects("vm") if (one.project, one.creator) == (vm.project, vm.creator)]
        count = sum(decode_part(one.status, WorkloadStatus).reason != LEASE_ENDED for one in mine)
        if limit is not None and count > limit:
            self._fabric.witness.fail(f"vm {vm.name} is number {count} of {vm.creator}, who may have {limit}")

    def _is_open(self, uid: str) -> bool:
        found = next((one for one in self._fabric.ledger.notes.objects("reservation") if one.uid == uid), None)
        if found is None or found.deleting_since is not None:
            return False
        status = decode_part(found.status, ReservationStatus)
        return status.state in OPEN and status.end is not None and self._fabric.clock.now() < status.end

    def find_broken(self) -> str:
        """The first reservation that is accepted, tells of no lost slot, and hasn't all."""
        slots = [decode_part(one.spec, AllocationSpec) for one in self._places.values()]
        for one in self._fabric.ledger.notes.objects("reservation"):
            spec, status = decode_part(one.spec, ReservationSpec), decode_part(one.status, ReservationStatus)
            count = sum(1 for slot in slots if slot.role == "reserved" and slot.workload.uid == one.uid)
            if self._is_open(one.uid) and count != spec.count and not status.message:
                return f"reservation {one.name} is {status.state} with {count} of {spec.count} slots"
        return ""


class Tenant:
    """Someone who asks for the same again and again."""

    def __init__(self, fabric: Fabric, name: str, seed: int) -> None:
        self.name, self.fabric = name, fabric
        self.draw = random.Random(f"tenants {seed} {name}")
        self._line = Line(fabric.doorways, fabric.fate, f"tenant {name}", token=TOKEN)
        self._number = 0

    async def live(self) -> None:
        while not self.fabric.fate.spent:
            self._number += 1
            await self.turn(f"{self.name}-{self._number}")

    async def turn(self, name: str) -> None:
        raise NotImplementedError

    async def ask(self, method: str, path: str, body: Any) -> Any:
        return await insist(self._line, method, path, body, lambda: self.fabric.restores)

    async def create_vm(self, name: str, labels: dict[str, str] | None = None, **more: Any) -> bool:
        spec = {"image": "tiny", "memory": 64 * MIB, "grace": 1.0, "networks": ["default"], **more}
        answer = await self.ask("POST", VMS, {"kind": "vm", "name": name, "labels": labels or {}, "spec": spec})
        self.fabric.wishes[f"create {answer.status}"] += 1
        return bool(answer.status < 300)

    async def delete_vm(self, name: str) -> None:
        await self.ask("DELETE", f"{VMS}/{name}", None)
        while any(vm.name == name for vm in self.fabric.ledger.notes.objects("vm")):
            await asyncio.sleep(1.0)

    def status(self, name: str) -> WorkloadStatus | None:
        vm = next((vm for vm in self.fabric.ledger.notes.objects("vm") if vm.name == name), None)
        if vm is None:
            self.fabric.witness.note(f"vm {name} was lost")
        return decode_part(vm.status, WorkloadStatus) if vm is not None else None


class Reserver(Tenant):
    async def turn(self, name: str) -> None:
        fabric, draw = self.fabric, self.draw
        project, now = draw.choice(("default", "default", "lab")), fabric.clock.now()
        start, seconds = draw.choice((None, now + draw.uniform(20.0, 120.0))), draw.choice((30.0, 70.0))
        spec: dict[str, Any] = {"cpu": draw.choice((1.0, 2.0)), "memory": 256 * MIB, "count": draw.choice((1, 2))}
        spec |= {"duration": seconds, "grace": 2.0, "start": None if start is None else format_moment(start)}
        path, body = RESERVATIONS.format(project), {"kind": "reservation", "name": name}
        if project == "lab":
            spec["shared_with"] = ["default"]
        if (await self.ask("POST", path, {**body, "spec": spec})).status >= 300:
            return await asyncio.sleep(5.0)
        fabric.wishes["reserve"] += 1
        within = name if project == "default" else f"{project}/{name}"
        vms = [f"{name}-{number}" for number in range(draw.choice((1, 2, 3)))]
        vms = [vm for vm in vms if await self.create_vm(vm, cpu=draw.choice((0.5, 1.0)), reservation=within)]
        if project == "lab" and draw.random() < 0.5:
            await asyncio.sleep(draw.uniform(0.0, 60.0))
            taken_back = (await self.ask("POST", f"{path}/{name}:share", {"stop": ["default"]})).status < 300
            fabric.wishes["share taken back"] += taken_back
            late = f"{name}-late"
            if taken_back and await self.create_vm(late, cpu=0.5, reservation=within):
                fabric.witness.note(f"vm {late} was admitted to {within}, which isn't shared any more")
        end = (start or now) + seconds
        await asyncio.sleep(max(0.0, end - fabric.clock.now()) + LATE_SECONDS * draw.random())
        for vm in vms:
            status = self.status(vm)
            if status is None:
                return
            fabric.wishes[f"within {status.lease.state if status.lease is not None else None}"] += 1
            await self.delete_vm(vm)
        while (await self.ask("DELETE", f"{path}/{name}", None)).status == 409:
            await asyncio.sleep(2.0)  # a workload of it is on its way out


class Guarded(Tenant):
    """Has a VM that gives way to others, one of them at a time."""

    async def turn(self, name: str) -> None:
        if not await self.create_vm(name, LABELS, cpu=2.0, lease={"mode": "best-effort"}):
            return await asyncio.sleep(5.0)
        for _ in range(self.draw.choice((20, 60))):
            await asyncio.sleep(5.0)
            if self.fabric.fate.spent or self.status(name) is None:
                break
        await self.delete_vm(name)


class Urgent(Tenant):
    async def turn(self, name: str) -> None:
        await asyncio.sleep(self.draw.uniform(0.0, 20.0))
        lease = {"mode": "immediate", "duration": self.draw.choice((20.0, 40.0))}
        if not await self.create_vm(name, cpu=4.0, lease=lease):
            return
        await asyncio.sleep(lease["duration"] + 30.0 * self.draw.random())
        status = self.status(name)
        if status is not None:
            self.fabric.wishes[f"urgent {status.lease.state if status.lease is not None else None}"] += 1
            await self.delete_vm(name)


class Bursar(Tenant):
    """Lowers and raises what each user may have; and sees whether reservations are whole."""

    async def turn(self, name: str) -> None:
        for _ in range(self.draw.choice((5, 20))):
            await asyncio.sleep(1.0)
            if broken := self.fabric.capacity.find_broken():
                self.fabric.witness.note(broken)
        limits = {"per_user": {"instances": self.draw.choice(LIMITS)}}
        answer = await self.ask("PATCH", "/v1/projects/default/quotas/project", {"spec": limits})
        if answer.status < 300:
            self.fabric.wishes["limit changed"] += 1


def move_in(fabric: Fabric, seed: int) -> list[Tenant]:
    found: list[Tenant] = [Reserver(fabric, name, seed) for name in RESERVERS]
    found += [Guarded(fabric, name, seed) for name in GUARDED]
    found += [Urgent(fabric, name, seed) for name in URGENT]
    return [*found, Bursar(fabric, "bursar", seed)]
