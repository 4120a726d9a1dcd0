"""Who comes back first when a node is lost and the others have too little capacity; time moved by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.scenario.controllers.test_disruption_budgets import budget, label
from tests.scenario.controllers.test_node_loss import RUNS, SAN, make_nodes, open_nodes, put_guests, where
from tests.scenario.controllers_lab import Lab

from weft.controllers.loss import controller
from weft.informer import commit_batch
from weft.kinds.fields.lease import PATIENCE_SECONDS, LeaseRequest, check_lease
from weft.kinds.parts.node.loss import ASKS_FIRST
from weft.kinds.parts.workload import WorkloadStatus


def lease(priority: int, **fields: Any) -> LeaseRequest:
    made = LeaseRequest(priority=priority, **fields)
    check_lease(made)
    return made


async def lose(lab: Lab, seconds: float = 100.0) -> None:
    await lab.nodes["n0"].die()
    await lab.pass_time(seconds)


async def there(lab: Lab, *names: str, kind: str = "container") -> list[str]:
    """Those that run elsewhere."""
    found: list[WorkloadStatus] = [await lab.status(name, kind) for name in names]
    return [
        name for name, one in zip(names, found, strict=True) if one.phase == "Running" and one.node not in (None, "n0")
    ]


async def test_the_highest_priority_comes_first_however_old_the_others_are(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 2)
        names = [f"web{number}" for number in range(6)]
        for number, name in enumerate(names):
            await put_guests(lab, name, cpu=4.0 / 3, lease=lease((0, 30, 10, 50, 20, 40)[number]))
        await lab.pass_time(PATIENCE_SECONDS)
        await open_nodes(lab, 2)
        await lab.put_container("full", node="n1", cpu=4.0)  # half of the other node
        await lab.until_phase("full", "Running", kind="container")
        await lose(lab)
        assert await there(lab, *names) == ["web1", "web3", "web5"]
        assert {(await lab.status(name, "container")).phase for name in ("web0", "web2", "web4")} == {"Pending"}
        assert "Rejected" not in {(await lab.status(name, "container")).lease.state for name in names}  # type: ignore[union-attr]
        await lab.delete("/container/default/full")
        await lab.pass_time(10.0)
        assert await there(lab, *names) == names


async def test_more_than_one_commit_takes_are_freed_in_the_order_of_their_priorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "MOST_WRITES", 2)
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 2)
        names = [f"web{number}" for number in range(5)]
        for number, name in enumerate(names):
            await put_guests(lab, name, lease=lease((2, 4, 1, 5, 3)[number]))
        await lose(lab)
        freed = [event.object.name for event in lab.journal.events if event.reason == "NodeLost"]
        assert freed == ["web3", "web1", "web4", "web0", "web2"]


async def test_what_was_lost_comes_after_what_has_waited_longer(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 2)
        await put_guests(lab, "web", cpu=5.0)
        await lab.pass_time(PATIENCE_SECONDS)
        await open_nodes(lab, 2)
        await lab.put_container("full", node="n1", cpu=4.0)
        await lab.until_phase("full", "Running", kind="container")
        await lab.put_container("early", cpu=8.0)
        await lab.until_refused("early", "insufficientResources", kind="container")
        await lose(lab)
        await lab.delete("/container/default/full")
        await lab.pass_time(10.0)
        assert (await lab.status("early", "container")).phase == "Running"
        assert (await lab.status("web", "container")).phase == "Pending"


async def test_one_of_a_lower_priority_elsewhere_is_suspended_for_it(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n0", "n1"):
            await lab.add_node(name, runtimes=RUNS, pools=[SAN], capabilities=["suspend", ASKS_FIRST], cpu=4.0)
        await lab.put_vm(
            "low", cpu=4.0, lease=lease(1), on_node_loss="restart", pool="san", prefer=["name=n1;weight=1"]
        )
        await lab.until_phase("low", "Running")
        await lab.put_vm("high", cpu=4.0, lease=lease(5), on_node_loss="restart", pool="san")
        await lab.until_phase("high", "Running")
        await lose(lab)
        assert await there(lab, "high", kind="vm") == ["high"]
        assert (await lab.status("low")).phase == "Suspended"
        await lab.nodes["n1"].die()
        await lab.until_phase("low", "Unknown")
        assert (await lab.status("low")).message.endswith("it is suspended there for another workload")


async def test_a_lease_that_has_its_place_there_promised_waits_for_its_node(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 2)
        await put_guests(lab, "now", cpu=1.0, lease=lease(5, mode="immediate"))
        await put_guests(lab, "timed", cpu=1.0, lease=lease(5, duration=7200.0))
        await open_nodes(lab, 2)
        await lose(lab)
        for name in ("now", "timed"):
            assert await where(lab, name) == [("n0", 1, "active")]
            assert (await lab.status(name, "container")).message.endswith("its place is promised to it on that node")


async def test_a_gang_comes_back_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_batch, "MAX_WRITES", 1)  # each commit is stored by itself, at any time
    async with Lab(tmp_path, slow=3) as lab:
        await make_nodes(lab, 2)
        members = ("a", "b", "c")
        for name in members:
            await lab.put_container(name, gang="web:3", cpu=2.0, on_node_loss="restart")
        for name in members:
            await lab.until_phase(name, "Running", kind="container")
        await open_nodes(lab, 2)
        await lab.put_container("full", node="n1", cpu=4.0)
        await lab.until_phase("full", "Running", kind="container")
        most = 0

        async def watched() -> bool:
            nonlocal most
            most = max(most, len(await there(lab, *members)))
            return all([await where(lab, name) == [("n0", 1, "lost")] for name in members])

        await lab.nodes["n0"].die()
        await lab.until(watched, 120.0)
        await lab.pass_time(30.0)
        assert (most, await there(lab, *members)) == (0, [])
        assert "gang web: " in (await lab.status("a", "container")).message
        await lab.delete("/container/default/full")
        await lab.pass_time(10.0)
        assert await there(lab, *members) == [*members]


async def test_those_that_lie_apart_do_so_elsewhere_too(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n0", "n1", "n2", "n3"):
            await lab.add_node(name, runtimes=RUNS)
        for number, name in enumerate(("a", "b")):
            await put_guests(lab, name, anti_affinity_groups=["web"], prefer=[f"name=n{number};weight=1"])
        assert await where(lab, "a") == [("n0", 1, "active")] and await where(lab, "b") == [("n1", 1, "active")]
        for name in ("n2", "n3"):
            await lab.ask(name, "node", None, cordoned=True)
        await lose(lab)
        assert await where(lab, "a") == [("n0", 1, "lost")]
        await lab.ask("n2", "node", None, cordoned=False)
        await lab.pass_time(5.0)
        assert (await where(lab, "a"))[-1] == ("n2", 2, "active")


async def test_no_disruption_budget_is_asked_about_a_lost_node(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 2)
        await budget(lab, min_available=2)
        for name in ("a", "b"):
            await put_guests(lab, name)
            await label(lab, name, kind="container")
        await open_nodes(lab, 2)
        await lose(lab)
        assert await there(lab, "a", "b") == ["a", "b"]
