"""GPUs and declared resources: set aside with a place, counted again after a restart, free once it has gone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.controllers_lab import GIB, Lab
from tests.scenario.scheduler.test_placement import decision_of

from weft.kinds.node import Gpu, NodeSpec
from weft.kinds.vm import VmSpec, check_vm
from weft.objects.envelope import Envelope, merge_part
from weft.objects.errors import InvalidInput
from weft.objects.schema import read_strict

H200, T4 = Gpu("NVIDIA H200", 141 * GIB, "0000:3b:00.0"), Gpu("Tesla T4", 16 * GIB, "0000:86:00.0")


async def devices_of(lab: Lab) -> Counter[int]:
    """Thousandths of each GPU that are given away."""
    used: Counter[int] = Counter()
    for spec in await lab.allocations():
        for gpu in spec.gpus:
            used[gpu.index] += gpu.share
    return used


async def test_gpus_are_given_as_devices_whole_or_shared_and_a_restart_counts_them_again(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=32.0, memory=64 * GIB, gpus=[T4, H200])
        await lab.add_node("n2", cpu=32.0, memory=64 * GIB)
        await lab.put_vm("half", gpu_share=0.5, gpu_memory=80 * GIB)
        await lab.until_phase("half", "Running")
        assert await devices_of(lab) == {1: 500}
        await lab.put_vm("quarter", gpu_share=0.25)
        await lab.until_phase("quarter", "Running")
        assert await devices_of(lab) == {1: 750}  # where least is left that will do
        await lab.put_vm("whole", gpus=1, gpu_models=["Tesla T4"])
        await lab.until_phase("whole", "Running")
        assert await devices_of(lab) == {0: 1000, 1: 750}
        await lab.kill_controllers()
        lab.start_controllers("later")
        await lab.put_vm("late", gpus=1)
        await lab.until_refused("late", "insufficientResources")
        said = await decision_of(lab, "late")
        assert "needs 1 GPU" in said.message and said.nearest == ""
        assert {v.node: [s.resource for s in v.shortfalls] for v in said.verdicts} == {"n1": ["gpu"], "n2": ["gpu"]}
        await lab.delete("/vm/default/whole")
        await lab.until_phase("late", "Running")
        assert await devices_of(lab) == {0: 1000, 1: 750}


async def test_a_gpu_goes_by_its_address_and_one_that_no_guest_can_have_to_nobody(tmp_path: Path) -> None:
    kept = msgspec.structs.replace(T4, kept="it is bound to nvidia, not to vfio-pci; driverctl")
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", gpus=[kept], capabilities=[])
        await lab.put_vm("one", gpus=1)
        await lab.until_refused("one", "noAvailableAgents")
        await lab.put_vm("half", gpu_share=0.5)
        await lab.until_refused("half", "noAvailableAgents")
        reason = "its GPUs can't be passed to guests: it is bound to nvidia, not to vfio-pci"
        assert [v.reason for v in (await decision_of(lab, "one")).verdicts] == [reason]
        await lab.add_node("n2", gpus=[kept, H200], capabilities=[])
        await lab.until_phase("one", "Running")
        (spec,) = await lab.allocations()
        assert [(gpu.index, gpu.address) for gpu in spec.gpus] == [(1, H200.address)]
        await lab.put_vm("other", gpus=1)
        await lab.until_refused("other", "insufficientResources")
        await lab.put_vm("part", gpu_share=0.25)
        await lab.until_refused("part", "noAvailableAgents")
        told = {v.node: v.reason for v in (await decision_of(lab, "part")).verdicts}
        assert told == {"n1": reason, "n2": "its GPUs are not shared: each goes whole to one VM"}


async def test_a_declared_resource_is_given_away_once(tmp_path: Path) -> None:
    def declare(envelope: Envelope) -> None:
        envelope.spec = merge_part(envelope.spec, NodeSpec(resources={"sriov": 3}))
        envelope.generation += 1

    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=32.0)
        await lab.put_vm("one", resources={"sriov": 2})
        await lab.until_refused("one", "insufficientResources")
        await lab.change("/node/-/n1", declare)
        await lab.until_phase("one", "Running")
        await lab.put_vm("two", resources={"sriov": 2})
        await lab.until_refused("two", "insufficientResources")
        said = await decision_of(lab, "two")
        assert said.nearest == "n1, if you ask for at most --resources sriov=1"
        [verdict] = said.verdicts
        assert [(s.resource, s.wanted, s.free) for s in verdict.shortfalls] == [("sriov", 2, 1)]
        await lab.delete("/vm/default/one")
        await lab.until_phase("two", "Running")
        assert [spec.extras for spec in await lab.allocations()] == [{"sriov": 2}]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"gpus": 2, "gpu_share": 0.5}, "spec.gpu_share"),
        ({"gpu_share": "150%"}, "spec.gpu_share"),
        ({"gpus": 65}, "spec.gpus"),
        ({"gpu_memory": "8G"}, "spec.gpus"),
        ({"resources": {"sriov": 0}}, "spec.resources.sriov"),
        ({"resources": {"cpu": 2}}, "spec.resources.cpu"),
    ],
)
def test_devices_that_cannot_be_asked_for_so_are_refused_at_their_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_vm(read_strict({"image": "tiny", **fields}, VmSpec))
    assert refused.value.field == field


async def test_fragmentation_looks_ahead_by_what_runs(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=32.0, memory=64 * GIB, gpus=[T4, T4])
        await lab.add_node("n2", cpu=32.0, memory=64 * GIB, gpus=[T4, T4])
        await lab.put_vm("one", gpus=1, node="n2")
        await lab.put_vm("half", gpu_share=0.5, node="n2")
        for name in ("one", "half"):
            await lab.until_phase(name, "Running")
        await lab.put_vm("other", gpu_share=0.5, strategy="fragmentation")
        await lab.until_phase("other", "Running")
        said = await decision_of(lab, "other")
        assert {v.node: v.outcome for v in said.verdicts} == {"n1": "fits", "n2": "chosen"}
        assert [term.name for term in said.verdicts[0].terms] == ["kept", "fit"]
        await lab.put_vm("both", gpus=2, strategy="fragmentation")
        await lab.until_phase("both", "Running")
        assert (await decision_of(lab, "both")).verdicts[0].node == "n1"
