"""Guests get a CPU that they can take along, and go nowhere that lacks what they run with."""

from __future__ import annotations

from pathlib import Path

from tests.scenario.migration_lab import MovingLab

BIG = {"cpu_models": ["host@aa", "Haswell-v4", "Westmere-v1"], "machines": ["q35", "microvm", "q35@9.2", "q35@10.0"]}
OLD = {"cpu_models": ["host@bb", "Westmere-v1"], "machines": ["q35", "microvm", "q35@9.2", "q35@10.0"]}
LATE = {"cpu_models": ["host@bb", "Westmere-v1"], "machines": ["q35", "microvm", "q35@9.2"]}


async def told(lab: MovingLab, name: str = "m") -> str:
    said: list[str] = []

    async def refused() -> bool:
        item = await lab.get(f"/migration/default/{name}")
        condition = item.condition("Placed") if item is not None else None
        said[:] = [condition.message] if condition is not None and condition.status == "False" else []
        return bool(said)

    await lab.until(refused)
    return said[0]


async def test_a_vm_gets_the_best_cpu_that_all_nodes_have_and_can_leave_with_it(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", **BIG)
        await lab.add_node("n2", **OLD)
        await lab.pass_time(3)
        await lab.put_vm("web", node=None)
        await lab.until_phase("web", "Running")
        [place] = await lab.allocations()
        assert place.cpu_model == "Westmere-v1"
        await lab.migrate("web")
        await lab.until_migration("Succeeded")


async def test_a_vm_that_has_all_of_its_nodes_cpu_stays_among_its_likes_and_is_told_why(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", **BIG)
        await lab.pass_time(3)
        await lab.put_vm("web", node=None, cpu_model="host")
        await lab.until_phase("web", "Running")
        await lab.add_node("n2", **OLD)
        await lab.pass_time(3)
        assert [place.cpu_model for place in await lab.allocations()] == ["host@aa"]
        await lab.migrate("web", to="n2")
        assert await told(lab) == "n2: its CPU differs from the one that the guest runs with (host aa)"


async def test_an_older_qemu_is_no_target(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", **OLD)
        await lab.pass_time(3)
        await lab.put_vm("web", node=None)
        await lab.until_phase("web", "Running")
        await lab.add_node("n2", **LATE)
        await lab.pass_time(3)
        await lab.migrate("web", to="n2")
        assert await told(lab) == "n2: its QEMU can't build machine type q35 of version 10.0, which the guest runs on"
