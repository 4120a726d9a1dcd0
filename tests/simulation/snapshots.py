"""Snapshots: people whose guests write, who keep what they have, go back to it, and try it out on a twin.

What all disks of a snapshot hold was written before one instant. A guest that begins to run finds what it wrote last, or what its
snapshot holds. In the end no node keeps a snapshot that nobody wants, and each that somebody wants is whole, or says why not.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from tests.simulation.connections import Line
from tests.simulation.layers import FiledLayers, read_writes, write
from tests.simulation.people import MIB, TOKEN, VMS, VOLUMES, insist
from weft.drivers.runtime.fake.driver import FakeGuest
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.snapshot import SnapshotSpec, SnapshotStatus
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import short_id

if TYPE_CHECKING:
    from tests.simulation.fabric import Fabric

SNAPSHOTS = "/v1/projects/default/snapshots"
ACTS = ("write", "write", "snapshot", "snapshot", "restore", "twin", "clone", "delete", "stop", "start")
PATIENCE_SECONDS = 60.0


class Album:
    """Knows what each VM has written, and what each snapshot holds."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._written: dict[str, list[int]] = {}  # by the VM's uid
        self._held: dict[str, list[list[int]]] = {}  # by the snapshot's uid, once it is ready
        self._origins: dict[str, AllocatedOrigin] = {}  # by the allocation's uid; an older store may not know it
        self._begun: set[tuple[str, int]] = (
            set()
        )  # allocations, and the restores of them that are done; 0: that it began
        self._stood: dict[str, list[int]] = {}  # by the uid of the snapshot that a restore kept: what stood there
        self._removed: set[str] = set()  # uids of snapshots whose data was removed, also in a history that is over
        self._number = 0

    def write(self, name: str) -> bool:
        """Have the guest of this VM write something, if it runs."""
        fabric = self._fabric
        for node in fabric.nodes:
            for where, guest_id in fabric.witness.alive:
                guest = node.runtime.read(guest_id) if where == node.name else None
                if guest is not None and guest.state == "running" and guest.plan.name == name:
                    self._number += 1
                    write(guest, self._number)
                    self._written[fabric.witness.workload_of[guest.plan.uid]].append(self._number)
                    return True
        return False

    def see_begin(self, node: str, guest: FakeGuest) -> None:
        """The guest has what it wrote last, or what it goes back to."""
        witness = self._fabric.witness
        found = {disk.serial: read_writes(disk.path) for disk in guest.plan.disks if not disk.read_only}
        has, what = next(iter(found.values())), f"guest {guest.plan.name} on {node}"
        anew = witness.gave_up  # what lay on a node that was given up, or an older store doesn't know, begins anew
        if any(one != has for one in found.values()) and not anew:
            witness.fail(f"{what} begins on disks of different instants: {found}")
        # A node that hasn't heard of it yet begins one whose allocation went with it, or with a newer store.
        vm, origin = witness.workload_of[guest.plan.uid], self._origins.get(guest.plan.uid)
        held = self._held.get(origin.snapshot, [None])[0] if origin is not None else None
        step = (guest.plan.uid, origin.generation if origin is not None else 0)
        again = step in self._begun and not anew  # each origin is begun from once
        may = [one for one in (self._written.get(vm), None if again else held) if one is not None] or [[]]
        if has not in may and not (anew and [] in found.values()):
            witness.fail(f"{what} begins with {has}, not with {' or '.join(map(str, may))}")
        if origin is None or not origin.generation or has != self._written.get(vm):
            self._note_restored(vm, step, origin)
        self._written[vm] = list(has)

    def _note_restored(self, vm: str, step: tuple[str, int], origin: AllocatedOrigin | None) -> None:
        """Its disks are those of its origin from now on."""
        if step not in self._begun and origin is not None and origin.keeps is not None and vm in self._written:
            self._stood[origin.keeps.uid] = self._written[vm]
        self._begun.add(step)

    def see_commit(self, was: Envelope | None, now: Envelope | None) -> None:
        """A snapshot that becomes ready is of one instant."""
        if now is not None and now.kind == "allocation":
            if (origin := decode_part(now.spec, AllocationSpec).origin) is not None:
                self._origins[now.uid] = origin
            if was is not None:
                self._see_restored(was, now)
        if was is not None and now is None and was.kind == "snapshot":
            self._removed.add(was.uid)
        if now is None or now.kind != "snapshot":
            return
        before = decode_part(was.status, SnapshotStatus).phase if was is not None else "Pending"
        status = decode_part(now.status, SnapshotStatus)
        if status.phase == "Ready" != before:
            self._fabric.wishes["snapshot Ready"] += 1
            found = self._read(now.uid)
            contents = list(found.values())
            torn = any(one != contents[0] for one in contents) and not self._fabric.witness.gave_up
            if not contents or torn:
                self._fabric.witness.fail(f"snapshot {now.name} is ready, and its disks hold {found}")
            self._held[now.uid] = contents
        elif status.phase == "Failed" != before:
            self._fabric.wishes[f"snapshot Failed: {status.reason}"] += 1

    def _see_restored(self, was: Envelope, now: Envelope) -> None:
        """A restore in place that is said to be done is done: nothing but what was written since is on top."""
        origin, report = decode_part(now.spec, AllocationSpec).origin, decode_part(now.report, AllocationReport)
        if (
            origin is None
            or not decode_part(was.report, AllocationReport).restored < origin.generation == report.restored
        ):
            return
        self._fabric.wishes["restored"] += 1
        held = self._held.get(origin.snapshot)
        vm, step = self._fabric.witness.workload_of[now.uid], (now.uid, origin.generation)
        if step not in self._begun and now.uid not in self._fabric.witness.alive.values() and held is not None:
            self._note_restored(vm, step, origin)
            self._written[vm] = list(held[0])
        for node in self._fabric.nodes:
            disk = node.shelf.volumes.get(short_id(now.uid))
            has = read_writes(disk.path) if disk is not None else None
            if has is not None and held is not None and has[: len(held[0])] != held[0]:
                self._fabric.witness.fail(f"{now.name} is restored on {node.name} and has {has}, not {held[0]}")

    def is_behind(self, vm: Envelope) -> bool:
        """Whether an older store lists the VM as one that begins from a snapshot that was deleted since, as people had wished: its
        disks are gone too, so that it can't begin."""
        witness = self._fabric.witness
        places = [uid for uid in witness.allocations if witness.workload_of[uid] == vm.uid]
        gone = [uid for uid in places if uid in self._origins and self._origins[uid].snapshot in self._removed]
        return self._fabric.restores > 0 and bool(places) and gone == places

    def has_failed(self, vm: Envelope) -> bool:
        """Whether the snapshot that a VM begins from has failed, and was never ready in this history: it waits, and says so."""
        origin = decode_part(vm.spec, VmSpec).origin
        found = self._fabric.ledger.notes.objects("snapshot")
        source = next((item for item in found if origin is not None and item.name == origin.snapshot), None)
        if source is None:  # people deleted it, of a twin that only an older store still knows
            return self._fabric.restores > 0
        if source.uid in self._held and not self._fabric.restores:
            return False
        return decode_part(source.status, SnapshotStatus).phase == "Failed"

    def check(self) -> list[str]:
        """What is wrong with what nodes keep, once nothing happens any more."""
        objects = {item.uid: item for item in self._fabric.ledger.notes.objects("snapshot")}
        found = []
        for node in self._fabric.nodes:
            # What an older store has forgotten is kept, and told of (docs/status.md).
            report = self._fabric.witness.nodes.get(node.uid)
            forgot = (self._fabric.restores or self._fabric.removals) and report is not None
            known = {*objects, *(one.uid for one in report.snapshots)} if forgot and report else objects
            left = sorted(kept.uid for kept in node.shelf.layers.kept.values() if kept.uid not in known)
            found += [f"node {node.name} keeps snapshot {uid}, which nobody wants" for uid in left]
            if left := sorted(node.shelf.layers.unfinished):
                found.append(f"node {node.name} has unfinished layers of {left}")
        for item in objects.values():
            phase, what = decode_part(item.status, SnapshotStatus).phase, f"snapshot {item.name}"
            if item.deleting_since is not None:
                found.append(f"{what} is still being deleted")
            elif phase == "Ready" and list(self._read(item.uid).values()) != self._held[item.uid]:
                found.append(f"{what} holds {self._read(item.uid)} now, not {self._held[item.uid]}")
            elif phase == "Ready" and not self._fabric.witness.gave_up and self._kept_other(item.uid):
                found.append(f"{what} keeps {self._held[item.uid]}, and {self._stood[item.uid]} stood there")
            elif phase == "Failed" and item.uid in self._held and not self._fabric.witness.gave_up:
                found.append(f"{what} was ready, and is lost")
            elif phase not in ("Ready", "Failed"):
                status = decode_part(item.status, SnapshotStatus)
                found.append(f"{what} is {phase}: {status.reason} {status.message}")
        return found

    def _kept_other(self, uid: str) -> bool:
        """Whether a restore kept something else as this snapshot than what it took the place of."""
        return uid in self._stood and any(one != self._stood[uid] for one in self._held[uid])

    def _read(self, uid: str) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for node in self._fabric.nodes:
            kept, layers = node.shelf.layers.kept.get(short_id(uid)), node.layers
            if kept is not None and isinstance(layers, FiledLayers):
                found |= layers.find_writes(kept)
        return found


