"""A VM's life, from wish to nothing left, with the controllers over a store in memory and nodes that only pretend."""

from __future__ import annotations

from pathlib import Path

import msgspec
from tests.scenario.controllers_lab import GIB, MIB, Lab

from weft.kinds.allocation import AllocatedGroup, AllocatedRule, AllocationReport, Resources
from weft.kinds.decision import DecisionSpec
from weft.kinds.endpoint import EndpointSpec, EndpointStatus
from weft.kinds.network import NetworkStatus
from weft.kinds.node import NodeStatus
from weft.kinds.published_port import PublishedPortStatus
from weft.objects.envelope import Condition, Envelope, decode_part, merge_part


async def test_a_new_vm_is_placed_and_runs(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web", cpu=2.0, memory=512 * MIB)
        await lab.until_phase("web", "Running")
        status = await lab.status("web")
        assert (status.node, status.address, status.incarnation, status.ready) == ("n1", "10.0.0.2", 1, True)
        assert status.observed_generation == 1
        ready = (await lab.vm("web")).condition("Ready")
        assert ready is not None and ready.status == "True"
        [allocation] = await lab.allocations()
        assert (allocation.resources.cpu, allocation.resources.memory) == (2.0, 512 * MIB)
        assert allocation.resources.disk == 64 * MIB  # the image's own size, as none was asked for
        assert allocation.image.url == f"/v1/blobs/{allocation.image.sha256}"
        [nic] = allocation.nics
        [endpoint] = await lab.every("endpoint")
        assert (nic.uid, nic.address, nic.gateway, nic.cidr) == (endpoint.uid, "10.0.0.2", "10.0.0.1", "10.0.0.0/16")
        assert nic.mac.startswith("52:54:00:") and nic.vni > 0


async def test_where_it_went_and_why_is_written_down(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", memory=4 * GIB)
        await lab.add_node("n2", memory=16 * GIB)
        await lab.pass_time(2)
        await lab.put_vm("web", memory=1 * GIB)
        await lab.until_phase("web", "Running")
        decision = await lab.get("/decision/default/vm.web")
        assert decision is not None
        spec = decode_part(decision.spec, DecisionSpec)
        assert (spec.policy, spec.error, spec.nodes) == ("least_loaded", "", 2)
        assert [(v.node, v.outcome) for v in spec.verdicts] == [("n2", "chosen"), ("n1", "fits")]
        [line] = [event.message for event in lab.journal.events if event.reason == "Placed"]
        assert (
            line.startswith("Selected agent 'n2' for VM 'web'")
            and "CPU: 1/8, Memory: 1.0 GiB/16.0 GiB, Disk: 64 MiB/100.0 GiB" in line
        )


async def test_stop_start_restart_suspend_and_resume_reach_the_place(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await lab.change_spec("web", run="stop")
        await lab.until_phase("web", "Stopped")
        await lab.change_spec("web", run="run")
        await lab.until_phase("web", "Running")
        await lab.change_spec("web", run="suspend")
        await lab.until_phase("web", "Suspended")
        await lab.change_spec("web", run="run")
        await lab.until_phase("web", "Running")
        before = (await lab.status("web")).boot_id
        await lab.change_spec("web", restart_generation=1)

        async def rebooted() -> bool:
            status = await lab.status("web")
            return status.phase == "Running" and status.boot_id != before and not status.reason

        await lab.until(rebooted)
        [allocation] = await lab.allocations()
        assert (allocation.restart_generation, allocation.incarnation, allocation.workload_generation) == (1, 1, 6)


async def test_a_held_vm_is_placed_when_it_is_released(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web", hold=True)
        await lab.until_phase("web", "Hold")
        await lab.pass_time(5)
        assert await lab.allocations() == []
        await lab.change_spec("web", hold=False)
        await lab.until_phase("web", "Running")


async def test_a_deleted_vm_leaves_nothing(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web", publish=["8080:80"])
        await lab.until_phase("web", "Running")
        await lab.delete("/vm/default/web")
        await lab.until_gone("/vm/default/web")
        for kind in ("allocation", "endpoint", "publishedport", "decision"):
            assert await lab.every(kind) == []
        assert lab.journal.reasons("web")[-1] == "Deleted"


async def test_a_vm_deleted_before_it_has_a_place_goes_at_once(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.put_vm("web")
        await lab.until_refused("web", "noAvailableAgents")
        await lab.delete("/vm/default/web")
        await lab.until_gone("/vm/default/web")
        assert await lab.every("decision") == []


async def test_a_vm_deleted_while_it_boots_goes_when_its_node_has_let_go(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        node.slow = True
        await lab.put_vm("web")
        await lab.until_phase("web", "Prolog")
        await lab.delete("/vm/default/web")
        await lab.until_phase("web", "Epilog")
        await lab.pass_time(5)
        [allocation] = await lab.every("allocation")
        assert allocation.deleting_since is not None
        node.slow = False
        await node.act(allocation.key)
        await lab.until_gone("/vm/default/web")


async def test_two_vms_get_two_addresses_and_a_freed_one_is_used_again(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        for name in ("a", "b", "c"):
            await lab.put_vm(name)
        for name in ("a", "b", "c"):
            await lab.until_phase(name, "Running")
        endpoints = await lab.endpoints()
        assert sorted(e.address for e in endpoints) == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
        assert len({e.mac for e in endpoints}) == 3
        freed = (await lab.status("b")).address
        await lab.delete("/vm/default/b")
        await lab.until_gone("/vm/default/b")
        await lab.put_vm("d")
        await lab.until_phase("d", "Running")
        assert (await lab.status("d")).address == freed

        async def counted() -> bool:
            network = await lab.get("/network/default/default")
            assert network is not None
            return decode_part(network.status, NetworkStatus).used == 3

        await lab.until(counted)


async def test_a_network_without_addresses_left_says_so(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put("network", "small", {"cidr": "10.9.0.0/29"})
        for number in range(6):
            await lab.put_vm(f"v{number}", networks=["small"])

        async def five_and_one() -> bool:
            phases = sorted([(await lab.status(f"v{n}")).phase for n in range(6)])
            return phases == ["Pending"] + ["Running"] * 5

        await lab.until(five_and_one)
        [lonely] = [vm for vm in await lab.every("vm") if decode_part(vm.status, dict)["phase"] == "Pending"]
        addressed = lonely.condition("Addressed")
        assert addressed is not None and addressed.reason == "networkFull" and "10.9.0.0/29" in addressed.message
        await lab.delete("/vm/default/" + ("v0" if lonely.name != "v0" else "v1"))
        await lab.until_phase(lonely.name, "Running")  # what was given back is for who waited


async def test_published_ports_and_nics_follow_the_place(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web", publish=["8080:80"], hold=True)
        await lab.pass_time(1)
        published_port = await lab.get("/publishedport/-/tcp-8080")
        assert published_port is not None and decode_part(published_port.status, PublishedPortStatus).node is None
        await lab.change_spec("web", hold=False)
        await lab.until_phase("web", "Running")

        async def leads() -> bool:
            [endpoint] = await lab.every("endpoint")
            [published_port] = await lab.every("publishedport")
            there = decode_part(published_port.status, PublishedPortStatus)
            here = decode_part(endpoint.status, EndpointStatus)
            return (there.node, there.address, there.node_address, here.node, here.node_address) == (
                "n1",
                "10.0.0.2",
                "10.0.0.1",
                "n1",
                "10.0.0.1",
            )

        await lab.until(leads)
        await lab.nodes["n1"].write_report(address="10.0.0.99")

        async def follows() -> bool:
            [published_port] = await lab.every("publishedport")
            return decode_part(published_port.status, PublishedPortStatus).node_address == "10.0.0.99"

        await lab.until(follows)


async def test_a_lost_node_makes_its_vms_unknown_until_it_is_back(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        await lab.add_node("n2")
        await lab.put_vm("web", node="n1", on_node_loss="restart")
        await lab.until_phase("web", "Running")
        await node.die()
        await lab.until_phase("web", "Unknown", 90)
        status = await lab.status("web")
        assert status.reason == "nodeLost" and "n1" in status.message and "waits" in status.message
        [allocation] = await lab.allocations()
        assert allocation.node == "n1" and allocation.desired == "run"
        await node.start()
        await lab.until_phase("web", "Running")
        assert lab.journal.reasons("n1") == ["NodeReady", "NodeNotReady", "NodeReady"]


async def test_what_is_allocated_on_a_node_is_summed(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        for name in ("a", "b"):
            await lab.put_vm(name, cpu=1.5, memory=GIB, disk=2 * GIB)
        await lab.until_phase("b", "Running")

        async def summed() -> bool:
            node = await lab.get("/node/-/n1")
            assert node is not None
            s = decode_part(node.status, NodeStatus)
            return (s.allocated_cpu, s.allocated_memory, s.allocated_disk, s.allocations) == (3.0, 2 * GIB, 4 * GIB, 2)

        await lab.until(summed)


async def test_a_volume_stays_where_its_data_is(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.add_node("n2", cpu=64.0, memory=256 * GIB)
        await lab.put("volume", "data", {"size": GIB}, finalizers=("volume",))
        await lab.put_vm("db", volumes=["data"], node="n1")
        await lab.until_phase("db", "Running")
        await lab.put_vm("thief", volumes=["data"])
        await lab.until_refused("thief", "volumeInUse")
        await lab.nodes["n1"].write_report(volumes=[(await lab.allocations())[0].volumes[0].uid])
        await lab.delete("/vm/default/db")
        await lab.until_phase("thief", "Running")
        assert (await lab.status("thief")).node == "n1"  # though n2 has more room
        await lab.delete("/vm/default/thief")
        await lab.until_gone("/vm/default/thief")
        await lab.delete("/volume/default/data")
        await lab.pass_time(5)
        assert await lab.get("/volume/default/data") is not None  # the node still has the data
        await lab.nodes["n1"].write_report(volumes=[])
        await lab.until_gone("/volume/default/data")


async def test_a_volume_that_a_stopped_vm_gives_up_is_free_at_once(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put("volume", "data", {"size": GIB}, finalizers=("volume",))
        await lab.put_vm("db", volumes=["data"])
        await lab.until_phase("db", "Running")
        await lab.change_spec("db", volumes=[])
        await lab.put_vm("next", volumes=["data"])
        await lab.until_refused("next", "volumeInUse")  # it is in the running guest
        await lab.change_spec("db", run="stop")
        await lab.until_phase("next", "Running")


async def test_a_volume_given_up_with_a_fresh_start_is_free(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put("volume", "data", {"size": GIB}, finalizers=("volume",))
        await lab.put_vm("db", volumes=["data"])
        await lab.until_phase("db", "Running")
        await lab.put_vm("next", volumes=["data"])
        await lab.until_refused("next", "volumeInUse")
        await lab.change_spec("db", volumes=[], restart_generation=1)
        await lab.until_phase("next", "Running")


async def test_a_new_size_comes_with_the_next_start(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put("network", "blue", {"cidr": "10.7.0.0/24"})
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await lab.change_spec("web", memory=2 * GIB, cpu=3.0, networks=["default", "blue"])
        await lab.pass_time(2)
        [allocation] = await lab.allocations()
        assert allocation.resources.memory == 256 * MIB and allocation.workload_generation == 2
        await lab.change_spec("web", restart_generation=1)

        async def grown() -> bool:
            status = await lab.status("web")
            return status.phase == "Running" and status.boot_id == "web-1-1" and not status.reason

        await lab.until(grown)
        [allocation] = await lab.allocations()
        assert (allocation.resources.cpu, allocation.resources.memory) == (3.0, 2 * GIB)
        assert [nic.network for nic in allocation.nics] == ["default", "blue"] and allocation.incarnation == 1
        assert "Resized" in lab.journal.reasons("web")
        await lab.change_spec("web", networks=["blue"])
        await lab.pass_time(2)
        assert len(await lab.endpoints()) == 2  # the guest still has both
        await lab.change_spec("web", restart_generation=2)

        async def only_blue() -> bool:
            return [e.network for e in await lab.endpoints()] == ["blue"]

        await lab.until(only_blue)


async def test_a_new_size_is_said_once_to_be_there_when_its_node_was_away_however_often_the_server_dies(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        vm = await lab.put_vm("web", cpu=1.0)
        await lab.until_phase("web", "Running")
        node.slow = True
        [place] = await lab.every("allocation")

        async def report(cpu: float, fitted: int | None = None) -> None:
            def change(envelope: Envelope) -> None:
                old, has = decode_part(envelope.report, AllocationReport), Resources(cpu=cpu, memory=256 * MIB)
                generation = fitted if fitted is not None else envelope.generation
                new = msgspec.structs.replace(old, has=has, fitted=generation, resize_limits={"cpu": 4})
                envelope.report = merge_part(envelope.report, new)

            await lab.change(place.key, change)

        async def restart() -> None:
            await lab.kill_controllers()
            lab.start_controllers()
            await lab.pass_time(5)

        def count() -> list[str]:
            return [one for one in lab.journal.reasons("web") if one in ("ResizeWaits", "Resized")]

        await report(1.0)
        await lab.pass_time(2)
        await node.die()
        await lab.until_phase("web", "Unknown", 90)
        await lab.change_spec("web", cpu=3.0)

        async def waits() -> bool:
            current = (await lab.vm("web")).condition("Current")
            return current is not None and current.reason == "ResizeWaits" and count() == ["ResizeWaits"]

        await lab.until(waits)
        await restart()
        await node.start()
        await lab.until_phase("web", "Running")
        await report(1.0, fitted=place.generation)  # it is back, and hasn't heard of it yet
        await restart()
        assert await waits()
        await lab.kill_controllers()
        await report(3.0)
        lab.start_controllers()

        async def told() -> bool:
            current = (await lab.vm("web")).condition("Current")
            return current is not None and current.status == "True" and count() == ["ResizeWaits", "Resized"]

        await lab.until(told)
        await restart()
        assert await told()
        assert (await lab.vm("web")).uid == vm.uid


async def test_rules_of_security_groups_come_with_the_place_and_follow_every_change(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put("securitygroup", "web", {"ingress": ["tcp:80 from group:self"]})
        await lab.put("securitygroup", "ssh", {"ingress": ["tcp:22 from 10.0.0.0/8"], "egress": []})
        await lab.put_vm("v1", security_groups=["web"])
        await lab.put_vm("v2")
        await lab.until_phase("v1", "Running")
        await lab.until_phase("v2", "Running")
        group = await lab.get("/securitygroup/default/web")
        assert group is not None

        async def groups_of(name: str) -> list[AllocatedGroup]:
            return next(a.groups for a in await lab.allocations() if a.workload.name == name)

        async def members() -> list[str]:
            found = await lab.every("endpoint")
            carrying = [e for e in found if group.uid in decode_part(e.status, EndpointStatus).groups]
            return sorted(decode_part(e.spec, EndpointSpec).workload.name for e in carrying)

        [web] = await groups_of("v1")
        assert web.ingress == [AllocatedRule(protocol="tcp", first_port=80, last_port=80, group_uid=group.uid)]
        assert web.egress == [AllocatedRule(protocol="any")]
        assert await groups_of("v2") == [] and await members() == ["v1"]
        await lab.change_spec("v2", security_groups=["web", "ssh"])

        async def follows() -> bool:
            names = [g.name for g in await groups_of("v2")]
            return names == ["web", "ssh"] and await members() == ["v1", "v2"]

        await lab.until(follows)
        assert (await groups_of("v2"))[1].egress == []

        def close(envelope: Envelope) -> None:
            envelope.spec = msgspec.Raw(msgspec.json.encode({"ingress": [], "egress": ["udp:53 to 10.0.0.1/32"]}))

        await lab.change("/securitygroup/default/web", close)

        async def closed() -> bool:
            return all(
                g[0].ingress == [] and g[0].egress[0].cidr == "10.0.0.1/32"
                for g in [await groups_of("v1"), await groups_of("v2")]
            )

        await lab.until(closed)

        async def counted() -> bool:
            group = await lab.get("/securitygroup/default/web")
            return group is not None and decode_part(group.status, dict)["used"] == 2

        await lab.until(counted)
        await lab.change_spec("v1", security_groups=[])

        async def left() -> bool:
            return await groups_of("v1") == [] and await members() == ["v2"]

        await lab.until(left)


async def test_a_chosen_address_is_given_and_a_changed_one_comes_with_the_next_start(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put("network", "blue", {"cidr": "10.7.0.0/24"})
        await lab.put_vm("web", networks=["default", "blue:10.7.0.40"])
        await lab.until_phase("web", "Running")
        [allocation] = await lab.allocations()
        assert (allocation.nics[1].address, allocation.nics[1].mac) == ("10.7.0.40", "52:57:0a:07:00:28")
        await lab.put_vm("other", networks=["blue:10.7.0.40"])  # as a restored store may hold it: past the API servers

        async def refused() -> bool:
            return (await lab.status("other")).reason == "addressInUse"

        await lab.until(refused)
        await lab.change_spec("web", networks=["blue:10.7.0.50", "default"])
        await lab.pass_time(2)
        assert (await lab.status("web")).addresses["blue"] == "10.7.0.40"  # what the guest has
        await lab.change_spec("web", restart_generation=1)
        await lab.until_phase("other", "Running")  # it waited for the old one
        status = await lab.status("web")
        assert next(iter(status.addresses.items())) == ("blue", "10.7.0.50") and status.address == "10.7.0.50"


async def test_a_size_that_its_node_has_no_room_for_is_refused_but_the_start_is_not(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0)
        await lab.put_vm("web")
        await lab.put_vm("other", cpu=2.0)
        await lab.until_phase("web", "Running")
        await lab.until_phase("other", "Running")
        await lab.change_spec("web", run="stop")
        await lab.until_phase("web", "Stopped")
        await lab.change_spec("web", cpu=3.0, run="run")
        await lab.until_phase("web", "Running")
        placed = await lab.placed("web")
        assert placed is not None and (placed.status, placed.reason) == ("True", "insufficientResources")
        assert "2 more cpu requested, 1 free" in placed.message
        await lab.delete("/vm/default/other")
        await lab.until_gone("/vm/default/other")
        await lab.change_spec("web", restart_generation=1)

        async def grown() -> bool:
            return [a.resources.cpu for a in await lab.allocations()] == [3.0]

        await lab.until(grown)


async def test_a_volume_whose_growth_its_pool_cannot_give_keeps_its_size_and_others_their_capacity(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put("volume", "data", {"size": GIB}, finalizers=("volume",))
        await lab.put_vm("db", volumes=["data"])
        await lab.until_phase("db", "Running")

        async def resize(size: int, told: str) -> Condition:
            def change(envelope: Envelope) -> None:
                envelope.spec = merge_part(envelope.spec, {"size": size})
                envelope.generation += 1

            await lab.change("/volume/default/data", change)

            async def answered() -> bool:
                volume = await lab.get("/volume/default/data")
                grown = volume.condition("Grown") if volume is not None else None
                return (
                    volume is not None
                    and grown is not None
                    and (grown.status, grown.generation)
                    == (
                        told,
                        volume.generation,
                    )
                )

            await lab.until(answered)
            volume = await lab.get("/volume/default/data")
            assert volume is not None
            return next(one for one in volume.conditions if one.type == "Grown")

        refused = await resize(900 * 1024 * GIB, "False")
        assert refused.reason == "insufficientResources" and "more disk requested" in refused.message
        assert (await lab.allocations())[0].volumes[0].size == GIB
        await lab.put_vm("other")
        await lab.until_phase("other", "Running")
        await resize(GIB, "True")
        placed = (await lab.vm("db")).condition("Placed")
        assert placed is not None and (placed.status, placed.reason) == ("True", "Placed")
        await resize(2 * GIB, "True")
        sizes = [one.size for spec in await lab.allocations() for one in spec.volumes]
        assert sizes == [2 * GIB]


async def test_a_restart_that_cannot_give_a_new_size_says_so_and_a_size_that_is_taken_back_is_not_missing(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await lab.change_spec("web", memory=64 * GIB, restart_generation=1)

        async def restarted() -> bool:
            status = await lab.status("web")
            return status.phase == "Running" and status.boot_id == "web-1-1" and not status.reason

        await lab.until(restarted)
        vm, status = await lab.vm("web"), await lab.status("web")
        current = vm.condition("Current")
        assert current is not None and (current.status, current.reason) == ("False", "insufficientResources")
        assert "not enough capacity on n1" in current.message
        assert status.resources is not None and status.resources.memory == 256 * MIB
        await lab.change_spec("web", memory=256 * MIB)

        async def settled() -> bool:
            found = [(await lab.vm("web")).condition(name) for name in ("Placed", "Current")]
            return [(one.status, one.message) for one in found if one] == [("True", "on n1"), ("True", "")]

        await lab.until(settled)


async def test_a_volume_that_grows_grows_in_its_place(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put("volume", "data", {"size": GIB}, finalizers=("volume",))
        await lab.put_vm("db", volumes=["data"])
        await lab.until_phase("db", "Running")

        def grow(envelope: Envelope) -> None:
            envelope.spec = merge_part(envelope.spec, {"size": 2 * GIB})

        await lab.change("/volume/default/data", grow)

        async def grown() -> bool:
            return (await lab.allocations())[0].volumes[0].size == 2 * GIB

        await lab.until(grown)
