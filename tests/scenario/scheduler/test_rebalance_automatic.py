"""Rebalancing with traffic, unreachable nodes and forecasts, with the controllers over a store in memory and pretend nodes."""

from __future__ import annotations

from pathlib import Path

from tests.scenario.controllers.test_drain import places
from tests.scenario.controllers_lab import GIB
from tests.scenario.migration_lab import MovingLab
from tests.scenario.scheduler.test_rebalance_plans import ask, crowd, keep, migrations, set_plan, until_plan

from weft.kinds.endpoint import endpoint_name
from weft.kinds.profile import WORKLOAD_PROFILE, Prediction, ProfileStatus, WorkloadProfileSpec, name_profile
from weft.kinds.rebalance_plan import RebalancePlanSpec, RebalancePlanStatus
from weft.kinds.rebalance_policy import RebalancePolicySpec, RebalancePolicyStatus
from weft.objects.envelope import Envelope, decode_part, merge_part
from weft.protocol.heartbeat import Digest, PathFigures, write_digest

RATE = 20.0 * 2**20


async def expect(lab: MovingLab, name: str, *cores: float) -> None:
    """Its profile expects so many cores in an hour and in a day; none: nothing is forecast."""
    vm, now = await lab.vm(name), lab.clock.now()
    made = zip(("1h", "24h"), (3600.0, 86400.0), cores, strict=False)
    told = {
        key: Prediction(seconds=seconds, value=value, low=value, high=value, method="told")
        for key, seconds, value in made
    }
    status = ProfileStatus(looked_at=now, sampled_at=now, unit="cores", full=4.0, prediction=told)
    spec = WorkloadProfileSpec(workload=vm.ref)
    await lab.put(WORKLOAD_PROFILE.name, name_profile("vm", name), spec, status=status)


async def policy(lab: MovingLab) -> RebalancePolicyStatus:
    envelope = await lab.get("/rebalancepolicy/-/auto")
    assert envelope is not None
    return decode_part(envelope.status, RebalancePolicyStatus)


async def test_guests_that_talk_come_together_and_the_reason_says_so(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        nodes = {name: await lab.add_node(name) for name in ("n1", "n2")}
        await nodes["n1"].write_report(round_trips={nodes["n2"].uid: 2.0})
        for name, node in (("web", "n1"), ("db", "n2"), ("a", "n1"), ("b", "n2")):
            await lab.put_vm(name, memory=GIB, cpu=0.5, node=node)
            await lab.until_phase(name, "Running")
            await lab.change_spec(name, node=None)
        assert (await ask(lab)).steps == []
        [of_web] = [one for one in await lab.endpoints() if one.workload.name == "web"]
        peer = endpoint_name(of_web.network_uid, of_web.address)
        nodes["n2"].saying = write_digest(Digest(talkers={(await lab.vm("db")).uid: [(peer, RATE)]}))
        await nodes["n2"].heartbeat()
        await lab.pass_time(5)
        found = await ask(lab)
        assert {step.workload for step in found.steps} & {"vm/web", "vm/db"}
        assert any("nearer to vm/" in step.reason and "20 MiB/s" in step.reason for step in found.steps)


async def test_a_node_that_answers_none_of_its_peers_is_no_target(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab)
        assert {step.to for step in (await ask(lab)).steps} == {"n2", "n3"}
        uids = {name: node.uid for name, node in lab.nodes.items()}
        for name in ("n1", "n2"):
            paths = {uids["n3"]: PathFigures(loss=1.0), uids["n2" if name == "n1" else "n1"]: PathFigures(loss=0.0)}
            lab.nodes[name].saying = write_digest(Digest(paths=paths))
            await lab.nodes[name].heartbeat()
        await lab.pass_time(5)
        assert {step.to for step in (await ask(lab)).steps} == {"n2"}


async def test_automatic_plans_need_forecasts_that_agree_and_keep_to_their_budget(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab, 6)
        await lab.put("rebalancepolicy", "auto", RebalancePolicySpec(migrations_per_hour=1), project=None)
        await lab.pass_time(1300)
        assert await migrations(lab) == [] and "6 of 6 VMs have no forecast" in (await policy(lab)).message
        for number in range(6):
            await expect(lab, f"vm-{number}", 1.0, 1.0)

        async def has_plan() -> bool:
            return (await policy(lab)).plan != ""

        looks = (await policy(lab)).looks
        await lab.until(has_plan, 2000)
        assert (await policy(lab)).looks >= looks + 2
        name = (await policy(lab)).plan
        await until_plan(lab, name, "Done")
        for turn in range(6):
            await lab.kill_controllers()
            lab.start_controllers(f"next-{turn}")
            await lab.pass_time(2)
        plans = [decode_part(item.spec, RebalancePlanSpec) for item in await lab.every("rebalanceplan")]
        assert [len(plan.steps) for plan in plans] == [1] and len(await migrations(lab)) == 1
        assert "budget of this hour is spent" in (await policy(lab)).message

        def end_long_ago(envelope: Envelope) -> None:
            status = decode_part(envelope.status, RebalancePlanStatus)
            status.ended_at = lab.clock.now() - 8 * 86_400.0
            envelope.status = merge_part(envelope.status, status)

        await lab.change(f"/rebalanceplan/-/{name}", end_long_ago)

        async def is_gone() -> bool:
            return await lab.get(f"/rebalanceplan/-/{name}") is None

        await lab.until(is_gone)


async def test_an_undone_automatic_plan_does_not_come_again(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab, 6)
        await lab.put("rebalancepolicy", "auto", RebalancePolicySpec(), project=None)

        async def look_twice() -> RebalancePolicyStatus:
            for _ in range(3):
                for number in range(6):
                    await expect(lab, f"vm-{number}", 1.0, 1.0)
                await lab.pass_time(601)
            return await policy(lab)

        name = (await look_twice()).plan
        await until_plan(lab, name, "Done")
        await set_plan(lab, name, undo=True)
        await until_plan(lab, name, "Undone")
        await lab.pass_time(4 * 3600)
        later = await look_twice()
        assert f"rebalanceplan/{name} was undone at score" in later.message, later.message
        assert later.plan == name and len(await lab.every("rebalanceplan")) == 1


async def test_what_would_be_busy_there_in_two_hours_stays(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab, 4, ("n2",))
        for number in range(4):
            await expect(lab, f"vm-{number}", 1.0, 1.0)
        assert (await ask(lab, hours=4)).steps != []
        await lab.put_vm("later", memory=GIB, cpu=1.0, node="n2")
        await lab.until_phase("later", "Running")
        await expect(lab, "later", 0.0, 200.0)  # in four hours as busy as all others together
        found = await ask(lab, hours=4)
        assert found.steps == [] and found.message == ""


async def test_undo_of_a_plan_whose_target_was_filled_since_ends_without_waiting(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await crowd(lab)
        found = await ask(lab)
        await keep(lab, "tidy", found, concurrent=4)
        for node in ("n2", "n3"):
            await lab.nodes[node].write_report(memory=GIB // 2)
        await lab.pass_time(2)
        await set_plan(lab, "tidy", start=True)
        await lab.pass_time(20)
        assert set((await places(lab)).values()) == {"n1"}
        await set_plan(lab, "tidy", undo=True)
        undone = await until_plan(lab, "tidy", "Undone", 30)
        assert {one.state for one in undone.steps} == {"Skipped"} and len(await migrations(lab)) == len(found.steps)
