"""Workloads in a network that another project shares, with the controllers over a store in memory and nodes that only pretend."""

from __future__ import annotations

from pathlib import Path

from tests.scenario.controllers.test_conversions import RUNS
from tests.scenario.controllers_lab import Lab

from weft.kinds.network import NetworkSpec, NetworkStatus
from weft.objects.envelope import Envelope, decode_part, merge_part

LAB = "/network/physics/lab"


async def put_shared(lab: Lab, *shared_with: str) -> None:
    await lab.put("network", "lab", NetworkSpec(cidr="10.71.0.0/24", shared_with=list(shared_with)), project="physics")


async def share(lab: Lab, *shared_with: str) -> None:
    def change(envelope: Envelope) -> None:
        envelope.spec = merge_part(envelope.spec, {"shared_with": list(shared_with)})
        envelope.generation += 1

    await lab.change(LAB, change)


async def test_a_guest_joins_a_network_of_another_project_beside_one_of_the_same_name(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_image("tiny")
        await put_shared(lab, "default")
        await lab.put("network", "lab", NetworkSpec(cidr="10.72.0.0/24"))
        await lab.put_vm("web", networks=["lab", "physics/lab:10.71.0.9"])
        await lab.until_phase("web", "Running")
        (allocation,) = await lab.allocations()
        shared = await lab.get(LAB)
        assert shared is not None
        assert [(nic.network, nic.address) for nic in allocation.nics] == [
            ("lab", "10.72.0.2"),
            ("physics/lab", "10.71.0.9"),
        ]
        assert allocation.nics[1].network_uid == shared.uid
        assert (await lab.status("web")).addresses == {"lab": "10.72.0.2", "physics/lab": "10.71.0.9"}
        assert {(spec.network, spec.workload.project) for spec in await lab.endpoints()} == {
            ("lab", "default"),
            ("physics/lab", "default"),
        }

        async def counted() -> bool:
            network = await lab.get(LAB)
            return network is not None and decode_part(network.status, NetworkStatus).used == 1

        await lab.until(counted)


async def test_what_has_joined_stays_without_the_share_and_what_is_new_waits_for_one(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_image("tiny")
        await put_shared(lab, "default")
        await lab.put_vm("old", networks=["physics/lab"])
        await lab.until_phase("old", "Running")
        await share(lab, "other")
        await lab.put_vm("new", networks=["physics/lab"])
        await lab.put_vm("held", networks=["physics/lab"], hold=True)
        await lab.put_vm("none", networks=["physics/none"])
        refusals = []
        for name, network in (("new", "physics/lab"), ("none", "physics/none"), ("held", "physics/lab")):

            async def unaddressed(name: str = name) -> bool:
                addressed = (await lab.vm(name)).condition("Addressed")
                return addressed is not None and addressed.reason == "networkNotReady"

            if name != "held":
                await lab.until_refused(name, "networkNotReady")
                placed = await lab.placed(name)
                assert placed is not None
                refusals.append(placed.message.replace(network, "X"))
            else:
                await lab.until(unaddressed)
        assert refusals[0] == refusals[1] and "not shared with project default" in refusals[0]
        await lab.place_anew("old")
        assert [one.nics[0].address for one in await lab.allocations()] == ["10.71.0.2"]
        assert [(spec.workload.name, spec.address) for spec in await lab.endpoints()] == [("old", "10.71.0.2")]
        await share(lab, "*")  # given anew, to all
        await lab.until_phase("new", "Running", 3)
        await lab.change_spec("held", hold=False)
        await lab.until_phase("held", "Running", 3)


async def test_tasks_of_a_job_join_a_shared_network(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", runtimes=[RUNS])
        await put_shared(lab, "other")
        await lab.put_job("work", task={"networks": ["physics/lab"]})
        await lab.until_refused("work-0", "networkNotReady", kind="container")
        await share(lab, "default")
        await lab.until_job("work", "Running")
