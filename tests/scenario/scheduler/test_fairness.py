"""Projects whose best-effort work waits share the cluster by their weighted dominant shares."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tests.scenario.controllers_lab import DIGEST, GIB, MIB, Lab
from tests.scenario.scheduler.test_waiting import lease, queue

from weft.kinds.image import ImageStatus
from weft.kinds.report import ProjectShare, ReportStatus
from weft.kinds.vm import VmSpec
from weft.objects.envelope import decode_part


async def put_many(lab: Lab, project: str, count: int, prefix: str = "w", **spec: Any) -> None:
    for number in range(count):
        await lab.put("vm", f"{prefix}{number}", VmSpec(image="tiny", **spec), project=project)


async def add_project(lab: Lab, name: str, **spec: Any) -> None:
    await lab.put("project", name, spec, project=None)
    if name != "default":
        there = ImageStatus(phase="Available", sha256=DIGEST, size=10 * MIB, virtual_size=64 * MIB)
        await lab.put("image", "tiny", {"url": f"file://{lab.folder}/none"}, status=there, project=name)
        await lab.put("network", "default", {"cidr": "10.1.0.0/16"}, project=name)


async def count_placed(lab: Lab) -> dict[str | None, int]:
    return dict(Counter(place.workload.project for place in await lab.allocations()))


async def ask_fairness(lab: Lab, name: str = "fairness") -> list[ProjectShare]:
    await lab.put("report", name, {"subject": "fairness"}, project=None)
    await lab.pass_time(2)
    envelope = await lab.get(f"/report/-/{name}")
    assert envelope is not None
    status = decode_part(envelope.status, ReportStatus)
    assert status.phase == "Done"
    return status.fairness


async def fill_and_free(lab: Lab, **node: Any) -> Any:
    """A full node; what is returned frees it."""
    await lab.add_node("n1", **{"cpu": 8.0, **node})
    await lab.put_vm("block", cpu=node.get("cpu", 8.0))
    await lab.until_phase("block", "Running")

    async def free() -> None:
        await lab.delete("/vm/default/block")
        await lab.pass_time(30)

    return free


async def test_who_came_first_with_much_leaves_half_to_who_comes_later(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_project(lab, "default")
        await add_project(lab, "lab")
        free = await fill_and_free(lab)
        await put_many(lab, "default", 150, cpu=1.0)
        await lab.pass_time(5)
        await put_many(lab, "lab", 150, cpu=1.0)
        await lab.pass_time(5)
        assert [one.place for one in await queue(lab)][:4] == [9, 11, 13, 15]  # vm/block counts, too
        await free()
        assert await count_placed(lab) == {"default": 4, "lab": 4}


async def test_a_project_s_share_follows_its_weight_and_the_report_says_so(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_project(lab, "default")
        await add_project(lab, "lab", weight=3.0)
        await add_project(lab, "idle")
        free = await fill_and_free(lab, memory=64 * GIB)
        await put_many(lab, "default", 20, cpu=1.0, memory=GIB)
        await put_many(lab, "lab", 20, cpu=1.0, memory=GIB)
        await free()
        assert await count_placed(lab) == {"default": 2, "lab": 6}
        shares = {one.project: one for one in await ask_fairness(lab)}
        lab_, default, idle = shares["lab"], shares["default"], shares["idle"]
        assert (lab_.weight, lab_.dominant_resource, lab_.dominant_share, lab_.entitled_share) == (
            3.0,
            "cpu",
            0.75,
            0.75,
        )
        assert (default.dominant_share, default.entitled_share) == (0.25, 0.25)
        assert (lab_.pending, default.pending, idle.pending) == (14, 18, 0)
        assert lab_.used == {"cpu": 6.0, "memory": 6.0 * GIB, "gpus": 0.0}
        assert (idle.dominant_resource, idle.dominant_share, idle.entitled_share) == ("", 0.0, 0.2)


async def test_shares_are_of_the_resource_of_which_a_project_has_most(tmp_path: Path) -> None:
    """Ghodsi's example: 9 cores and 18 GB; tasks of 1 core and 4 GB, and of 3 cores and 1 GB."""
    async with Lab(tmp_path) as lab:
        await add_project(lab, "default")
        await add_project(lab, "lab")
        free = await fill_and_free(lab, cpu=9.0, memory=18 * GIB)
        await put_many(lab, "default", 10, cpu=1.0, memory=4 * GIB)
        await put_many(lab, "lab", 10, cpu=3.0, memory=1 * GIB)
        await free()
        assert await count_placed(lab) == {"default": 3, "lab": 2}
        assert {one.project: (one.dominant_resource, one.dominant_share) for one in await ask_fairness(lab)} == {
            "default": ("memory", 0.666667),
            "lab": ("cpu", 0.666667),
        }


async def test_queued_leases_and_work_without_an_end_share_alike(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_project(lab, "default")
        await add_project(lab, "lab")
        free = await fill_and_free(lab)
        await put_many(lab, "default", 20, cpu=1.0, lease=lease(duration=86400.0))
        await lab.pass_time(5)
        await put_many(lab, "lab", 20, cpu=1.0)
        await lab.pass_time(5)
        await free()
        assert await count_placed(lab) == {"default": 4, "lab": 4}


async def test_each_place_that_becomes_free_goes_to_the_project_with_less(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_project(lab, "default")
        await add_project(lab, "lab")
        await lab.add_node("n1", cpu=8.0)
        await put_many(lab, "default", 12, cpu=1.0)
        await lab.pass_time(30)
        await put_many(lab, "lab", 12, cpu=1.0)
        await lab.pass_time(10)
        assert await count_placed(lab) == {"default": 8}
        for number, placed in enumerate((1, 2, 3, 4)):
            name = next(p.workload.name for p in await lab.allocations() if p.workload.project == "default")
            await lab.delete(f"/vm/default/{name}")
            await lab.pass_time(30)
            assert await count_placed(lab) == {"default": 7 - number, "lab": placed}
        name = next(p.workload.name for p in await lab.allocations() if p.workload.project == "lab")
        await lab.delete(f"/vm/lab/{name}")
        await lab.pass_time(30)
        assert await count_placed(lab) == {"default": 4, "lab": 4}


async def test_priority_and_promises_come_before_shares_and_so_does_an_hour_s_wait(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_project(lab, "default")
        await add_project(lab, "lab")
        free = await fill_and_free(lab, memory=64 * GIB)
        await put_many(lab, "lab", 8, "old", cpu=1.0)
        await lab.pass_time(3700)
        await put_many(lab, "default", 9, cpu=1.0)
        await put_many(lab, "lab", 2, "dear", cpu=1.0, lease=lease(priority=5))
        await lab.pass_time(5)
        await lab.add_node("n2", cpu=4.0)
        await lab.pass_time(30)
        # What has waited for an hour is first, whatever its project has by then.
        assert {p.workload.name[:3] for p in await lab.allocations()} == {"blo", "old"}
        assert await count_placed(lab) == {"default": 1, "lab": 4}
        await put_many(lab, "lab", 1, "now", cpu=1.0, lease=lease(mode="immediate", duration=60.0))
        await lab.pass_time(5)
        assert [p.workload.name for p in await lab.allocations() if p.workload.name.startswith("now")] == []
        await free()
        names = Counter(p.workload.name.rstrip("0123456789") for p in await lab.allocations())
        assert names == {"old": 8, "dear": 2, "w": 2}
