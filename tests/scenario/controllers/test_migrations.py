"""Migrations from wish to end, with the controllers over a store in memory and nodes that only pretend: whatever breaks, the guest
runs at one side, one place is left, and the Migration says what happened."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.scenario.migration_lab import MovingLab, World

from weft.kinds.decision import DecisionSpec
from weft.kinds.endpoint import EndpointStatus
from weft.kinds.migration import KEPT_OF_ONE, KEPT_SECONDS
from weft.kinds.node import NodeStatus
from weft.kinds.volume import VolumeStatus
from weft.objects.envelope import decode_part

GIB = 1024**3


async def settle(lab: MovingLab, node: str, incarnation: int) -> None:
    """One place is left, on ``node``, where the guest runs and all that leads to it leads."""

    async def alone() -> bool:
        allocations = await lab.allocations()
        status = await lab.status("web")
        return len(allocations) == 1 and (status.phase, status.node, status.migration) == ("Running", node, "")

    await lab.until(alone)
    [place] = await lab.allocations()
    assert (place.node, place.role, place.migration, place.desired, place.incarnation) == (
        node,
        "active",
        None,
        "run",
        incarnation,
    )

    async def led() -> bool:
        return [decode_part(e.status, EndpointStatus).node for e in await lab.every("endpoint")] == [node]

    await lab.until(led)


async def start(lab: MovingLab, *nodes: str) -> None:
    for name in nodes or ("n1", "n2"):
        await lab.add_node(name)
    await lab.pass_time(2)
    await lab.put_vm("web", node=None)
    await lab.until_phase("web", "Running")


async def test_a_vm_moves_and_the_migration_tells_how_it_went(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab)
        await lab.migrate("web")
        status = await lab.until_migration("Succeeded")
        await settle(lab, "n2", 2)
        assert (status.source, status.target, status.tries, status.reason) == ("n1", "n2", 1, "")
        assert status.actual is not None and status.plan is not None and status.error is not None
        assert (status.actual.pause_ms, status.actual.duration_seconds, status.plan.mode) == (21, 4.0, "plain")
        assert (status.error.duration, status.error.pause) == (0.0, 4.8)
        decision = await lab.get("/decision/default/migration.m")
        assert decision is not None
        verdicts = decode_part(decision.spec, DecisionSpec).verdicts
        assert [(v.node, v.outcome, v.reason) for v in verdicts] == [
            ("n2", "chosen", ""),
            ("n1", "refused", "the source of the migration"),
        ]
        placed = await lab.placed("web")
        assert placed is not None and placed.message == "on n2"
        await lab.migrate("web", "back", to="n1")
        await lab.until_migration("Succeeded", "back")
        await settle(lab, "n1", 3)


async def test_a_volume_goes_along_and_is_at_home_where_its_vm_went(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.put("volume", "data", {"size": GIB}, finalizers=("volume",))
        for name in ("n1", "n2"):
            await lab.add_node(name)
        await lab.put_vm("web", volumes=["data"])
        await lab.until_phase("web", "Running")
        await lab.migrate("web")
        await lab.until_migration("Succeeded")
        await settle(lab, "n2", 2)
        volume = await lab.get("/volume/default/data")
        assert volume is not None
        assert decode_part(volume.status, VolumeStatus).node == "n2"


async def test_both_places_count_while_it_moves(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab)
        lab.begin = [World(stops_at="migrating")]
        await lab.migrate("web")
        await lab.until_migration("Migrating")
        status = await lab.status("web")
        assert (status.phase, status.node, status.migration) == ("Migrate", "n1", "m")

        async def counted() -> bool:
            nodes = [decode_part(node.status, NodeStatus) for node in await lab.every("node")]
            return [node.allocations for node in nodes] == [1, 1]

        await lab.until(counted)


async def test_one_that_fits_nowhere_says_why_and_goes_when_there_is_room(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab, "n1")
        await lab.migrate("web")

        async def refused() -> bool:
            return (await lab.migration()).reason == "noAvailableAgents"

        await lab.until(refused)
        await lab.add_node("n2")
        await lab.until_migration("Succeeded")
        await settle(lab, "n2", 2)


async def test_one_that_never_fits_fails_in_its_time_with_the_verdict(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab, "n1")
        await lab.add_node("small", memory=GIB // 8)
        await lab.migrate("web", to="small", timeout_seconds=20.0)
        status = await lab.until_migration("Failed")
        assert status.reason == "insufficientResources" and "small: not enough memory" in status.message
        await settle(lab, "n1", 1)


@pytest.mark.parametrize("moment", ["migrating", "switching", "handedOver"])
async def test_a_cut_connection_costs_a_try_and_the_next_one_succeeds(tmp_path: Path, moment: str) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab)
        lab.begin = [World(fails_at=moment)]
        await lab.migrate("web")
        status = await lab.until_migration("Succeeded")
        assert status.tries == 2
        await settle(lab, "n2", 3)


@pytest.mark.parametrize("to", [None, "n2"])
async def test_a_target_that_cant_get_ready_costs_a_try_and_the_next_one_goes_elsewhere_if_it_may(
    tmp_path: Path, to: str | None
) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab, "n1", "n2", "n3")
        lab.begin = [World(stuck="notFound")]
        await lab.migrate("web", to=to)

        async def told() -> bool:
            return (await lab.migration()).reason == "notFound"

        await lab.until(told)
        first = await lab.migration()
        assert (first.phase, first.message) == ("Preparing", f"target {first.target}: it can't be made ready")
        status = await lab.until_migration("Succeeded")
        assert (status.tries, status.avoid) == (2, (first.target,))
        assert (status.target != first.target) is (to is None)
        await settle(lab, status.target, 3)


async def test_where_the_disk_is_full_it_isnt_tried_a_second_time(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab)
        lab.begin = [World(stuck="noSpace")]
        await lab.migrate("web", to="n2")
        status = await lab.until_migration("Failed")
        assert (status.tries, status.reason, status.message) == (1, "noSpace", "target n2: it can't be made ready")
        await settle(lab, "n1", 1)


async def test_after_three_tries_it_has_failed_and_the_guest_runs_where_it_was(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab)
        lab.begin = [World(fails_at="migrating"), World(fails_at="migrating"), World(fails_at="switching")]
        await lab.migrate("web")
        status = await lab.until_migration("Failed")
        assert (status.tries, status.message) == (3, "source n1: the connection was cut")
        await settle(lab, "n1", 1)


async def test_what_was_handed_over_and_never_taken_goes_on_at_the_source_on_the_targets_word(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab)
        lab.begin = [World(deaf=True), World(deaf=True), World(deaf=True)]
        await lab.migrate("web")
        status = await lab.until_migration("Failed", seconds=300)
        assert status.reason == "notTakenOver"
        await settle(lab, "n1", 1)


@pytest.mark.parametrize("moment", ["", "migrating", "switching"])
async def test_a_cancelled_one_leaves_the_guest_where_it_was(tmp_path: Path, moment: str) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab)
        lab.begin = [World(stops_at=moment or "migrating")]
        if not moment:
            lab.nodes["n2"].slow = True
        await lab.migrate("web")
        await lab.until_migration({"": "Preparing", "migrating": "Migrating", "switching": "Switching"}[moment])
        lab.nodes["n2"].slow = False
        await lab.cancel("m")
        for node in lab.nodes.values():
            for uid in list(node.specs):
                await node.act(f"/allocation/-/{node.uid}.{uid}")
        status = await lab.until_migration("Cancelled")
        assert status.reason == "cancelled"
        await settle(lab, "n1", 1)


async def test_a_stop_meanwhile_breaks_it_off_and_is_then_carried_out(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab)
        lab.begin = [World(stops_at="migrating")]
        await lab.migrate("web")
        await lab.until_migration("Migrating")
        await lab.change_spec("web", run="stop")
        status = await lab.until_migration("Cancelled")
        assert status.reason == "workloadChanged"
        await lab.until_phase("web", "Stopped")
        [place] = await lab.allocations()
        assert (place.node, place.role, place.desired) == ("n1", "active", "stop")


async def test_a_deleted_vm_leaves_nothing_at_either_side(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab)
        lab.begin = [World(stops_at="migrating")]
        await lab.migrate("web")
        await lab.until_migration("Migrating")
        await lab.delete("/vm/default/web")
        await lab.until_gone("/vm/default/web")
        assert await lab.allocations() == []
        assert (await lab.until_migration("Cancelled")).reason == "workloadDeleted"


async def test_a_restart_with_more_memory_meanwhile_breaks_it_off_and_comes_where_it_was(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab)
        lab.begin = [World(stops_at="migrating")]
        await lab.migrate("web")
        await lab.until_migration("Migrating")
        await lab.change_spec("web", memory=2 * GIB, restart_generation=2)
        status = await lab.until_migration("Cancelled")  # a restart can't wait
        assert status.message == "vm/web was asked to restart meanwhile"

        async def grown() -> bool:
            return [place.resources.memory for place in await lab.allocations()] == [2 * GIB]

        await lab.until(grown)
        await settle(lab, "n1", 1)


async def test_a_target_lost_before_the_hand_over_costs_nothing_but_the_try(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab, "n1", "n2", "n3")
        lab.begin = [World(stops_at="migrating")]
        await lab.migrate("web")
        target = (await lab.until_migration("Migrating")).target
        await lab.nodes[target].die()
        [source] = [a for a in await lab.allocations() if a.role == "source"]
        assert source.migration is not None
        lab.worlds[source.migration.key].stops_at, lab.worlds[source.migration.key].fails_at = "", "switching"
        n1 = lab.nodes["n1"]
        for uid in list(n1.specs):
            await n1.act(f"/allocation/-/{n1.uid}.{uid}")
        status = await lab.until_migration("Succeeded", seconds=300)
        assert status.tries == 2 and status.target != target
        assert (await lab.status("web")).node == status.target


async def test_a_target_lost_after_the_hand_over_is_waited_for(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab)
        lab.begin = [World(stops_at="switching")]
        await lab.migrate("web", timeout_seconds=60.0)
        await lab.until_migration("Switching")
        await lab.nodes["n2"].die()
        world = next(iter(lab.worlds.values()))
        world.stops_at = ""
        n1 = lab.nodes["n1"]
        for uid in list(n1.specs):
            await n1.act(f"/allocation/-/{n1.uid}.{uid}")
        await lab.pass_time(200)
        status = await lab.migration()
        assert status.phase == "Switching" and "waiting for the node" in status.message
        assert (await lab.status("web")).phase == "Unknown"
        assert len(await lab.allocations()) == 2
        world.taken_over = True  # it did, and nobody heard
        await lab.nodes["n2"].start()
        await lab.until_migration("Succeeded")
        await settle(lab, "n2", 2)


async def test_two_of_one_vm_are_not_carried_out_together(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab)
        lab.begin = [World(stops_at="migrating")]
        await lab.migrate("web", "first")
        await lab.migrate("web", "second")
        status = await lab.until_migration("Failed", "second")
        assert (status.reason, status.message) == (
            "alreadyMigrating",
            "migration/first already migrates vm/web; wait for it to end, or cancel it",
        )


async def test_a_planned_one_waits_for_its_time(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab)
        await lab.migrate("web", not_before=lab.clock.now() + 300)
        await lab.until_migration("Planned")
        await lab.pass_time(250)
        assert ((await lab.migration()).phase, (await lab.status("web")).migration) == ("Planned", "")
        await lab.until_migration("Succeeded", seconds=1200)
        await settle(lab, "n2", 2)


async def revision(lab: MovingLab) -> int:
    return int((await lab.store.list("/vm/", limit=1)).cursor.rpartition(":")[2])


async def test_controllers_killed_at_any_moment_lead_it_on_all_the_same(tmp_path: Path) -> None:
    for moment in range(1, 30):
        folder = tmp_path / str(moment)
        folder.mkdir()
        async with MovingLab(folder) as lab:
            await start(lab)
            lab.begin = [World(fails_at="switching")] if moment % 2 else []
            await lab.migrate("web")
            killed = await revision(lab) + moment
            turns = 0
            while await revision(lab) < killed and (await lab.migration()).ended_at is None:
                await asyncio.sleep(0)
                turns += 1
                if turns % 100 == 0:
                    lab.clock.advance(0.25)
            await lab.kill_controllers()
            await lab.pass_time(40)  # until nobody has the lease any more
            lab.start_controllers("another")
            status = await lab.until_migration("Succeeded")
            assert status.tries == 1 + moment % 2
            await settle(lab, "n2", 2 + moment % 2)


async def test_of_ended_ones_only_the_newest_are_kept_and_not_for_ever(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await start(lab, "n1")
        for number in range(KEPT_OF_ONE + 2):
            await lab.migrate("web", f"m{number}", not_after=1.0)
            await lab.until_migration("Failed", f"m{number}")
            await lab.pass_time(1)

        async def kept() -> bool:
            return len(await lab.every("migration")) == KEPT_OF_ONE

        await lab.until(kept)
        assert await lab.get("/migration/default/m0") is None
        lab.clock.advance(KEPT_SECONDS)

        async def none() -> bool:
            return not await lab.every("migration")

        await lab.until(none)
