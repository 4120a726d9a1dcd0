"""Leases with deadlines on a fabric: planned anew for what comes later, suspended as planned, and done in time."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from tests.long import mark_seeds
from tests.scenario.controllers_lab import Lab
from tests.scenario.scheduler.test_lease_promises import at
from tests.scenario.scheduler.test_placement import cordon
from tests.scenario.scheduler.test_preemption import add_node, lease, read, state, until_lease
from tests.scenario.scheduler.test_scheduler_answers import ask

from weft.kinds.allocation import AllocationSpec
from weft.kinds.fields.lease import LeaseRequest
from weft.objects.envelope import decode_part

HOUR = 1200.0  # as short as moves are worth while


async def promise(lab: Lab, name: str, cpu: float, hours: float, by: float, **fields: Any) -> None:
    """A lease of so many hours that is done by then, in hours from now; accepted."""
    deadline = lease(duration=hours * HOUR, deadline_at=at(lab, by * HOUR), **fields)
    await lab.put_vm(name, cpu=cpu, grace=0.0, lease=deadline)


async def until_done(lab: Lab, name: str, by: float) -> None:
    """It runs to its end, in time."""
    await until_lease(lab, name, "Done", by - lab.clock.now() + 10.0)
    found = (await lab.status(name)).lease
    assert found is not None and found.end is not None and found.end <= by + 1e-3


async def test_leases_with_deadlines_that_have_not_begun_make_room_for_one_that_fits_nowhere(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)  # 4 cores
        begun = lab.clock.now()
        await promise(lab, "first", 4.0, 1, 20)
        await until_lease(lab, "first", "Active")
        await promise(lab, "second", 4.0, 4, 20)  # follows the first one
        await until_lease(lab, "second", "Scheduled")
        asked = {"mode": "deadline", "duration": HOUR, "deadline_at": at(lab, 2.5 * HOUR), "preemptible": False}
        dry = await ask(lab, "dry", kind="vm", changes={"image": "tiny", "cpu": 4.0, "grace": 0.0, "lease": asked})
        assert dry.best == "n1" and any(note.startswith("vm/second begins at ") for note in dry.notes)
        await promise(lab, "urgent", 4.0, 1, 2.5)
        await until_lease(lab, "urgent", "Scheduled")
        _, second = await read(lab, "second")
        _, urgent = await read(lab, "urgent")
        assert urgent.end is not None and urgent.end <= begun + 2.5 * HOUR + 5 and second.start == urgent.end
        assert "LeaseReplanned" in lab.journal.reasons("second")
        placed = await lab.placed("second")
        assert placed is not None and placed.message.startswith("on n1, from ")
        decision = await lab.get("/decision/default/vm.urgent")
        assert decision is not None and b"vm/second begins at " in bytes(decision.spec)
        await promise(lab, "late", 4.0, 3, 3.5)  # would need the place of one that is as urgent
        await until_lease(lab, "late", "Rejected")
        assert (await read(lab, "second"))[1] == second
        await lab.kill_controllers()
        lab.start_controllers("again")
        await until_done(lab, "urgent", begun + 2.5 * HOUR + 5)
        await until_done(lab, "second", begun + 20 * HOUR)


async def test_one_that_has_not_begun_moves_to_another_node_for_a_reservation(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        await add_node(lab, "n2")
        for number in (1, 2):  # both nodes are full for an hour, and half full for another
            await promise(lab, f"now-{number}", 4.0, 1, 1.1)
            await until_lease(lab, f"now-{number}", "Active")
        await promise(
            lab,
            "a",
            2.0,
            1,
            2.2,
        )
        await promise(lab, "b", 2.0, 1, 2.2)
        for name in ("a", "b"):
            await until_lease(lab, name, "Scheduled")
        start = at(lab, HOUR * 1.1)
        await lab.put_vm("class", cpu=4.0, grace=0.0, lease=lease(start=start, duration=HOUR / 2))
        await until_lease(lab, "class", "Scheduled")
        homes = {name: (await read(lab, name))[0].node for name in ("a", "b", "class")}
        assert homes["a"] == homes["b"] != homes["class"]
        assert (await read(lab, "class"))[1].start == start
        await until_lease(lab, "class", "Active", 2 * HOUR)
        assert lab.clock.now() <= start + 5.0
        for name in ("a", "b"):
            await until_done(lab, name, start + 1.1 * HOUR)


@pytest.mark.parametrize("killed", [False, True])
async def test_one_that_runs_is_suspended_as_planned_for_a_reservation_and_done_in_time(
    tmp_path: Path, killed: bool
) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        begun = lab.clock.now()
        await promise(lab, "work", 4.0, 3, 5, preemptible=True)
        await until_lease(lab, "work", "Active")
        start = at(lab, HOUR)
        await lab.put_vm("class", cpu=4.0, grace=0.0, lease=lease(start=start, duration=HOUR))
        await until_lease(lab, "class", "Scheduled")
        _, planned = await read(lab, "work")
        (pause,) = planned.pauses
        assert pause.at < pause.saved_at < start and pause.until == start + HOUR
        assert planned.end is not None and planned.end <= begun + 5 * HOUR + 5
        await lab.put_vm("greedy", cpu=4.0, grace=0.0, lease=lease(mode="immediate", duration=60.0))
        await until_lease(lab, "greedy", "Rejected")
        if killed:  # the node keeps the plan by itself
            await lab.kill_controllers()
            await lab.pass_time(HOUR + 60.0)
            lab.start_controllers("again")
        status = await until_lease(lab, "work", "Suspended", 2 * HOUR)
        assert status.reason == "preempted"
        await until_lease(lab, "class", "Active")
        assert lab.clock.now() <= start + (120.0 if killed else 5.0) and await state(lab, "work") == "Suspended"
        await until_lease(lab, "work", "Active", 2 * HOUR)
        assert lab.clock.now() >= start + HOUR
        assert (await read(lab, "work"))[1].end == planned.end
        await until_done(lab, "work", begun + 5 * HOUR + 5)


async def test_a_lease_with_a_deadline_is_planned_in_pieces_around_what_was_promised(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        start = at(lab, HOUR)
        await lab.put_vm("class", cpu=4.0, grace=0.0, lease=lease(start=start, duration=HOUR))
        await until_lease(lab, "class", "Scheduled")
        await promise(lab, "whole", 2.0, 2, 3.3)
        await until_lease(lab, "whole", "Rejected")  # it may not be suspended
        await promise(lab, "pieces", 2.0, 2, 3.3, preemptible=True)
        await until_lease(lab, "pieces", "Active")
        message = (await lab.status("pieces")).lease.message  # type: ignore[union-attr]
        assert message.startswith("it is suspended as planned from ")
        await lab.put_vm("gap", cpu=4.0, grace=0.0, lease=lease(mode="immediate", duration=3 * HOUR))
        await until_lease(lab, "gap", "Rejected")
        await until_lease(lab, "class", "Active", 2 * HOUR)
        await until_done(lab, "pieces", start + 2.4 * HOUR)


async def test_a_lease_that_others_may_suspend_is_not_suspended_past_its_deadline(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        await promise(lab, "work", 4.0, 3, 3.1, preemptible=True)
        await until_lease(lab, "work", "Active")
        await lab.put_vm("class", cpu=4.0, lease=lease(start=at(lab, HOUR), duration=HOUR, priority=10))
        await until_lease(lab, "class", "Rejected")
        await lab.put_vm("now", cpu=4.0, lease=lease(mode="immediate", priority=10))
        await lab.until_refused("now", "leaseConflict")
        await until_lease(lab, "work", "Done", 4 * HOUR)


async def test_pauses_that_nothing_needs_any_more_go_with_the_next_plan(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        await promise(lab, "first", 4.0, 0.5, 0.6)
        await until_lease(lab, "first", "Active")
        await lab.put_vm("class", cpu=4.0, grace=0.0, lease=lease(start=at(lab, HOUR), duration=HOUR / 2))
        await until_lease(lab, "class", "Scheduled")
        await promise(lab, "work", 4.0, 1, 2.2, preemptible=True)
        await until_lease(lab, "work", "Scheduled")
        assert len((await read(lab, "work"))[1].pauses) == 1
        await lab.delete("/vm/default/class")
        await lab.until_gone("/vm/default/class")
        await promise(lab, "urgent", 4.0, 0.5, 1.1)
        await until_lease(lab, "urgent", "Scheduled")
        _, work = await read(lab, "work")
        assert work.end is not None
        assert (work.pauses, work.suspended_seconds, round(work.end - work.start, 3)) == ((), 0.0, HOUR)
        await until_lease(lab, "work", "Done", 3 * HOUR)
        assert (await read(lab, "work"))[1] == work


async def test_a_pause_is_taken_back_or_shortened_once_what_it_was_planned_for_has_gone(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        begun = lab.clock.now()
        await promise(lab, "work", 4.0, 3, 6, preemptible=True)
        await until_lease(lab, "work", "Active")
        for name, hours in (("early", 1), ("late", 1.6)):
            start = at(lab, hours * HOUR - (lab.clock.now() - begun))
            await lab.put_vm(name, cpu=4.0, grace=0.0, lease=lease(start=start, duration=HOUR / 2))
            await until_lease(lab, name, "Scheduled")
        _, both = await read(lab, "work")
        (pause,) = both.pauses
        assert pause.saved_at < pause.until == begun + 2.1 * HOUR and both.end is not None
        await lab.delete("/vm/default/early")
        await lab.pass_time(5.0)
        _, one = await read(lab, "work")
        (shorter,) = one.pauses
        assert one.end is not None and shorter.saved_at > begun + 1.4 * HOUR and shorter.until == pause.until
        assert one.end == pytest.approx(both.end - 0.6 * HOUR)
        await lab.kill_controllers()
        await lab.delete("/vm/default/late")
        lab.start_controllers("again")  # which reads what is there
        await lab.pass_time(45.0)
        _, work = await read(lab, "work")
        assert (work.pauses, work.suspended_seconds) == ((), 0.0) and work.end == pytest.approx(work.start + 3 * HOUR)
        events = [event.message for event in lab.journal.events if event.reason == "LeaseReplanned"]
        assert len(events) == 4 and events[-1].startswith("nothing needs its place any more as planned: it is done by ")
        await until_done(lab, "work", begun + 3 * HOUR + 5.0)
        assert "Suspended" not in lab.journal.reasons("work")


async def test_a_pause_is_taken_back_once_the_lease_that_needed_it_begins_on_another_node(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await add_node(lab, name)
        begun = lab.clock.now()
        await promise(lab, "work", 4.0, 3, 9, preemptible=True)
        await until_lease(lab, "work", "Active")
        await promise(lab, "fill", 4.0, 3, 3.1)
        await until_lease(lab, "fill", "Active")
        await lab.put_vm("class", cpu=4.0, grace=0.0, lease=lease(start=at(lab, HOUR), duration=HOUR))
        await until_lease(lab, "class", "Scheduled")
        place, planned = await read(lab, "work")
        assert len(planned.pauses) == 1 and (await read(lab, "class"))[0].node == place.node
        await lab.delete("/vm/default/fill")
        await lab.until_gone("/vm/default/fill")
        await lab.change(f"/node/-/{place.node}", cordon(True))  # type: ignore[arg-type]
        await lab.pass_time(5.0)
        assert (await read(lab, "class"))[0].node != place.node
        assert (await read(lab, "work"))[1].pauses == ()
        await until_done(lab, "work", begun + 3 * HOUR + 5.0)
        assert "Suspended" not in lab.journal.reasons("work")


async def test_one_whose_node_is_lost_takes_the_place_of_one_that_can_wait(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        nodes = {name: await add_node(lab, name) for name in ("n1", "n2")}
        begun = lab.clock.now()
        for number in (1, 2):  # both nodes are full at first
            await promise(lab, f"now-{number}", 4.0, 0.5, 0.6)
            await until_lease(lab, f"now-{number}", "Active")
        await promise(lab, "tight", 4.0, 1, 1.7)
        await until_lease(lab, "tight", "Scheduled")
        await promise(lab, "loose", 4.0, 1, 9)
        await until_lease(lab, "loose", "Scheduled")
        homes = {name: (await read(lab, name))[0].node for name in ("tight", "loose")}
        assert sorted(homes.values()) == ["n1", "n2"]
        await nodes[homes["tight"]].die()

        async def elsewhere() -> bool:
            return homes["loose"] in [one.node for one in await lab.allocations() if one.workload.name == "tight"]

        await lab.until(elsewhere, 120)
        await until_done(lab, "tight", begun + 1.7 * HOUR + 5)
        await until_done(lab, "loose", begun + 9 * HOUR + 5)
        assert (await read(lab, "loose"))[0].node == homes["loose"]


def draw_lease(chance: random.Random, lab: Lab) -> LeaseRequest:
    mode = chance.choice(["immediate", "best-effort", "reservation", "deadline", "deadline", "deadline"])
    duration = float(chance.choice([60, 120, 300]))
    fields: dict[str, Any] = {"mode": mode, "duration": duration}
    if mode == "reservation":
        fields["start"] = at(lab, chance.choice([100, 200, 400]))
    if mode == "deadline":
        fields["deadline_at"] = at(lab, duration + chance.choice([1, 200, 500, 1200]))
        fields["preemptible"] = chance.random() < 0.6
    return lease(**fields)


@pytest.mark.parametrize("seed", mark_seeds(6))
async def test_no_capacity_is_given_twice_and_every_end_is_kept_while_leases_move_and_controllers_are_killed(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await add_node(lab, name)  # 4 cores each
        leases: dict[str, LeaseRequest] = {}
        ran: dict[str, list[float]] = {}  # when it was seen to run

        async def watch() -> None:
            while True:
                used: dict[str, float] = {}
                for envelope in await lab.every("allocation"):
                    spec = decode_part(envelope.spec, AllocationSpec)
                    report = lab.nodes[spec.node].running.get(envelope.uid)
                    if report is not None and report.state in ("starting", "running", "stopping"):
                        used[spec.node] = used.get(spec.node, 0.0) + spec.resources.cpu
                        ran.setdefault(spec.workload.name, []).append(lab.clock.now())
                assert all(cores <= 4.0 for cores in used.values()), used
                await lab.clock.sleep(2.0)

        watching = asyncio.ensure_future(watch())
        for number in range(14):
            name = f"vm-{number}"
            leases[name] = draw_lease(chance, lab)
            await lab.put_vm(name, cpu=float(chance.choice([2, 4])), grace=1.0, lease=leases[name])
            await lab.pass_time(chance.choice([3, 20, 60]))
            if chance.random() < 0.3:
                await lab.kill_controllers()
                await lab.pass_time(chance.choice([1, 40]))
                lab.start_controllers(f"again-{number}")

        async def all_over() -> bool:
            assert not watching.done() or watching.result() is None
            states = [(await lab.lease(name)).state for name in leases]
            return all(state in ("Done", "Rejected") for state in states)

        await lab.until(all_over, 6000)
        watching.cancel()
        assert "LeaseReplanned" in [event.reason for event in lab.journal.events] or seed
        for name, asked in leases.items():
            status = await lab.lease(name)
            if status.state == "Rejected":
                assert asked.mode != "best-effort" and name not in ran
                continue
            assert status.end is not None and asked.duration is not None and status.late_seconds == 0.0
            assert asked.deadline_at is None or status.end <= asked.deadline_at + 1e-3
            assert asked.start is None or status.start == asked.start
            assert len(ran[name]) * 2.0 >= asked.duration - 8.0, (name, asked, len(ran[name]))
