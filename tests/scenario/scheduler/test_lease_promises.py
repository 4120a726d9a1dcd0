"""Leases on a fabric in one process: what is promised is kept, whatever else comes and whoever is killed."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.long import mark_seeds
from tests.scenario.controllers_lab import GIB, Lab

from weft.kinds.allocation import AllocationSpec, Step
from weft.kinds.node import NodeStatus
from weft.kinds.vm import VM
from weft.objects.envelope import Envelope, decode_part, merge_part
from weft.scheduler.lease.lead import SHORTEST_SECONDS


def at(lab: Lab, seconds: float) -> float:
    return lab.clock.now() + seconds


async def test_a_reservation_runs_from_its_start_to_its_end_and_nobody_gets_its_capacity(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")  # 8 cores
        start = at(lab, 200)
        await lab.put_vm("class", cpu=6.0, lease={"start": start, "duration": 100.0})
        lease = await lab.until_lease("class", "Scheduled")
        assert (lease.start, lease.end) == (start, start + 100)
        assert (await lab.placed("class")).reason == "Placed"  # type: ignore[union-attr]
        await lab.put_vm("forever", cpu=4.0)  # there are 8 now, but not at the start
        await lab.until_refused("forever", "insufficientResources")
        await lab.put_vm("before", cpu=8.0, lease={"mode": "immediate", "duration": 60.0})
        await lab.until_lease("before", "Active")
        await lab.put_vm("small", cpu=2.0, grace=1.0)  # beside both? the first one needs all 8
        await lab.until_refused("small", "insufficientResources")
        await lab.until_lease("before", "Done", 100)
        await lab.until_phase("small", "Running")
        await lab.until_lease("class", "Preparing", 100)
        assert start - SHORTEST_SECONDS - 1 <= lab.clock.now() < start
        await lab.until_lease("class", "Active", 100)
        assert start <= lab.clock.now() <= start + 2
        await lab.until_lease("class", "Done", 150)
        assert start + 100 <= lab.clock.now() <= start + 102
        assert (await lab.status("class")).reason == "leaseEnded"
        await lab.until_phase("forever", "Running")
        reasons = lab.journal.reasons("class")
        assert reasons.count("LeaseEnding") == 1  # it is shorter than the time of the warning


async def test_a_lease_that_began_late_says_so_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        start = at(lab, 200)
        await lab.put_vm("class", cpu=6.0, lease={"start": start, "duration": 600.0})
        await lab.until_lease("class", "Scheduled")
        await lab.pass_time(100)
        await node.die()
        await lab.pass_time(120)  # its agent is away for 20 s of its lease
        await node.start()
        lease = await lab.until_lease("class", "Active", 100)
        assert 20 <= lease.late_seconds <= 25 and "late" in lease.message
        await lab.pass_time(100)
        assert await lab.lease("class") == lease
        assert lab.journal.reasons("class").count("LeaseLate") == 1


async def test_a_node_counts_a_lease_from_when_it_takes_its_capacity_on(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")  # 8 cores
        await lab.put_vm("web", cpu=8.0, grace=0.0, lease={"mode": "immediate", "duration": 300.0})
        await lab.put("reservation", "class", {"cpu": 2, "memory": GIB, "start": at(lab, 500), "duration": 600.0})
        await lab.put_vm("night", cpu=4.0, lease={"start": at(lab, 900), "duration": 60.0})
        await lab.until_lease("night", "Scheduled")

        async def read() -> tuple[float, int, float]:
            envelope = await lab.get("/node/-/n1")
            assert envelope is not None
            status = decode_part(envelope.status, NodeStatus)
            return status.allocated_cpu, status.allocations_later, status.promised_cpu

        async def until(cpu: float, later: int, promised: float, seconds: float) -> None:
            async def counted() -> bool:
                return await read() == (cpu, later, promised)

            await lab.until(counted, seconds)

        await until(8.0, 2, 6.0, 10)  # both at once from 900 s on
        await until(0.0, 2, 6.0, 400)
        await until(2.0, 1, 4.0, 300)
        await until(6.0, 0, 0.0, 500)


async def test_a_machine_that_boots_slowly_is_begun_as_much_earlier(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        await lab.put_vm("first", cpu=1.0)
        await lab.until_phase("first", "Running")
        ((uid, report),) = node.running.items()
        steps = [Step(name="disk", state="done", seconds=20.0), Step(name="boot", state="done", seconds=100.0)]
        node.running[uid] = slow = msgspec.structs.replace(report, steps=steps)

        def change(target: Envelope) -> None:
            target.report = merge_part(target.report, slow)

        await lab.change(f"/allocation/-/{node.uid}.{uid}", change)

        async def told() -> bool:
            return [step["seconds"] for step in (await lab.status("first")).steps] == [20.0, 100.0]

        await lab.until(told)
        await lab.kill_controllers()  # what they know is in the reports
        lab.start_controllers("again")
        start = at(lab, 600)
        await lab.put_vm("class", cpu=2.0, lease={"start": start, "duration": 100.0})
        await lab.until_lease("class", "Scheduled")
        leases = {spec.workload.name: spec.lease for spec in await lab.allocations()}
        assert leases["class"] is not None and leases["class"].prepare_at == start - (1.5 * 120 + 15)
        await lab.until_lease("class", "Preparing", 500)
        assert start - 196 <= lab.clock.now() <= start - 194
        await lab.until_lease("class", "Active", 300)
        assert start <= lab.clock.now() <= start + 2


async def test_a_refusal_names_when_it_would_fit(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("first", cpu=8.0, grace=0.0, lease={"mode": "immediate", "duration": 100.0})
        end = (await lab.until_lease("first", "Active")).end
        assert end is not None
        await lab.put_vm("second", cpu=8.0, grace=0.0, lease={"mode": "immediate", "duration": 50.0})
        refused = await lab.until_lease("second", "Rejected")
        assert "no node has 8 free cores and 256 MiB for 50s now; earliest: " in refused.message
        assert refused.message.endswith(" UTC on n1")
        placed = await lab.placed("second")
        assert placed is not None and placed.reason == "leaseConflict"
        await lab.put_vm("late", cpu=8.0, grace=0.0, lease={"deadline_at": end + 100.0, "duration": 90.0})
        await lab.put_vm("too-late", cpu=8.0, grace=0.0, lease={"deadline_at": end + 170.0, "duration": 90.0})
        lease = await lab.until_lease("late", "Scheduled")
        assert (lease.start, lease.end) == (end, end + 90)
        await lab.until_lease("too-late", "Rejected")
        await lab.put_vm("queued", cpu=8.0, grace=0.0, lease={"duration": 20.0})
        await lab.until_refused("queued", "insufficientResources")
        await lab.until_lease("queued", "Active", 400)  # when both are over
        assert (await lab.lease("late")).state == "Done" and (await lab.lease("second")).state == "Rejected"


async def test_what_was_refused_shows_it_and_is_placed_once_it_is_created_with_less(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("large", cpu=9.0, lease={"mode": "immediate", "duration": 50.0})
        await lab.until_phase("large", "Rejected")

        def create_again(target: Envelope) -> None:  # as the API does
            spec = decode_part(target.spec, VM.spec)
            fresh = VM.make("large", msgspec.structs.replace(spec, cpu=2.0), lab.clock.now(), project=target.project)
            target.spec, target.status, target.conditions = fresh.spec, fresh.status, fresh.conditions
            target.generation += 1

        await lab.change("/vm/default/large", create_again)
        await lab.until_lease("large", "Active")
        await lab.until_phase("large", "Running")


async def test_a_lease_is_extended_while_it_fits(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("now", cpu=8.0, grace=0.0, lease={"mode": "immediate", "duration": 100.0})
        begun = await lab.until_lease("now", "Active")
        assert begun.start is not None
        await lab.put_vm("next", cpu=8.0, grace=0.0, lease={"start": begun.start + 400.0, "duration": 100.0})
        await lab.until_lease("next", "Scheduled")

        async def wish(duration: float) -> None:
            request = {"mode": "immediate", "duration": duration, "preemptible": False}
            await lab.change_spec("now", lease=request)

        async def ends(seconds: float) -> None:
            async def there() -> bool:
                return (await lab.lease("now")).end == begun.start + seconds  # type: ignore[operator]

            await lab.until(there)

        await wish(340.0)  # the next one takes its capacity a minute before it starts
        await ends(340.0)
        await wish(350.0)

        async def refused() -> bool:
            placed = await lab.placed("now")
            return placed is not None and placed.reason == "leaseConflict" and placed.status == "True"

        await lab.until(refused)
        assert (await lab.lease("now")).end == begun.start + 340
        await wish(340.0)  # it is withdrawn

        async def taken_back() -> bool:
            placed = await lab.placed("now")
            return placed is not None and (placed.reason, placed.status, placed.message) == ("Placed", "True", "on n1")

        await lab.until(taken_back)
        await wish(350.0)
        await lab.until(refused)
        await lab.change_spec(
            "next", lease={"start": begun.start + 400.0, "duration": 100.0, "cancelled": True, "mode": "reservation"}
        )
        await lab.until_lease("next", "Cancelled")
        await ends(350.0)  # what was in its way is gone
        await lab.until_lease("now", "Done", 400)
        assert lab.clock.now() >= begun.start + 350
        await wish(900.0)  # an ended lease is never restarted
        await lab.pass_time(20)
        assert (await lab.lease("now")).state == "Done" and (await lab.status("now")).phase == "Stopped"


async def test_an_extension_and_a_place_decided_on_together_get_different_capacity(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("longer", cpu=8.0, grace=0.0, lease={"mode": "immediate", "duration": 100.0})
        begun = await lab.until_lease("longer", "Active")
        assert begun.start is not None
        await lab.kill_controllers()
        await lab.change_spec("longer", lease={"mode": "immediate", "duration": 150.0, "preemptible": False})
        await lab.put_vm("then", cpu=8.0, grace=0.0, lease={"deadline_at": begun.start + 400.0, "duration": 90.0})
        lab.start_controllers("there")
        then = await lab.until_lease("then", "Scheduled", 100)
        longer = await lab.lease("longer")
        assert then.start is not None and longer.end is not None
        assert longer.end <= then.start, "the same capacity was given twice"


async def test_a_cancelled_lease_ends_at_once_and_before_its_place_it_never_begins(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("runs", cpu=8.0, lease={"mode": "immediate", "duration": 1000.0})
        await lab.until_lease("runs", "Active")
        await lab.put_vm("waits", cpu=8.0, lease={"duration": 10.0})
        await lab.until_refused("waits", "insufficientResources")
        await lab.change_spec("waits", lease={"mode": "best-effort", "duration": 10.0, "cancelled": True})
        await lab.until_lease("waits", "Cancelled")
        await lab.change_spec("runs", lease={"mode": "immediate", "duration": 1000.0, "cancelled": True})
        await lab.until_phase("runs", "Stopped")
        assert (await lab.lease("runs")).state == "Cancelled"
        await lab.pass_time(5)
        assert len(await lab.allocations()) == 1  # that of the first, with its disk
        await lab.put_vm("other", cpu=8.0)
        await lab.until_phase("other", "Running")


def draw(rng: random.Random, lab: Lab) -> dict[str, Any]:
    mode = rng.choice(["immediate", "best-effort", "reservation", "deadline"])
    duration = float(rng.choice([5, 20, 60]))
    lease: dict[str, Any] = {"mode": mode, "duration": duration}
    if mode == "reservation":
        lease["start"] = at(lab, rng.choice([1, 30, 70, 120]))
    if mode == "deadline":
        lease["deadline_at"] = at(lab, duration + rng.choice([1, 40, 150]))
    return lease


@pytest.mark.parametrize("seed", mark_seeds(4))
async def test_no_capacity_is_given_twice_and_each_promise_is_kept_while_controllers_are_killed(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name)
        leases: dict[str, dict[str, Any]] = {}
        promised: dict[str, tuple[float, float]] = {}
        active: dict[str, list[float]] = {}  # when it was seen to run

        async def watch() -> None:
            while True:
                used: dict[str, float] = {}
                for envelope in await lab.every("allocation"):
                    spec = decode_part(envelope.spec, AllocationSpec)
                    report = lab.nodes[spec.node].running.get(envelope.uid)
                    if report is not None and report.state in ("starting", "running", "stopping"):
                        used[spec.node] = used.get(spec.node, 0.0) + spec.resources.cpu
                        active.setdefault(spec.workload.name, []).append(lab.clock.now())
                assert all(cores <= 8.0 for cores in used.values()), used
                for name in leases:
                    status = await lab.lease(name)
                    if status.state == "Scheduled" and status.start is not None and status.end is not None:
                        span = (status.start, status.end)
                        if leases[name]["mode"] == "deadline":  # its end is promised, not its start
                            promised[name] = span
                        assert promised.setdefault(name, span) == span
                await lab.clock.sleep(0.5)

        watching = asyncio.ensure_future(watch())
        for number in range(14):
            name = f"vm-{number}"
            leases[name] = draw(rng, lab)
            await lab.put_vm(name, cpu=float(rng.choice([2, 4, 8])), memory=GIB, grace=1.0, lease=leases[name])
            await lab.pass_time(rng.choice([0.5, 3, 10]))
            if rng.random() < 0.3:
                await lab.kill_controllers()
                await lab.pass_time(rng.choice([1, 20]))
                lab.start_controllers(f"again-{number}")

        async def all_over() -> bool:
            assert not watching.done() or watching.result() is None
            states = [(await lab.lease(name)).state for name in leases]
            return all(state in ("Done", "Rejected") for state in states)

        await lab.until(all_over, 2000)
        watching.cancel()
        for name, (start, end) in promised.items():
            assert (await lab.lease(name)).state == "Done", name
            seen = [moment for moment in active.get(name, []) if start + 2 <= moment <= end - 0.5]
            assert len(seen) >= int((end - start - 3) / 0.5), (name, start, end, len(seen))
            assert not [moment for moment in active[name] if moment < start]
            deadline = leases[name].get("deadline_at")
            assert deadline is None or end <= deadline


async def test_a_refusal_that_no_time_mends_names_what_is_free_and_where(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")  # 8 cores each
        await lab.add_node("n2", cpu=4.0)
        await lab.put_vm("web", cpu=7.0, node="n1")
        await lab.until_phase("web", "Running")
        await lab.put_vm("other", cpu=3.0, node="n2", lease={"mode": "immediate"})
        await lab.until_phase("other", "Running")
        await lab.put_vm("large", cpu=8.0, lease={"start": at(lab, 600), "duration": 3600.0})
        message = (await lab.until_lease("large", "Rejected")).message
        assert message.startswith("no node has 8 free cores and 256 MiB from 2")
        assert "; most free: 1 core, " in message and "the largest node" not in message
