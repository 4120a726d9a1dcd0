"""Placement policies and dual modes on a living fabric: what a policy says counts from the next decision on."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.scenario.controllers_lab import Lab
from tests.scenario.scheduler.test_placement import decision_of

from weft.kinds.fields.strategy import SERVERLESS_STRATEGY
from weft.kinds.placement_policy import PlacementPolicySpec
from weft.objects.envelope import Condition, Envelope, merge_part
from weft.scheduler.own_policies import registry as own_policies


async def put_policy(lab: Lab, name: str, **spec: str) -> None:
    await lab.put("placementpolicy", name, spec, project=None)


async def set_policy(lab: Lab, name: str, **spec: str) -> None:
    def change(envelope: Envelope) -> None:
        envelope.spec = merge_part(envelope.spec, PlacementPolicySpec(**spec))
        envelope.generation += 1

    await lab.change(f"/placementpolicy/-/{name}", change)


async def where(lab: Lab, name: str, **spec: object) -> str | None:
    await lab.put_vm(name, **spec)
    await lab.until_phase(name, "Running", 3600.0)  # a worker starts in real time
    return (await lab.status(name)).node


async def test_a_policy_decides_and_its_change_counts_from_the_next_decision_on(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("big", cpu=64.0)
        await lab.add_node("small", cpu=8.0)
        await put_policy(lab, "gold", strategy="best_fit")
        assert await where(lab, "a", strategy="@gold") == "small"
        decision = await decision_of(lab, "a")
        assert (decision.policy, decision.named) == ("best_fit", "@gold")
        await set_policy(lab, "gold", strategy="best_fit:1,least_loaded:9")
        assert await where(lab, "b", strategy="@gold") == "big"
        assert [term.name for term in (await decision_of(lab, "b")).verdicts[0].terms] == ["best_fit", "least_loaded"]


async def test_a_vm_whose_policy_is_missing_waits_and_says_so_until_there_is_one(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web", strategy="@gold")
        await lab.until_refused("web", "policyNotFound")
        status = await lab.status("web")
        assert (status.phase, status.message) == ("Pending", 'placement policy "gold" does not exist')
        await put_policy(lab, "gold", strategy="random")
        await lab.until_phase("web", "Running")


async def test_a_workloads_own_strategy_counts_then_its_projects_then_the_clusters(tmp_path: Path) -> None:
    async with Lab(tmp_path, strategy="random") as lab:
        await lab.add_node("n1")
        await where(lab, "a")
        assert (await decision_of(lab, "a")).policy == "random"
        await put_policy(lab, "default", strategy="round_robin")
        await where(lab, "b")
        assert (await decision_of(lab, "b")).named == "@default"
        await lab.put("project", "default", {"strategy": "cost"}, project=None)
        await where(lab, "c")
        assert (await decision_of(lab, "c")).policy == "cost"
        await where(lab, "d", strategy="best_fit")
        assert (await decision_of(lab, "d")).policy == "best_fit"


async def test_a_serverless_vm_is_placed_at_once_or_fails_and_nothing_waits(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0)
        await where(lab, "call", type="serverless")
        assert (await decision_of(lab, "call")).policy == SERVERLESS_STRATEGY
        await lab.put_vm("big", type="serverless", cpu=8.0)
        await lab.until_phase("big", "Failed")
        status = await lab.status("big")
        assert status.reason == "insufficientResources" and "needs 8" in status.message
        assert (await decision_of(lab, "big")).verdicts[0].shortfalls[0].resource == "cpu"
        await lab.add_node("n2", cpu=16.0)  # there would be room now: a refusal is final all the same
        await lab.pass_time(10)
        assert (await lab.status("big")).phase == "Failed" and len(await lab.allocations()) == 1
        await lab.change_spec("big", restart_generation=1)  # as the verb start does
        await lab.until_phase("big", "Running")
        assert (await lab.status("big")).node == "n2"


async def test_a_serverless_vm_still_has_what_it_is_made_of_fetched(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("call", type="serverless", image="later")
        await lab.until_refused("call", "imageNotReady")
        assert (await lab.status("call")).phase == "Pending"
        await lab.put_image("later")
        await lab.until_phase("call", "Running")


async def test_a_policy_has_weights_of_its_own_for_serverless_workloads(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("big", cpu=64.0)
        await lab.add_node("small", cpu=8.0)
        await put_policy(lab, "default", strategy="least_loaded", serverless="best_fit")
        assert await where(lab, "long") == "big"
        assert await where(lab, "call", type="serverless") == "small"
        assert await where(lab, "own", type="serverless", strategy="least-loaded") == "big"


async def until_said(lab: Lab, policy: str, reason: str) -> Condition:
    said: list[Condition] = []

    async def there() -> bool:
        envelope = await lab.get(f"/placementpolicy/-/{policy}")
        working = None if envelope is None else envelope.condition("Working")
        said[:] = [working] if working is not None and working.reason == reason else []
        return bool(said)

    await lab.until(there, 3600.0)
    return said[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a worker other rights")
async def test_a_users_own_policy_decides_and_one_that_fails_is_told_and_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_policies, "TIMEOUT_SECONDS", 20.0)  # a loaded machine is not what is tried here
    mine = tmp_path / "mine.py"
    mine.write_text("def score(table, request, occasion):\n    return 100.0 * (table.text('name').codes == 1)\n")
    async with Lab(tmp_path) as lab:
        lab.has_threads = True
        await lab.add_node("n1", cpu=64.0)
        await lab.add_node("n2", cpu=16.0)
        await put_policy(lab, "mine", strategy=f"file:{mine}")
        await until_said(lab, "mine", "Answers")
        assert await where(lab, "a", strategy="@mine") == "n2"
        mine.write_text("def score(table, request, occasion):\n    return [float('nan')] * 2\n")
        assert await where(lab, "b", strategy=f"file:{mine}") in ("n1", "n2")
        for number in range(100):  # its file is looked at once a second
            if await where(lab, f"c{number}", strategy="@mine", cpu=0.1) == "n1":
                break
            await asyncio.sleep(0.1)
        note = (await decision_of(lab, f"c{number}")).notes[0]
        assert f"file:{mine} was skipped: notFinite: mine: nan for node 0 of 2" in note
        assert "PolicySkipped" in lab.journal.reasons(f"c{number}")
        said = await until_said(lab, "mine", "notFinite")
        assert said.status == "False" and "the server's strategy decides instead" in said.message
        assert "notFinite" in lab.journal.reasons("mine")


@pytest.mark.parametrize("strategy", ["@gold", "file:/nowhere/mine.py", "best_fit:0.7,cost:0.3"])
async def test_the_servers_strategy_may_be_whatever_a_workloads_may_be(tmp_path: Path, strategy: str) -> None:
    async with Lab(tmp_path, strategy=strategy) as lab:
        await lab.add_node("n1")
        await put_policy(lab, "gold", strategy="random")
        await where(lab, "a")
        decision = await decision_of(lab, "a")
        assert (decision.policy, decision.named) == (("random", "@gold") if strategy == "@gold" else (strategy, ""))
        assert bool(decision.notes) == strategy.startswith("file:")
