"""Disruption budgets: scheduler and drains take no more of a group down at once than its budget lets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.controllers.test_drain import drain, mark, places, rehearse, told, until_told
from tests.scenario.controllers_lab import Lab
from tests.scenario.migration_lab import MovingLab
from tests.scenario.scheduler.test_preemption import add_node, lease, state, until_lease

from weft.contracts.store import Put
from weft.informer.view import Changed
from weft.kinds.allocation import AllocationReport
from weft.kinds.decision import DecisionSpec
from weft.kinds.disruption_budget import DisruptionBudgetSpec
from weft.kinds.migration import MigrationSpec, MigrationStatus
from weft.kinds.node import NodeRuntime
from weft.objects.envelope import Envelope, decode_part, encode_envelope, merge_part
from weft.scheduler.intake import Intake

RUNS = [NodeRuntime(name="crun", kinds=["container"], isolations=["container"])]
WEB = {"app": "web"}


async def label(lab: Lab, name: str, kind: str = "vm") -> None:
    def change(envelope: Envelope) -> None:
        envelope.labels = dict(WEB)

    await lab.change(f"/{kind}/default/{name}", change)


async def budget(lab: Lab, **spec: Any) -> None:
    await lab.put("disruptionbudget", "web", DisruptionBudgetSpec(selector=WEB, **spec))


async def change_budget(lab: Lab, **spec: Any) -> None:
    def change(envelope: Envelope) -> None:
        envelope.spec = merge_part(envelope.spec, DisruptionBudgetSpec(selector=WEB, **spec))
        envelope.generation += 1

    await lab.change("/disruptionbudget/default/web", change)


async def best_effort(lab: Lab, *names: str, **spec: Any) -> None:
    """VMs of the group that run and may be suspended."""
    for name in names:
        await lab.put_vm(name, lease=lease(), **spec)
        await label(lab, name)
    for name in names:
        await lab.until_phase(name, "Running")


async def down(lab: Lab, *names: str) -> int:
    return sum([await state(lab, name) == "Suspended" for name in names])


async def notes(lab: Lab, name: str) -> list[str]:
    decision = await lab.get(f"/decision/default/vm.{name}")
    assert decision is not None
    return decode_part(decision.spec, DecisionSpec).notes


async def test_those_that_wait_are_woken_once_however_many_of_others_go_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[int] = []  # by batch of changes
    notice, offer = Intake.notice, Intake._offer_preempting

    def count_batch(self: Intake, changes: Sequence[Changed]) -> None:
        woken.append(0)
        notice(self, changes)

    def count(self: Intake) -> None:
        woken[-1] += 1
        offer(self)

    monkeypatch.setattr(Intake, "notice", count_batch)
    monkeypatch.setattr(Intake, "_offer_preempting", count)
    async with Lab(tmp_path) as lab:
        await add_node(lab, "n1")
        await budget(lab, max_unavailable=1)
        await best_effort(lab, "a", "b", "c", cpu=1.0)
        woken.clear()
        down = [(await lab.get(one.key)) for one in await lab.every("allocation")]
        for envelope in down:
            assert envelope is not None
            envelope.report = merge_part(envelope.report, AllocationReport(state="failed"))
        await lab.store.commit([Put(one.key, encode_envelope(one)) for one in down if one is not None])
        await lab.pass_time(1)
        assert max(woken) == 1


async def test_no_more_are_suspended_than_the_budget_lets_however_many_come_at_once(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await add_node(lab, name)
        await budget(lab, max_unavailable=1)
        await best_effort(lab, "a", "b", "c", "d", cpu=2.0)
        for name in ("x", "y", "z"):
            await lab.put_vm(name, cpu=2.0, lease=lease(mode="immediate"))

        async def decided() -> bool:
            return sorted([await state(lab, name) for name in "xyz"]) == ["Active", "Rejected", "Rejected"]

        most = 0

        async def watched() -> bool:
            nonlocal most
            most = max(most, await down(lab, *"abcd"))
            return await decided()

        await lab.until(watched)
        await lab.pass_time(20)
        assert most <= 1 and await down(lab, *"abcd") == 1
        refused = [name for name in "xyz" if await state(lab, name) == "Rejected"]
        (said,) = await notes(lab, refused[0])
        assert "none of them gives way, since disruptionbudget/web lets 1 of 4 be down, and 1 is" in said


async def test_whoever_waits_preempts_once_the_budget_lets_it(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_node(lab)
        await budget(lab, min_available=2)
        await best_effort(lab, "a", "b", cpu=2.0)
        await lab.put_vm("timed", cpu=2.0, lease=lease(priority=5, duration=1000.0, preemptible=False))
        await lab.put_vm("open", cpu=2.0, lease=lease(priority=4, preemptible=False))
        await lab.until_refused("open", "insufficientResources")
        await lab.pass_time(60)
        assert await down(lab, "a", "b") == 0
        assert "lets 0 of 2 be down" in (await notes(lab, "timed"))[0]
        await change_budget(lab, max_unavailable=1)

        async def one() -> bool:
            return sorted([await state(lab, "timed"), await state(lab, "open")]) == ["Active", "Requested"]

        await lab.until(one)
        await lab.pass_time(60)
        assert await one() and await down(lab, "a", "b") == 1
        await lab.delete("/disruptionbudget/default/web")
        await until_lease(lab, "timed", "Active")
        await until_lease(lab, "open", "Active")
        assert await down(lab, "a", "b") == 2


async def test_who_waits_preempts_once_another_one_is_up_again(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await add_node(lab, name)
        await budget(lab, max_unavailable=1)
        await best_effort(lab, "a", cpu=4.0, node="n1")
        await best_effort(lab, "b", cpu=4.0, node="n2")
        await lab.change_spec("b", run="stop")
        await lab.until_phase("b", "Stopped")
        await lab.put_vm("web", cpu=2.0, node="n1", lease=lease(priority=5))
        await lab.until_refused("web", "insufficientResources")
        await lab.pass_time(60)
        assert (await lab.status("a")).phase == "Running" and "and 1 is" in (await notes(lab, "web"))[0]
        await lab.change_spec("b", run="run")
        await until_lease(lab, "web", "Active")
        assert (await lab.status("b")).phase == "Running" and await down(lab, "a", "b") == 1


async def were_one_after_the_other(lab: MovingLab, *names: str) -> bool:
    """Whether the migrations, one of each workload, were."""
    made = sorted(await lab.every("migration"), key=lambda item: item.created_at)
    assert sorted(decode_part(item.spec, MigrationSpec).workload for item in made) == sorted(names)
    ends = [decode_part(item.status, MigrationStatus).ended_at or float("inf") for item in made]
    return all(end <= after.created_at for end, after in zip(ends, made[1:], strict=False))


async def put_containers(lab: MovingLab, *names: str) -> None:
    for name in names:
        await lab.put_container(name)
        await label(lab, name, "container")
    for name in names:
        await lab.until_phase(name, "Running", kind="container")


async def test_a_drain_stops_one_after_the_other_and_says_what_it_waits_for(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", runtimes=RUNS)
        await lab.pass_time(2)
        await budget(lab, max_unavailable=1)
        await put_containers(lab, "a", "b", "c")
        await lab.add_node("n2", runtimes=RUNS)
        await lab.pass_time(2)
        assert [one.message for one in await rehearse(lab, "n1")] == ["", "", ""]
        await drain(lab, "n1")
        said = set[str]()

        async def drained() -> bool:
            condition = await told(lab, "n1")
            said.add(condition.message if condition is not None else "")
            return condition is not None and condition.status == "True"

        await lab.until(drained, 300)
        assert set((await places(lab)).values()) == {"n2"}
        assert await were_one_after_the_other(lab, "container/a", "container/b", "container/c")
        assert any(": disruptionbudget/web lets 1 of 3 be down, and 1 is" in one for one in said)


async def test_a_drain_that_a_budget_never_lets_end_is_blocked_until_people_force_it(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", runtimes=RUNS)
        await lab.pass_time(2)
        await budget(lab, min_available=2)
        await put_containers(lab, "a", "b")
        await lab.put_vm("live", node=None)
        await label(lab, "live")
        await lab.until_phase("live", "Running")
        await change_budget(lab, max_unavailable=0)
        await lab.add_node("n2", runtimes=RUNS)
        await lab.pass_time(2)
        previewed = {one.workload: (one.to, one.reason) for one in await rehearse(lab, "n1")}
        assert previewed == {
            "container/a": ("", "disruptionBudget"),
            "container/b": ("", "disruptionBudget"),
            "vm/live": ("n2", ""),  # it runs while it migrates
        }
        assert {one.to for one in await rehearse(lab, "n1", force=True)} == {"n2"}
        await drain(lab, "n1")
        held = "container/a, container/b can't leave: disruptionbudget/web lets 0 of 3"
        assert held in await until_told(lab, "n1", "Blocked")
        await lab.pass_time(60)
        assert await places(lab) == {"a": "n1", "b": "n1", "live": "n2"}
        await mark(lab, "n1", drain_force=True)
        await until_told(lab, "n1", "Drained")
        assert set((await places(lab)).values()) == {"n2"}


async def test_drains_of_two_nodes_share_a_budget(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name, runtimes=RUNS)
        await lab.pass_time(2)
        await budget(lab, max_unavailable=1)
        for name, node in (("a", "n1"), ("b", "n2")):
            await lab.put_container(name, node=node)
            await label(lab, name, "container")
            await lab.until_phase(name, "Running", kind="container")
            await lab.change_spec(name, kind="container", node=None)
        await lab.add_node("n3", runtimes=RUNS)
        await lab.pass_time(2)
        for node in ("n1", "n2"):
            await drain(lab, node)
        for node in ("n1", "n2"):
            await until_told(lab, node, "Drained")
        assert set((await places(lab)).values()) == {"n3"}
        assert await were_one_after_the_other(lab, "container/a", "container/b")
