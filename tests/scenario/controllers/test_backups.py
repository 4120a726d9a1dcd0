"""Backups as the controllers see to them, with a pretend node: made from a snapshot, fetched as one, regularly, removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from tests.scenario.controllers_lab import GIB
from tests.scenario.migration_lab import MovingLab
from tests.scenario.snapshot_lab import SnapshotNode, join

from weft.kinds.backup import BackupSpec, BackupStatus
from weft.kinds.backup_policy import BackupPolicyStatus
from weft.kinds.backup_repository import BackupRepositoryStatus
from weft.kinds.fields.backup_work import BackupAct, BackupOrder, BackupReport
from weft.kinds.node import NodePool, NodeSnapshot
from weft.kinds.orders import OrderReports
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.registry import BY_NAME
from weft.kinds.snapshot import SnapshotMarks, SnapshotStatus
from weft.kinds.volume import VolumeStatus
from weft.objects.envelope import Envelope, decode_part, merge_part


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
    await node.write_report(orders=OrderReports(backup=[done]))
    return order


async def until_phase(lab: MovingLab, key: str, phase: str, status: type[Any]) -> Any:
    async def is_there() -> bool:
        envelope = await lab.get(key)
        return envelope is not None and decode_part(envelope.status, status).phase == phase

    await lab.until(is_there)
    envelope = await lab.get(key)
    assert envelope is not None
    return decode_part(envelope.status, status)


async def make_monday(lab: MovingLab, node: SnapshotNode) -> str:
    """The key of a backup of a VM."""
    await node.write_report(pools=[NodePool("local", "p", 100 * GIB, 90 * GIB)])
    await lab.put_vm("web")
    await lab.until_phase("web", "Running")
    safe = await lab.put("backuprepository", "safe", {"url": "dir:///srv/safe"}, project=None)
    await do(lab, node, safe.key, "check", repository_id="i", backups=0)
    made = await lab.put("backup", "monday", {"of": "vm/web", "to": "safe"}, finalizers=("backup",))
    await do(lab, node, made.key, "copy", repository_id="i", bytes=7, stored_bytes=6)
    await until_phase(lab, made.key, "Ready", BackupStatus)
    return made.key


async def test_what_boots_a_backup_is_weft_s_own_and_goes_even_if_people_delete_its_vm(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        key = await make_monday(lab, node)

        asked = {"verify_generation": 1, "verify_how": "boot", "verify_check": "test -s /srv/db"}
        await lab.ask(key.rpartition("/")[2], "backup", **asked)
        await do(lab, node, key, "verify")

        async def read_status() -> BackupStatus:
            envelope = await lab.get(key)
            assert envelope is not None
            return decode_part(envelope.status, BackupStatus)

        async def is_booted() -> bool:
            return (await read_status()).test is not None

        await lab.until(is_booted)
        test = (await read_status()).test
        assert test is not None
        own = {kind: await lab.get(f"/{kind}/default/{test.name}") for kind in ("vm", "network", "snapshot")}
        specs: list[Any] = [decode_part(one.spec, BY_NAME[kind].spec) for kind, one in own.items() if one is not None]
        vm, network, snapshot = specs
        assert own["vm"] is not None
        marks = decode_part(own["vm"].marks, WorkloadMarks)
        assert marks.test is not None and marks.test.check == "test -s /srv/db"
        assert (vm.networks, vm.restart) == ([test.name], "never")
        assert (network.nat, network.open) == (False, []) and own["snapshot"] is not None
        assert decode_part(own["snapshot"].marks, SnapshotMarks).backup == "monday"
        for kind, spec in (("vm", vm), ("snapshot", snapshot)):
            one = own[kind]
            assert one is not None and BY_NAME[kind].count_envelope(spec, one).amounts == {}

        await lab.delete(f"/vm/default/{test.name}")

        async def is_over() -> bool:
            return (await read_status()).test is None

        await lab.until(is_over)
        status = await read_status()
        assert (status.state, status.verify.result, status.verify.reason) == ("read", "undone", "testGone")
        for kind in own:
            await lab.until_gone(f"/{kind}/default/{test.name}")


async def test_a_vm_begins_from_a_backup_that_is_served_and_the_snapshot_lasts_until_it_stands_alone(
    tmp_path: Path,
) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await make_monday(lab, node)
        marks = {"automatic": "backup", "backup": "monday", "instant": True}
        served = await lab.put("snapshot", "quick-back", {"of": "vm/web"}, marks=marks, finalizers=("snapshot",))
        await lab.put_vm("quick", origin={"snapshot": "quick-back"})

        async def read() -> SnapshotStatus:
            envelope = await lab.get(served.key)
            assert envelope is not None
            return decode_part(envelope.status, SnapshotStatus)

        async def is_ordered() -> bool:
            order = (await read()).order
            return order is not None and order.act == "serve"

        await lab.until(is_ordered)
        order = (await read()).order
        assert order is not None
        said = BackupReport(
            uid=order.uid, act="serve", phase="working", serves=True, message="the VM waits: it is away"
        )
        await node.write_report(orders=OrderReports(backup=[said]))
        await lab.until_phase("quick", "Running")
        status = await read()
        assert (status.phase, status.serves) == ("Taking", True)
        assert status.message == "served from backup/monday until its disks are copied; the VM waits: it is away"

        await node.write_report(orders=OrderReports(backup=[BackupReport(uid=order.uid, act="serve", phase="done")]))
        await lab.until_gone(served.key)
        await lab.until_phase("quick", "Running")


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
        assert status.image_sha256  # of the image that its disks stood on

        marks = {"automatic": "backup", "backup": "monday"}
        fetched = await lab.put("snapshot", "back", {"of": "vm/web"}, marks=marks, finalizers=("snapshot",))
        await do(lab, node, fetched.key, "fetch")
        others = node.report.snapshots
        await node.write_report(snapshots=[*others, NodeSnapshot(uid=fetched.uid, size=7, memory=0, pool_id="p")])
        back = await until_phase(lab, fetched.key, "Deleting", SnapshotStatus)  # since no VM begins from it
        assert back.image_sha256 == ""  # it stands on none
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
        third = await lab.put("backup", "third", spec, marks={"policy": "gone"}, status=done)
        await lab.until_gone(second.key)
        assert await lab.get(third.key) is not None


async def test_volumes_of_a_restore_that_never_began_go_with_its_vm(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await node.write_report(pools=[NodePool("local", "p", 100 * GIB, 90 * GIB)])
        gone = SnapshotStatus(phase="Failed", reason="backupGone", message="backup/monday is gone")
        marks = {"automatic": "backup", "backup": "monday"}
        back = await lab.put("snapshot", "back", {"of": "vm/web"}, marks=marks, status=gone, finalizers=("snapshot",))
        marks = {"origin": {"snapshot": "back", "disk": "data"}}
        waiting = await lab.put_vm("new", volumes=["new-data"], origin={"snapshot": "back"})
        data = await lab.put("volume", "new-data", {"size": GIB}, marks=marks, finalizers=("volume",))
        own = await lab.put("volume", "own", {"size": GIB}, finalizers=("volume",))
        await lab.pass_time(30.0)
        assert await lab.get(data.key) is not None
        await lab.delete(waiting.key)
        await lab.until_gone(data.key)
        await lab.until_gone(back.key)
        assert await lab.get(own.key) is not None


async def test_a_policy_of_a_whole_project_backs_up_what_has_data_and_what_comes_later(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await node.write_report(pools=[NodePool("local", "p", 100 * GIB, 90 * GIB)])
        await lab.put_vm("web")
        await lab.put_container("plain")
        there = VolumeStatus(node=node.name, node_uid=node.uid, pool="local", pool_id="p")
        await lab.put("volume", "lone", {"size": GIB}, status=there, finalizers=("volume",))
        await lab.put("volume", "empty", {"size": GIB}, finalizers=("volume",))
        await lab.put("volume", "sealed", {"size": GIB, "encrypted": True}, status=there, finalizers=("volume",))
        policy = await lab.put("backuppolicy", "all", {"whole_project": True, "to": "safe", "every": 86400.0})

        async def subjects() -> set[str]:
            now = await lab.get(policy.key)
            assert now is not None
            status = decode_part(now.status, BackupPolicyStatus)
            assert not status.message or status.message.startswith("left out: volume/sealed: it is encrypted")
            return {one.of for one in status.subjects} if status.message else set()

        async def has_both() -> bool:
            return await subjects() == {"vm/web", "volume/lone"}

        await lab.until(has_both)
        await lab.put_vm("late")

        async def has_three() -> bool:
            return await subjects() == {"vm/web", "volume/lone", "vm/late"}

        await lab.until(has_three)
        made = [decode_part(one.spec, BackupSpec) for one in await lab.every("backup")]
        assert sorted(one.of for one in made) == ["vm/late", "vm/web", "volume/lone"]
        assert {one.keep for one in made} == {30 * 86400.0}


async def test_a_backup_is_fetched_where_its_vm_finds_room(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        first = await join(lab)
        made = await make_monday(lab, first)  # of a VM with one core; the node has eight

        def grow(envelope: Envelope) -> None:
            status = decode_part(envelope.status, BackupStatus)
            envelope.status = merge_part(
                envelope.status,
                msgspec.structs.replace(status, workload_spec={**status.workload_spec, "cpu": 5.0}),
            )

        await lab.change(made, grow)
        others = [await join(lab, name) for name in ("n2", "n3")]
        for other in others:
            await other.write_report(pools=[NodePool("local", "p", 100 * GIB, 90 * GIB)])
        chosen = []
        for name in ("a", "b", "c", "d"):
            marks = {"automatic": "backup", "backup": "monday"}
            fetched = await lab.put("snapshot", name, {"of": "vm/web"}, marks=marks, finalizers=("snapshot",))
            chosen.append((await until_phase(lab, fetched.key, "Taking", SnapshotStatus)).node)
        # Each beside what is fetched for the others; the last one finds room nowhere, and waits where its VM was.
        assert chosen == ["n1", "n2", "n3", "n1"]
