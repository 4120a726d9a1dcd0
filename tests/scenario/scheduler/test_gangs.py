"""Gangs on the controllers: together or not at all, whatever comes between."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest
from tests.long import mark_long
from tests.scenario.controllers_lab import GIB, MIB, Lab

from weft.kinds.decision import DecisionSpec
from weft.objects.envelope import decode_part
from weft.scheduler.gang.search_budget import Budget


async def nodes_of(lab: Lab) -> dict[str, str]:
    return {spec.workload.name: spec.node for spec in await lab.allocations()}


async def test_members_wait_until_all_are_there_and_are_placed_in_one_commit(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name)
        for name in ("a", "b"):
            await lab.put_vm(name, gang="web:3")
            await lab.until_refused(name, "gangIncomplete")
        await lab.pass_time(2)
        assert await nodes_of(lab) == {}
        assert (await lab.status("a")).message == "gang web: 2 of 3 members are ready to be placed"
        await lab.put_vm("other")
        await lab.put_vm("c", gang="web:3")
        for name in ("a", "b", "c", "other"):
            await lab.until_phase(name, "Running")
        assert lab.journal.reasons("a").count("gangIncomplete") == 2  # first one, then two of three


async def test_a_gang_that_does_not_fit_holds_nothing_and_says_which_member_lacks_what(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=8.0)
        await lab.add_node("n2", cpu=8.0)
        for name in ("a", "b", "c"):
            await lab.put_vm(name, gang="web:3", cpu=6.0)
        for name in ("a", "b", "c"):
            await lab.until_refused(name, "insufficientResources")
        assert await nodes_of(lab) == {}
        told = {(await lab.status(name)).message for name in ("a", "b", "c")}
        assert (
            len(told) == 1 and "gang web: vm/c has no place when 2 of the others are placed: needs 6 cpu" in told.pop()
        )
        decision = await lab.get("/decision/default/vm.c")
        assert decision is not None
        assert {v.outcome for v in decode_part(decision.spec, DecisionSpec).verdicts} == {"refused"}
        # What it leaves is free for others, and a third node is what it waited for.
        await lab.put_vm("small", cpu=2.0)
        await lab.until_phase("small", "Running")
        await lab.add_node("n3", cpu=8.0)
        for name in ("a", "b", "c"):
            await lab.until_phase(name, "Running")
        assert set((await nodes_of(lab)).values()) == {"n1", "n2", "n3"}


async def test_members_that_lie_apart_do_so_within_the_gang(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=16.0)
        await lab.add_node("n2", cpu=16.0)
        for name in ("a", "b", "c"):
            await lab.put_vm(name, gang="db:3", anti_affinity_groups=["db"])
        await lab.until_refused("a", "noAvailableAgents")
        assert await nodes_of(lab) == {}
        await lab.add_node("n3", cpu=2.0)
        for name in ("a", "b", "c"):
            await lab.until_phase(name, "Running")
        assert set((await nodes_of(lab)).values()) == {"n1", "n2", "n3"}


async def test_a_small_member_leaves_the_only_large_hole_to_the_large_one(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=8.0)
        await lab.add_node("n2", cpu=4.0)
        await lab.put_vm("small", gang="web:2", cpu=2.0)  # alone it would go to n1, which has more left
        await lab.put_vm("large", gang="web:2", cpu=7.0)
        for name in ("small", "large"):
            await lab.until_phase(name, "Running")
        assert await nodes_of(lab) == {"small": "n2", "large": "n1"}


async def test_more_than_a_gang_counts_follow_one_by_one_and_one_that_left_can_be_replaced(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=16.0)
        for name in ("a", "b", "c"):
            await lab.put_vm(name, gang="web:2")
        for name in ("a", "b", "c"):
            await lab.until_phase(name, "Running")
        await lab.delete("/vm/default/a")
        await lab.put_vm("d", gang="web:2")
        await lab.until_phase("d", "Running")


async def test_those_left_of_a_gang_hear_that_one_has_gone(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0)
        for name in ("a", "b"):
            await lab.put_vm(name, gang="web:2", cpu=3.0)
        await lab.until_refused("b", "insufficientResources")
        await lab.delete("/vm/default/a")
        await lab.until_refused("b", "gangIncomplete")


async def test_a_gang_waits_for_the_member_that_waits(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("a", gang="web:2")
        await lab.put_vm("b", gang="web:2", volumes=["data"])
        await lab.until_refused("a", "gangIncomplete")
        await lab.until_refused("b", "volumeNotReady")
        assert "vm/b waits" in (await lab.status("a")).message
        assert await nodes_of(lab) == {}


@pytest.mark.parametrize("seed", mark_long([1, 2], 2))
async def test_controllers_that_are_killed_at_any_time_never_leave_half_a_gang(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    killed: Counter[int] = Counter()
    async with Lab(tmp_path, slow=seed) as lab:
        for name in ("n1", "n2", "n3"):
            await lab.add_node(name, cpu=64.0, memory=64 * GIB)
        for number in range(30):
            for member in "abc":
                await lab.put_vm(f"g{number}-{member}", gang=f"g{number}:3", cpu=2.0)
            for _ in range(draw.randrange(60, 160)):
                await asyncio.sleep(0)
            await lab.kill_controllers()
            counts = Counter(name.partition("-")[0] for name in await nodes_of(lab))
            assert set(counts.values()) <= {3}, counts
            killed[counts[f"g{number}"]] += 1
            lab.start_controllers()
        for number in range(30):
            for member in "abc":
                await lab.until_phase(f"g{number}-{member}", "Running")
        assert len(await nodes_of(lab)) == 90
    assert killed[0] and killed[3]  # some before, some after


async def test_a_gang_may_come_before_the_nodes_and_is_held_up_by_one_that_is_on_hold(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("a", "b"):
            await lab.put_vm(name, gang="web:2", affinity_groups=["web"], hold=name == "b")
        await lab.until_refused("a", "gangIncomplete")
        await lab.change_spec("b", hold=False)
        for name in ("a", "b"):
            await lab.until_refused(name, "noAvailableAgents")
        await lab.add_node("n1", cpu=1.5)
        for name in ("a", "b"):
            await lab.until_refused(name, "insufficientResources")
        await lab.add_node("n2", cpu=2.0)  # together they must be, by their affinity group
        for name in ("a", "b"):
            await lab.until_phase(name, "Running")
        assert set((await nodes_of(lab)).values()) == {"n2"}


async def test_devices_are_given_to_a_gang_as_a_whole(tmp_path: Path) -> None:
    gpus = [{"index": index, "model": "T4", "memory": 16 * GIB} for index in range(2)]
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", gpus=gpus)
        for name in ("a", "b", "c"):
            await lab.put_vm(name, gang="gpu:3", gpus=1, cpu=0.5)
        await lab.until_refused("c", "insufficientResources")
        assert await nodes_of(lab) == {}
        await lab.add_node("n2", gpus=gpus)
        for name in ("a", "b", "c"):
            await lab.until_phase(name, "Running")
        taken = [(spec.node, gpu.index) for spec in await lab.allocations() for gpu in spec.gpus]
        assert len(taken) == len(set(taken)) == 3


async def test_a_gang_for_which_there_was_no_time_to_search_is_searched_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spent(Budget):
        def __init__(self) -> None:
            super().__init__()
            self.spend(1000.0, 1001.0)  # the clock begins at 1000: nothing until 1010

    monkeypatch.setattr("weft.scheduler.decisions.Budget", Spent)
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name, cpu=10.0)
        for name, cpu in zip("abcdef", (3, 2, 4, 3, 2, 6), strict=True):
            await lab.put_vm(name, gang="web:6", cpu=float(cpu))
        await lab.until_refused("a", "insufficientResources")
        assert await nodes_of(lab) == {} and "not proven" in (await lab.status("a")).message
        for name in "abcdef":
            await lab.until_phase(name, "Running")
        assert lab.clock.elapsed() >= 1010


async def test_a_gang_gets_all_of_its_addresses_or_none(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put("network", "small", {"cidr": "10.9.0.0/29"})
        await lab.put_vm("first", networks=["small"])
        await lab.until_phase("first", "Running")
        for name in "abcde":
            await lab.put_vm(name, gang="web:5", networks=["small"], cpu=0.5)
        for name in "abcde":
            await lab.until_refused(name, "networkFull")
            addressed = (await lab.vm(name)).condition("Addressed")
            assert addressed is not None and "10.9.0.0/29" in addressed.message
        assert len(await lab.endpoints()) == 1 and set(await nodes_of(lab)) == {"first"}
        await lab.put_vm("alone", networks=["small"])  # what a gang can't use is for others
        await lab.until_phase("alone", "Running")
        for name in ("first", "alone"):
            await lab.delete(f"/vm/default/{name}")
        for name in "abcde":
            await lab.until_phase(name, "Running")
        assert sorted(one.address for one in await lab.endpoints()) == [f"10.9.0.{n}" for n in range(2, 7)]


async def test_a_gang_without_a_place_has_no_addresses(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=1.0)
        for name in ("a", "b"):
            await lab.put_vm(name, gang="web:2", cpu=1.0)
        for name in ("a", "b"):
            await lab.until_refused(name, "insufficientResources")
        assert await lab.endpoints() == []
        await lab.put_vm("other", cpu=1.0)
        await lab.until_phase("other", "Running")
        assert (await lab.status("other")).address == "10.0.0.2"  # the gang's tries have left nothing behind


async def test_the_addresses_of_a_large_gang_come_before_its_places(tmp_path: Path) -> None:
    """All that it needs is more than one commit holds."""
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        names = [f"m{number}" for number in range(32)]
        for name in names:
            await lab.put_vm(name, gang="web:32", cpu=0.1, memory=MIB)
        for name in names:
            await lab.until_phase(name, "Running")
        assert len({spec.address for spec in await lab.endpoints()}) == 32
        assert len({one.revision for one in await lab.every("decision")}) == 1, "it was placed one by one"


async def test_a_gang_with_leases_ends_with_them_and_none_of_it_begins_without_the_others(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name, cpu=8.0)
        soon, start = lab.clock.now() + 100, lab.clock.now() + 300
        await lab.put_vm("class", cpu=6.0, node="n1", lease={"start": soon, "duration": 100.0})
        await lab.until_lease("class", "Scheduled")
        for name in ("a", "b"):
            await lab.put_vm(name, cpu=6.0, gang="pair:2", lease={"start": start, "duration": 60.0})
        for name in ("a", "b"):
            lease = await lab.until_lease(name, "Scheduled")
            assert (lease.start, lease.end) == (start, start + 60)
        for name in ("c", "d"):  # n1 has the cores only after the class
            await lab.put_vm(name, cpu=8.0, gang="now:2", lease={"mode": "immediate", "duration": 120.0})
        for name in ("c", "d"):
            await lab.until_lease(name, "Rejected")
            assert "gang now: vm/" in (await lab.status(name)).lease.message  # type: ignore[union-attr]
        done = start + 60 + 200
        for name in ("e", "f"):
            await lab.put_vm(name, cpu=7.0, gang="due:2", lease={"deadline_at": done, "duration": 60.0})
        begins = {(await lab.until_lease(name, "Scheduled")).start for name in ("e", "f")}
        assert len(begins) == 1 and soon + 100 <= begins.pop() <= done - 60
        for name in ("a", "b"):
            await lab.until_lease(name, "Active", 400)
            assert start <= lab.clock.now() <= start + 2
        for name in ("a", "b"):
            await lab.until_lease(name, "Done", 100)


async def test_a_gang_of_leases_that_may_wait_waits_for_capacity_for_all(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name, cpu=8.0)
        await lab.put_vm("first", cpu=6.0, lease={"mode": "immediate", "duration": 60.0})
        await lab.until_lease("first", "Active")
        for name in ("a", "b"):
            await lab.put_vm(name, cpu=6.0, gang="pair:2", lease={"mode": "best-effort", "duration": 50.0})
        for name in ("a", "b"):
            await lab.until_refused(name, "insufficientResources")
        assert set(await nodes_of(lab)) == {"first"}
        for name in ("a", "b"):
            await lab.until_lease(name, "Active", 150)
        for name in ("a", "b"):
            await lab.until_lease(name, "Done", 100)


async def test_a_gang_with_leases_without_an_end_has_them(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=8.0)
        for name in ("a", "b"):
            await lab.put_vm(name, gang="pair:2", lease={"mode": "immediate", "priority": 7})
        for name in ("a", "b"):
            await lab.until_lease(name, "Active")
        assert {spec.lease.priority for spec in await lab.allocations() if spec.lease is not None} == {7}