class SnapshotUser:
    """Someone with one VM after the other, each with a volume, and snapshots and twins of it."""

    def __init__(self, fabric: Fabric, name: str, seed: int) -> None:
        self.name = name
        self._fabric = fabric
        self._draw = random.Random(f"snapshots {seed} {name}")
        self._line = Line(fabric.doorways, fabric.fate, f"keeper of {name}", token=TOKEN)
        self._number = 0

    async def live(self) -> None:
        while not self._fabric.fate.spent:
            name = self._count(self.name)
            spec = {"size": 64 * MIB}
            await self._ask("POST", VOLUMES, {"kind": "volume", "name": f"{name}-data", "spec": spec})
            made = await self._ask("POST", VMS, {"kind": "vm", "name": name, "spec": _spec(volumes=[f"{name}-data"])})
            if made.status < 300:
                self._fabric.wishes["create"] += 1
                await self._keep(name)
            await self._clear(name)

    async def _keep(self, name: str) -> None:
        """Do a few things with one VM."""
        draw, twins = self._draw, list[str]()
        for _ in range(draw.randrange(4, 14)):
            if self._fabric.fate.spent:
                break
            await asyncio.sleep(draw.random() * 6.0)
            act = draw.choice(ACTS)
            if act == "write":
                self._fabric.wishes["write"] += self._fabric.album.write(name)
            elif act == "snapshot":
                body = {"name": self._count(f"{name}-s"), "memory": draw.random() < 0.4}
                await self._wish("snapshot", f"{VMS}/{name}:snapshot", body)
            elif act in ("stop", "start"):
                await self._wish(act, f"{VMS}/{name}:{act}", {})
            elif act == "clone":
                twin = self._count(f"{name}-c")
                if len(twins) < 2 and await self._wish("clone", f"{VMS}/{name}:clone", {"new_name": twin}):
                    twins.append(twin)
            elif snapshot := self._choose(name):
                if act == "delete":
                    answer = await self._ask("DELETE", f"{SNAPSHOTS}/{snapshot}", None)
                    self._fabric.wishes["delete snapshot"] += answer.status < 300
                elif act == "restore":
                    body = {"snapshot": snapshot, "keep": draw.random() < 0.7, **draw.choice(({}, {"memory": False}))}
                    await self._wish("restore", f"{VMS}/{name}:restore", body)
                elif len(twins) < 2:
                    twin = self._count(f"{name}-t")
                    body = {"new_name": twin, **draw.choice(({}, {"memory": False}))}
                    if await self._wish("twin", f"{SNAPSHOTS}/{snapshot}:restore", body):
                        twins.append(twin)
        for twin in twins:
            await self._clear(twin, f"{twin}-{name}-data")

    async def _clear(self, name: str, volume: str = "") -> None:
        """Delete the VM with its volume, and most of its snapshots."""
        await self._ask("DELETE", f"{VMS}/{name}", None)
        await self._until_gone("vm", name)
        await self._ask("DELETE", f"{VOLUMES}/{volume or f'{name}-data'}", None)
        for snapshot in self._list(name):
            if self._draw.random() < 0.8:
                await self._ask("DELETE", f"{SNAPSHOTS}/{snapshot.name}", None)

    async def _until_gone(self, kind: str, name: str) -> None:
        for _ in range(int(PATIENCE_SECONDS)):
            if all(item.name != name for item in self._fabric.ledger.notes.objects(kind)):
                return
            await asyncio.sleep(1.0)

    def _list(self, name: str) -> list[Envelope]:
        found = self._fabric.ledger.notes.objects("snapshot")
        return sorted(
            (item for item in found if decode_part(item.spec, SnapshotSpec).of == f"vm/{name}"),
            key=lambda one: one.name,
        )

    def _choose(self, name: str) -> str:
        ready = [item.name for item in self._list(name) if decode_part(item.status, SnapshotStatus).phase == "Ready"]
        return self._draw.choice(ready) if ready else ""

    def _count(self, name: str) -> str:
        self._number += 1
        return f"{name}{self._number}"

    async def _wish(self, what: str, path: str, body: Any) -> bool:
        answer = await self._ask("POST", path, body)
        self._fabric.wishes[what if answer.status < 300 else f"{what} {answer.status}"] += 1
        return bool(answer.status < 300)

    async def _ask(self, method: str, path: str, body: Any) -> Any:
        return await insist(self._line, method, path, body, lambda: self._fabric.restores)


def check_snapshots(fabric: Fabric) -> list[str]:
    """What is not as it should be in the end."""
    found = fabric.album.check()
    for vm in fabric.ledger.notes.objects("vm"):
        status = decode_part(vm.status, WorkloadStatus)
        rests = status.phase == "Pending" and status.reason == "stopped"  # its place went with its node
        behind = status.reason == "snapshotGone" and fabric.album.is_behind(vm)
        waits = status.reason in ("snapshotFailed", "snapshotMissing") and fabric.album.has_failed(vm)
        if vm.deleting_since is not None or not (rests or behind or waits or status.phase in ("Running", "Stopped")):
            found.append(f"vm {vm.name} is {status.phase}: {status.reason} {status.message}")
    return found


def _spec(**more: Any) -> dict[str, Any]:
    return {"image": "tiny", "cpu": 0.1, "memory": 64 * MIB, "networks": ["default"], "grace": 1.0, **more}
