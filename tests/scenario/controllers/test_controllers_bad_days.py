"""What the controllers do when they are killed, when two of them run, and when the store forgets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from tests.long import mark_long
from tests.scenario.controllers_lab import GIB, Journal, Lab, VirtualClock

from weft.contracts.store import Delete, Put
from weft.informer.cache import Cache
from weft.informer.commit import Commit
from weft.informer.leader_lease import TTL_SECONDS, LeaderLease, LeadershipLost
from weft.informer.view import make_view
from weft.kinds.allocation import AllocationSpec
from weft.kinds.node import NodeReport
from weft.launch.store.engine import LEADER_LEASE
from weft.objects.envelope import Envelope, decode_part, encode_envelope
from weft.store.memory import MemoryStore


async def check_whole(lab: Lab, names: list[str]) -> None:
    """Each VM has exactly one place, and nothing is there that belongs to none."""
    allocations = await lab.allocations()
    assert sorted(a.workload.name for a in allocations) == sorted(names)
    endpoints = await lab.endpoints()
    assert sorted(e.workload.name for e in endpoints) == sorted(names)
    assert len({e.address for e in endpoints}) == len(names)
    assert len(await lab.every("decision")) == len(names)
    used: dict[str, float] = {}
    for allocation in allocations:
        used[allocation.node] = used.get(allocation.node, 0.0) + allocation.resources.cpu
    assert all(cpu <= 8.0 for cpu in used.values())


@pytest.mark.parametrize("first", mark_long([0, 1, 2], 1, 2))
async def test_controllers_killed_at_any_moment_lose_and_double_nothing(tmp_path: Path, first: int) -> None:
    for ticks in range(first, 120, 3):
        async with Lab(tmp_path, slow=ticks) as lab:
            await lab.add_node("n1")
            await lab.add_node("n2")
            names = ["a", "b", "c"]
            for name in names:
                await lab.put_vm(name, cpu=4.0)
            for _ in range(ticks):
                await asyncio.sleep(0)
            await lab.kill_controllers()
            lab.start_controllers()
            for name in names:
                await lab.until_phase(name, "Running")
            await check_whole(lab, names)
            await lab.delete("/vm/default/b")
            for _ in range(ticks):
                await asyncio.sleep(0)
            await lab.kill_controllers()
            lab.start_controllers()
            await lab.until_gone("/vm/default/b")
            await check_whole(lab, ["a", "c"])


async def test_controllers_killed_again_and_again_get_there(tmp_path: Path) -> None:
    async with Lab(tmp_path, slow=1) as lab:
        await lab.add_node("n1")
        await lab.add_node("n2")
        names = [f"v{number}" for number in range(8)]
        for name in names:
            await lab.put_vm(name, cpu=2.0)
        for round_ in range(60):
            for _ in range(12 + round_):
                await asyncio.sleep(0)
            await lab.kill_controllers()
            lab.start_controllers()
        for name in names:
            await lab.until_phase(name, "Running")
        await check_whole(lab, names)


async def test_a_vm_deleted_while_a_placement_is_on_its_way_gets_none(tmp_path: Path) -> None:
    for ticks in range(1, 60):
        async with Lab(tmp_path, slow=ticks) as lab:
            await lab.add_node("n1")
            await lab.pass_time(1)
            vm = await lab.put_vm("web")
            for _ in range(ticks):
                await asyncio.sleep(0)
            await lab.delete(vm.key)
            cursor = (await lab.store.list("/allocation/")).cursor
            await lab.until_gone(vm.key)
            last = await lab.store.commit([Delete("/x"), Put("/y", b"{}")])
            async for batch in lab.store.watch("/", cursor):
                made = [c.key for c in batch.changes if c.key.startswith("/allocation/") and c.previous is None]
                assert not made, f"placed after it was deleted (after {ticks} turns)"
                if batch.revision >= last:
                    break


async def test_of_two_only_one_decides_and_the_other_takes_over(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("a")
        await lab.until_phase("a", "Running")
        other = Lab(tmp_path, store=lab.store, clock=lab.clock)
        other.start_controllers("there")
        await lab.put_vm("b")
        await lab.until_phase("b", "Running")
        assert other.journal.events == []
        await lab.kill_controllers()
        await lab.put_vm("c")
        await lab.until_phase("c", "Running")
        assert "Placed" in other.journal.reasons("c")
        await check_whole(lab, ["a", "b", "c"])
        await other.kill_controllers()


async def test_one_that_slept_through_the_end_of_its_term_writes_nothing() -> None:
    clock = VirtualClock()
    store = MemoryStore(clock)
    cache = Cache(store, make_view(), clock)
    reading = asyncio.ensure_future(cache.run())
    sleeper = LeaderLease(store, cache, Journal(), clock, "controllers", "sleeper")
    await sleeper.begin()
    clock.advance(11.0)
    other = LeaderLease(store, cache, Journal(), clock, "controllers", "other")
    await other.begin()
    with pytest.raises(LeadershipLost):
        await sleeper.perform([Commit("/vm/default/x", [Put("/vm/default/x", b"{}")])])
    assert await store.get("/vm/default/x") is None
    reading.cancel()


async def test_a_new_term_of_the_same_holder_shuts_the_old_one_out() -> None:
    clock = VirtualClock()
    store = MemoryStore(clock)
    cache = Cache(store, make_view(), clock)
    reading = asyncio.ensure_future(cache.run())
    old = LeaderLease(store, cache, Journal(), clock, "controllers", "me")
    await old.begin()
    new = LeaderLease(store, cache, Journal(), clock, "controllers", "me")
    await new.begin()
    with pytest.raises(LeadershipLost):
        await old.perform([Commit("/vm/default/x", [Put("/vm/default/x", b"{}")])])
    assert await new.perform([Commit("/x", [Delete("/x")])]) == []
    reading.cancel()


async def test_nodes_have_time_to_be_heard_of_when_the_leases_are_lost(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await node.die()
        await lab.kill_controllers()
        await lab.store.release(f"node/{node.uid}", node.uid)  # as a restart of the store does
        lab.start_controllers()
        await lab.pass_time(20)
        assert (await lab.status("web")).phase == "Running"
        await lab.until_phase("web", "Unknown", 15)


async def test_what_was_left_over_of_a_vm_that_is_gone_is_removed_but_never_a_place(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web", publish=["80:80"])
        await lab.put_vm("other")
        await lab.until_phase("web", "Running")
        await lab.until_phase("other", "Running")
        await lab.kill_controllers()
        await forget(lab, ["vm"])
        await lab.put_vm("web", hold=True)  # another one under the old name
        lab.start_controllers()

        async def swept() -> bool:
            owners = [
                e.owner.uid
                for kind in ("endpoint", "publishedport", "decision")
                for e in await lab.every(kind)
                if e.owner
            ]
            return set(owners) <= {(await lab.vm("web")).uid}

        await lab.until(swept)
        assert len(await lab.every("allocation")) == 2


async def forget(lab: Lab, kinds: list[str]) -> None:
    """Take objects out as an older store would not have them."""
    for kind in kinds:
        for envelope in await lab.every(kind):
            await lab.store.commit([Delete(envelope.key)])


async def report_orphans(lab: Lab, name: str, *, copies: bool = True) -> None:
    """What an agent reports when no list explains its guests any more."""
    node = lab.nodes[name]
    orphans = [
        f"{uid} {spec.workload.kind}/{spec.workload.project}/{spec.workload.name} {spec.incarnation}"
        for uid, spec in node.specs.items()
    ]
    texts = [msgspec.json.encode({"uid": uid, "spec": spec}).decode() for uid, spec in node.specs.items()]
    await node.write_report(orphans=orphans, orphan_allocations=texts if copies else [], epoch=await lab.epoch())


async def test_a_guest_that_an_older_store_forgot_is_its_vms_again(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        vm = await lab.put_vm("web", publish=["8080:80"])
        await lab.until_phase("web", "Running")
        [before] = await lab.every("allocation")
        await lab.kill_controllers()
        await forget(lab, ["allocation", "decision", "endpoint"])
        vm.revision = 0
        await lab.store.commit([Put(vm.key, encode_envelope(vm))])  # as it was on its first day
        await report_orphans(lab, "n1")
        await lab.add_node("n2", cpu=64.0, memory=256 * GIB)
        lab.start_controllers()
        await lab.until_phase("web", "Running")
        [after] = await lab.every("allocation")
        assert (after.key, after.uid) == (before.key, before.uid)
        status = await lab.status("web")
        assert (status.node, status.address, status.incarnation) == ("n1", "10.0.0.2", 1)

        async def said() -> bool:
            placed = await lab.placed("web")
            return placed is not None and (placed.status, placed.reason) == ("True", "Adopted")

        await lab.until(said)
        assert "Adopted" in lab.journal.reasons("web")
        await lab.nodes["n1"].write_report(orphans=[], orphan_allocations=[])
        await lab.pass_time(5)
        assert len(await lab.allocations()) == 1


async def test_nobody_is_given_the_address_of_a_guest_that_the_store_forgot(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await lab.kill_controllers()
        await forget(lab, ["allocation", "decision", "endpoint", "vm"])
        await report_orphans(lab, "n1")
        await lab.put_vm("other")
        await lab.add_node("n2")
        lab.start_controllers()
        await lab.until_phase("other", "Running")
        assert (await lab.status("other")).address == "10.0.0.3"  # not 10.0.0.2, which the orphan has
        await lab.nodes["n1"].write_report(orphans=[], orphan_allocations=[])
        await lab.put_vm("third")
        await lab.until_phase("third", "Running")
        assert (await lab.status("third")).address == "10.0.0.2"


async def test_no_second_guest_is_started_beside_an_orphan(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.add_node("n2")
        await lab.put_vm("web", node="n1")
        await lab.until_phase("web", "Running")
        await lab.kill_controllers()
        await forget(lab, ["allocation", "decision", "endpoint", "vm"])
        await report_orphans(lab, "n1", copies=False)
        await lab.put_vm("web")  # made anew by people, under the same name
        lab.start_controllers()
        await lab.until_refused("web", "orphanRunning")
        await lab.pass_time(40)
        assert await lab.allocations() == []
        await lab.nodes["n1"].write_report(orphans=[])
        await lab.until_phase("web", "Running")


@pytest.mark.parametrize("remains", [False, True], ids=["nothing remains", "a target that never ran remains"])
async def test_a_stopped_vm_whose_node_was_given_up_gets_a_place_when_it_is_started(
    tmp_path: Path, remains: bool
) -> None:
    async with Lab(tmp_path) as lab:
        lost = await lab.add_node("n1")
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await lab.change_spec("web", run="stop")
        await lab.until_phase("web", "Stopped")
        other = await lab.add_node("n2")
        [place] = await lab.every("allocation")
        await lost.die()
        await lab.store.commit([Delete(place.key), Delete("/node/-/n1")])
        await lab.pass_time(5)
        if remains:
            spec = msgspec.structs.replace(decode_part(place.spec, AllocationSpec), node_uid=other.uid, role="target")
            copy = msgspec.json.encode(
                {"uid": "came", "spec": spec, "standing": "abandoned", "migration": "m"}
            ).decode()
            await other.write_report(orphans=["came vm/default/web 1"], orphan_allocations=[copy])
            await lab.pass_time(5)
        assert await lab.allocations() == []
        await lab.change_spec("web", run="run")
        await lab.until_phase("web", "Running")
        assert (await lab.status("web")).node == "n2"


async def test_what_a_guest_without_a_place_takes_is_given_to_nobody(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web", cpu=5.0)
        await lab.until_phase("web", "Running")
        await lab.kill_controllers()
        await forget(lab, ["allocation", "decision", "endpoint", "vm"])
        await report_orphans(lab, "n1")
        await lab.put_vm("other", cpu=5.0)
        lab.start_controllers()
        await lab.until_refused("other", "insufficientResources")
        await lab.put_vm("web", cpu=5.0)  # made anew in the same way: the guest is this one's, and counts once
        await lab.until_phase("web", "Running")
        await lab.put_vm("third", cpu=3.0)
        await lab.until_phase("third", "Running")
        await lab.nodes["n1"].write_report(orphans=[], orphan_allocations=[])
        await lab.delete("/vm/default/web")
        await lab.until_phase("other", "Running")


async def test_a_vm_made_anew_in_the_same_way_takes_over_what_runs(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        [before] = await lab.every("allocation")
        await lab.kill_controllers()
        await forget(lab, ["allocation", "decision", "endpoint", "vm"])
        await report_orphans(lab, "n1")
        await lab.put_vm("web")
        lab.start_controllers()
        await lab.until_phase("web", "Running")
        [after] = await lab.every("allocation")
        assert after.key == before.key and after.owner is not None and after.owner.uid == (await lab.vm("web")).uid


async def test_a_vm_specified_otherwise_does_not_get_somebody_elses_guest(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await lab.kill_controllers()
        await forget(lab, ["allocation", "decision", "endpoint", "vm"])
        await report_orphans(lab, "n1")
        await lab.put_vm("web", memory=GIB)
        lab.start_controllers()
        await lab.until_refused("web", "orphanRunning")
        await lab.delete("/vm/default/web")
        await lab.until_gone("/vm/default/web")
        assert await lab.allocations() == []
        node = await lab.get("/node/-/n1")
        assert node is not None and decode_part(node.report, NodeReport).orphans


@pytest.mark.parametrize("epoch", ["another", ""])
async def test_after_a_restore_nothing_is_placed_before_the_nodes_have_spoken(epoch: str, tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1", epoch=epoch)
        await lab.put_vm("web")
        await lab.until_refused("web", "storeRestored")
        said = (await lab.status("web")).message
        assert "waits for n1 to report what runs there: it has just joined, or the store was restored" in said
        assert await lab.allocations() == []
        await node.write_report(epoch=await lab.epoch())
        await lab.until_phase("web", "Running")


async def test_a_node_that_had_just_joined_when_the_backup_was_taken_is_waited_for(tmp_path: Path) -> None:
    """The store has it as Ready, but from before its first word on what runs there; since then it was given two VMs."""
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        web, gone = await lab.put_vm("web"), await lab.put_vm("gone")
        for name in ("web", "gone"):
            await lab.until_phase(name, "Running")
        before = {place.workload.name: place.node for place in await lab.allocations()}
        await lab.kill_controllers()
        await forget(lab, ["allocation", "decision", "endpoint"])
        for vm in (web, gone):  # as on their first day
            vm.revision = 0
            await lab.store.commit([Put(vm.key, encode_envelope(vm))])
        await lab.delete(gone.key)
        await lab.nodes["n1"].write_report(epoch="")
        await lab.add_node("n2", cpu=64.0, memory=256 * GIB)
        lab.start_controllers()
        await lab.until_refused("web", "storeRestored")
        await lab.pass_time(10)
        assert await lab.allocations() == []
        assert await lab.get(gone.key) is not None
        await report_orphans(lab, "n1")
        await lab.until_phase("web", "Running")
        assert (
            {place.workload.name: place.node for place in await lab.allocations()}
            == {"web": "n1"}
            == {"web": before["web"]}
        )


async def test_a_node_that_never_speaks_again_does_not_hold_all_up_after_a_restore(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        silent = await lab.add_node("n1", epoch="another")
        await lab.add_node("n2", epoch=await lab.epoch())
        await lab.put_vm("web")
        await lab.until_refused("web", "storeRestored")
        await silent.die()
        await lab.until_phase("web", "Running", 90)
        assert (await lab.status("web")).node == "n2"


async def test_controllers_delete_nothing_that_nobody_deleted(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await lab.kill_controllers()
        # The VM is forgotten, its allocation is not: the guest must stay.
        await forget(lab, ["vm"])
        lab.start_controllers()
        await lab.pass_time(60)
        [allocation] = await lab.every("allocation")
        assert allocation.deleting_since is None


async def test_a_place_whose_spec_cannot_be_read_stops_the_controllers_rather_than_being_given_twice(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        odd = Envelope(kind="allocation", name="x.y", uid="y", spec=msgspec.Raw(b'{"role":"unheard-of"}'))
        await lab.store.commit([Put(odd.key, encode_envelope(odd))])
        with pytest.raises(ExceptionGroup, match="unhandled"):
            await lab.pass_time(2)


async def test_controllers_go_on_with_an_empty_store_that_took_the_others_place(tmp_path: Path) -> None:
    clock = VirtualClock()
    store = ReplaceableStore(clock)
    async with Lab(tmp_path, store=store, clock=clock) as lab:
        node = await lab.add_node("n1")
        await lab.put_vm("old")
        await lab.until_phase("old", "Running")
        await node.die()
        await store.replace(MemoryStore(clock))  # revisions and fences begin anew
        await lab.put("network", "default", {"cidr": "10.0.0.0/16"})
        await lab.put_image("tiny")
        await lab.add_node("n2", epoch=await lab.epoch())
        await lab.put_vm("new")
        await lab.until_phase("new", "Running")
        assert [a.workload.name for a in await lab.allocations()] == ["new"]
        assert (await lab.status("new")).node == "n2"


class ReplaceableStore(MemoryStore):
    """Everything goes to the store ``behind`` it; when that is replaced, all watches end as when a server dies."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock)
        self.behind = MemoryStore(clock)

    async def replace(self, store: MemoryStore) -> None:
        old, self.behind = self.behind, store
        await old.close()

    async def commit(self, writes, preconditions=(), *, idempotency_key=None):  # type: ignore[no-untyped-def]
        return await self.behind.commit(writes, preconditions, idempotency_key=idempotency_key)

    async def get(self, key):  # type: ignore[no-untyped-def]
        return await self.behind.get(key)

    async def list(self, prefix, *, limit=0, after=None):  # type: ignore[no-untyped-def]
        return await self.behind.list(prefix, limit=limit, after=after)

    def watch(self, prefix, cursor):  # type: ignore[no-untyped-def]
        return self.behind.watch(prefix, cursor)

    async def grant(self, name, holder, ttl_seconds, digest=b""):  # type: ignore[no-untyped-def]
        return await self.behind.grant(name, holder, ttl_seconds, digest)

    async def release(self, name, holder):  # type: ignore[no-untyped-def]
        await self.behind.release(name, holder)

    async def leases(self, prefix, *, digests=False):  # type: ignore[no-untyped-def]
        return await self.behind.leases(prefix, digests=digests)


async def test_controllers_that_are_stopped_while_they_lose_the_leader_lease_end(tmp_path: Path) -> None:
    for turns in range(60):
        async with Lab(tmp_path) as lab:
            await lab.add_node("n1")
            await lab.put_vm("a")
            await lab.until_phase("a", "Running")
            await lab.store.release(LEADER_LEASE, "here")
            await lab.store.grant(LEADER_LEASE, "other", 1000.0)
            lab.clock.advance(TTL_SECONDS / 4)
            for _ in range(turns):
                await asyncio.sleep(0)
            deciding, lab._controllers = lab._controllers, None
            assert deciding is not None
            deciding.cancel()
            for _ in range(200):
                await asyncio.sleep(0)
            assert deciding.cancelled(), turns
