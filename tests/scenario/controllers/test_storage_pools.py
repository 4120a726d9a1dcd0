"""Storage pools as the controllers see them: who lacks one is told so, what is shared stays where it is when its guest moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from tests.scenario.migration_lab import MovingLab

from weft.kinds.allocation import ROOT, AllocationSpec
from weft.kinds.decision import DecisionSpec
from weft.kinds.fields.allocated_migration import MigrationReport
from weft.kinds.node import NodePool, NodeStatus
from weft.kinds.pool import PoolStatus
from weft.kinds.vm import VmSpec
from weft.kinds.volume import VolumeSpec, VolumeStatus
from weft.objects.envelope import Envelope, decode_part, merge_part
from weft.objects.identity import object_key

GIB = 1024**3
SAN = NodePool("san", "id-of-the-san", 100 * GIB, 50 * GIB)
OTHER = NodePool("san", "id-of-another", 100 * GIB, 50 * GIB)
FAST = NodePool("fast", "id-of-the-fast", 100 * GIB, 50 * GIB)
AWAY = NodePool("san", problem="not mounted")


async def test_a_vm_goes_where_its_pool_is_and_each_other_node_says_what_it_lacks(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.add_node("n2", pools=[AWAY])
        await lab.add_node("n3", pools=[SAN])
        await lab.pass_time(2)
        await lab.put_vm("web", node=None, pool="san")
        await lab.until_phase("web", "Running")
        [place] = await lab.allocations()
        assert (place.node, place.pool, place.pool_id) == ("n3", "san", SAN.id)
        decision = await lab.get("/decision/default/vm.web")
        assert decision is not None
        verdicts = {v.node: v.reason for v in decode_part(decision.spec, DecisionSpec).verdicts}
        lacking = "has no usable storage pool san"
        assert verdicts == {"n1": lacking, "n2": lacking, "n3": ""}


async def test_what_both_nodes_see_is_shared_by_a_move_and_what_bears_the_same_name_only_is_not(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.put("volume", "data", {"size": GIB, "pool": "san"}, finalizers=("volume",))
        await lab.put("volume", "own", {"size": GIB}, finalizers=("volume",))
        await lab.add_node("n1", pools=[SAN])
        await lab.add_node("n2", pools=[SAN])
        await lab.add_node("n3", pools=[OTHER])
        await lab.add_node("n4")
        await lab.pass_time(2)
        await lab.put_vm("web", node=None, pool="san", volumes=["data", "own"])
        await lab.until_phase("web", "Running")
        [place] = await lab.allocations()
        here, there = ("n1", "n2") if place.node == "n1" else ("n2", "n1") if place.node == "n2" else ("n3", "")
        if not there:  # begin where it is shared
            await lab.migrate("web", "first", to="n1")
            await lab.until_migration("Succeeded", "first")
            here, there = "n1", "n2"
        await lab.migrate("web", "m", to=there)
        await lab.until_migration("Succeeded", "m")
        [place] = await lab.allocations()
        sides = [
            spec.migration for node in lab.nodes.values() for spec in node.specs.values() if spec.migration is not None
        ]
        data, own = (volume.uid for volume in place.volumes)
        assert {migration.shared for migration in sides if migration.peer in (here, there)} >= {(ROOT, data)}
        assert not any(own in migration.shared for migration in sides)
        assert [volume.pool_id for volume in place.volumes] == [SAN.id, ""]
        volume = await lab.get("/volume/default/data")
        assert volume is not None and decode_part(volume.status, VolumeStatus).pool_id == SAN.id
        await lab.migrate("web", "elsewhere", to="n3")
        await lab.until_migration("Succeeded", "elsewhere")
        [place] = await lab.allocations()
        assert (place.node, place.pool_id, place.volumes[0].pool_id) == ("n3", OTHER.id, OTHER.id)
        moves = [
            spec.migration for node in lab.nodes.values() for spec in node.specs.values() if spec.migration is not None
        ]
        assert any(migration.peer == "n3" and migration.shared == () for migration in moves), "the disks went over"


async def test_where_a_node_lacks_the_pools_of_a_vm_it_is_said_how_its_disks_get_out_of_them(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        for name in ("data", "own"):
            await lab.put(
                "volume", name, {"size": GIB, "pool": "fast" if name == "data" else "local"}, finalizers=("volume",)
            )
        await lab.add_node("n1", pools=[SAN, FAST])
        await lab.add_node("n2", pools=[SAN])
        await lab.add_node("n3")
        await lab.pass_time(2)
        await lab.put_vm("web", node=None, pool="san", volumes=["data", "own"])
        await lab.until_phase("web", "Running")
        root = "weft vm migrate web --storage --pool local"
        data, beside = f"{root} --volume data", "no node other than n1 can take it: of 2, 2 without its storage pool"
        for to, said in (
            ("n2", f"n2: has no usable storage pool fast; first {data}"),
            ("n3", f"n3: has no usable storage pool fast; first {root}, {data}"),
            (None, f"{beside}; first {root}, {data}"),
        ):
            await lab.migrate("web", f"to-{to}".lower(), **({"to": to} if to else {}))
            await lab.pass_time(3)
            migration = await lab.get(f"/migration/default/to-{to}".lower())
            assert migration is not None
            placed = migration.condition("Placed")
            assert placed is not None and placed.message == said
            await lab.delete(f"/migration/default/to-{to}".lower())
            await lab.pass_time(3)


async def test_a_volume_in_a_shared_pool_is_used_from_any_node_that_sees_it(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.put("volume", "data", {"size": GIB, "pool": "san"}, finalizers=("volume",))
        for name, pool in (("n1", SAN), ("n2", SAN), ("n3", OTHER)):
            await lab.add_node(name, pools=[pool])
        await lab.pass_time(2)
        await lab.put_vm("web", node="n1", volumes=["data"])
        await lab.until_phase("web", "Running")
        await lab.put_vm("db", node="n2", volumes=["data"])
        await lab.pass_time(5)
        placed = await lab.placed("db")
        assert placed is not None and placed.reason == "volumeInUse", "one writer at a time"
        await lab.delete("/vm/default/web")
        await lab.until_phase("db", "Running")
        await lab.delete("/vm/default/db")
        await lab.pass_time(5)
        await lab.put_vm("late", node="n3", volumes=["data"])
        await lab.pass_time(5)
        placed = await lab.placed("late")
        assert placed is not None and "1 without its storage pool" in placed.message
        decision = await lab.get("/decision/default/vm.late")
        assert decision is not None
        said = [v.reason for v in decode_part(decision.spec, DecisionSpec).verdicts if v.node == "n3"]
        assert said == ["its pool san is not the storage that holds a volume's data"]


async def say(lab: MovingLab, phase: str, **more: Any) -> AllocationSpec:
    """The node's word on the move of a disk that its one allocation is told of."""
    node = lab.nodes["n1"]
    ((uid, spec),) = [(uid, spec) for uid, spec in node.specs.items() if spec.storage is not None]
    assert spec.storage is not None
    told = MigrationReport(key=spec.storage.key, phase=phase, **more)  # type: ignore[arg-type]
    node.running[uid] = msgspec.structs.replace(node.running[uid], migration=told)
    await node.act(object_key("allocation", None, f"{node.uid}.{uid}"))
    await lab.pass_time(2)
    return spec


