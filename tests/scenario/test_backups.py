"""Backups as the controllers see to them, with a pretend node: made from a snapshot, fetched as one, regularly, removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from tests.scenario.controllers_lab import GIB
from tests.scenario.migration_lab import MovingLab
from tests.scenario.snapshot_lab import SnapshotNode, join

from weft.kinds.backup import BackupStatus
from weft.kinds.backup_policy import BackupPolicyStatus
from weft.kinds.backup_repository import BackupRepositoryStatus
from weft.kinds.fields.backup_work import BackupAct, BackupOrder, BackupReport
from weft.kinds.node import NodePool, NodeSnapshot
from weft.kinds.snapshot import SnapshotStatus
from weft.objects.envelope import decode_part


class HasOrder(msgspec.Struct):
    order: BackupOrder | None = None


async def do(lab: MovingLab, node: SnapshotNode, key: str, act: BackupAct, **told: Any) -> BackupOrder:
    """Wait for the order in this object's status, and report it done."""
    found: list[BackupOrder] = []

    async def is_ordered() -> bool:
        envelope = await lab.get(key)
        order = decode_part(envelope.status, HasOrder).order if envelope is not None else None
        found[:] = [order] if order is not None and order.act == act else []
        return bool(found)

    await lab.until(is_ordered)
    order = found[0]
    done = BackupReport(uid=order.uid, act=act, generation=order.generation, phase="done", **told)
    await node.write_report(backups=[done])
    return order


async def until_phase(lab: MovingLab, key: str, phase: str, status: type[Any]) -> Any:
    async def is_there() -> bool:
        envelope = await lab.get(key)
        return envelope is not None and decode_part(envelope.status, status).phase == phase

    await lab.until(is_there)
    envelope = await lab.get(key)
    assert envelope is not None
    return decode_part(envelope.status, status)


async def test_a_backup_is_made_fetched_and_removed_and_a_policy_makes_the_next(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await node.write_report(pools=[NodePool("local", "p", 100 * GIB, 90 * GIB)])
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        safe = await lab.put("backuprepository", "safe", {"url": "dir:///srv/safe"}, project=None)
        await do(lab, node, safe.key, "check", repository_id="i", backups=0)
        assert (await until_phase(lab, safe.key, "Ready", BackupRepositoryStatus)).id == "i"

        made = await lab.put("backup", "monday", {"of": "vm/web", "to": "safe"}, finalizers=("backup",))
        order = await do(lab, node, made.key, "copy", repository_id="i", bytes=7, stored_bytes=6)
        assert (order.repository, order.base, order.disks) == ("safe", "", {"root": "root"})
        status = await until_phase(lab, made.key, "Ready", BackupStatus)
        assert (status.bytes, status.stored_bytes, status.state) == (7, 6, "unproven")

        spec = {"of": "vm/web", "automatic": "backup", "backup": "monday"}
        fetched = await lab.put("snapshot", "back", spec, finalizers=("snapshot",))
        await do(lab, node, fetched.key, "fetch")
        others = node.report.snapshots
        await node.write_report(snapshots=[*others, NodeSnapshot(uid=fetched.uid, size=7, memory=0, pool_id="p")])
        await until_phase(lab, fetched.key, "Deleting", SnapshotStatus)  # since no VM begins from it
        await node.write_report(snapshots=others)
        await lab.until_gone(fetched.key)

        rests = await lab.put(
            "backuppolicy", "rests", {"of": ["vm/web"], "to": "safe", "every": 3600.0, "paused": True}
        )
        await lab.put("backuppolicy", "nightly", {"of": ["vm/web"], "to": "safe", "every": 86400.0, "verify": ""})

        async def has_another() -> bool:
            policy = await lab.get("/backuppolicy/default/nightly")
            return policy is not None and bool(decode_part(policy.status, BackupPolicyStatus).subjects)

        await lab.until(has_another)
        paused = await lab.get(rests.key)
        assert paused is not None and not decode_part(paused.status, BackupPolicyStatus).subjects
        await lab.delete(made.key)
        await do(lab, node, made.key, "forget")
        await lab.until_gone(made.key)


async def test_a_backup_whose_time_is_over_is_deleted_but_the_newest_good_one_stays(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        done = BackupStatus(phase="Ready", state="unproven")
        spec = {"of": "vm/web", "to": "safe", "keep": 86400.0}
        first = await lab.put("backup", "first", spec, status=done)
        lab.clock.advance(7 * 86400.0)
        await lab.pass_time(3700.0)
        assert await lab.get(first.key) is not None
        second = await lab.put("backup", "second", spec, status=done)
        await lab.until_gone(first.key)
        lab.clock.advance(7 * 86400.0)
        await lab.pass_time(3700.0)
        assert await lab.get(second.key) is not None
        third = await lab.put("backup", "third", {**spec, "policy": "gone"}, status=done)
        await lab.until_gone(second.key)
        assert await lab.get(third.key) is not None
