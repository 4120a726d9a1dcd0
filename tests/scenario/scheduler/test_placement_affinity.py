"""Groups, spread and data on a fabric that lives: batches, restarts, members that come and go, data that moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tests.scenario.controllers_lab import Lab

from weft.kinds.decision import DecisionSpec
from weft.kinds.node import NodeActions, NodeSpec
from weft.objects.envelope import Envelope, decode_part, merge_part
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.gang.placement import GangMember, Joint, find_places

APART = ["webapp"]


async def add_nodes(lab: Lab, zones: Mapping[str, str]) -> None:
    for name, zone in zones.items():
        await lab.add_node(name)

        def change(envelope: Envelope, zone: str = zone) -> None:
            envelope.labels = {"zone": zone} if zone else {}

        await lab.change(f"/node/-/{name}", change)


def cordon(envelope: Envelope) -> None:
    envelope.actions = merge_part(envelope.actions, NodeActions(cordoned=True))
    envelope.generation += 1


async def places(lab: Lab) -> dict[str, str]:
    """VM → its node."""
    return {spec.workload.name: spec.node for spec in await lab.allocations()}


async def reasons(lab: Lab, name: str) -> dict[str, str]:
    """Node → why it is refused."""
    envelope = await lab.get(f"/decision/default/vm.{name}")
    assert envelope is not None
    return {v.node: v.reason for v in decode_part(envelope.spec, DecisionSpec).verdicts if v.outcome == "refused"}


async def test_members_of_one_batch_see_each_other_and_the_last_waits_for_one_to_go(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab, {"n1": "", "n2": "", "n3": ""})
        for number in range(4):
            await lab.put_vm(f"web-{number}", anti_affinity_groups=APART)
        waiting: list[str] = []

        async def told() -> bool:
            waiting[:] = [f"web-{n}" for n in range(4) if (p := await lab.placed(f"web-{n}")) and p.status == "False"]
            return len(await lab.allocations()) == 3 and len(waiting) == 1

        await lab.until(told)
        where = await places(lab)
        assert sorted(where.values()) == ["n1", "n2", "n3"]
        name, node = next(iter(where.items()))
        assert (await reasons(lab, waiting[0]))[node] == f"vm/{name} of anti-affinity group webapp is there"
        await lab.delete(f"/vm/default/{name}")
        await lab.until_phase(waiting[0], "Running")
        assert (await places(lab))[waiting[0]] == node


async def test_members_count_after_the_controllers_were_killed(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab, {"n1": "", "n2": ""})
        await lab.put_vm("web-0", anti_affinity_groups=APART)
        await lab.put_vm("pair-0", affinity_groups=["pair"], node="n2")
        await lab.until_phase("web-0", "Running")
        await lab.until_phase("pair-0", "Running")
        await lab.kill_controllers()
        await lab.put_vm("web-1", anti_affinity_groups=APART)
        await lab.put_vm("web-2", anti_affinity_groups=APART)
        await lab.put_vm("pair-1", affinity_groups=["pair"])
        lab.start_controllers()
        await lab.until_phase("pair-1", "Running")

        async def one_left() -> bool:
            where = await places(lab)
            return len({where.get(f"web-{n}") for n in range(3)} - {None}) == 2

        await lab.until(one_left)
        await lab.pass_time(20)
        where = await places(lab)
        assert where["pair-1"] == "n2"
        assert Counter(node for name, node in where.items() if name.startswith("web")) == {"n1": 1, "n2": 1}


async def test_who_wants_to_be_near_waits_for_room_there_and_goes_elsewhere_once_nobody_is_left(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab, {"n1": "", "n2": ""})
        await lab.put_vm("first", affinity_groups=["pair"], node="n1", cpu=8.0)
        await lab.until_phase("first", "Running")
        await lab.put_vm("second", affinity_groups=["pair"], cpu=4.0)
        await lab.until_refused("second", "insufficientResources")
        assert (await reasons(lab, "second"))["n2"] == "no member of affinity group pair is here: vm/first is on n1"
        await lab.change("/node/-/n1", cordon)
        await lab.pass_time(10)
        await lab.delete(
            "/vm/default/first"
        )  # frees nothing that may be had: n2 alone is open, and nothing happens there
        await lab.until_phase("second", "Running")
        assert (await places(lab))["second"] == "n2"


async def test_a_member_added_where_there_is_room_wakes_who_wants_to_be_near(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab, {"n1": "", "n2": ""})
        await lab.put_vm("first", affinity_groups=["pair"], node="n1", cpu=8.0)
        await lab.put_vm("other", node="n2", cpu=1.0)
        await lab.until_phase("first", "Running")
        await lab.until_phase("other", "Running")
        await lab.put_vm("second", affinity_groups=["pair"], cpu=4.0)
        await lab.until_refused("second", "insufficientResources")
        await lab.change_spec("other", affinity_groups=["pair"])  # of a VM that runs: it counts at once, where it is
        await lab.until_phase("second", "Running")
        assert (await places(lab))["second"] == "n2"


async def test_a_spread_is_level_and_a_zone_that_is_cordoned_holds_nobody_up(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab, {"n1": "a", "n2": "a", "n3": "b", "n4": ""})
        for number in range(6):
            await lab.put_vm(f"web-{number}", anti_affinity_groups=["web:preferred"], spread=["zone"])

        async def all_placed() -> bool:
            return len(await lab.allocations()) == 6

        await lab.until(all_placed)
        where = Counter((await places(lab)).values())
        assert where["n1"] + where["n2"] == 3 and where["n3"] == 3
        await lab.change("/node/-/n3", cordon)
        for number in range(6, 8):
            await lab.put_vm(f"web-{number}", anti_affinity_groups=["web:preferred"], spread=["zone"])
        await lab.until(lambda: _counts(lab, 8))
        where = Counter((await places(lab)).values())
        assert where["n1"] + where["n2"] == 5


async def test_a_member_in_the_zone_that_is_behind_lets_the_other_zone_take_one_more(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab, {"n1": "a", "n2": "b"})
        await lab.put_vm("filler", node="n2", cpu=7.0)
        await lab.put_vm("web-0", anti_affinity_groups=["web:preferred"], node="n1")
        await lab.until_phase("filler", "Running")
        await lab.until_phase("web-0", "Running")
        await lab.put_vm("web-1", anti_affinity_groups=["web:preferred"], spread=["zone"], cpu=2.0)
        await lab.until_refused("web-1", "insufficientResources")
        told = "zone a has 1 of group web, b has 0: one more would exceed the skew of 1"
        assert (await reasons(lab, "web-1"))["n1"] == told
        await lab.pass_time(10)
        await lab.put_vm("small", anti_affinity_groups=["web:preferred"], node="n2", cpu=0.5)
        await lab.until_phase("web-1", "Running")
        assert (await places(lab))["web-1"] == "n1"


async def _counts(lab: Lab, number: int) -> bool:
    return len(await lab.allocations()) == number


async def test_a_gang_that_wants_to_be_near_itself_is_looked_at_once_and_then_waits_in_peace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def count(engine: Engine, members: Sequence[GangMember], *, search: bool) -> Joint:
        looked.append(len(members))
        return find_places(engine, members, search=search)

    monkeypatch.setattr("weft.scheduler.placement.plain.find_places", count)
    async with Lab(tmp_path) as lab:
        await add_nodes(lab, {"n1": "", "n2": ""})
        for name in ("a", "b", "c"):
            await lab.put_vm(name, gang="trio:3", affinity_groups=["trio"], cpu=4.0)
        for name in ("a", "b", "c"):
            await lab.until_refused(name, "insufficientResources")
        await lab.pass_time(30)
        assert len(looked) <= 3 and await lab.allocations() == []
        await lab.add_node("n3", cpu=16.0)
        for name in ("a", "b", "c"):
            await lab.until_phase(name, "Running")
        assert set((await places(lab)).values()) == {"n3"}


async def test_where_a_volume_lies_decides_and_when_it_lies_elsewhere_so_does_the_choice(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab, {"n1": "", "n2": "", "n3": ""})
        raw = await lab.put("volume", "raw", {"size": 2**30})
        await lab.put_vm("first", volumes=["raw"], node="n3")
        await lab.until_phase("first", "Running")
        await lab.nodes["n3"].write_report(volumes=[raw.uid])
        await lab.put_vm("reader", data_hints=["volume:raw"], storage_locality="required")
        await lab.until_phase("reader", "Running")
        assert (await places(lab))["reader"] == "n3"
        # It is deleted, made again, and first used elsewhere.
        await lab.delete("/vm/default/first")
        await lab.until_gone("/vm/default/first")
        await lab.nodes["n3"].write_report(volumes=[])
        await lab.delete("/volume/default/raw")
        await lab.until_gone("/volume/default/raw")
        again = await lab.put("volume", "raw", {"size": 2**30})
        await lab.put_vm("reader-2", data_hints=["volume:raw"], storage_locality="required")
        await lab.until_refused("reader-2", "noAvailableAgents")
        await lab.nodes["n2"].write_report(volumes=[again.uid])
        await lab.until_phase("reader-2", "Running")
        assert (await places(lab))["reader-2"] == "n2"


async def test_images_and_declared_pools_draw_a_vm_that_says_so(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab, {"n1": "", "n2": "", "n3": ""})
        image = decode_part((await lab.every("image"))[0].status, dict)
        await lab.nodes["n2"].write_report(images=[image["sha256"]])

        def declare(envelope: Envelope) -> None:
            envelope.spec = merge_part(envelope.spec, NodeSpec(data=["ceph-pool:raw-data"]))
            envelope.generation += 1

        await lab.change("/node/-/n3", declare)
        await lab.put_vm("local", storage_locality="preferred")
        await lab.put_vm("etl", data_hints=["ceph-pool:raw-data"])
        await lab.until_phase("local", "Running")
        await lab.until_phase("etl", "Running")
        assert await places(lab) == {"local": "n2", "etl": "n3"}
        await lab.put_vm("far", data_hints=["ceph-pool:elsewhere"])
        await lab.until_phase("far", "Running")  # a hint stops nobody
        await lab.put_vm("lost", data_hints=["ceph-pool:elsewhere"], storage_locality="required")
        await lab.until_refused("lost", "noAvailableAgents")
        assert (await reasons(lab, "lost"))["n1"] == "does not have ceph-pool:elsewhere"
