"""Suspended VMs change nodes with their memory, with the controllers over a store in memory and nodes that only pretend."""

from __future__ import annotations

from pathlib import Path

from tests.scenario.controllers.test_drain import drain, places, rehearse, until_told
from tests.scenario.migration_lab import MovingLab, World
from tests.scenario.scheduler.test_preemption import lease, read, state, until_lease

from weft.kinds.fields.lease import ELSEWHERE_SECONDS
from weft.kinds.migration import MigrationSpec, MigrationStatus
from weft.kinds.node import NodeRuntime
from weft.objects.envelope import decode_part
from weft.scheduler.migration.elsewhere import RETRY_SECONDS

GIB = 1024**3
RUNS = [NodeRuntime(name="qemu", kinds=["vm"], checkpoint="yes")]
OLD = [NodeRuntime(name="qemu", kinds=["vm"])]
SAVES = {"cpu": 4.0, "capabilities": ["suspend"], "runtimes": RUNS}
NEW_QEMU = {"machines": ["q35", "microvm", "q35@9.2", "q35@10.0"], "cpu_models": ["host@aa", "Westmere-v1"]}
OLD_QEMU = {"machines": ["q35", "microvm", "q35@9.2"], "cpu_models": ["host@aa", "Westmere-v1"]}


async def suspended(lab: MovingLab, name: str = "web") -> None:
    await lab.put_vm(name)
    await lab.until_phase(name, "Running")
    await lab.change_spec(name, run="suspend")
    await lab.until_phase(name, "Suspended")


