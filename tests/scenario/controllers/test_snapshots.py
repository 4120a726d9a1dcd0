"""Snapshots as the controllers see to them: taken by the node of their VM, kept there, gone back to, begun from, removed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.long import mark_long
from tests.scenario.controllers_lab import GIB
from tests.scenario.migration_lab import MovingLab, World
from tests.scenario.snapshot_lab import SnapshotNode, join

from weft.contracts.store import Delete
from weft.kinds.image import ImageStatus
from weft.kinds.node import NodeSnapshot, NodeSpec
from weft.kinds.parts.snapshot.restored import VmOrigin, VolumeOrigin
from weft.kinds.parts.snapshot.schedule import SnapshotSchedule
from weft.kinds.snapshot import SnapshotMarks, SnapshotSpec, SnapshotStatus
from weft.kinds.volume import VolumeSpec
from weft.objects.envelope import Condition, Envelope, decode_part, merge_part


async def take(lab: MovingLab, name: str, of: str = "vm/web", *, memory: bool = False, **marks: Any) -> Envelope:
    return await lab.put("snapshot", name, {"of": of, "memory": memory}, marks=marks, finalizers=("snapshot",))


async def snapshot(lab: MovingLab, name: str) -> SnapshotStatus:
    envelope = await lab.get(f"/snapshot/default/{name}")
    assert envelope is not None
    return decode_part(envelope.status, SnapshotStatus)


async def until(lab: MovingLab, name: str, phase: str) -> SnapshotStatus:
    async def there() -> bool:
        return (await snapshot(lab, name)).phase == phase

    await lab.until(there, 60.0)
    return await snapshot(lab, name)


async def until_restored(lab: MovingLab, name: str, reason: str) -> Condition:
    async def there() -> bool:
        told = (await lab.vm(name)).condition("Restored")
        return told is not None and told.reason == reason

    await lab.until(there, 60.0)
    told = (await lab.vm(name)).condition("Restored")
    assert told is not None
    return told


async def restore(lab: MovingLab, name: str, source: str, **more: Any) -> None:
    generation = (await lab.vm(name)).generation + 1
    await lab.ask(name, "vm", restore={"snapshot": source, "generation": generation, **more})


@pytest.mark.parametrize("memory", [False, True])
async def test_a_snapshot_is_taken_by_the_node_of_its_vm_and_says_where_it_lies(tmp_path: Path, memory: bool) -> None:
    async with MovingLab(tmp_path) as lab:
        await join(lab)
        vm = await lab.put_vm("web", user_data="#!/bin/sh\necho secret")
        await lab.until_phase("web", "Running")
        await take(lab, "before", memory=memory)
        status = await until(lab, "before", "Ready")
        assert (status.node, status.consistency, status.workload_uid) == ("n1", "memory" if memory else "crash", vm.uid)
        assert status.disks["root"].size == 1 * GIB and status.taken_at is not None
        assert status.workload_spec["image"] == "tiny" and "secret" not in str(status.workload_spec)
        await lab.pass_time(2.0)
        assert (await snapshot(lab, "before")).size == 5 << 20  # the node's own word
        assert [allocation.snapshots for allocation in await lab.allocations()] == [[]]
        await take(lab, "after")
        assert (await until(lab, "after", "Ready")).parent == "before"


async def test_of_two_snapshots_of_a_vm_one_waits_for_the_other_and_says_so(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        node.takes = False
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take(lab, "a")
        await until(lab, "a", "Taking")
        await take(lab, "b")
        await lab.pass_time(2.0)
        waits = await snapshot(lab, "b")
        assert (waits.phase, waits.reason) == ("Pending", "isTaking") and "snapshot/a" in waits.message
        node.takes = True
        await node.act((await lab.every("allocation"))[0].key)
        await until(lab, "a", "Ready")
        await until(lab, "b", "Ready")


async def test_a_snapshot_of_a_vm_whose_node_is_away_says_so_and_is_taken_once_it_is_back(tmp_path: Path) -> None:
    def be_autonomous(node: Envelope) -> None:
        node.spec = merge_part(node.spec, NodeSpec(autonomy_seconds=3600.0))

    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await lab.change("/node/n1", be_autonomous)
        await node.die()
        await lab.pass_time(60.0)
        for name in ("a", "b"):
            await take(lab, name)
        await lab.pass_time(3.0)
        first, second = await snapshot(lab, "a"), await snapshot(lab, "b")
        assert (first.phase, first.message) == ("Taking", "waits: node n1 sends no heartbeat")
        assert second.message.endswith("first; node n1 sends no heartbeat")
        await node.start()
        await node.act((await lab.every("allocation"))[0].key)
        assert [(await until(lab, name, "Ready")).message for name in ("a", "b")] == ["", ""]


async def test_the_snapshots_of_a_group_are_ordered_of_their_nodes_together(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        node.takes = False
        for vm in ("db", "web"):
            await lab.put_vm(vm)
            await lab.until_phase(vm, "Running")
        members = ["db", "web"]
        await asyncio.gather(*(take(lab, f"g-{vm}", of=f"vm/{vm}", group="g", members=members) for vm in members))
        for name in ("g-db", "g-web"):
            await until(lab, name, "Taking")
        assert [len(place.snapshots) for place in await lab.allocations()] == [1, 1]


async def test_a_group_whose_member_never_gets_ready_fails_and_lets_the_others_migrate_again(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        node.takes = False  # nor says that it could
        for vm in ("db", "web"):
            await lab.put_vm(vm)
            await lab.until_phase(vm, "Running")
        for vm in ("db", "web"):  # one by one
            await take(lab, f"g-{vm}", of=f"vm/{vm}", group="g", members=["db", "web"])
            await lab.pass_time(2.0)
        await until(lab, "g-db", "Taking")
        await lab.pass_time(130.0)
        failed = await until(lab, "g-web", "Failed")
        assert failed.reason == "groupFailed" and "could not begin within 2m" in failed.message
        assert [one.turn for place in await lab.allocations() for one in place.snapshots] == ["drop", "drop"]
        node.fails = "it did not stand still with its group"
        for place in await lab.every("allocation"):
            await node.act(place.key)
        await lab.pass_time(2.0)
        assert [place.snapshots for place in await lab.allocations()] == [[], []]


async def test_a_snapshot_that_its_node_can_not_take_fails_with_the_nodes_reason(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        node.fails = "the pool is full"
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take(lab, "a")
        failed = await until(lab, "a", "Failed")
        assert (failed.reason, failed.message) == ("noSpace", "the pool is full")
        assert [allocation.snapshots for allocation in await lab.allocations()] == [[]]
        await lab.delete("/snapshot/default/a")
        await lab.until_gone("/snapshot/default/a")


async def test_a_snapshot_of_a_vm_without_a_place_waits_and_of_none_fails(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.put_vm("web")
        await take(lab, "a")
        await lab.pass_time(2.0)
        waits = await snapshot(lab, "a")
        assert (waits.phase, waits.reason) == ("Pending", "noPlace")
        await lab.delete("/vm/default/web")
        assert (await until(lab, "a", "Failed")).reason == "vmGone"


async def test_a_snapshot_outlives_its_vm_and_goes_once_its_node_lists_it_no_more(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take(lab, "a")
        await until(lab, "a", "Ready")
        await lab.delete("/vm/default/web")
        await lab.until_gone("/vm/default/web")
        await lab.pass_time(2.0)
        assert (await snapshot(lab, "a")).phase == "Ready"
        await lab.delete("/snapshot/default/a")
        await lab.pass_time(2.0)
        status = await snapshot(lab, "a")
        assert status.phase == "Deleting" and "n1 still has" in status.message
        await node.write_report(snapshots=[])
        await lab.until_gone("/snapshot/default/a")


async def test_a_snapshot_whose_data_its_node_has_lost_says_so(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take(lab, "a")
        await until(lab, "a", "Ready")
        await lab.pass_time(2.0)
        kept = node.report.snapshots
        await node.write_report(snapshots=[])
        assert (await until(lab, "a", "Failed")).reason == "dataGone"
        await node.write_report(snapshots=kept)
        await until(lab, "a", "Ready")


async def test_a_restore_in_place_keeps_what_stood_there(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        made = await take(lab, "a")
        await until(lab, "a", "Ready")
        await restore(lab, "web", "a")
        told = await until_restored(lab, "web", "Restored")
        assert told.status == "True"
        [place] = await lab.allocations()
        assert place.origin is not None and place.origin.snapshot == made.uid and place.origin.disks == {"root": "root"}
        [kept] = [one for one in await lab.every("snapshot") if one.name != "a"]
        assert kept.name.startswith("web-before-")
        await until(lab, kept.name, "Ready")
        await restore(lab, "web", "a", keep=False)
        await lab.pass_time(2.0)
        assert len(await lab.every("snapshot")) == 2


async def take_in_turn(lab: MovingLab, *names: str) -> None:
    for name in names:
        await take(lab, name)
        await until(lab, name, "Ready")
        await lab.pass_time(1.0)


async def test_a_snapshot_that_goes_leaves_its_parent_to_those_that_stand_on_it(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take_in_turn(lab, "a", "b", "c")
        assert (await snapshot(lab, "c")).parent == "b"
        kept = {name: await lab.get(f"/snapshot/default/{name}") for name in ("a", "c")}
        await lab.delete("/snapshot/default/b")
        await node.write_report(snapshots=[NodeSnapshot(uid=one.uid, size=1) for one in kept.values() if one])
        await lab.until_gone("/snapshot/default/b")
        assert (await snapshot(lab, "c")).parent == "a"
        await lab.delete("/snapshot/default/a")
        await node.write_report(snapshots=[NodeSnapshot(uid=kept["c"].uid, size=1)] if kept["c"] else [])
        await lab.until_gone("/snapshot/default/a")
        assert (await snapshot(lab, "c")).parent == ""


async def test_what_is_taken_after_a_restore_stands_on_the_snapshot_that_was_restored(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take_in_turn(lab, "a", "b")
        await restore(lab, "web", "a")
        await until_restored(lab, "web", "Restored")
        [kept] = [one for one in await lab.every("snapshot") if one.name not in ("a", "b")]
        await until(lab, kept.name, "Ready")
        assert (await snapshot(lab, kept.name)).parent == "b"  # it is what stood there before
        await take_in_turn(lab, "c", "d")
        assert [(await snapshot(lab, name)).parent for name in ("c", "d")] == ["a", "c"]


async def test_the_first_snapshot_of_a_vm_does_not_stand_on_one_of_an_earlier_vm_of_that_name(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await join(lab)
        for name in ("a", "b"):
            await lab.put_vm("web")
            await lab.until_phase("web", "Running")
            await take_in_turn(lab, name)
            await lab.delete("/vm/default/web")
            await lab.until_gone("/vm/default/web")
        assert (await snapshot(lab, "b")).parent == ""


async def test_a_restore_waits_for_the_snapshot_that_is_being_taken(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take(lab, "a")
        await until(lab, "a", "Ready")
        node.takes = False
        await take(lab, "b")
        await until(lab, "b", "Taking")
        await restore(lab, "web", "a")
        await until_restored(lab, "web", "TakingSnapshot")
        assert [one.origin for one in await lab.allocations()] == [None]
        node.takes = True
        await node.act((await lab.every("allocation"))[0].key)
        await until_restored(lab, "web", "Restored")


async def test_a_restore_of_a_snapshot_that_is_gone_is_given_up_and_never_comes_back(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await restore(lab, "web", "a")
        await until_restored(lab, "web", "SnapshotGone")
        await take(lab, "a")
        await until(lab, "a", "Ready")
        await lab.pass_time(2.0)
        assert [one.origin for one in await lab.allocations()] == [None]


async def test_a_restore_keeps_what_stands_there_only_within_the_quota(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take(lab, "a")
        await until(lab, "a", "Ready")
        await lab.put("quota", "project", {"disk": 1})
        await restore(lab, "web", "a")
        told = await until_restored(lab, "web", "QuotaExceeded")
        assert "can't be kept: project default: disk: " in told.message
        assert [one.name for one in await lab.every("snapshot")] == ["a"]
        await restore(lab, "web", "a", keep=False)
        await until_restored(lab, "web", "Restored")


async def test_a_vm_that_begins_from_a_snapshot_waits_for_it_and_is_placed_where_it_lies(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        node.takes = False
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        made = await take(lab, "a", memory=True, automatic="clone")
        await lab.put_vm("twin", origin=VmOrigin(snapshot="a", memory=True))
        other = await join(lab, "n2")
        await lab.pass_time(2.0)
        placed = await lab.placed("twin")
        assert placed is not None and placed.reason == "snapshotNotReady"
        node.takes = True
        await node.act(next(one.key for one in await lab.every("allocation")))
        await lab.until_phase("twin", "Running")
        origin = node.begun_from["twin"]
        assert "twin" not in other.begun_from
        assert (origin.snapshot, origin.generation, origin.memory, origin.identity) == (made.uid, 0, True, True)
        # It was made for the twin, which has begun.
        await lab.pass_time(2.0)
        assert (await snapshot(lab, "a")).phase == "Deleting"
        await node.write_report(snapshots=[])
        await lab.until_gone("/snapshot/default/a")


async def test_a_vm_that_begins_from_a_snapshot_whose_node_is_gone_says_so(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await join(lab)
        await join(lab, "n2")
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take(lab, "a")
        home = (await until(lab, "a", "Ready")).node
        await lab.delete("/vm/default/web")
        await lab.until_gone("/vm/default/web")
        lab.nodes.pop(str(home))
        await lab.store.commit([Delete(f"/node/-/{home}")])  # as the server does, once nothing is on it
        await lab.put_vm("copy", node=None, origin=VmOrigin(snapshot="a"))
        await lab.pass_time(2.0)
        placed = await lab.placed("copy")
        assert placed is not None and placed.reason == "snapshotMissing", placed
        lost = await until(lab, "a", "Unavailable")
        assert lost.message == f"its data is on node {home}, which was deleted; it is available once that node is back"
        assert placed.message == f"snapshot/a, from which it begins: {lost.message}"


@pytest.mark.parametrize(
    ("status", "reason", "why"),
    [
        (None, "imageNotReady", 'image "tiny" does not exist'),
        (ImageStatus(phase="Failed", message="no such file"), "imageFailed", "image tiny: no such file"),
        (
            ImageStatus(phase="Available", sha256="cd" * 32, size=1, virtual_size=GIB),
            "snapshotFailed",
            "snapshot/a stands on an earlier content of image tiny",
        ),
    ],
)
async def test_a_vm_that_begins_from_a_snapshot_needs_the_image_that_it_stands_on(
    tmp_path: Path, status: ImageStatus | None, reason: str, why: str
) -> None:
    async with MovingLab(tmp_path) as lab:
        await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take(lab, "a")
        await until(lab, "a", "Ready")
        if status is None:
            await lab.store.commit([Delete("/image/default/tiny")])
        else:

            def change(image: Envelope) -> None:
                image.status = merge_part(image.status, status)

            await lab.change("/image/default/tiny", change)
        await lab.put_vm("copy", origin=VmOrigin(snapshot="a"))
        await lab.pass_time(2.0)
        placed = await lab.placed("copy")
        assert placed is not None and (placed.reason, why in placed.message) == (reason, True), placed
        assert (await snapshot(lab, "a")).phase == "Ready", "it is there when the image is again"


async def test_a_twin_that_never_began_keeps_its_snapshot_and_stays_where_that_is(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take(lab, "a", automatic="clone")
        node.slow = True
        await lab.put_vm("twin", node=None, origin=VmOrigin(snapshot="a"))
        node.slow = False
        for place in await lab.every("allocation"):
            await node.act(place.key)
        await until(lab, "a", "Ready")
        node.slow = True
        await lab.until(lambda: placed(lab, "twin"), 60.0)
        await lab.change_spec("twin", run="stop")
        await lab.pass_time(2.0)
        node.slow = False
        for place in await lab.every("allocation"):
            await node.act(place.key)
        await lab.until_phase("twin", "Stopped")
        await join(lab, "n2")
        await lab.migrate("twin", mode="cold", to="n2")
        await lab.pass_time(2.0)
        migration = await lab.get("/migration/default/m")
        told = migration.condition("Placed") if migration is not None else None
        assert told is not None and told.reason == "notBegun", told
        assert "start it once first" in told.message
        assert (await snapshot(lab, "a")).phase == "Ready", "it needs it still"
        await lab.change_spec("twin", run="run")
        await lab.until_phase("twin", "Running")
        assert node.begun_from["twin"].disks
        await lab.until_migration("Succeeded")


async def placed(lab: MovingLab, name: str) -> bool:
    told = await lab.placed(name)
    return told is not None and told.status == "True"


async def test_a_volume_that_is_detached_meanwhile_is_free_once_the_snapshot_is_taken(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await lab.put("volume", "data", VolumeSpec(size=GIB), finalizers=("data",))
        await lab.put_vm("web", volumes=["data"])
        await lab.until_phase("web", "Running")
        await lab.change_spec("web", run="stop")
        await lab.until_phase("web", "Stopped")
        node.takes = False
        await take(lab, "a")
        await until(lab, "a", "Taking")
        await lab.change_spec("web", volumes=[])
        await lab.pass_time(5.0)
        assert [len(place.volumes) for place in await lab.allocations()] == [1], "its node is between two files of it"
        node.takes = True
        await node.act((await lab.every("allocation"))[0].key)
        await until(lab, "a", "Ready")
        await lab.pass_time(2.0)
        assert [place.volumes for place in await lab.allocations()] == [[]]


async def test_a_vm_that_begins_from_a_lost_snapshot_says_what_is_missing(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await join(lab)
        await lab.put_vm("twin", origin=VmOrigin(snapshot="a"))
        await lab.pass_time(2.0)
        placed = await lab.placed("twin")
        assert placed is not None and (placed.reason, "snapshot/a" in placed.message) == ("snapshotMissing", True)


async def test_snapshots_that_no_object_explains_stay_and_are_told(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await node.write_report(snapshots=[NodeSnapshot(uid="u1", size=5)])
        await lab.pass_time(2.0)
        envelope = await lab.get("/node/-/n1")
        told = envelope.condition("Snapshots") if envelope is not None else None
        assert told is not None and told.status == "False" and "u1" in told.message
        await node.write_report(snapshots=[])
        await lab.pass_time(2.0)
        envelope = await lab.get("/node/-/n1")
        told = envelope.condition("Snapshots") if envelope is not None else None
        assert told is not None and told.status == "True"


async def test_a_snapshot_that_grows_makes_remembered_sums_of_a_quota_old(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        quota = await lab.put("quota", "project", {"disk": 1 << 40})
        await lab.pass_time(2.0)
        before = await lab.get(quota.key)
        await take(lab, "a")
        await until(lab, "a", "Ready")
        await lab.pass_time(2.0)
        after = await lab.get(quota.key)
        assert (
            before is not None and after is not None and after.revision > before.revision and after.spec == before.spec
        )


async def test_a_migration_waits_for_the_snapshot_of_its_vm_and_a_snapshot_for_the_migration(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await join(lab, "n2")
        node.takes = False
        await take(lab, "a")
        await until(lab, "a", "Taking")
        await lab.migrate("web")
        await lab.pass_time(3.0)
        migration = await lab.get("/migration/default/m")
        placed = migration.condition("Placed") if migration is not None else None
        assert placed is not None and (placed.status, placed.reason) == ("False", "takingSnapshot")
        node.takes = True
        await node.act((await lab.every("allocation"))[0].key)
        await until(lab, "a", "Ready")
        lab.begin = [World(stops_at="migrating")]

        async def begun() -> bool:
            return len(await lab.allocations()) == 2

        await lab.until(begun)
        await take(lab, "b")
        await lab.pass_time(2.0)
        waits = await snapshot(lab, "b")
        assert (waits.phase, waits.reason) == ("Pending", "isMigrating") and "migration/m" in waits.message


async def test_a_snapshot_that_is_deleted_on_the_way_goes_only_once_its_vm_has_arrived(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take(lab, "a")
        await until(lab, "a", "Ready")
        target = await join(lab, "n2")
        lab.begin = [World(stops_at="migrating")]
        await lab.migrate("web")

        async def begun() -> bool:
            return len(await lab.allocations()) == 2

        await lab.until(begun)
        uid = node.report.snapshots[0].uid
        await lab.delete("/snapshot/default/a")
        await node.write_report(snapshots=[])
        await lab.pass_time(5.0)
        assert "once its disks have arrived" in (await snapshot(lab, "a")).message
        await target.write_report(snapshots=[NodeSnapshot(uid=uid, size=5 << 20)])
        for world in lab.worlds.values():
            world.stops_at = ""
        for allocation in await lab.every("allocation"):
            await node.act(allocation.key)
        await lab.until_migration("Succeeded")
        await lab.pass_time(2.0)
        assert "n2 still has" in (await snapshot(lab, "a")).message
        await target.write_report(snapshots=[])
        await lab.until_gone("/snapshot/default/a")


async def test_a_restored_vm_that_migrates_takes_neither_its_origin_nor_its_orders_along(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take(lab, "a")
        await until(lab, "a", "Ready")
        await restore(lab, "web", "a", keep=False)
        await until_restored(lab, "web", "Restored")
        await join(lab, "n2")
        await lab.migrate("web")
        await lab.until_migration("Succeeded")
        await lab.pass_time(2.0)
        [place] = await lab.allocations()
        assert (place.node, place.origin) == ("n2", None)
        await restore(lab, "web", "a", keep=False)
        told = await until_restored(lab, "web", "SnapshotElsewhere")
        assert "snapshot/a is on n1, and the workload on n2" in told.message


@pytest.mark.parametrize("listed", [True, False])
async def test_a_snapshot_whose_vm_was_deleted_meanwhile_is_there_if_its_node_lists_it(
    tmp_path: Path, listed: bool
) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        node.takes = False
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        made = await take(lab, "a")
        await until(lab, "a", "Taking")
        if listed:
            await node.write_report(snapshots=[NodeSnapshot(uid=made.uid, size=9)])
        await lab.delete("/vm/default/web")
        await lab.until_gone("/vm/default/web")
        status = await until(lab, "a", "Ready" if listed else "Failed")
        assert (status.reason, status.size) == (("", 9) if listed else ("vmGone", 0))


async def test_a_snapshot_that_is_deleted_while_it_is_taken_goes_after_that(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        node.takes = False
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take(lab, "a")
        await until(lab, "a", "Taking")
        await lab.delete("/snapshot/default/a")
        await lab.pass_time(2.0)
        assert (await snapshot(lab, "a")).phase == "Deleting"
        assert [len(one.snapshots) for one in await lab.allocations()] == [1]
        node.takes = True
        await node.act((await lab.every("allocation"))[0].key)
        await lab.pass_time(2.0)
        assert [one.snapshots for one in await lab.allocations()] == [[]]
        await node.write_report(snapshots=[])
        await lab.until_gone("/snapshot/default/a")


async def test_a_vm_from_a_snapshot_gets_the_volumes_that_were_made_with_it_and_nobody_else_does(
    tmp_path: Path,
) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await lab.put("volume", "data", VolumeSpec(size=GIB), finalizers=("volume",))
        await lab.put_vm("web", volumes=["data"])
        await lab.until_phase("web", "Running")
        await take(lab, "a")
        disks = (await until(lab, "a", "Ready")).disks
        origin = VolumeOrigin(snapshot="a", disk="data")
        copy = await lab.put(
            "volume", "copy-data", VolumeSpec(size=GIB), marks={"origin": origin}, finalizers=("volume",)
        )
        await lab.put_vm("thief", volumes=["copy-data"])
        await lab.until_refused("thief", "volumeNotReady")
        await lab.put_vm("copy", volumes=["copy-data"], origin=VmOrigin(snapshot="a"))
        await lab.until_phase("copy", "Running")
        assert node.begun_from["copy"].disks == {"root": "root", copy.uid: disks["data"].key}


async def test_nothing_begins_from_a_snapshot_on_an_image_whose_content_is_another_now(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await take(lab, "a")
        await until(lab, "a", "Ready")

        def change(envelope: Envelope) -> None:
            status = decode_part(envelope.status, ImageStatus)
            status.sha256 = "cd" * 32
            envelope.status = merge_part(envelope.status, status)

        await lab.change("/image/default/tiny", change)
        await lab.put_vm("copy", origin=VmOrigin(snapshot="a"))
        await lab.until_refused("copy", "snapshotFailed")


async def test_a_schedule_takes_snapshots_and_keeps_the_newest_and_everybodys_own(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await lab.put("quota", "project", {"disk": 1 << 40})
        await lab.put_vm("web", snapshots=SnapshotSchedule(every=60.0, keep=2, memory=True))
        await lab.until_phase("web", "Running")
        await take(lab, "mine")
        await until(lab, "mine", "Ready")
        for _ in range(3):
            await lab.pass_time(61.0)
            gone = [one.uid for one in await lab.every("snapshot") if one.deleting_since is not None]
            await node.write_report(snapshots=[one for one in node.report.snapshots if one.uid not in gone])
        await lab.pass_time(5.0)
        made = [one for one in await lab.every("snapshot") if one.name != "mine"]
        assert [one.deleting_since for one in made] == [None, None]
        assert all(decode_part(one.spec, SnapshotSpec).memory for one in made)
        marks = [decode_part(one.marks, SnapshotMarks) for one in made]
        assert {(one.automatic, one.image) for one in marks} == {("schedule", "tiny")}
        assert await lab.get("/snapshot/default/mine") is not None


async def list_taken(lab: MovingLab, node: SnapshotNode) -> list[str]:
    """The names of those that the schedule has made and that stay, oldest first; what is deleted goes from the node, too."""
    found = await lab.every("snapshot")
    gone = [one.uid for one in found if one.deleting_since is not None]
    await node.write_report(snapshots=[one for one in node.report.snapshots if one.uid not in gone])
    return [one.name for one in sorted(found, key=lambda one: one.created_at) if one.uid not in gone]


@pytest.mark.parametrize("restarts", mark_long((False, True), False))
async def test_a_snapshot_of_a_clock_that_was_ahead_makes_a_schedule_neither_run_wild_nor_rest(
    tmp_path: Path, restarts: bool
) -> None:
    """One from the day after tomorrow: the next comes an interval after that was seen, then one each interval; of those that a
    right clock dated, no more go than without it."""
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await lab.put_vm("web", snapshots=SnapshotSchedule(every=3600.0, keep=3))
        await lab.until_phase("web", "Running")
        for _ in range(2):
            await lab.pass_time(1810.0)
            await lab.pass_time(1810.0)
        (*earlier, wrong) = await list_taken(lab, node)
        assert earlier

        def set_ahead(envelope: Envelope) -> None:
            envelope.created_at += 2 * 86400.0

        await lab.change(f"/snapshot/default/{wrong}", set_ahead)
        await lab.pass_time(60.0)
        told = (await lab.vm("web")).condition("Snapshots")
        assert told is not None and (told.reason, told.status) == ("clockSetBack", "Unknown")
        assert wrong in told.message
        if restarts:
            await lab.kill_controllers()
            lab.start_controllers()
        for _ in range(3):
            await lab.pass_time(1100.0)
            assert set(await list_taken(lab, node)) == {*earlier, wrong}
        await lab.pass_time(400.0)
        first = set(await list_taken(lab, node)) - {*earlier, wrong}
        assert len(first) == 1
        for _ in range(3):
            await lab.pass_time(1100.0)
        assert not set(await list_taken(lab, node)) - {*earlier, wrong, *first}
        for _ in range(2):
            await lab.pass_time(2000.0)
        left = await list_taken(lab, node)
        assert len(left) == 3 and wrong not in left and first <= set(left)
        await lab.pass_time(60.0)
        told = (await lab.vm("web")).condition("Snapshots")
        assert told is not None and (told.reason, told.status) == ("Scheduled", "True")


async def test_a_schedule_waits_for_a_full_quota_and_says_so(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await join(lab)
        quota = await lab.put("quota", "project", {"disk": 1})
        await lab.put_vm("web", snapshots=SnapshotSchedule(every=3600.0))
        await lab.until_phase("web", "Running")
        await lab.pass_time(5.0)
        told = (await lab.vm("web")).condition("Snapshots")
        assert not await lab.every("snapshot") and told is not None and told.reason == "quotaExceeded"

        def raise_limit(envelope: Envelope) -> None:
            envelope.spec = merge_part(envelope.spec, {"disk": 1 << 40})

        await lab.change(quota.key, raise_limit)
        await lab.pass_time(70.0)
        told = (await lab.vm("web")).condition("Snapshots")
        assert len(await lab.every("snapshot")) == 1 and told is not None and told.status == "True"


async def test_a_restore_that_its_node_can_not_do_may_give_way_to_another(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        for name in ("a", "b"):
            await take(lab, name)
            await until(lab, name, "Ready")
        node.cannot_restore = "the pool is full"
        await restore(lab, "web", "a", keep=False)
        assert "the pool is full" in (await until_restored(lab, "web", "RestoreFailed")).message
        node.cannot_restore = ""
        await restore(lab, "web", "b", keep=False)
        assert (await until_restored(lab, "web", "Restored")).message.endswith("snapshot/b")


async def test_a_vm_whose_snapshot_lies_on_a_full_node_waits_and_says_which(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await join(lab)
        await lab.put_vm("web", cpu=7.0)
        await lab.until_phase("web", "Running")
        await take(lab, "a")
        await until(lab, "a", "Ready")
        await join(lab, "n2")
        await lab.put_vm("copy", cpu=7.0, origin=VmOrigin(snapshot="a"))
        await lab.until_refused("copy", "insufficientResources")
        placed = await lab.placed("copy")
        assert placed is not None and "largest free is 1 (n1); 1 without its data" in placed.message
        await lab.delete("/vm/default/web")
        await lab.until_phase("copy", "Running")
        assert (await lab.status("copy")).node == "n1"
