"""Migrations that are planned for later, with the controllers over a store in memory and nodes that only pretend: room is held for
them from when they are planned, by an allocation that no node acts on, and let go when it is of no use any more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.scenario.controllers.test_migrations import revision, settle, start
from tests.scenario.migration_lab import MovingLab, World

from weft.kinds.allocation import AllocationSpec
from weft.kinds.migration import MigrationStatus
from weft.kinds.node import NodeStatus
from weft.objects.envelope import decode_part

GIB = 1024**3
LATER = 300.0


async def mark(lab: MovingLab, node: str, **asked: object) -> None:
    await lab.ask(node, "node", None, **asked)


async def rooms(lab: MovingLab) -> list[AllocationSpec]:
    return [place for place in await lab.allocations() if place.role == "reserved"]


async def until_room(lab: MovingLab, node: str, name: str = "m") -> MigrationStatus:
    async def held() -> bool:
        status = await lab.migration(name)
        return (status.target, status.reason) == (node, "reservationHeld") and node in {
            r.node for r in await rooms(lab)
        }

    await lab.until(held)
    return await lab.migration(name)


async def until_none(lab: MovingLab) -> None:
    async def none() -> bool:
        return not await rooms(lab)

    await lab.until(none)


async def plan(lab: MovingLab, *nodes: str, **spec: object) -> MigrationStatus:
    """A VM on n1 that is to move later."""
    await start(lab, "n1")
    for name in nodes or ("n2",):
        await lab.add_node(name)
    await lab.migrate("web", not_before=lab.clock.now() + LATER, **spec)
    return await until_room(lab, nodes[0] if nodes else "n2")


async def test_room_is_held_from_when_it_is_planned_and_gives_way_to_the_target(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        status = await plan(lab, not_after=lab.clock.now() + 900)
        assert (status.phase, status.source, status.message) == ("Planned", "n1", "capacity is reserved on n2")
        assert status.window is not None and status.forecast is not None
        assert (status.window.quality, status.window.reason) == (
            1.0,
            "nothing else is planned for n1 and n2 at that time",
        )
        assert status.window.end is not None and 500 < status.window.end - status.window.start < 700
        assert status.forecast.duration_seconds is None and "nor any other between n1 and n2" in status.forecast.basis
        [room] = await rooms(lab)
        [place] = [one for one in await lab.allocations() if one.role == "active"]
        assert (room.resources, room.incarnation, room.nics) == (place.resources, 0, [])
        [held] = [e for e in await lab.every("allocation") if decode_part(e.spec, AllocationSpec).role == "reserved"]
        assert held.finalizers == [] and held.owner is not None and held.owner.kind == "migration"
        assert (await lab.status("web")).phase == "Running" and (await lab.status("web")).incarnation == 1

        async def counted() -> bool:
            node = await lab.get("/node/-/n2")
            assert node is not None
            told = decode_part(node.status, NodeStatus)
            return (told.allocated_memory, told.allocations) == (place.resources.memory, 0)

        await lab.until(counted)
        lab.begin = [World(stops_at="migrating")]
        await lab.until_migration("Migrating", seconds=600)
        [target] = [e for e in await lab.every("allocation") if decode_part(e.spec, AllocationSpec).role == "target"]
        assert (target.finalizers, target.owner) == (["node"], (await lab.vm("web")).ref)
        assert await rooms(lab) == [] and target.uid != held.uid
        for world in lab.worlds.values():
            world.stops_at = ""
        n1 = lab.nodes["n1"]
        for uid in list(n1.specs):
            await n1.act(f"/allocation/-/{n1.uid}.{uid}")
        await lab.until_migration("Succeeded")
        await settle(lab, "n2", 2)


async def test_what_it_takes_nobody_else_gets(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab, "n1")
        await lab.add_node("n2", memory=3 * GIB)
        await lab.change_spec("web", memory=2 * GIB, restart_generation=2)
        await lab.until_phase("web", "Running")
        await mark(lab, "n1", cordoned=True)
        await lab.migrate("web", not_before=lab.clock.now() + LATER)
        await until_room(lab, "n2")
        await lab.put_vm("other", memory=2 * GIB, node=None)
        await lab.until_phase("other", "Pending")
        await lab.pass_time(20)
        placed = await lab.placed("other")
        assert placed is not None and placed.status == "False"
        await lab.cancel("m")
        await lab.until_migration("Cancelled")
        assert await rooms(lab) == []
        await lab.until_phase("other", "Running")


@pytest.mark.parametrize("what", ["cancelled", "deleted", "its VM deleted"])
async def test_room_is_let_go_with_what_it_is_held_for(tmp_path: Path, what: str) -> None:
    async with MovingLab(tmp_path) as lab:
        await plan(lab)
        if what == "cancelled":
            await lab.cancel("m")
        else:
            await lab.delete("/vm/default/web" if what == "its VM deleted" else "/migration/default/m")
        await until_none(lab)
        if what == "its VM deleted":
            await lab.until_gone("/vm/default/web")
            assert (await lab.migration()).reason == "workloadDeleted"
            assert await lab.allocations() == []
        else:
            await settle(lab, "n1", 1)


@pytest.mark.parametrize("what", ["cordoned", "drained", "lost", "gone"])
async def test_room_on_a_node_that_can_take_nothing_is_chosen_again_and_why_is_told(tmp_path: Path, what: str) -> None:
    async with MovingLab(tmp_path) as lab:
        await plan(lab, "n2")
        await lab.add_node("n3")
        if what == "lost":
            await lab.nodes["n2"].die()
        elif what == "gone":
            await lab.nodes["n2"].die()
            await lab.delete("/node/-/n2")
        else:
            await mark(lab, "n2", cordoned=True, drain=what == "drained")
        status = await until_room(lab, "n3")
        why = {
            "cordoned": "the node is cordoned",
            "drained": "the node is being drained",
            "lost": "the node sends no heartbeat",
            "gone": "the node has left the fabric",
        }[what]
        assert status.reservation_lost in (
            f"the reservation on n2 was lost: {why}",
            "the reservation on n2 was lost: the node sends no heartbeat",
        )
        assert status.message == f"capacity is reserved on n3 ({status.reservation_lost})"
        assert [room.node for room in await rooms(lab)] == ["n3"]
        await lab.until_migration("Succeeded", seconds=600)
        await settle(lab, "n3", 2)


async def test_a_drain_is_not_held_up_by_room_that_is_held_there(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await plan(lab, "n2")
        await mark(lab, "n2", cordoned=True, drain=True)

        async def drained() -> bool:
            node = await lab.get("/node/-/n2")
            condition = node.condition("Drained") if node is not None else None
            return condition is not None and condition.status == "True"

        await lab.until(drained)
        await until_none(lab)


async def test_where_there_is_no_room_yet_it_says_so_and_holds_it_as_soon_as_there_is(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab, "n1")
        await lab.migrate("web", not_before=lab.clock.now() + LATER)

        async def told() -> bool:
            return (await lab.migration()).message.startswith("no capacity is reserved yet: ")

        await lab.until(told)
        window = (await lab.migration()).window
        assert window is not None and (window.quality, window.reason) == (0.0, "no capacity is reserved")
        await lab.add_node("n2")
        assert (await until_room(lab, "n2")).message == "capacity is reserved on n2"


async def test_its_vm_asks_for_more_so_more_is_held(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await plan(lab)
        await lab.change_spec("web", memory=2 * GIB, restart_generation=2)

        async def grown() -> bool:
            return [room.resources.memory for room in await rooms(lab)] == [2 * GIB]

        await lab.until(grown)
        assert "the workload requests other resources now" in (await until_room(lab, "n2")).message


async def test_its_vm_has_gone_there_by_itself(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await plan(lab)
        await lab.migrate("web", "now")
        await lab.until_migration("Succeeded", "now")
        assert "the workload is on that node by now" in (await until_room(lab, "n1")).message
        assert (await lab.migration()).source == "n2"


async def test_of_two_that_are_planned_for_a_vm_one_holds_capacity_and_then_the_other(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await plan(lab, "n2", "n3")
        for name in ("m2", "m3"):
            await lab.migrate("web", name, not_before=lab.clock.now() + LATER)
        await lab.pass_time(60)
        assert [room.node for room in await rooms(lab)] == ["n2"]
        assert "migration/m holds capacity for vm/web already" in (await lab.migration("m2")).message
        await lab.cancel("m")

        async def held_by_next() -> bool:
            held = [name for name in ("m2", "m3") if (await lab.migration(name)).reason == "reservationHeld"]
            return len(held) == len(await rooms(lab)) == 1

        await lab.until(held_by_next)
        await lab.until_migration("Cancelled", "m")


async def test_one_whose_vm_has_gone_there_by_hand_says_so_at_its_time_and_tries_no_longer(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await plan(lab, "n2", "n3", to="n2", not_after=lab.clock.now() + 4 * LATER)
        await lab.migrate("web", "now", to="n2")
        await lab.until_migration("Succeeded", "now")
        await until_none(lab)
        status = await lab.until_migration("Cancelled", seconds=2 * LATER)
        assert (status.reason, status.message) == ("alreadyThere", "vm/web is on n2 already")


async def test_a_window_that_passes_unused_lets_its_room_go_and_says_so(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await plan(lab, not_after=lab.clock.now() + LATER + 60)
        await lab.kill_controllers()
        await lab.pass_time(LATER + 100)
        lab.start_controllers("another")
        status = await lab.until_migration("Failed")
        assert (status.reason, status.message) == ("tooLate", "the migration could not start within its window")
        await until_none(lab)
        await settle(lab, "n1", 1)


async def test_a_window_in_which_its_guest_does_not_run_passes_unused(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await plan(lab, not_after=lab.clock.now() + LATER + 60)
        for node in lab.nodes.values():
            node.slow = True
        await lab.change_spec("web", restart_generation=2, run="run")
        await mark(lab, "n2", cordoned=True)
        status = await lab.until_migration("Failed", seconds=900)
        assert status.reason == "tooLate" and status.message.startswith(
            "the migration could not start within its window: "
        )
        await until_none(lab)


async def test_a_node_that_can_take_nothing_just_when_the_hour_comes_is_replaced_in_the_same_commit(
    tmp_path: Path,
) -> None:
    async with MovingLab(tmp_path) as lab:
        await plan(lab, "n2")
        await lab.add_node("n3")
        await lab.kill_controllers()
        await lab.pass_time(LATER + 10)
        await mark(lab, "n2", cordoned=True)
        lab.start_controllers("another")
        status = await lab.until_migration("Succeeded")
        assert status.target == "n3"
        await settle(lab, "n3", 2)


async def test_windows_that_use_the_same_nodes_are_worse_for_each_other(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await plan(lab)
        await lab.put_vm("two", node=None)
        await lab.until_phase("two", "Running")
        await lab.migrate("two", "m2", not_before=lab.clock.now() + LATER - 30, not_after=lab.clock.now() + LATER + 30)

        async def both() -> bool:
            windows = [(await lab.migration(name)).window for name in ("m", "m2")]
            return [window.quality if window else None for window in windows] == [0.5, 0.5]

        await lab.until(both)
        window = (await lab.migration()).window
        assert window is not None and window.reason.endswith("at that time: migration/m2")
        await lab.cancel("m2")

        async def alone() -> bool:
            window = (await lab.migration()).window
            return window is not None and window.quality == 1.0

        await lab.until(alone)


async def test_controllers_killed_at_any_moment_hold_room_once_and_make_the_target_of_it(tmp_path: Path) -> None:
    for moment in range(1, 16):
        folder = tmp_path / str(moment)
        folder.mkdir()
        async with MovingLab(folder) as lab:
            await start(lab)
            await lab.migrate("web", not_before=lab.clock.now() + 20)
            killed = await revision(lab) + moment
            turns = 0
            while await revision(lab) < killed and (await lab.migration()).ended_at is None:
                await asyncio.sleep(0)
                roles = [place.role for place in await lab.allocations()]
                assert roles.count("reserved") + roles.count("target") <= 1
                turns += 1
                if turns % 50 == 0:
                    lab.clock.advance(0.25)
            await lab.kill_controllers()
            await lab.pass_time(40)  # until nobody has the lease any more
            lab.start_controllers("another")
            status = await lab.until_migration("Succeeded")
            assert status.tries == 1
            await settle(lab, "n2", 2)
            assert await rooms(lab) == []