async def test_a_suspended_vm_migrates_with_its_memory_and_resumes_where_it_is_then(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", **SAVES)
        await suspended(lab)
        await lab.add_node("n2", **SAVES)
        await lab.migrate("web", mode="saved")
        moved = await lab.until_migration("Succeeded")
        assert (moved.source, moved.target) == ("n1", "n2")
        status = await lab.status("web")
        assert (status.phase, status.node) == ("Suspended", "n2")
        await lab.change_spec("web", run="run")
        await lab.until_phase("web", "Running")
        assert await places(lab) == {"web": "n2"}


async def test_a_node_where_it_could_not_go_on_is_refused_before_anything_moves(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", **SAVES, **NEW_QEMU)
        await suspended(lab)
        await lab.add_node("n2", **SAVES, **OLD_QEMU)
        await lab.add_node("n3", **{**SAVES, **NEW_QEMU, "cpu_models": ["Westmere-v1"]})
        await lab.add_node("n4", **{**SAVES, **NEW_QEMU, "runtimes": OLD})
        for node, why in (("n2", "machine type q35 of version 10.0"), ("n3", "its CPU differs"), ("n4", "runs no vms")):
            await lab.migrate("web", name=node, mode="saved", to=node, timeout_seconds=5.0)
            failed = await lab.until_migration("Failed", name=node)
            assert why in failed.message, failed
        assert await places(lab) == {"web": "n1"} and not lab.worlds
        assert (await lab.status("web")).phase == "Suspended"
        await lab.nodes["n1"].write_report(runtimes=OLD)
        await lab.migrate("web", name="old", mode="saved")
        assert "n1 can't send the memory of vm/web" in (await lab.until_migration("Failed", name="old")).message


async def test_one_that_runs_again_is_left_alone(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", **SAVES)
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await lab.add_node("n2", **SAVES)
        await lab.migrate("web", mode="saved")
        ended = await lab.until_migration("Cancelled")
        assert ended.reason == "notSuspended" and not lab.worlds
        assert (await lab.status("web")).phase == "Running"


async def test_a_migration_that_fails_leaves_it_suspended_where_it_was(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", **SAVES)
        await suspended(lab)
        await lab.add_node("n2", **SAVES)
        lab.begin = [World(fails_at="handedOver") for _ in range(3)]
        await lab.migrate("web", mode="saved")
        await lab.until_migration("Failed")
        status = await lab.status("web")
        assert (status.phase, status.node, await places(lab)) == ("Suspended", "n1", {"web": "n1"})


async def test_a_drain_takes_suspended_vms_along(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", **SAVES)
        await suspended(lab)
        await lab.add_node("n2", **SAVES)
        [leaving] = await rehearse(lab, "n1")
        assert (leaving.mode, leaving.to, leaving.memory > 0) == ("saved", "n2", True)
        await drain(lab, "n1")
        await until_told(lab, "n1", "Drained")
        [made] = await lab.every("migration")
        assert decode_part(made.spec, MigrationSpec).mode == "saved"
        assert (await lab.status("web")).phase == "Suspended" and await places(lab) == {"web": "n2"}


async def test_one_suspended_for_another_resumes_where_a_migration_takes_it(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", **SAVES)
        await lab.put_vm("spare", cpu=4.0, lease=lease(duration=1000.0))
        await lab.until_phase("spare", "Running")
        _, first = await read(lab, "spare")
        await lab.put_vm("web", cpu=4.0, lease=lease(mode="immediate"))
        await until_lease(lab, "spare", "Suspended")
        lab.begin = [World(stops_at="migrating")]
        await lab.add_node("n2", **SAVES)
        await lab.migrate("spare", mode="saved")
        moving = await lab.until_lease_message("spare", "it resumes on n2 once its memory is there")
        assert (moving.phase, moving.lease.state) == ("Suspended", "Suspended")  # type: ignore[union-attr]
        await lab.put_vm("other", cpu=1.0)
        await lab.until_refused("other", "insufficientResources")  # its capacity on n2 is held, and n1 is web's
        await lab.delete("/vm/default/web")  # too late: it doesn't resume at home while its memory is on its way
        await lab.pass_time(20)
        leases = [one.lease for one in await lab.allocations() if one.workload.name == "spare"]
        assert len(leases) == 2 and all(one is not None and one.suspension is not None for one in leases)
        for world in lab.worlds.values():
            world.stops_at = ""
        for envelope in await lab.every("allocation"):
            await lab.nodes["n1"].act(envelope.key)
        await until_lease(lab, "spare", "Active")
        await lab.until_phase("spare", "Running")
        _, then = await read(lab, "spare")
        assert (await places(lab))["spare"] == "n2" and then.suspension is None
        assert first.end is not None and then.end is not None and then.suspended_seconds > 0
        assert abs(then.end - first.end - then.suspended_seconds) < 0.01


async def preempted(lab: MovingLab, *spare: str) -> None:
    """VMs that are suspended for one that takes all of n1."""
    await lab.add_node("n1", **SAVES)
    for name in spare:
        await lab.put_vm(name, cpu=4.0 / len(spare), lease=lease())
        await lab.until_phase(name, "Running")
    await lab.put_vm("web", cpu=4.0, lease=lease(mode="immediate"))
    for name in spare:
        await until_lease(lab, name, "Suspended")


async def test_one_whose_node_stays_full_resumes_on_another_after_a_minute(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await preempted(lab, "spare")
        began = lab.clock.now()
        await lab.add_node("n2", **SAVES)
        await lab.pass_time(ELSEWHERE_SECONDS - 10)
        assert not await lab.every("migration") and await state(lab, "spare") == "Suspended"
        await until_lease(lab, "spare", "Active")
        assert lab.clock.now() - began < 2 * ELSEWHERE_SECONDS
        await lab.until_phase("spare", "Running")
        assert (await places(lab))["spare"] == "n2" and "ResumesElsewhere" in lab.journal.reasons("spare")
        [made] = await lab.every("migration")
        spec = decode_part(made.spec, MigrationSpec)
        assert (spec.mode, spec.reason, made.labels["resume"]) == ("saved", "suspended for vm/web; n1 stays full", "n1")


async def test_an_option_of_the_server_says_how_long_one_waits_for_its_own_node(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.kill_controllers()
        lab.start_controllers(elsewhere_seconds=4 * ELSEWHERE_SECONDS)
        await preempted(lab, "spare")
        await lab.add_node("n2", **SAVES)
        await lab.pass_time(3 * ELSEWHERE_SECONDS)
        assert not await lab.every("migration")
        await until_lease(lab, "spare", "Active")
        assert (await places(lab))["spare"] == "n2"


async def test_it_waits_for_a_node_with_the_capacity_and_resumes_at_home_if_that_is_first(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await preempted(lab, "spare")
        await lab.add_node("n2", **{**SAVES, "cpu": 2.0})
        await lab.pass_time(5 * ELSEWHERE_SECONDS)
        assert not await lab.every("migration"), "a migration without a target is never made"
        await lab.delete("/vm/default/web")
        await until_lease(lab, "spare", "Active")
        await lab.until_phase("spare", "Running")
        assert (await places(lab))["spare"] == "n1" and not await lab.every("migration")


async def test_of_two_that_could_resume_on_one_node_one_goes(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await preempted(lab, "one", "two")
        await lab.add_node("n2", **{**SAVES, "cpu": 2.0})
        await lab.pass_time(10 * ELSEWHERE_SECONDS)
        found = await places(lab)
        assert sorted((found["one"], found["two"])) == ["n1", "n2"] and len(await lab.every("migration")) == 1
        assert sorted([await state(lab, "one"), await state(lab, "two")]) == ["Active", "Suspended"]


async def test_one_whose_migration_failed_waits_before_it_tries_again(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await preempted(lab, "spare")
        await lab.add_node("n2", **SAVES)
        lab.begin = [World(fails_at="migrating") for _ in range(3)]
        await lab.pass_time(RETRY_SECONDS)
        [failed] = await lab.every("migration")
        assert decode_part(failed.status, MigrationStatus).phase == "Failed" and not lab.begin
        await lab.pass_time(RETRY_SECONDS)
        assert await state(lab, "spare") == "Active" and (await places(lab))["spare"] == "n2"
