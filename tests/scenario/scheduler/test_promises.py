"""Leases whose node is lost, drained or cordoned before they begin: they begin elsewhere, at their time, or their owner is told."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.long import mark_seeds
from tests.scenario.controllers_lab import GIB, Lab, PretendNode
from tests.scenario.scheduler.test_reservations import reserve, status_of, until_state

from weft.contracts.store import Delete

LOST_SECONDS = 31.0  # until a silent node is lost


async def change_node(lab: Lab, name: str, **asked: object) -> None:
    await lab.ask(name, "node", None, **asked)


async def promise(lab: Lab, seconds: float, duration: float, **spec: Any) -> tuple[PretendNode, float]:
    """The VM "class", whose lease begins in so many seconds on n1, the only node; and when it begins."""
    node = await lab.add_node("n1")
    start = lab.clock.now() + seconds
    await lab.put_vm("class", lease={"start": start, "duration": duration}, **spec)
    await lab.until_lease("class", "Scheduled")
    return node, start


async def node_of(lab: Lab, name: str) -> str | None:
    return (await lab.status(name)).node


async def until_on(lab: Lab, name: str, node: str, seconds: float = 60.0) -> None:
    async def there() -> bool:
        return await node_of(lab, name) == node

    await lab.until(there, seconds)


async def running_on(lab: Lab, name: str) -> list[str]:
    """The nodes where something of it runs."""
    found = []
    for node in lab.nodes.values():
        states = [node.running[uid].state for uid, spec in node.specs.items() if spec.workload.name == name]
        found += [node.name for state in states if state in ("starting", "running")]
    return found


async def until_at_risk(lab: Lab, name: str, text: str) -> str:
    async def told() -> bool:
        placed = await lab.placed(name)
        return placed is not None and placed.reason == "leaseAtRisk" and text in placed.message

    await lab.until(told)
    return (await lab.lease(name)).message


async def test_a_lease_whose_node_is_lost_before_it_begins_begins_elsewhere_at_its_time(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        start = lab.clock.now() + 200
        await lab.put_vm("class", cpu=6.0, lease={"start": start, "duration": 100.0})
        await lab.put_vm("batch", cpu=2.0, lease={"deadline_at": start + 500, "duration": 100.0})
        await lab.until_lease("class", "Scheduled")
        await lab.until_lease("batch", "Active")  # it has begun, so it stays
        await lab.add_node("n2")
        await node.die()
        await lab.pass_time(LOST_SECONDS)
        await until_on(lab, "class", "n2")
        lease = await lab.lease("class")
        assert (lease.state, lease.start, lease.end) == ("Scheduled", start, start + 100)
        assert "LeaseReplanned" in lab.journal.reasons("class")
        await lab.put_vm("other", cpu=6.0, node="n2")
        await lab.until_refused("other", "insufficientResources")
        await lab.until_lease("class", "Active", 200)
        assert start <= lab.clock.now() <= start + 2
        assert await node_of(lab, "batch") == "n1" and (await lab.status("batch")).reason == "nodeLost"
        await node.start()
        await lab.pass_time(10)
        assert await running_on(lab, "class") == ["n2"]
        assert [spec.node for spec in await lab.allocations() if spec.workload.name == "class"] == ["n2"]
        await lab.until_lease("class", "Done", 200)


async def test_a_node_lost_a_minute_before_the_start_delays_nothing(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node, start = await promise(lab, 100, 100.0, cpu=6.0)
        await lab.add_node("n2")
        await lab.until_lease("class", "Preparing", 100)
        await node.die()
        await lab.until_lease("class", "Active", 200)
        assert start <= lab.clock.now() <= start + 2
        assert await node_of(lab, "class") == "n2"
        await node.start()
        await lab.pass_time(10)
        assert await running_on(lab, "class") == ["n2"]


async def test_its_owner_is_told_what_was_lost_and_what_is_nearest_and_it_begins_where_capacity_becomes_free(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        node, start = await promise(lab, 300, 100.0, cpu=8.0)
        await lab.add_node("n2")
        await lab.put_vm("busy", cpu=4.0, grace=0.0, node="n2", lease={"mode": "immediate", "duration": 500.0})
        await lab.until_lease("busy", "Active")
        await node.die()
        await lab.pass_time(LOST_SECONDS)
        message = await until_at_risk(lab, "class", "n1 is lost, and its lease hasn't begun; no node has 8 free cores")
        assert "earliest: " in message and "on n2" in message
        assert lab.journal.reasons("class").count("leaseAtRisk") == 1
        decision = await lab.get("/decision/default/vm.class")
        assert decision is not None and b"n1 is lost" in bytes(decision.spec)
        await node.start()  # in time: it keeps its promise

        async def safe() -> bool:
            placed = await lab.placed("class")
            return placed is not None and placed.reason == "Placed" and (await lab.lease("class")).message == ""

        await lab.until(safe)
        await node.die()
        await lab.pass_time(LOST_SECONDS)
        await until_at_risk(lab, "class", "n1 is lost")
        await lab.delete("/vm/default/busy")
        await until_on(lab, "class", "n2")
        await lab.until_lease("class", "Active", 300)
        assert start <= lab.clock.now() <= start + 2


async def test_a_promise_that_fits_nowhere_in_time_begins_late_and_keeps_its_end(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node, start = await promise(lab, 100, 300.0, cpu=8.0, grace=0.0)
        await node.die()
        await lab.pass_time(130)
        await until_at_risk(lab, "class", "n1 is lost")
        await lab.add_node("n2")
        await lab.until_lease("class", "Active", 60)
        assert await node_of(lab, "class") == "n2" and (await lab.lease("class")).end == start + 300
        await node.start()
        await lab.pass_time(10)
        assert await running_on(lab, "class") == ["n2"]
        await lab.until_lease("class", "Done", 300)
        assert start + 300 <= lab.clock.now() <= start + 302


async def test_a_lease_that_may_have_begun_unheard_waits_for_its_node(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node, _ = await promise(lab, 70, 300.0, cpu=8.0)
        await lab.add_node("n2")
        node.slow = True  # what it does is reported late
        await lab.pass_time(60)
        await node.die()
        await lab.pass_time(60)  # it was heard less than 30 s before the start
        status = await lab.status("class")
        assert (status.node, status.phase, status.reason) == ("n1", "Unknown", "nodeLost")


async def test_a_lease_whose_node_was_given_up_begins_anew_for_the_rest_of_its_time(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        start = lab.clock.now() + 100
        await lab.put_vm("class", cpu=8.0, grace=0.0, lease={"start": start, "duration": 300.0})
        await lab.until_lease("class", "Active", 120)
        await node.die()
        await lab.add_node("n2")
        await lab.pass_time(LOST_SECONDS)
        assert await node_of(lab, "class") == "n1"
        gone = [one.key for one in await lab.every("allocation")]
        await lab.store.commit([Delete(key) for key in (*gone, "/node/-/n1")])
        await lab.until_lease("class", "Active")
        assert await node_of(lab, "class") == "n2" and (await lab.lease("class")).end == start + 300


@pytest.mark.parametrize("spec", [{"cordoned": True}, {"maintenance": True}, {"cordoned": True, "drain": True}])
async def test_a_node_that_takes_nothing_more_hands_its_promises_on(tmp_path: Path, spec: dict[str, bool]) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        start = lab.clock.now() + 200
        await lab.put_vm("class", cpu=6.0, lease={"start": start, "duration": 100.0})
        await lab.put_vm("running", cpu=1.0)
        await lab.until_lease("class", "Scheduled")
        await lab.until_phase("running", "Running")
        await change_node(lab, "n1", **spec)
        message = await until_at_risk(lab, "class", "n1 is ")
        assert "no node has 6 free cores" in message
        await lab.pass_time(20)
        assert not await lab.every("migration") or "drain" in spec
        assert all(b"vm/class" not in bytes(one.spec) for one in await lab.every("migration"))
        await lab.add_node("n2")
        await until_on(lab, "class", "n2")
        await lab.until_lease("class", "Active", 200)
        assert start <= lab.clock.now() <= start + 2
        assert [one.node for one in await lab.allocations() if one.workload.name == "class"] == ["n2"]


async def test_a_promise_on_a_cordoned_node_begins_there_if_no_other_has_the_capacity(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        _, start = await promise(lab, 100, 100.0, cpu=6.0)
        await change_node(lab, "n1", cordoned=True)
        await until_at_risk(lab, "class", "n1 is cordoned")
        await lab.until_lease("class", "Active", 200)
        assert start <= lab.clock.now() <= start + 2 and await node_of(lab, "class") == "n1"
        placed = await lab.placed("class")
        assert placed is not None and placed.reason == "Placed"


async def test_slots_and_what_is_in_them_begin_elsewhere(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        start = lab.clock.now() + 200
        await reserve(lab, "room", count=2, start=start, duration=300.0)
        await until_state(lab, "room", "Scheduled")
        await lab.put_vm("early", cpu=3.0, reservation="room")
        await lab.until_lease("early", "Scheduled")
        await lab.add_node("n2")
        await lab.put_vm("busy", cpu=4.0, grace=0.0, node="n2")
        await lab.until_phase("busy", "Running")
        await node.die()
        await lab.pass_time(LOST_SECONDS)
        await until_on(lab, "early", "n2")  # one of the two fits

        async def told() -> bool:
            status = await status_of(lab, "room")
            return status.slots == {"n1": 1, "n2": 1} and status.message.startswith(
                "1 of 2 slots: n1 is lost; no node has 4 free"
            )

        await lab.until(told)
        assert (await status_of(lab, "room")).used["cpu"] == 3.0
        await lab.delete("/vm/default/busy")

        async def all_there() -> bool:
            status = await status_of(lab, "room")
            return status.slots == {"n2": 2} and status.message == ""

        await lab.until(all_there)
        await lab.until_lease("early", "Active", 200)
        assert start <= lab.clock.now() <= start + 2
        await node.start()
        await lab.pass_time(10)
        assert await running_on(lab, "early") == ["n2"]
        assert {one.node for one in await lab.allocations()} == {"n2"}


async def test_a_slot_in_which_something_runs_stays_with_its_lost_node(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        await reserve(lab, "room", count=2, duration=3000.0)
        await until_state(lab, "room", "Active")
        await lab.put_vm("runs", cpu=3.0, reservation="room")
        await lab.until_phase("runs", "Running")
        await lab.add_node("n2")
        await node.die()
        await lab.pass_time(LOST_SECONDS)

        async def half() -> bool:
            return (await status_of(lab, "room")).slots == {"n1": 1, "n2": 1}

        await lab.until(half)
        await lab.pass_time(60)
        assert await half() and await node_of(lab, "runs") == "n1"


@pytest.mark.parametrize("seed", mark_seeds(4))
async def test_nothing_begins_twice_and_no_capacity_is_given_twice_while_nodes_are_lost_and_controllers_killed(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    async with Lab(tmp_path, slow=seed) as lab:
        names = list[str]()
        promised: dict[str, tuple[float, float]] = {}
        for name in ("n1", "n2", "n3"):
            await lab.add_node(name)

        async def check() -> None:
            used: Counter[str] = Counter()
            for node in lab.nodes.values():
                for uid, spec in node.specs.items():
                    if node.running[uid].state in ("starting", "running", "stopping"):
                        used[node.name] += round(spec.resources.cpu)
            assert all(cores <= 8 for cores in used.values()), used
            for name in names:
                assert len(await running_on(lab, name)) <= 1, name
                lease = await lab.lease(name)
                if lease.state in ("Scheduled", "Preparing") and lease.start is not None and lease.end is not None:
                    assert promised.setdefault(name, (lease.start, lease.end)) == (lease.start, lease.end)

        for number in range(12):
            names.append(f"vm-{number}")
            start = lab.clock.now() + rng.choice([30, 70, 120])
            await lab.put_vm(
                names[-1],
                cpu=float(rng.choice([2, 4, 8])),
                memory=GIB,
                grace=1.0,
                lease={"start": start, "duration": float(rng.choice([20, 60]))},
            )
            node = lab.nodes[rng.choice(["n1", "n2", "n3"])]
            if node.alive and rng.random() < 0.4:
                await node.die()
            elif not node.alive and rng.random() < 0.7:
                await node.start()
            if rng.random() < 0.3:
                await change_node(lab, node.name, cordoned=rng.random() < 0.4)
            for _ in range(rng.choice([2, 8, 20])):
                await lab.pass_time(rng.choice([0.5, 3.0]))
                await check()
            if rng.random() < 0.3:
                await lab.kill_controllers()
                await lab.pass_time(rng.choice([1, 20]))
                lab.start_controllers(f"again-{number}")
        for node in lab.nodes.values():
            await change_node(lab, node.name, cordoned=False)
            if not node.alive:
                await node.start()
        for _ in range(60):
            await lab.pass_time(5)
            await check()
        states = {name: (await lab.lease(name)).state for name in names}
        assert set(states.values()) <= {"Done", "Rejected"}, states
        assert "Done" in states.values()
        assert len([one for one in await lab.allocations() if one.role != "reserved"]) <= len(names)
        assert seed != 1 or "LeaseReplanned" in {event.reason for event in lab.journal.events}
