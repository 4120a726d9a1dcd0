"""Plans that even out load, with the controllers over a store in memory and nodes that only pretend: what is planned holds by the
engine's filters, nothing migrates twice whoever is killed, and a plan ends whatever happens to its workloads and nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from tests.scenario.controllers.test_drain import mark, places
from tests.scenario.controllers_lab import GIB
from tests.scenario.migration_lab import MovingLab, World

from weft.kinds.allocation import AllocationSpec
from weft.kinds.migration import MigrationSpec, MigrationStatus
from weft.kinds.rebalance_plan import RebalancePlanStatus
from weft.kinds.report import ReportStatus
from weft.objects.envelope import Envelope, decode_part, merge_part
from weft.scheduler.report.rebalance import SETTLES_SECONDS


async def crowd(lab: MovingLab, count: int = 4, nodes: tuple[str, ...] = ("n2", "n3"), **spec: Any) -> None:
    """VMs on n1, and then more nodes."""
    await lab.add_node("n1")
    await lab.pass_time(2)
    for number in range(count):
        await lab.put_vm(f"vm-{number}", **{"memory": GIB, "cpu": 1.0, "node": None, **spec})
    for number in range(count):
        await lab.until_phase(f"vm-{number}", "Running")
    for name in nodes:
        await lab.add_node(name)
    await lab.pass_time(2)


async def ask(lab: MovingLab, **spec: Any) -> ReportStatus:
    name = f"ask-{len(await lab.every('report'))}"
    await lab.put("report", name, {"subject": "rebalance", **spec}, project=None)
    status = ReportStatus()
    while status.phase == "Pending":
        await lab.pass_time(0.1)
        envelope = await lab.get(f"/report/-/{name}")
        assert envelope is not None
        status = decode_part(envelope.status, ReportStatus)
    return status


async def keep(lab: MovingLab, name: str, found: ReportStatus, **spec: Any) -> None:
    steps = msgspec.to_builtins(found.steps)
    await lab.put("rebalanceplan", name, {"steps": steps, **spec}, project=None)


async def set_plan(lab: MovingLab, name: str, **asked: Any) -> None:
    def change(envelope: Envelope) -> None:
        envelope.actions = merge_part(envelope.actions, asked)
        envelope.generation += 1

    await lab.change(f"/rebalanceplan/-/{name}", change)


async def status_of(lab: MovingLab, name: str) -> RebalancePlanStatus:
    envelope = await lab.get(f"/rebalanceplan/-/{name}")
    assert envelope is not None
    return decode_part(envelope.status, RebalancePlanStatus)


async def until_plan(lab: MovingLab, name: str, phase: str, seconds: float = 300.0) -> RebalancePlanStatus:
    async def there() -> bool:
        return (await status_of(lab, name)).phase == phase

    await lab.until(there, seconds)
    return await status_of(lab, name)


async def migrations(lab: MovingLab) -> list[tuple[str, str | None]]:
    """Which workload each went with, and where to."""
    specs = [decode_part(item.spec, MigrationSpec) for item in await lab.every("migration")]
    return sorted((spec.workload, spec.to) for spec in specs)


async def test_a_plan_is_carried_out_a_few_at_a_time_and_undone(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab)
        found = await ask(lab)
        assert found.score_after < found.score_before and 2 <= len(found.steps) <= 3
        assert {step.from_ for step in found.steps} == {"n1"} and {step.to for step in found.steps} == {"n2", "n3"}
        assert all(step.bytes >= GIB and step.seconds > 0 and "more even" in step.reason for step in found.steps)
        assert set((await places(lab)).values()) == {"n1"}  # it was asked, and nothing was done
        await keep(lab, "tidy", found, concurrent=1)
        await lab.pass_time(30)
        assert await lab.every("migration") == []
        await set_plan(lab, "tidy", start=True)
        most = 0

        async def over() -> bool:
            nonlocal most
            statuses = [decode_part(item.status, MigrationStatus) for item in await lab.every("migration")]
            most = max(most, sum(one.phase not in ("Succeeded", "Failed", "Cancelled") for one in statuses))
            return (await status_of(lab, "tidy")).phase == "Done"

        await lab.until(over, 300)
        assert most == 1
        now = await places(lab)
        assert {step.workload: step.to for step in found.steps}.items() <= {
            f"vm/{n}": at for n, at in now.items()
        }.items()
        assert (await status_of(lab, "tidy")).message == f"{len(found.steps)} migrated"
        assert (await ask(lab)).steps == []
        await set_plan(lab, "tidy", undo=True)
        await until_plan(lab, "tidy", "Undone")
        assert set((await places(lab)).values()) == {"n1"}
        assert len(await lab.every("migration")) == 2 * len(found.steps)
        again = await ask(lab)  # load is as uneven as before, but what was measured of it may be older
        assert {step.workload for step in again.steps}.isdisjoint(step.workload for step in found.steps)
        assert all(f"{step.workload} rests until " in again.message for step in found.steps[:3])
        await lab.pass_time(SETTLES_SECONDS)
        rested = await ask(lab)
        assert len(rested.steps) == len(found.steps) and rested.message == ""


async def test_constraints_affinity_and_cordons_hold_and_budgets_bound_a_plan(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab, 4, ("n2", "n3", "n4"), constraint="name!=n4")
        await mark(lab, "n3", cordoned=True)
        await lab.pass_time(2)
        assert {step.to for step in (await ask(lab)).steps} == {"n2"}
        assert len((await ask(lab, migrations=1)).steps) == 1
        assert (await ask(lab, bytes=1)).steps == []
        await mark(lab, "n2", cordoned=True)
        await lab.pass_time(2)
        assert (await ask(lab)).steps == []


async def test_what_would_stand_still_is_not_migrated_for_balance_and_a_drain_says_so_first(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab)
        node, uids = lab.nodes["n1"], {spec.workload.name: uid for uid, spec in lab.nodes["n1"].specs.items()}

        def change(target: Envelope) -> None:
            target.report = merge_part(target.report, still)

        for name in ("vm-0", "vm-1", "vm-2"):
            node.running[uids[name]] = still = msgspec.structs.replace(node.running[uids[name]], live_bar="hot-plugged")
            await lab.change(f"/allocation/-/{node.uid}.{uids[name]}", change)
        await lab.pass_time(2)
        assert [step.workload for step in (await ask(lab)).steps] == ["vm/vm-3"]
        await lab.put("report", "drain", {"subject": "drain", "node": "n1"}, project=None)
        await lab.pass_time(2)
        told = await lab.get("/report/-/drain")
        assert told is not None
        notes = {one.workload: one.message for one in decode_part(told.status, ReportStatus).leaving}
        assert notes["vm/vm-0"] == "stands still while it migrates: hot-plugged" and notes["vm/vm-3"] == ""


async def test_workloads_that_must_be_apart_never_meet(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab, 3, ())
        await lab.add_node("n2")
        await lab.pass_time(2)
        await lab.put_vm("apart-1", memory=GIB, cpu=0.5, node="n2", anti_affinity_groups=["db"])
        await lab.until_phase("apart-1", "Running")
        await lab.put_vm("apart-2", memory=4 * GIB, cpu=4.0, anti_affinity_groups=["db"])
        await lab.until_phase("apart-2", "Running")
        assert (await places(lab))["apart-2"] == "n1"
        found = await ask(lab)
        assert found.steps and "vm/apart-2" not in {step.workload for step in found.steps}


async def test_a_plan_goes_on_after_a_kill_at_any_moment_and_nothing_migrates_twice(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab, 6)
        found = await ask(lab)
        await keep(lab, "tidy", found)
        await set_plan(lab, "tidy", start=True)
        for turn in range(40):
            await lab.kill_controllers()
            lab.start_controllers(f"next-{turn}")
            await lab.pass_time(0.3)
        await until_plan(lab, "tidy", "Done")
        assert await migrations(lab) == sorted((step.workload, step.to) for step in found.steps)
        assert (await status_of(lab, "tidy")).message == f"{len(found.steps)} migrated"


async def test_a_plan_is_refused_as_a_whole_if_the_fabric_has_changed(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab)
        found = await ask(lab)
        await keep(lab, "old", found)
        await keep(lab, "other", found)
        await mark(lab, found.steps[0].to, cordoned=True)
        await set_plan(lab, "old", start=True)
        refused = await until_plan(lab, "old", "Refused")
        assert f"{found.steps[0].to} is cordoned" in refused.message and "plan again" in refused.message
        assert await lab.every("migration") == []
        await mark(lab, found.steps[0].to, cordoned=False)
        workload = found.steps[0].workload.partition("/")[2]
        await lab.delete(f"/vm/default/{workload}")
        await lab.pass_time(20)
        await set_plan(lab, "other", start=True)
        assert f"vm/{workload} is gone" in (await until_plan(lab, "other", "Refused")).message


async def test_of_two_plans_one_runs_and_the_other_is_refused(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab)
        found = await ask(lab)
        for name in ("a", "b"):
            await keep(lab, name, found, concurrent=1)
            await set_plan(lab, name, start=True)
        assert "rebalanceplan/a is under way" in (await until_plan(lab, "b", "Refused")).message
        await until_plan(lab, "a", "Done")
        assert len(await lab.every("migration")) == len(found.steps)


async def test_what_is_deleted_or_migrated_by_hand_or_cordoned_meanwhile_is_left_out(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab, 8)
        found = await ask(lab)
        assert len(found.steps) >= 4
        names = [step.workload.partition("/")[2] for step in found.steps]
        lab.begin = [World(stops_at="migrating")]  # the first one takes until it is let go on
        await keep(lab, "tidy", found, concurrent=1)
        await set_plan(lab, "tidy", start=True)

        async def begun() -> bool:
            return len(await lab.every("migration")) == 1

        await lab.until(begun)
        await lab.delete(f"/vm/default/{names[1]}")
        away = "n3" if found.steps[2].to == "n2" else "n2"
        await lab.put("migration", "by-hand", {"workload": f"vm/{names[2]}", "to": away})

        async def by_hand() -> bool:
            return (await places(lab)).get(names[2]) == away

        await lab.until(by_hand, 120)
        for world in lab.worlds.values():
            world.stops_at = ""
        for item in await lab.every("allocation"):
            if decode_part(item.spec, AllocationSpec).node == "n1":
                await lab.nodes["n1"].act(item.key)
        done = await until_plan(lab, "tidy", "Done", 900)
        assert [one.state for one in done.steps[:3]] == ["Done", "Skipped", "Skipped"]
        assert {one.state for one in done.steps[3:]} == {"Done"}
        assert f"it is on {away}" in done.steps[2].message and "2 left out" in done.message
        await set_plan(lab, "tidy", undo=True)
        await until_plan(lab, "tidy", "Undone", 900)
        now = await places(lab)
        assert now[names[2]] == away and now[names[0]] == now[names[3]] == "n1"


async def test_a_failed_migration_and_a_lost_node_end_a_plan_with_clear_words(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab)
        found = await ask(lab)
        lab.begin = [World(fails_at="switching"), World(fails_at="switching"), World(fails_at="switching")]
        await keep(lab, "tidy", found, concurrent=1)
        await set_plan(lab, "tidy", start=True)

        async def begun() -> bool:
            return len(await lab.every("migration")) == 1

        await lab.until(begun)
        done = await until_plan(lab, "tidy", "Done", 900)
        assert {one.state for one in done.steps} <= {"Done", "Failed"} and len(await lab.every("migration")) == len(
            found.steps
        )
        for number in range(4):
            await lab.until_phase(f"vm-{number}", "Running")
        failed = {step.workload for step, one in zip(found.steps, done.steps, strict=True) if one.state == "Failed"}
        assert failed
        said = (await ask(lab)).message.split("; ")
        assert {one.partition(" ")[0] for one in said if one.endswith("after a migration that failed")} == failed
        assert all(one.endswith(", after a migration") for one in said if not one.startswith(tuple(failed)))


async def test_undo_in_the_middle_brings_back_what_arrives_and_begins_nothing_more(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab, 6)
        found = await ask(lab)
        await keep(lab, "tidy", found, concurrent=1)
        await set_plan(lab, "tidy", start=True)

        async def one_is_there() -> bool:
            return any(one.state == "Done" for one in (await status_of(lab, "tidy")).steps)

        await lab.until(one_is_there, 120)
        await set_plan(lab, "tidy", undo=True)
        for turn in range(10):
            await lab.kill_controllers()
            lab.start_controllers(f"next-{turn}")
            await lab.pass_time(0.3)
        undone = await until_plan(lab, "tidy", "Undone")
        assert set((await places(lab)).values()) == {"n1"}
        assert {one.state for one in undone.steps} == {"Back", "Skipped"}
