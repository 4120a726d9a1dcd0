"""Where VMs go, and what becomes of those that fit nowhere yet."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.scenario.controllers_lab import GIB, MIB, Lab

from weft.informer.cache import Cache
from weft.informer.view import Item
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.decision import DecisionSpec
from weft.kinds.endpoint import EndpointStatus
from weft.kinds.node import NodeActions
from weft.kinds.parts.workload import WorkloadStatus
from weft.objects.envelope import Envelope, decode_envelope, decode_part, merge_part
from weft.scheduler.loop import BATCH


def cordon(flag: bool) -> object:
    def change(envelope: Envelope) -> None:
        envelope.actions = merge_part(envelope.actions, NodeActions(cordoned=flag, cordon_reason="disk swap"))
        envelope.generation += 1

    return change


async def decision_of(lab: Lab, name: str) -> DecisionSpec:
    envelope = await lab.get(f"/decision/default/vm.{name}")
    assert envelope is not None
    return decode_part(envelope.spec, DecisionSpec)


async def test_a_vm_that_fits_nowhere_says_what_lacks_and_where_it_nearly_fits(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2", "n3"):
            await lab.add_node(name)
        await lab.change("/node/-/n3", cordon(True))  # type: ignore[arg-type]
        await lab.put_vm("small", cpu=2.0, node="n1")
        await lab.until_phase("small", "Running")
        await lab.put_vm("big", cpu=64.0, memory=900 * GIB)
        await lab.until_refused("big", "insufficientResources")
        spec = await decision_of(lab, "big")
        assert spec.error == "insufficientResources"
        assert spec.nearest == "n2, if you ask for at most --cpu 8 --memory 16G" and spec.nearest_node == "n2"
        assert spec.refused_by == {"resources": 2, "cordon": 1}
        verdicts = {v.node: v for v in spec.verdicts}
        assert {s.resource: s.free for s in verdicts["n1"].shortfalls} == {"cpu": 6.0, "memory": 15.75 * GIB}
        assert verdicts["n3"].reason == "cordoned (disk swap)"
        await lab.until_phase("big", "Pending")
        status = await lab.status("big")
        assert status.reason == "insufficientResources" and "needs 900.0 GiB memory" in status.message


async def test_a_pending_vm_is_placed_when_room_appears(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.put_vm("web", cpu=4.0)
        await lab.until_refused("web", "noAvailableAgents")
        await lab.add_node("n1", cpu=2.0)
        await lab.pass_time(2)
        assert await lab.allocations() == []
        await lab.add_node("n2", cpu=4.0)
        await lab.until_phase("web", "Running")
        await lab.put_vm("next", cpu=4.0)
        await lab.until_refused("next", "insufficientResources")
        await lab.delete("/vm/default/web")
        await lab.until_phase("next", "Running")


async def test_an_uncordoned_node_and_a_grown_one_take_what_waited(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        await lab.change("/node/-/n1", cordon(True))  # type: ignore[arg-type]
        await lab.put_vm("web")
        await lab.until_refused("web", "noAvailableAgents")
        await lab.change("/node/-/n1", cordon(False))  # type: ignore[arg-type]
        await lab.until_phase("web", "Running")
        await lab.put_vm("big", cpu=12.0)
        await lab.until_refused("big", "insufficientResources")
        await node.write_report(cpu=16.0)
        await lab.until_phase("big", "Running")


async def test_the_reason_keeps_up_with_the_nodes(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.put_vm("web", cpu=16.0)
        await lab.until_refused("web", "noAvailableAgents")
        node = await lab.add_node("n1")
        await lab.until_refused("web", "insufficientResources")
        assert (await decision_of(lab, "web")).nearest_node == "n1"
        await node.die()
        await lab.until_refused("web", "noAvailableAgents")


async def test_a_changed_spec_is_decided_again(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("big", cpu=64.0)
        await lab.until_refused("big", "insufficientResources")
        await lab.change_spec("big", cpu=4.0)
        await lab.until_phase("big", "Running")


async def test_a_thousand_that_fit_nowhere_are_told_once_each(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0)
        for number in range(300):
            await lab.put_vm(f"v{number}", cpu=8.0)
        for number in range(300):
            await lab.until_refused(f"v{number}", "insufficientResources")
        await lab.pass_time(2)
        before = await lab.store.commit([])
        await lab.add_node("n2", cpu=17.0)

        async def two_run() -> bool:
            return len(await lab.allocations()) == 2

        await lab.until(two_run)
        await lab.pass_time(3)
        assert len(await lab.allocations()) == 2
        # Those that still wait were not written again.
        assert await lab.store.commit([]) - before < 60


async def test_each_strategy_places_as_it_says(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2", "n3"):
            await lab.add_node(name, cpu=16.0)
        await lab.put_vm("first", cpu=4.0, node="n2")
        await lab.until_phase("first", "Running")
        await lab.put_vm("packed", strategy="best-fit")
        await lab.until_phase("packed", "Running")
        assert (await lab.status("packed")).node == "n2"
        for number in range(6):
            await lab.put_vm(f"turn{number}", strategy="round_robin")
            await lab.until_phase(f"turn{number}", "Running")
        turns = [(await lab.status(f"turn{number}")).node for number in range(6)]
        assert turns == ["n3", "n1", "n2", "n3", "n1", "n2"]
        for number in range(12):
            await lab.put_vm(f"any{number}", strategy="random", cpu=0.1)
        for number in range(12):
            await lab.until_phase(f"any{number}", "Running")
        assert len({(await lab.status(f"any{number}")).node for number in range(12)}) > 1


async def test_the_clusters_strategy_is_the_default(tmp_path: Path) -> None:
    async with Lab(tmp_path, strategy="best_fit") as lab:
        await lab.add_node("n1")
        await lab.add_node("n2", cpu=64.0)
        await lab.put_vm("a")
        await lab.until_phase("a", "Running")
        assert (await decision_of(lab, "a")).policy == "best_fit" and (await lab.status("a")).node == "n1"


async def test_load_is_spread_evenly(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2", "n3"):
            await lab.add_node(name)
        await lab.pass_time(2)
        for number in range(18):
            await lab.put_vm(f"v{number}")
        for number in range(18):
            await lab.until_phase(f"v{number}", "Running")
        assert Counter(a.node for a in await lab.allocations()) == {"n1": 6, "n2": 6, "n3": 6}


async def test_a_vm_waits_for_its_image_and_says_so(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web", image="later")
        await lab.until_refused("web", "imageNotReady")
        await lab.put_image("later")
        await lab.until_phase("web", "Running")


async def test_a_node_cordoned_while_a_placement_is_on_its_way_is_not_used(tmp_path: Path) -> None:
    for ticks in range(1, 40):
        async with Lab(tmp_path) as lab:
            await lab.add_node("n1")
            await lab.pass_time(1)
            await lab.put_vm("web")
            for _ in range(ticks):
                await asyncio.sleep(0)
            placed_before = await lab.allocations()
            await lab.change("/node/-/n1", cordon(True))  # type: ignore[arg-type]
            cordoned_at = await lab.store.commit([])
            await lab.pass_time(1)
            after = [a for a in await lab.every("allocation") if a.revision > cordoned_at and not placed_before]
            assert after == [], f"placed on a cordoned node (after {ticks} turns)"


async def test_a_hundred_at_once_never_overfill_a_node(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2", "n3"):
            await lab.add_node(name, cpu=8.0)
        for number in range(100):
            await lab.put_vm(f"v{number}", cpu=1.0)

        async def full() -> bool:
            return len(await lab.allocations()) == 24

        await lab.until(full)
        await lab.pass_time(3)
        assert Counter(a.node for a in await lab.allocations()) == {"n1": 8, "n2": 8, "n3": 8}


async def test_two_that_come_close_together_never_share_the_last_room(tmp_path: Path) -> None:
    for turns in range(60):
        async with Lab(tmp_path, slow=turns) as lab:
            await lab.add_node("n1", cpu=6.0)
            await lab.pass_time(1)
            await lab.put_vm("a", cpu=5.0)
            for _ in range(turns):
                await asyncio.sleep(0)
            await lab.put_vm("b", cpu=5.0)
            await lab.pass_time(1)
            assert len(await lab.allocations()) == 1


async def test_of_two_that_want_a_volume_at_once_one_gets_it(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.put("volume", "data", {"size": GIB}, finalizers=("volume",))
        await lab.put_vm("a", volumes=["data"])
        await lab.put_vm("b", volumes=["data"])
        await lab.until_refused("b", "noAvailableAgents")
        await lab.add_node("n1")
        await lab.add_node("n2")
        await lab.pass_time(10)
        assert len(await lab.allocations()) == 1
        [name] = [vm.name for vm in await lab.every("vm") if vm.name != (await lab.allocations())[0].workload.name]
        await lab.until_refused(name, "volumeInUse")


async def test_what_a_batch_under_way_has_given_away_the_next_one_does_not_give_again(tmp_path: Path) -> None:
    async with Lab(tmp_path, slow=1) as lab:
        await lab.put("volume", "data", {"size": GIB}, finalizers=("volume",))
        for name in ("n1", "n2"):
            await lab.add_node(name)
        await lab.pass_time(1)
        await lab.kill_controllers()
        await lab.put_vm("a", volumes=["data"], networks=[], memory=MIB)
        for number in range(BATCH):
            await lab.put_vm(f"m{number}", networks=[], cpu=0.01, memory=MIB)
        await lab.put_vm("z", volumes=["data"], networks=[], memory=MIB)
        lab.start_controllers()
        await lab.pass_time(12)
        placed = {allocation.workload.name for allocation in await lab.allocations()}
        assert len(placed) == BATCH + 1 and "a" in placed
        await lab.until_refused("z", "volumeInUse")


@pytest.mark.parametrize("networks", [[], ["default"]], ids=["no network", "a network"])
async def test_the_commit_that_gives_a_place_says_all_that_follows_from_it(tmp_path: Path, networks: list[str]) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        node.slow = True
        await lab.pass_time(1)
        cursor = (await lab.store.list("/vm/", limit=1)).cursor
        await lab.put_vm("web", networks=networks)
        await lab.pass_time(3)
        written = []
        async with aclosing(lab.store.watch("/vm/default/web", cursor)) as batches:
            async for batch in batches:
                written += [decode_envelope(change.value, batch.revision) for change in batch.changes if change.value]
                if written[-1].condition("Placed") is not None:
                    break
        assert written[-1].revision == (await lab.vm("web")).revision, "the controllers had something to add"
        allocation = (await lab.every("allocation"))[0]
        assert written[-1].revision == allocation.revision, "it says so in another commit"
        status, ready = decode_part(written[-1].status, WorkloadStatus), written[-1].condition("Ready")
        assert (status.phase, status.node, status.incarnation) == ("Prolog", "n1", 1)
        assert status.observed_generation == 1 and ready is not None and ready.reason == "Prolog"
        endpoints = await lab.every("endpoint")
        assert len(endpoints) == len(networks)
        for endpoint in endpoints:
            assert endpoint.revision == allocation.revision, "its address came before its place, or was changed after"
            assert (status.address, decode_part(endpoint.status, EndpointStatus).node) == ("10.0.0.2", "n1")
        addressed = written[-1].condition("Addressed")
        assert addressed is not None and addressed.message == ("default 10.0.0.2" if networks else "no networks")
        assert lab.journal.reasons("web").count("Prolog") == 1


async def test_what_a_placement_has_written_is_known_as_it_stands_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Item] = []
    expect = Cache.expect

    def note(cache: Cache, value: bytes, item: Item) -> None:
        assert replace(item.envelope, revision=7) == decode_envelope(value, 7)
        taken.append(item)
        expect(cache, value, item)

    monkeypatch.setattr(Cache, "expect", note)
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
    assert {item.envelope.kind for item in taken} == {"allocation", "decision", "endpoint", "vm"}
    for item in taken:
        if item.envelope.kind == "allocation":
            assert item.spec(AllocationSpec) == decode_part(item.envelope.spec, AllocationSpec)
            assert item.report(AllocationReport) == decode_part(item.envelope.report, AllocationReport)
