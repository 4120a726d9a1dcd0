"""A deployment that replaces a VM people use: its ports, volumes, address and name go along, and come back; no disk is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.controllers.test_deployments import act, add_nodes, instances, put_deployment, status_of, until
from tests.scenario.controllers_lab import GIB, MIB, Lab

from weft.kinds.allocation import AllocationSpec
from weft.kinds.endpoint import EndpointSpec
from weft.kinds.fields.deployment.status import DeploymentStatus
from weft.kinds.parts.deployment.verbs import UndoInput, UpdateInput
from weft.kinds.published_port import PublishedPortSpec, PublishedPortStatus
from weft.kinds.service import ServiceSpec, ServiceStatus
from weft.kinds.vm import VM, VmSpec
from weft.objects.envelope import Envelope, decode_part, merge_part
from weft.objects.errors import IllegalTransition

NEWER = UpdateInput(template={"image": "newer"})


async def adopt(lab: Lab, vm: dict[str, Any], labels: dict[str, str] | None = None, **strategy: Any) -> None:
    """A deployment of one, which is a VM that there was before."""
    if not lab.nodes:
        await add_nodes(lab)
    await lab.put_image("newer")
    await lab.put("volume", "data", {"size": GIB}, finalizers=("volume",))
    await lab.put_vm("web", memory=256 * MIB, **vm)
    await lab.until_phase("web", "Running")
    template = msgspec.to_builtins(VmSpec(image="tiny", memory=256 * MIB))
    fields: dict[str, Any] = {"workload": "vm", "adopt": "web", "replicas": 1, "strategy": strategy}
    fields["labels"] = labels or {}
    await put_deployment(lab, template={"cpu": 1.0, **template}, **fields)
    await until(lab, "Promoted", 1)


async def spec_of(lab: Lab, name: str) -> VmSpec:
    return decode_part((await lab.vm(name)).spec, VmSpec)


async def ports(lab: Lab) -> dict[int, str]:
    """Which VM each published port leads to."""
    every = [decode_part(one.spec, PublishedPortSpec) for one in await lab.every("publishedport")]
    return {one.port: one.workload.name for one in every}


def claim_port(vm: Envelope) -> PublishedPortSpec:
    return PublishedPortSpec(port=8091, protocol="tcp", target_port=80, workload=vm.ref)


async def listen(lab: Lab, listens: Callable[[AllocationSpec], bool]) -> None:
    """From now on published ports answer so."""
    for node in lab.nodes.values():
        node.listens = listens
        for one in await lab.every("allocation"):
            if one.uid in node.running:
                await node.act(one.key)


async def names(lab: Lab) -> dict[str, str]:
    """Which address each name leads to."""
    every = [decode_part(one.spec, EndpointSpec) for one in await lab.every("endpoint")]
    return {one.hostname or one.workload.name: one.address for one in every}


async def test_the_old_vm_runs_until_nodes_lead_its_port_to_the_new_one(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab, {"publish": ["8091:80"]})
        for there, back in (("web", "web-2-0"), ("web-2-0", "web")):
            await act(lab, "update" if there == "web" else "undo", NEWER if there == "web" else UndoInput())
            led_at: list[float] = []

            async def has_stopped(there: str = there, back: str = back, led_at: list[float] = led_at) -> bool:
                (port,) = await lab.every("publishedport")
                leads = decode_part(port.status, PublishedPortStatus).address
                if leads == (await lab.status(back)).address if await lab.get(f"/vm/default/{back}") else False:
                    led_at.append(lab.clock.now())
                return (await spec_of(lab, there)).run == "stop"

            await lab.until(has_stopped)
            assert led_at and lab.clock.now() - led_at[0] >= 1.5
            await until(lab, *(("Promoted", 2) if there == "web" else ("RolledBack", 1)))


@pytest.mark.parametrize("kind", ["rolling", "blue-green", "canary"])
async def test_the_published_port_goes_to_the_vm_that_is_promoted_and_back_at_an_undo(
    tmp_path: Path, kind: str
) -> None:
    async with Lab(tmp_path) as lab:
        judged: dict[str, Any] = {
            "auto_promote": True,
            "monitor_duration": 5.0,
            "on_undecided": "promote",
            "keep_old": 10.0,
        }
        await adopt(lab, {"publish": ["8091:80"], "force_publish": True}, type=kind, **judged)
        await act(lab, "update", NEWER)
        await until(lab, "Promoted", 2)
        assert await ports(lab) == {8091: "web-2-0"}
        await lab.until_phase("web", "Stopped")
        new, old = await spec_of(lab, "web-2-0"), await spec_of(lab, "web")
        assert (new.publish, new.force_publish, new.run) == (["8091:80"], True, "run")
        assert (old.publish, old.run) == ([], "stop")
        await act(lab, "undo", UndoInput())
        await until(lab, "RolledBack", 1)
        assert await ports(lab) == {8091: "web"}
        assert (await spec_of(lab, "web")).publish == ["8091:80"]


@pytest.mark.parametrize("how", ["rolling", "blue-green", "canary", "after a stop", "in place"])
async def test_a_version_that_leaves_a_published_port_unanswered_goes_back(tmp_path: Path, how: str) -> None:
    async with Lab(tmp_path) as lab:
        vm = {"publish": ["8091:80", "8053:53/udp"], "volumes": ["data"] if how == "after a stop" else []}
        kind = how if how in ("blue-green", "canary") else "rolling"
        await adopt(lab, vm, type=kind, auto_promote=True, monitor_duration=5.0, rollback_on_failure=True)
        await listen(lab, lambda spec: spec.firmware == "auto" and spec.image is not None and spec.image.name == "tiny")
        await act(lab, "update", UpdateInput(template={"firmware": "bios"}) if how == "in place" else NEWER)
        verdict = (await until(lab, "RolledBack", 1)).verdict
        assert "nothing answers on its TCP port 80 (published as 8091:80), where the version before" in verdict
        assert await ports(lab) == {8091: "web", 8053: "web"}
        assert (await lab.status("web")).phase == "Running"
        assert [one.asked_ports for one in await lab.allocations() if one.desired == "run"] == [[]]


async def test_a_port_that_nothing_served_is_asked_of_no_new_version(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab, {"publish": ["8091:80"]})
        await listen(lab, lambda spec: False)
        await act(lab, "update", NEWER)
        await until(lab, "Promoted", 2)
        (said,) = [event.message for event in lab.journal.events if event.reason == "PortsUnanswered"]
        assert said.startswith("nothing answered on TCP port 80 before the update")


async def test_an_undo_ends_once_the_kept_vm_answers_as_updates_before_it_had_to(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab, {"volumes": ["data"], "publish": ["8091:80"]})
        await listen(lab, lambda spec: spec.workload.name == "web")
        for revision, image in ((2, NEWER), (3, UpdateInput(template={"image": "newer", "cpu": 2.0}))):
            await act(lab, "update", image)
            await until(lab, "Progressing", revision)
            await lab.pass_time(10)
            await lab.kill_controllers()
            lab.start_controllers(f"after-{revision}")
            assert "TCP port 80" in (await until(lab, "Undecided", revision)).verdict
        await listen(lab, lambda spec: False)
        await act(lab, "undo", UndoInput())
        await lab.until_phase("web", "Running")
        await lab.pass_time(20)
        assert (await status_of(lab)).phase == "Progressing"
        await listen(lab, lambda spec: True)
        await until(lab, "RolledBack", 1)
        assert await ports(lab) == {8091: "web"}


async def test_the_name_in_its_networks_leads_to_the_vm_that_is_promoted(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab, {})
        before = (await names(lab))["web"]
        await act(lab, "update", NEWER)
        await until(lab, "Promoted", 2)
        (new,) = [one for one in await lab.endpoints() if one.workload.name == "web-2-0"]
        assert (await names(lab))["web"] == new.address != before
        await act(lab, "undo", UndoInput())
        await until(lab, "RolledBack", 1)
        assert (await names(lab))["web"] == before


async def test_volumes_and_a_chosen_address_go_along_once_the_old_vm_has_stopped(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab, {"volumes": ["data"], "networks": ["default:10.0.7.7"], "publish": ["8091:80"]})
        (before,) = [one for one in await lab.endpoints() if one.workload.name == "web"]
        await act(lab, "update", NEWER)
        await until(lab, "Promoted", 2)
        new, old = await spec_of(lab, "web-2-0"), await spec_of(lab, "web")
        assert (new.volumes, new.networks, new.publish) == (["data"], ["default:10.0.7.7"], ["8091:80"])
        assert (old.volumes, old.networks, old.publish, old.run) == ([], [], [], "stop")
        (after,) = await lab.endpoints()
        assert (after.address, after.mac, after.workload.name) == (before.address, before.mac, "web-2-0")
        assert await names(lab) == {"web": "10.0.7.7"}
        (place,) = [one for one in await lab.allocations() if one.workload.name == "web-2-0"]
        assert [one.name for one in place.volumes] == ["data"]
        await act(lab, "undo", UndoInput())
        await until(lab, "RolledBack", 1)
        await lab.until_phase("web", "Running")
        back = await spec_of(lab, "web")
        assert (back.volumes, back.networks, back.publish) == (["data"], ["default:10.0.7.7"], ["8091:80"])
        assert (await spec_of(lab, "web-2-0")).run == "stop"


async def test_a_new_version_that_fails_gives_the_volumes_back_and_goes(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab, {"volumes": ["data"], "publish": ["8091:80"]}, rollback_on_failure=True)
        for node in lab.nodes.values():
            node.refuses = {"bios": "image newer has no boot loader for bios"}
        await act(lab, "update", UpdateInput(template={"image": "newer", "firmware": "bios"}))
        await until(lab, "RolledBack", 1)
        await lab.until_phase("web", "Running")
        assert (await spec_of(lab, "web")).volumes == ["data"]
        assert await ports(lab) == {8091: "web"}
        await lab.until_gone("/vm/default/web-2-0")


@pytest.mark.parametrize("kind", ["blue-green", "canary"])
async def test_a_vm_with_a_volume_is_not_tried_beside_itself(tmp_path: Path, kind: str) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab, {"volumes": ["data"]})
        await act(lab, "update", UpdateInput(template={"image": "newer"}, strategy={"type": kind}))
        status = await until(lab, "RolledBack", 1)
        assert "volume data can be attached to one VM at a time" in status.verdict
        await lab.pass_time(5)
        assert set(await instances(lab, "vm")) == {"web"}
        assert (await spec_of(lab, "web")).run == "run"


@pytest.mark.parametrize("own", [{}, {"volumes": ["data"]}])
async def test_a_version_that_fits_nowhere_beside_the_vm_goes_back_at_once(tmp_path: Path, own: dict[str, Any]) -> None:
    """The old VM keeps its place while it is stopped, so that to wait for capacity would keep it down for nothing."""
    async with Lab(tmp_path) as lab:
        await adopt(lab, own, health_check_timeout=600.0)
        uid = (await lab.vm("web")).uid
        await act(lab, "update", UpdateInput(template={"image": "newer", "memory": 64 * GIB}))
        status = await until(lab, "RolledBack", 1, 60.0)
        assert "beside the VM that it replaces, which keeps its place: insufficientResources" in status.verdict
        await lab.until_phase("web", "Running")
        assert (await lab.vm("web")).uid == uid
        assert (await spec_of(lab, "web")).volumes == own.get("volumes", [])
        await lab.until_gone("/vm/default/web-2-0")


async def test_an_undo_after_a_change_in_place_starts_the_kept_vm(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab, {"publish": ["8091:80"]})
        uid = (await lab.vm("web")).uid
        await act(lab, "update", UpdateInput(template={"firmware": "bios"}))
        await until(lab, "Promoted", 2)
        await act(lab, "update", NEWER)
        await until(lab, "Promoted", 3)
        await lab.until_phase("web", "Stopped")
        await act(lab, "undo", UndoInput())
        await until(lab, "RolledBack", 2)
        await lab.until_phase("web", "Running")
        vm = await lab.vm("web")
        assert (vm.uid, decode_part(vm.spec, VmSpec).firmware) == (uid, "bios")
        assert await ports(lab) == {8091: "web"}
        assert set(await instances(lab, "vm")) == {"web", "web-3-0"}
        await act(lab, "undo", UndoInput(revision=1))
        await until(lab, "RolledBack", 1)
        assert (await spec_of(lab, "web")).firmware == "auto"


async def test_a_vm_that_was_promoted_is_kept_with_its_disk_and_changed_in_its_place(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab, {})
        await act(lab, "update", NEWER)
        await until(lab, "Promoted", 2)
        uid = (await lab.vm("web-2-0")).uid
        await act(lab, "update", UpdateInput(template={"firmware": "bios"}))
        await until(lab, "Promoted", 3)
        vm = await lab.vm("web-2-0")
        assert (vm.uid, decode_part(vm.spec, VmSpec).firmware) == (uid, "bios")
        await act(lab, "update", UpdateInput(template={"image": "tiny", "cpu": 2.0}))
        await until(lab, "Promoted", 4)
        await lab.until_phase("web-2-0", "Stopped")
        assert (await lab.vm("web-2-0")).uid == uid


async def test_a_vm_that_an_older_weft_promoted_gets_the_port_and_is_kept_too(tmp_path: Path) -> None:
    """That one left the port with the stopped VM, and knew only the adopted VM as one to keep."""
    async with Lab(tmp_path) as lab:
        await adopt(lab, {})
        await act(lab, "update", NEWER)
        await until(lab, "Promoted", 2)
        await lab.until_phase("web", "Stopped")
        await lab.kill_controllers()

        def forget(envelope: Envelope) -> None:
            status = decode_part(envelope.status, DeploymentStatus)
            status.holder, status.revisions[1].instance = "", ""
            envelope.status = merge_part(envelope.status, status)

        await lab.change("/deployment/default/web", forget)
        await lab.change_spec("web", publish=["8091:80"])
        old = await lab.vm("web")
        await lab.put("publishedport", "tcp-8091", claim_port(old), project=None)
        lab.start_controllers("newer")

        async def handed_over() -> bool:
            kept = (await status_of(lab)).revisions[1].instance
            return (await ports(lab), kept) == ({8091: "web-2-0"}, "web-2-0")

        await lab.until(handed_over)


async def test_deleting_a_deployment_leaves_every_vm_that_people_named_or_promoted(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab, {"publish": ["8091:80"]}, keep_old=5.0)
        given = UpdateInput(template={"image": "newer"}, strategy={"type": "blue-green"}, instance="fresh")
        await act(lab, "update", given)
        await until(lab, "Paused", 2)
        await act(lab, "resume")
        await until(lab, "Promoted", 2)
        await lab.until_phase("web", "Stopped")
        await act(lab, "update", UpdateInput(template={"image": "tiny", "cpu": 2.0}, strategy={"type": "canary"}))

        async def tried() -> bool:
            return "web-3-0" in await instances(lab, "vm")

        await lab.until(tried)
        await lab.delete("/deployment/default/web")
        await lab.until_gone("/deployment/default/web")
        await lab.until_gone("/vm/default/web-3-0")
        left = {one.name: (one.owner, one.labels, one.deleting_since) for one in await lab.every("vm")}
        assert left == {"web": (None, {}, None), "fresh": (None, {}, None)}
        assert await ports(lab) == {8091: "fresh"}
        assert (await lab.status("fresh")).phase == "Running"


async def test_a_vm_that_is_only_kept_is_no_endpoint_of_a_service_and_starts_by_an_undo_alone(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        service = await lab.put("service", "web", ServiceSpec(selector={"app": "web"}, ports=["80:8080"], drain=1.0))
        await add_nodes(lab)
        for node in lab.nodes.values():
            node.ready_for = service.uid
        await adopt(lab, {}, labels={"app": "web"})
        await act(lab, "update", NEWER)
        await until(lab, "Promoted", 2)
        await lab.until_phase("web", "Stopped")

        async def endpoints() -> list[str]:
            envelope = await lab.get(service.key)
            assert envelope is not None
            return [one.workload.name for one in decode_part(envelope.status, ServiceStatus).endpoints]

        async def only_the_new() -> bool:
            return await endpoints() == ["web-2-0"]

        await lab.until(only_the_new)
        kept = msgspec.json.decode(msgspec.json.encode(await lab.vm("web")))
        for verb in ("start", "restart"):
            change = VM.verb(verb)
            assert change is not None and change.change is not None
            with pytest.raises(IllegalTransition, match="another VM of deployment/web has taken its place"):
                change.change(kept, None)


async def test_a_share_of_the_requests_is_named_only_where_a_service_sends_some(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab, {"publish": ["8091:80"]})
        strategy = {"type": "blue-green", "traffic_split": 0.1}
        await act(lab, "update", UpdateInput(template={"image": "newer"}, strategy=strategy))
        assert (await until(lab, "Paused", 2)).split == []
        said = [event.message for event in lab.journal.events if event.reason == "StepStarted"]
        assert said == [
            "revision 2 is healthy on 1 instance beside the old ones, and gets no requests until it is promoted, "
            "as no service leads to it"
        ]
        assert await ports(lab) == {8091: "web"}
        await act(lab, "resume")
        await until(lab, "Promoted", 2)
        assert await ports(lab) == {8091: "web-2-0"}
        await act(lab, "undo", UndoInput())
        await until(lab, "RolledBack", 1)
        assert await ports(lab) == {8091: "web"}


async def test_controllers_that_die_at_any_moment_leave_volume_and_port_with_one_vm(tmp_path: Path) -> None:
    async with Lab(tmp_path, slow=5) as lab:
        await adopt(lab, {"volumes": ["data"], "networks": ["default:10.0.7.7"], "publish": ["8091:80"]})
        await act(lab, "update", NEWER)
        turns, undone = 0, False

        async def over() -> bool:
            nonlocal turns, undone
            turns += 1
            if turns % 5 == 0:
                await lab.kill_controllers()
                lab.start_controllers(f"holder-{turns}")
            every = [decode_part(one.spec, VmSpec) for one in await lab.every("vm")]
            assert sum(one.volumes == ["data"] for one in every) == 1
            assert sum(one.publish == ["8091:80"] for one in every) == 1
            having = [one for one in await lab.allocations() if one.volumes and one.desired == "run"]
            assert len(having) <= 1
            status: DeploymentStatus = await status_of(lab)
            if (status.phase, status.revision) == ("Promoted", 2) and not undone:
                undone = True
                await act(lab, "undo", UndoInput())
            return (status.phase, status.revision) == ("RolledBack", 1)

        await lab.until(over, 3000)
        assert (await spec_of(lab, "web")).volumes == ["data"]
