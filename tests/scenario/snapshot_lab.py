"""Pretend nodes that take snapshots of their guests, keep them, and go back to them."""

from __future__ import annotations

from typing import Any

import msgspec
from tests.scenario.controllers_lab import GIB
from tests.scenario.migration_lab import MigratingNode, MovingLab

from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin, SnapshotReport
from weft.kinds.node import NodeSnapshot
from weft.objects.envelope import Envelope, decode_envelope, decode_part, merge_part


class SnapshotNode(MigratingNode):
    """A node that takes the snapshots that it is asked for, and goes back to them."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.takes = True
        self.fails = ""
        self.cannot_restore = ""
        self.lists = True  # what it took
        self.begun_from: dict[str, AllocatedOrigin] = {}  # by workload, the origin that it had when it began
        self._have_run: set[str] = set()  # uids of allocations

    async def act(self, key: str) -> None:
        if self.cannot_restore:
            await self._fail(key)
            return
        await super().act(key)
        entry = await self.lab.store.get(key)
        if entry is None or self.slow:
            return
        envelope = decode_envelope(entry.value, entry.revision)
        spec = decode_part(envelope.spec, AllocationSpec)
        if spec.origin is not None:
            self.begun_from[spec.workload.name] = spec.origin
        report = self.running.get(envelope.uid, AllocationReport())
        orders = [*spec.snapshots]
        disks = {"root": GIB, **{volume.uid: volume.size for volume in spec.volumes}}
        restores = spec.origin is not None and spec.origin.generation > report.restored
        if restores and spec.origin is not None and spec.origin.keeps is not None:
            orders.append(spec.origin.keeps)
        if report.state == "running":
            self._have_run.add(envelope.uid)
        begins = spec.origin is not None and spec.origin.generation == 0 and envelope.uid not in self._have_run
        report = msgspec.structs.replace(report, to_begin=begins)
        new = msgspec.structs.replace(report, snapshots=[self._take(one.uid, one.memory, disks) for one in orders])
        if restores and spec.origin is not None and self.takes:
            new.restored = spec.origin.generation
        if new == self.running.get(envelope.uid, AllocationReport()):
            return
        self.running[envelope.uid] = new
        taken = [one.uid for one in new.snapshots if one.phase == "ready"]
        if taken and self.lists:
            listed = [one for one in self.report.snapshots if one.uid not in taken]
            listed += [NodeSnapshot(uid=uid, size=5 << 20, memory=1 << 20, pool_id="p") for uid in taken]
            await self.write_report(snapshots=listed)

        def change(target: Envelope) -> None:
            target.report = merge_part(target.report, new)

        await self.lab.change(key, change)

    async def _fail(self, key: str) -> None:
        def change(target: Envelope) -> None:
            report = decode_part(target.report, AllocationReport)
            failed = msgspec.structs.replace(report, state="failed", reason="noSpace", message=self.cannot_restore)
            target.report = merge_part(target.report, failed)

        entry = await self.lab.store.get(key)
        if entry is not None and decode_part(decode_envelope(entry.value).report, AllocationReport).state != "failed":
            await self.lab.change(key, change)

    def _take(self, uid: str, memory: bool, disks: dict[str, int]) -> SnapshotReport:
        if self.fails:
            return SnapshotReport(uid=uid, phase="failed", reason="noSpace", message=self.fails)
        if not self.takes:
            return SnapshotReport(uid=uid)
        consistency = "memory" if memory else "crash"
        return SnapshotReport(
            uid=uid,
            phase="ready",
            consistency=consistency,  # type: ignore[arg-type]
            disks=disks,
            size=4 << 20,
            taken_at=self.lab.clock.now(),
            pool="local",
            pool_id="p",
        )


async def join(lab: MovingLab, name: str = "n1") -> SnapshotNode:
    node = lab.nodes[name] = SnapshotNode(lab, name, epoch=await lab.epoch())
    await node.join()
    return node