async def begin(lab: MovingLab, **spec: Any) -> None:
    await lab.put("volume", "data", {"size": GIB}, finalizers=("volume",))
    await lab.add_node("n1", pools=[FAST, OTHER])
    await lab.pass_time(2)
    await lab.put_vm("web", node=None, volumes=["data"])
    await lab.until_phase("web", "Running")
    await lab.migrate("web", mode="storage", **spec)
    await lab.pass_time(2)


async def test_a_disk_that_moves_to_another_pool_is_said_to_lie_there_once_its_node_says_so(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await begin(lab, pool="fast")
        spec = await say(lab, "migrating", sent_bytes=10, total_bytes=40, remaining_bytes=30)
        assert spec.storage is not None
        assert (spec.storage.disk, spec.storage.pool, spec.storage.pool_id) == (ROOT, "fast", FAST.id)
        status = await lab.until_migration("Migrating")
        assert (status.source, status.target) == ("n1", "n1")
        [place] = await lab.allocations()
        assert place.pool == "local", "nothing is said before it is so"
        await say(lab, "takenOver", pause_ms=12, elapsed_ms=4000, sent_bytes=40)
        status = await lab.until_migration("Succeeded")
        assert status.actual is not None and (status.actual.pause_ms, status.actual.bytes) == (12, 40)
        [place] = await lab.allocations()
        assert (place.pool, place.pool_id, place.storage, place.role) == ("fast", FAST.id, None, "active")
        assert ((await lab.status("web")).pool, decode_part((await lab.vm("web")).spec, VmSpec).pool) == (
            "fast",
            "local",
        )
        await lab.until_phase("web", "Running")
        await lab.migrate("web", "again", mode="storage", pool="fast")
        assert (await lab.until_migration("Failed", "again")).reason == "alreadyThere"
        await lab.migrate("web", "nowhere", mode="storage", pool="slow")
        assert (await lab.until_migration("Failed", "nowhere")).reason == "noPool"


async def test_a_volume_moves_alone_and_what_is_cancelled_or_fails_stays(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await begin(lab, pool="fast", volume="data")
        await say(lab, "migrating")
        await lab.cancel("m")
        await lab.pass_time(2)
        spec = await say(lab, "migrating")
        assert spec.storage is not None and spec.storage.cancel
        await say(lab, "abandoned", reason="cancelled")
        await lab.until_migration("Cancelled")
        await lab.migrate("web", "full", mode="storage", pool="fast", volume="data")
        await lab.pass_time(2)
        await say(lab, "failed", reason="noSpace", message="No space left on device")
        assert (await lab.until_migration("Failed", "full")).reason == "noSpace"
        [place] = await lab.allocations()
        assert (place.storage, place.volumes[0].pool) == (None, "local")
        await lab.migrate("web", "there", mode="storage", pool="fast", volume="data")
        await lab.pass_time(2)
        await say(lab, "takenOver")
        await lab.until_migration("Succeeded", "there")
        [place] = await lab.allocations()
        assert (place.pool, place.volumes[0].pool, place.volumes[0].pool_id) == ("local", "fast", FAST.id)
        volume = await lab.get("/volume/default/data")
        assert volume is not None and decode_part(volume.spec, VolumeSpec).pool == "local", "what its spec says stays"
        status = decode_part(volume.status, VolumeStatus)
        assert (status.pool, status.pool_id) == ("fast", FAST.id)
        await lab.delete("/vm/default/web")
        await lab.pass_time(5)
        await lab.put_vm("next", node=None, volumes=["data"])
        await lab.until_phase("next", "Running")
        [place] = await lab.allocations()
        assert (place.pool, place.volumes[0].pool, place.volumes[0].pool_id) == ("local", "fast", FAST.id)


async def test_one_that_is_planned_is_decided_when_its_hour_comes(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        at = lab.clock.now() + 300
        await begin(lab, pool="fast", not_before=at, not_after=at + 600)
        await lab.add_node("n2", pools=[FAST, OTHER])  # where no room is held: the disk stays on its node
        await lab.migrate("web", "late", mode="storage", pool="slow", volume="data", not_before=at, not_after=at + 5)
        await lab.pass_time(2)
        status = await lab.migration("m")
        assert (status.phase, status.source, status.message) == ("Planned", "n1", "root disk → pool fast, on n1")
        assert status.window is not None and status.window.quality == 0.5 and "migration/late" in status.window.reason
        assert status.forecast is None
        late = await lab.migration("late")
        assert (late.phase, late.reason) == ("Planned", "noPool")
        assert all(place.storage is None and place.role == "active" for place in await lab.allocations())
        while lab.clock.now() < at + 2:
            await lab.pass_time(10)
        spec = await say(lab, "takenOver")
        assert spec.storage is not None and spec.storage.pool == "fast"
        assert (await lab.until_migration("Succeeded")).target == "n1"
        assert (await lab.until_migration("Failed", "late")).reason == "noPool"


async def test_a_pool_comes_with_its_nodes_counts_what_is_promised_and_goes_with_them(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        n1 = await lab.add_node("n1", pools=[SAN])
        await lab.add_node("n2", pools=[SAN])

        async def has(name: str, **expected: Any) -> None:
            async def there() -> bool:
                pool = await lab.get(f"/pool/-/{name}")
                status = decode_part(pool.status, PoolStatus) if pool is not None else None
                return status is not None and all(getattr(status, part) == value for part, value in expected.items())

            await lab.until(there)

        await has("san", nodes=2, phase="Ready", capacity=100 * GIB, used=50 * GIB, given=0)
        await lab.put_vm("web", node="n1", pool="san")
        await lab.until_phase("web", "Running")
        [place] = await lab.allocations()
        await has("san", given=place.resources.disk)
        await n1.write_report(pools=[msgspec.structs.replace(SAN, free=4 * GIB)])
        await has("san", phase="Full", given=place.resources.disk)
        await lab.delete("/vm/default/web")
        await lab.until_gone("/vm/default/web")
        for node in lab.nodes.values():
            await node.write_report(pools=[])
        await lab.until_gone("/pool/-/san")


async def test_a_closed_or_full_pool_takes_no_new_disks_until_it_opens(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await lab.add_node("n1", pools=[SAN])

        async def is_there() -> bool:
            return await lab.get("/pool/-/san") is not None

        await lab.until(is_there)

        def set_closed(closed: bool) -> Callable[[Envelope], None]:
            def change(envelope: Envelope) -> None:
                envelope.spec = merge_part(envelope.spec, {**msgspec.json.decode(envelope.spec), "closed": closed})

            return change

        await lab.change("/pool/-/san", set_closed(True))
        await lab.put_vm("own", node=None)
        await lab.until_phase("own", "Running")
        await lab.put_vm("web", node=None, pool="san")
        await lab.until_refused("web", "noAvailableAgents")
        decision = await lab.get("/decision/default/vm.web")
        assert decision is not None
        assert [v.reason for v in decode_part(decision.spec, DecisionSpec).verdicts] == ["pool/san is closed"]
        await lab.change("/pool/-/san", set_closed(False))
        await lab.until_phase("web", "Running")
        await node.write_report(pools=[msgspec.structs.replace(SAN, free=2 * GIB)])

        async def is_full() -> bool:
            pool = await lab.get("/pool/-/san")
            return pool is not None and decode_part(pool.status, PoolStatus).phase == "Full"

        await lab.until(is_full)
        await lab.put_vm("late", node=None, pool="san")
        await lab.until_refused("late", "noAvailableAgents")
        await node.write_report(pools=[SAN])
        await lab.until_phase("late", "Running")


SMALL = NodePool("san", "id-of-a-small-one", 10 * GIB, 10 * GIB)


async def test_a_shared_pool_holds_more_than_its_nodes_and_promises_no_more_than_its_bound(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name, disk=2 * GIB, pools=[SMALL])
        await lab.pass_time(2)
        await lab.put("volume", "data", {"size": 4 * GIB, "pool": "san"}, finalizers=("volume",))
        await lab.put_vm("db", node="n2", pool="san", disk=9 * GIB, volumes=["data"])
        await lab.until_phase("db", "Running")
        await lab.put_vm("web", node="n1", pool="san", disk=6 * GIB)
        await lab.until_phase("web", "Running")
        await lab.put_vm("late", node=None, pool="san", disk=2 * GIB)
        await lab.until_refused("late", "insufficientResources")
        placed = await lab.placed("late")
        assert (
            placed is not None and "pool/san may promise 20.0 GiB and has promised 19.0 GiB: 2.0 GiB" in placed.message
        )
        await lab.delete("/vm/default/db")
        await lab.until_phase("late", "Running")
        await lab.put_vm("next", node=None, pool="san", disk=9 * GIB)
        await lab.until_refused("next", "insufficientResources")

        def raise_bound(envelope: Envelope) -> None:
            envelope.spec = merge_part(envelope.spec, {**msgspec.json.decode(envelope.spec), "overcommit": 3.0})

        await lab.change("/pool/-/san", raise_bound)
        await lab.until_phase("next", "Running")


async def test_a_lease_that_finds_no_pool_says_which_has_promised_how_much(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", pools=[SMALL])
        await lab.pass_time(2)
        await lab.put_vm("web", node=None, pool="san", disk=21 * GIB, lease={"duration": 600.0})
        await lab.pass_time(5)
        placed = await lab.placed("web")
        assert placed is not None and placed.message.endswith(
            "; pool/san may promise 20.0 GiB and has promised 0 B: 21.0 GiB more are too much"
        )


async def test_a_new_scheduler_counts_what_was_promised_before_it(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", pools=[SMALL])
        await lab.pass_time(2)
        await lab.put("volume", "data", {"size": 12 * GIB, "pool": "san"}, finalizers=("volume",))
        await lab.put_vm("db", node=None, disk=GIB, volumes=["data"])
        await lab.until_phase("db", "Running")
        await lab.delete("/vm/default/db")
        await lab.until_gone("/vm/default/db")
        await lab.kill_controllers()
        await lab.pass_time(20)
        lab.start_controllers("again")
        await lab.put_vm("web", node=None, pool="san", disk=9 * GIB)
        await lab.until_refused("web", "insufficientResources")


async def test_volumes_count_as_disk_of_their_node_attached_or_not(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", disk=10 * GIB)
        await lab.pass_time(2)
        await lab.put("volume", "data", {"size": 7 * GIB}, finalizers=("volume",))
        await lab.put_vm("web", node=None, disk=GIB, volumes=["data"])
        await lab.until_phase("web", "Running")
        await lab.delete("/vm/default/web")
        await lab.until_gone("/vm/default/web")
        await lab.put_vm("late", node=None, disk=4 * GIB)
        await lab.until_refused("late", "insufficientResources")
        placed = await lab.placed("late")
        assert placed is not None and "needs 4.0 GiB disk, largest free is 3.0 GiB (n1)" in placed.message
        await lab.put_vm("again", node=None, disk=2 * GIB, volumes=["data"])
        await lab.until_phase("again", "Running")

        async def sums_up() -> bool:
            node = await lab.get("/node/-/n1")
            return node is not None and decode_part(node.status, NodeStatus).allocated_disk == 9 * GIB

        await lab.until(sums_up)


async def test_a_volume_is_attached_to_a_running_vm_only_within_the_bound_of_its_pool(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", pools=[SMALL])
        await lab.pass_time(2)
        for name, size in (("data", 4), ("large", 17), ("more", 16)):
            await lab.put("volume", name, {"size": size * GIB, "pool": "san"}, finalizers=("volume",))
        await lab.put_vm("web", node=None, disk=GIB, volumes=["data"])
        await lab.until_phase("web", "Running")

        await lab.change_spec("web", volumes=["data", "large"], restart_generation=1)
        await lab.pass_time(3)
        placed = await lab.placed("web")
        too_much = "pool/san may promise 20.0 GiB and has promised 4.0 GiB: 17.0 GiB more are too much"
        assert placed is not None and placed.message == f"on n1, unchanged: {too_much}"
        await lab.change_spec("web", volumes=["data", "more"], restart_generation=2)
        await lab.pass_time(3)
        [place] = await lab.allocations()
        assert [volume.name for volume in place.volumes] == ["data", "more"]


async def test_a_disk_is_not_relocated_into_a_pool_that_may_not_promise_it(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        tiny = NodePool("tiny", "id-of-the-tiny", GIB // 4, GIB // 4)
        await lab.add_node("n1", pools=[tiny])
        await lab.put_vm("web", node=None, disk=GIB)
        await lab.until_phase("web", "Running")
        await lab.pass_time(3)
        await lab.migrate("web", mode="storage", pool="tiny")
        status = await lab.until_migration("Failed")
        assert status.reason == "insufficientResources"
        assert status.message == "pool/tiny may promise 512 MiB and has promised 0 B: 1.0 GiB more are too much"


async def test_a_node_whose_pool_is_beyond_its_alarm_is_chosen_last(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        nearly = msgspec.structs.replace(SAN, free=15 * GIB)
        await lab.add_node("n1", pools=[nearly])
        await lab.add_node("n2", pools=[OTHER], cpu=2.0)

        async def is_seen() -> bool:
            pools = [await lab.get(f"/pool/-/{name}") for name in ("san", "n2-san", "n1-san")]
            return "NearlyFull" in [decode_part(p.status, PoolStatus).phase for p in pools if p is not None]

        await lab.until(is_seen)
        await lab.pass_time(2)
        for name in ("one", "two", "three"):
            await lab.put_vm(name, node=None, pool="san", cpu=1.0)
            await lab.until_phase(name, "Running")
        assert [place.node for place in await lab.allocations()].count("n2") == 2


async def test_an_encrypted_volume_goes_to_vms_alone_and_stays_where_it_is(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name, pools=[FAST])
        await lab.pass_time(2)
        await lab.put("volume", "vault", {"size": GIB, "encrypted": True}, finalizers=("volume",))
        await lab.put_vm("web", node=None, volumes=["vault"])
        await lab.until_phase("web", "Running")
        [place] = await lab.allocations()
        assert place.volumes[0].encrypted
        await lab.migrate("web")
        status = await lab.until_migration("Failed")
        assert (status.reason, status.message) == (
            "encryptedStays",
            "vm/web has encrypted volume vault, which can't migrate; detach it first",
        )
        await lab.migrate("web", "elsewhere", mode="storage", pool="fast", volume="vault")
        assert (await lab.until_migration("Failed", "elsewhere")).reason == "unsupported"
        await lab.delete("/vm/default/web")
        await lab.until_gone("/vm/default/web")
        await lab.put_container("box", mounts=["vault:/data"])
        await lab.pass_time(5)
        box = await lab.get("/container/default/box")
        placed = box.condition("Placed") if box is not None else None
        assert placed is not None and placed.message.endswith("can't read encrypted volumes; give it to a VM")
