"""Containers and VMs side by side: one scheduler, one set of addresses, one account of what nodes have."""

from __future__ import annotations

from pathlib import Path

from tests.scenario.controllers_lab import GIB, MIB, Lab

from weft.kinds.allocation import AllocationSpec
from weft.kinds.decision import DecisionSpec
from weft.kinds.node import NodeRuntime
from weft.objects.envelope import Envelope, decode_part, merge_part

RUNS = NodeRuntime(name="crun", version="1.8", kinds=["container"], isolations=["container"])
BROKEN = NodeRuntime(name="crun", usable=False, kinds=["container"], isolations=["container"])
APART = NodeRuntime(name="microvm", kinds=["container"], isolations=["vm"])


async def decision_of(lab: Lab, name: str) -> DecisionSpec:
    envelope = await lab.get(f"/decision/default/container.{name}")
    assert envelope is not None
    return decode_part(envelope.spec, DecisionSpec)


async def places(lab: Lab) -> dict[str, AllocationSpec]:
    return {f"{spec.workload.kind}/{spec.workload.name}": spec for spec in await lab.allocations()}


async def test_a_container_waits_with_a_clear_reason_until_a_node_runs_containers(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        n1 = await lab.add_node("n1")
        await lab.add_node("n2", runtimes=[BROKEN])
        await lab.put_container("web")
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await lab.until_refused("web", "noAvailableAgents", "container")
        said = await decision_of(lab, "web")
        assert said.message == "no node runs containers"
        assert {verdict.node: verdict.reason for verdict in said.verdicts} == dict.fromkeys(
            ("n1", "n2"), "runs no containers"
        )
        status = await lab.status("web", "container")
        assert (status.phase, status.reason, status.message) == ("Pending", "noAvailableAgents", said.message)
        assert set(await places(lab)) == {"vm/web"}
        await n1.write_report(runtimes=[RUNS])
        await lab.until_phase("web", "Running", kind="container")
        there = (await places(lab))["container/web"]
        assert (there.node, there.image, there.machine, there.runtime) == ("n1", None, "q35", "oci")
        assert there.container is not None
        assert there.container.image == "registry.example.org/web:1"


async def test_one_that_is_to_have_a_machine_of_its_own_goes_only_where_that_can_be(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", runtimes=[RUNS])
        await lab.put_container("safe", isolation="vm")
        await lab.until_refused("safe", "noAvailableAgents", "container")
        assert (await decision_of(lab, "safe")).message == "no node runs containers in machines of their own"
        await lab.add_node("n2", runtimes=[APART])
        await lab.until_phase("safe", "Running", kind="container")
        assert (await places(lab))["container/safe"].node == "n2"


async def test_a_node_that_only_makes_machines_for_containers_runs_none_without(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", runtimes=[APART])
        await lab.put_container("web")
        await lab.until_refused("web", "noAvailableAgents", "container")
        assert (await decision_of(lab, "web")).message == "no node runs containers"


async def test_vms_and_containers_take_from_the_same_room_and_the_same_addresses(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=6.0, memory=6 * GIB, runtimes=[RUNS])
        await lab.add_node("n2", cpu=6.0, memory=4 * GIB)
        for number in range(3):
            await lab.put_vm(f"vm-{number}", cpu=1.0, memory=1 * GIB)
            await lab.put_container(f"ct-{number}", cpu=1.0, memory=1 * GIB, publish=[f"808{number}:80"])
        for number in range(3):
            await lab.until_phase(f"vm-{number}", "Running")
            await lab.until_phase(f"ct-{number}", "Running", kind="container")
        placed = await places(lab)
        assert {placed[f"container/ct-{number}"].node for number in range(3)} == {"n1"}
        cpu = {"n1": 0.0, "n2": 0.0}
        for spec in placed.values():
            cpu[spec.node] += spec.resources.cpu
        assert sum(cpu.values()) == 6.0
        assert max(cpu.values()) <= 6.0
        addresses = [nic.address for spec in placed.values() for nic in spec.nics]
        assert len(set(addresses)) == len(addresses) == 6
        assert all(spec.resources.disk == 1 << 30 for what, spec in placed.items() if what.startswith("container/"))
        await lab.put_container("one-more", cpu=4.0, memory=64 * MIB)
        await lab.until_refused("one-more", "insufficientResources", "container")
        for what in [what for what, spec in placed.items() if spec.node == "n1" and what.startswith("vm/")]:
            await lab.delete(f"/vm/default/{what.partition('/')[2]}")
        await lab.delete("/container/default/ct-0")
        await lab.delete("/container/default/ct-1")
        await lab.until_phase("one-more", "Running", kind="container")
        await lab.until_gone("/decision/default/container.ct-0")
        assert {item.name for item in await lab.every("publishedport")} == {"tcp-8082"}


async def test_a_stopped_container_starts_again_with_what_its_spec_says_by_then(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", runtimes=[RUNS])
        await lab.put("securitygroup", "shop", {"ingress": ["tcp:80"]})
        await lab.put_container("web", args=["old"], security_groups=["shop"])
        await lab.until_phase("web", "Running", kind="container")
        await lab.change_spec("web", "container", run="stop")
        await lab.until_phase("web", "Stopped", kind="container")
        await lab.change_spec("web", "container", args=["new"], memory=64 * MIB, run="run")
        await lab.until_phase("web", "Running", kind="container")
        (spec,) = await lab.allocations()
        assert spec.container is not None
        assert (spec.container.args, spec.resources.memory, spec.incarnation) == (["new"], 64 * MIB, 1)
        assert [group.name for group in spec.groups] == ["shop"]
        current = (await lab.vm("web", "container")).condition("Current")
        assert current is None or current.status == "True"


async def test_a_volume_is_mounted_by_one_workload_whatever_its_kind(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", runtimes=[RUNS])
        await lab.put("volume", "data", {"size": GIB})
        await lab.put_container("web", mounts=["data:/srv:ro"])
        await lab.until_phase("web", "Running", kind="container")
        (spec,) = await lab.allocations()
        assert [volume.name for volume in spec.volumes] == ["data"]
        await lab.put_vm("thief", volumes=["data"])
        await lab.until_refused("thief", "volumeInUse")
        placed = await lab.placed("thief")
        assert placed is not None
        assert placed.message == "volume data is attached to container/web"


async def test_a_drain_names_the_containers_that_can_not_leave(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", runtimes=[RUNS])
        await lab.add_node("n2", runtimes=[RUNS])
        await lab.put_container("web", node="n1")
        await lab.until_phase("web", "Running", kind="container")

        def drain(envelope: Envelope) -> None:
            envelope.actions = merge_part(envelope.actions, {"drain": True, "cordoned": True})
            envelope.generation += 1

        await lab.change("/node/-/n1", drain)

        async def told() -> bool:
            node = await lab.get("/node/-/n1")
            said = node.condition("Drained") if node is not None else None
            return (
                said is not None
                and "container/web can't leave: pinned: container/web is bound to node n1" in said.message
            )

        await lab.until(told)
        assert (await lab.status("web", "container")).phase == "Running", "what can go nowhere isn't stopped"
