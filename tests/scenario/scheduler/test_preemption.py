"""Leases that give way to others: suspended with their memory, and resumed later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.scenario.controllers_lab import Lab, PretendNode
from tests.scenario.scheduler.test_fairness import add_project, put_many

from weft.kinds.allocation import AllocationSpec
from weft.kinds.decision import DecisionSpec
from weft.kinds.fields.lease import MOST_SUSPENSIONS, PATIENCE_SECONDS, AllocatedLease, LeaseRequest, check_lease
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.project import ProjectSpec
from weft.kinds.report import ReportStatus
from weft.objects.envelope import Envelope, decode_part

SAVES = ["suspend"]


def lease(**fields: Any) -> LeaseRequest:
    made = LeaseRequest(**fields)
    check_lease(made)
    return made


async def add_node(lab: Lab, name: str = "n1", **report: Any) -> PretendNode:
    return await lab.add_node(name, cpu=4.0, capabilities=SAVES, **report)


async def read(lab: Lab, name: str) -> tuple[AllocationSpec, AllocatedLease]:
    (spec,) = [one for one in await lab.allocations() if one.workload.name == name]
    assert spec.lease is not None
    return spec, spec.lease


async def state(lab: Lab, name: str) -> str:
    found = (await lab.status(name)).lease
    return found.state if found is not None else ""


async def until_lease(lab: Lab, name: str, wanted: str, seconds: float = 120.0) -> WorkloadStatus:
    async def there() -> bool:
        return await state(lab, name) == wanted

    await lab.until(there, seconds)
    return await lab.status(name)


async def test_a_best_effort_vm_is_suspended_for_an_immediate_one_and_resumes_after_it(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        await lab.put_vm("spare", cpu=4.0, lease=lease())
        await lab.until_phase("spare", "Running")
        before = await lab.status("spare")
        await lab.put_vm("web", cpu=2.0, lease=lease(mode="immediate"))
        await lab.until_phase("web", "Running")
        spare = await until_lease(lab, "spare", "Suspended")
        assert (spare.phase, spare.reason) == ("Suspended", "preempted") and "vm/web" in spare.message
        assert spare.lease is not None and "vm/web" in spare.lease.message and spare.lease.end is None
        assert "Preempted" in lab.journal.reasons("spare") and "Preempts" in lab.journal.reasons("web")
        decision = await lab.get("/decision/default/vm.web")
        assert decision is not None
        notes = decode_part(decision.spec, DecisionSpec).notes
        assert any("vm/spare is suspended for it" in note for note in notes)
        await lab.put_vm("small", cpu=2.0, lease=lease(mode="immediate"))  # what it leaves is free for others, too
        await lab.until_phase("small", "Running")
        await lab.delete("/vm/default/web")
        await lab.pass_time(10)
        assert await state(lab, "spare") == "Suspended"
        await lab.delete("/vm/default/small")
        await until_lease(lab, "spare", "Active")
        await lab.until_phase("spare", "Running")
        after = await lab.status("spare")
        assert (after.incarnation, after.boot_id) == (before.incarnation, before.boot_id)
        assert (await read(lab, "spare"))[1].suspension is None and "Resumed" in lab.journal.reasons("spare")


async def test_the_winner_starts_only_after_its_victim_is_saved(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await add_node(lab)
        await lab.put_vm("spare", cpu=4.0, lease=lease())
        await lab.until_phase("spare", "Running")
        node.slow = True
        await lab.put_vm("web", cpu=2.0, lease=lease(mode="immediate"))

        async def placed() -> bool:
            return len(await lab.allocations()) == 2

        await lab.until(placed)
        await lab.pass_time(30)
        await lab.kill_controllers()
        lab.start_controllers()
        await lab.pass_time(30)
        (web, _), (spare, _) = await read(lab, "web"), await read(lab, "spare")
        assert web.waits_for and (await lab.status("web")).phase != "Running"
        node.slow = False
        for envelope in await lab.every("allocation"):
            await node.act(envelope.key)
        await lab.until_phase("web", "Running")
        assert (await read(lab, "web"))[0].waits_for is None
        assert (await read(lab, "spare"))[0].incarnation == spare.incarnation


async def test_the_time_suspended_does_not_count_in_a_lease(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        await lab.put_vm("spare", cpu=4.0, lease=lease(duration=1000.0))
        await lab.until_phase("spare", "Running")
        _, first = await read(lab, "spare")
        await lab.put_vm("web", cpu=4.0, lease=lease(mode="immediate", duration=300.0))
        await until_lease(lab, "spare", "Suspended")
        began = lab.clock.now()
        await until_lease(lab, "web", "Active")
        await until_lease(lab, "spare", "Active", 600.0)
        _, then = await read(lab, "spare")
        assert first.end is not None and then.end is not None
        assert abs(then.end - first.end - then.suspended_seconds) < 0.01
        assert abs(then.suspended_seconds - (lab.clock.now() - began)) < 15.0 and then.suspended_seconds >= 300.0
        assert (await lab.status("spare")).lease.end == then.end  # type: ignore[union-attr]


async def test_a_reservation_has_others_suspended_just_in_time(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        await lab.put_vm("spare", cpu=4.0, lease=lease())
        await lab.until_phase("spare", "Running")
        start = lab.clock.now() + 1000.0
        await lab.put_vm("class", cpu=4.0, lease=lease(start=start, duration=100.0))
        await until_lease(lab, "class", "Scheduled")
        await lab.pass_time(300)
        assert (await lab.status("spare")).phase == "Running"
        assert (await read(lab, "spare"))[1].suspension is not None
        await lab.delete("/vm/default/class")  # nobody needs it any more

        async def forgotten() -> bool:
            return (await read(lab, "spare"))[1].suspension is None

        await lab.until(forgotten)
        assert (await read(lab, "spare"))[1].suspended_seconds == 0.0


async def test_equal_or_higher_priorities_and_what_can_not_be_saved_keep_their_place(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        await lab.put_vm("spare", cpu=4.0, lease=lease(priority=5))
        await lab.until_phase("spare", "Running")
        await lab.put_vm("peer", cpu=1.0, lease=lease(priority=5))
        await lab.put_vm("plain", cpu=1.0)
        await lab.put_vm("now", cpu=1.0, lease=lease(mode="immediate", priority=4))
        await lab.until_refused("now", "leaseConflict")
        message = (await lab.status("now")).message
        assert "with priority 5" in message and "vm/spare" in message
        await lab.put("project", "default", ProjectSpec(priority_ceiling=4), project=None)
        await lab.put_vm("capped", cpu=1.0, lease=lease(mode="immediate", priority=4))
        await lab.until_refused("capped", "leaseConflict")
        assert "with priority" not in (await lab.status("capped")).message
        await lab.pass_time(10)
        assert (await lab.status("spare")).phase == "Running"
        await lab.put_vm("higher", cpu=4.0, lease=lease(priority=6))
        await lab.until_phase("higher", "Running")
        await lab.put_vm("kept", cpu=1.0, lease=lease(mode="immediate", preemptible=False, priority=7))
        await lab.until_phase("kept", "Running")
        await until_lease(lab, "higher", "Suspended")


async def test_a_node_that_can_not_suspend_has_no_victims(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0)
        await lab.put_vm("spare", cpu=4.0, lease=lease())
        await lab.until_phase("spare", "Running")
        await lab.put_vm("web", cpu=2.0, lease=lease(mode="immediate"))
        await lab.until_refused("web", "leaseConflict")
        assert "suspended" not in (await lab.status("web")).message


async def test_what_waited_long_is_next_on_its_node(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        await lab.put_vm("spare", cpu=4.0, lease=lease())
        await lab.until_phase("spare", "Running")
        for name in ("a", "b"):
            await lab.put_vm(name, cpu=2.0, lease=lease(mode="immediate"))
            await lab.until_phase(name, "Running")
        await lab.pass_time(PATIENCE_SECONDS + 60)
        await lab.delete("/vm/default/a")
        await lab.until_gone("/vm/default/a")
        await lab.put_vm("late", cpu=2.0, lease=lease(mode="immediate"))
        await lab.until_refused("late", "leaseConflict")
        await lab.delete("/vm/default/b")
        await until_lease(lab, "spare", "Active")


async def test_nobody_is_suspended_again_and_again(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        await lab.put_vm("spare", cpu=4.0, lease=lease())
        for turn in range(MOST_SUSPENSIONS):
            await lab.until_phase("spare", "Running")
            await lab.put_vm(f"web-{turn}", cpu=4.0, lease=lease(mode="immediate"))
            await lab.until_phase(f"web-{turn}", "Running")
            await lab.delete(f"/vm/default/web-{turn}")
            await until_lease(lab, "spare", "Active")
        await lab.put_vm("last", cpu=4.0, lease=lease(mode="immediate"))
        await lab.until_refused("last", "leaseConflict")


async def test_people_may_stop_or_cancel_what_is_suspended(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        await lab.put_vm("spare", cpu=4.0, lease=lease())
        await lab.until_phase("spare", "Running")
        await lab.put_vm("web", cpu=4.0, lease=lease(mode="immediate"))
        await lab.until_phase("web", "Running")
        await lab.change_spec("spare", lease=lease(cancelled=True))
        await until_lease(lab, "spare", "Cancelled")
        await lab.delete("/vm/default/web")
        await lab.until_gone("/vm/default/web")
        await lab.pass_time(20)
        assert (await lab.status("spare")).phase == "Stopped"


async def test_neither_project_is_told_the_other_s_names_when_one_gives_way_and_administrators_are(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        await add_project(lab, "physics")
        await lab.put_vm("fold", cpu=3.0, lease=lease())
        await lab.until_phase("fold", "Running")
        await put_many(lab, "physics", 1, "render", cpu=4.0, lease=lease(mode="immediate"))
        fold = await until_lease(lab, "fold", "Suspended")
        assert fold.lease is not None and "suspended for a workload of another project" in fold.lease.message

        async def decided() -> bool:
            return await lab.get("/decision/physics/vm.render0") is not None

        await lab.until(decided)
        await lab.put("recommendation", "asked", {"subject": "queue"})
        await lab.put("report", "all", {"subject": "queue"}, project=None)
        await lab.pass_time(5)
        for project, foreign in (("default", "render"), ("physics", "fold")):
            for kind in ("vm", "decision", "recommendation", "migration"):
                for entry in (await lab.store.list(f"/{kind}/{project}/")).entries:
                    assert foreign not in entry.value.decode(), (kind, entry.key)
            told = [event for event in lab.journal.events if event.object.project == project]
            assert told and all(foreign not in f"{event.message} {event.reason}" for event in told)
        report = await lab.get("/report/-/all")
        assert report is not None
        (held,) = [one.held_by.message for one in decode_part(report.status, ReportStatus).queue]
        assert held == "suspended for physics/vm/render0"
        for entry in (await lab.store.list("/vm/physics/render0")).entries:
            await lab.delete(entry.key)
        await until_lease(lab, "fold", "Active")
        assert all("render" not in event.message for event in lab.journal.events if event.object.name == "fold")


async def test_a_budget_of_another_project_is_not_named_to_who_it_holds_up(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        await add_project(lab, "physics")
        await lab.put("disruptionbudget", "folding", {"selector": {"app": "fold"}, "max_unavailable": 0})
        await lab.put_vm("fold", cpu=3.0, lease=lease())

        def label(target: Envelope) -> None:
            target.labels = {"app": "fold"}

        await lab.change("/vm/default/fold", label)
        await lab.until_phase("fold", "Running")
        await put_many(lab, "physics", 1, "render", cpu=4.0, lease=lease(mode="immediate"))

        async def refused() -> bool:
            return await lab.get("/decision/physics/vm.render0") is not None

        await lab.until(refused)
        decision = await lab.get("/decision/physics/vm.render0")
        assert decision is not None and b"fold" not in bytes(decision.spec)
        assert "workloads of another project: none of them gives way" in str(
            decode_part(decision.spec, DecisionSpec).notes
        )


async def test_a_refused_lease_says_why_nobody_is_suspended_for_it_and_what_would_help(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await add_node(lab, name)
        soon = lab.clock.now() + 3600.0
        await lab.put_vm("lecture", cpu=4.0, node="n1", lease=lease(start=soon, duration=600.0))
        await lab.put_vm("fixed", cpu=4.0, node="n2")  # without a lease
        await lab.put_vm("spare", cpu=4.0, node="n1", lease=lease(duration=600.0))
        await lab.until_phase("spare", "Running")
        await lab.until_phase("fixed", "Running")

        async def refused(name: str, **spec: Any) -> str:
            await lab.put_vm(name, **spec)
            await lab.until_phase(name, "Rejected")
            return (await lab.status(name)).message

        urgent = lease(mode="immediate", priority=50)
        said = await refused("endless", cpu=2.0, node="n1", lease=urgent)
        assert "with a duration, if these are suspended: vm/spare" in said, said
        said = await refused("second", cpu=2.0, node="n2", lease=urgent)
        assert "nobody can be suspended for it: that takes preemptible leases" in said, said
        said = await refused("large", cpu=6.0, node="n2", lease=urgent)
        assert "suspended" not in said, said
        await lab.put_vm("short", cpu=2.0, node="n1", lease=lease(mode="immediate", priority=50, duration=60.0))
        await lab.until_phase("short", "Running")
        assert await state(lab, "spare") == "Suspended"
