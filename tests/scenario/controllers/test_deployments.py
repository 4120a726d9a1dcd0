"""Deployments with pretended nodes and time moved by hand: which instances there are, and that no controller that dies makes one
twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.controllers.test_jobs import RUNS
from tests.scenario.controllers_lab import MIB, Lab

from weft.kinds.container import ContainerSpec
from weft.kinds.deployment import DEPLOYMENT, DeploymentSpec, check_deployment
from weft.kinds.disruption_budget import DisruptionBudgetSpec
from weft.kinds.fields.deployment.instance import REVISION_LABEL
from weft.kinds.fields.deployment.status import DeploymentStatus
from weft.kinds.fields.deployment.strategy import RolloutStrategy
from weft.kinds.parts.deployment.verbs import ScaleInput, UndoInput, UpdateInput
from weft.kinds.parts.workload import WorkloadActions
from weft.kinds.quota import QuotaSpec
from weft.kinds.service import SERVICE, ServiceSpec, ServiceStatus
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope, decode_part, merge_part
from weft.objects.errors import IllegalTransition

IMAGE = "registry.example.org/shop:1"


async def add_nodes(lab: Lab, count: int = 2, **report: Any) -> None:
    for number in range(count):
        await lab.add_node(f"n{number}", runtimes=[RUNS], **report)


async def put_deployment(lab: Lab, name: str = "web", **fields: Any) -> Envelope:
    template = {"image": IMAGE, "cpu": 0.1, **fields.pop("template", {})}
    strategy = RolloutStrategy(**{"health_check_timeout": 60.0, **fields.pop("strategy", {})})
    spec = DeploymentSpec(**{"template": template, "replicas": 3, "min_healthy": 1.0, "strategy": strategy, **fields})
    check_deployment(spec)
    return await lab.put("deployment", name, spec, finalizers=("deployment",))


async def act(lab: Lab, verb: str, given: Any = None, name: str = "web") -> None:
    """As the API server does. Raises what the verb raises."""
    found = DEPLOYMENT.verb(verb)
    assert found is not None and found.change is not None

    def change(envelope: Envelope) -> None:
        obj = msgspec.json.decode(msgspec.json.encode(envelope))
        assert found is not None and found.change is not None
        asked = found.act(obj, given) if found.act is not None else {}
        spec = msgspec.convert(found.change(obj, given), DeploymentSpec)
        check_deployment(spec)
        envelope.spec, envelope.actions = merge_part(envelope.spec, spec), merge_part(envelope.actions, asked)
        envelope.generation += 1

    await lab.change(f"/deployment/default/{name}", change)


async def status_of(lab: Lab, name: str = "web") -> DeploymentStatus:
    envelope = await lab.get(f"/deployment/default/{name}")
    assert envelope is not None, name
    return decode_part(envelope.status, DeploymentStatus)


async def until(lab: Lab, phase: str, revision: int, seconds: float = 200.0) -> DeploymentStatus:
    async def there() -> bool:
        status = await status_of(lab)
        return (status.phase, status.revision) == (phase, revision)

    await lab.until(there, seconds)
    return await status_of(lab)


async def instances(lab: Lab, kind: str = "container") -> dict[str, str]:
    """Names, with their revisions, of those that stay."""
    every = [one for one in await lab.every(kind) if one.deleting_since is None]
    return {one.name: one.labels[REVISION_LABEL] for one in every}


async def test_an_update_replaces_the_instances_and_an_undo_brings_the_old_ones_back(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await lab.put("quota", "project", QuotaSpec(instances=20))
        await lab.put("disruptionbudget", "web", DisruptionBudgetSpec(selector={"app": "web"}, max_unavailable=1))
        await put_deployment(lab, labels={"app": "web"})
        await until(lab, "Promoted", 1)
        assert await instances(lab) == {"web-1-0": "1", "web-1-1": "1", "web-1-2": "1"}
        one = await lab.vm("web-1-0", "container")
        assert one.labels == {"app": "web", "weft/deployment": "web", "weft/revision": "1"}
        await act(lab, "update", UpdateInput(template={"image": "registry.example.org/shop:2"}))
        await until(lab, "Promoted", 2)
        assert await instances(lab) == {"web-2-0": "2", "web-2-1": "2", "web-2-2": "2"}
        assert decode_part((await lab.vm("web-2-0", "container")).spec, ContainerSpec).image.endswith(":2")
        await act(lab, "undo", UndoInput())
        status = await until(lab, "RolledBack", 1)
        assert set((await instances(lab)).values()) == {"1"}
        assert "again" in status.verdict
        await lab.delete("/deployment/default/web")
        await lab.until_gone("/deployment/default/web")
        assert await lab.every("container") == []


async def test_an_update_after_a_rollback_changes_what_runs_and_not_what_was_rolled_back(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await put_deployment(lab, strategy={"health_check_timeout": 5.0, "rollback_on_failure": True})
        await until(lab, "Promoted", 1)
        await act(lab, "update", UpdateInput(template={"image": "registry.example.org/shop:2", "node": "elsewhere"}))
        await until(lab, "RolledBack", 1)
        await act(lab, "update", UpdateInput(template={"grace": 5.0}))
        await until(lab, "Promoted", 3)
        spec = decode_part((await lab.vm("web-1-0", "container")).spec, ContainerSpec)
        assert (spec.image, spec.grace, spec.node) == (IMAGE, 5.0, None)


async def test_a_second_update_is_refused_while_one_goes_on(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await put_deployment(lab)
        await until(lab, "Promoted", 1)
        for node in lab.nodes.values():
            node.slow = True
        await act(lab, "update", UpdateInput(template={"image": "registry.example.org/shop:2"}))
        await until(lab, "Progressing", 2)
        with pytest.raises(IllegalTransition, match="takes one update at a time"):
            await act(lab, "update", UpdateInput(template={"image": "registry.example.org/shop:3"}))


async def test_a_change_that_running_guests_can_take_replaces_none(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await put_deployment(lab)
        await until(lab, "Promoted", 1)
        await act(lab, "update", UpdateInput(template={"grace": 5.0}))
        await until(lab, "Promoted", 2)
        assert await instances(lab) == {"web-1-0": "2", "web-1-1": "2", "web-1-2": "2"}
        assert decode_part((await lab.vm("web-1-0", "container")).spec, ContainerSpec).grace == 5.0


async def test_virtual_machines_are_instances_too(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await put_deployment(lab, workload="vm", template={"image": "tiny", "cpu": 1.0}, replicas=2)
        await until(lab, "Promoted", 1)
        assert await instances(lab, "vm") == {"web-1-0": "1", "web-1-1": "1"}


async def test_a_deployment_keeps_within_its_projects_quota_and_says_so(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await lab.put("quota", "project", QuotaSpec(instances=2))
        await put_deployment(lab)

        async def held() -> bool:
            return (await status_of(lab)).reason == "quotaExceeded"

        await lab.until(held)
        await lab.pass_time(5)
        assert len(await instances(lab)) == 2


async def test_a_budget_keeps_instances_up_through_an_update(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await lab.put("disruptionbudget", "web", DisruptionBudgetSpec(selector={"app": "web"}, min_available=3))
        await put_deployment(lab, labels={"app": "web"}, strategy={"max_surge": 0})
        await until(lab, "Promoted", 1)
        await act(lab, "update", UpdateInput(template={"image": "registry.example.org/shop:2"}))
        status = await until(lab, "Undecided", 2)
        assert "disruptionbudget/web lets 0 of 3 be down" in status.verdict
        assert set(await instances(lab)) == {"web-1-0", "web-1-1", "web-1-2"}


async def test_an_instance_that_is_no_deployments_own_is_left_alone(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await lab.put_container("web-1-1")
        await put_deployment(lab)

        await until(lab, "Promoted", 1)
        own = [one.name for one in await lab.every("container") if one.owner is not None]
        assert sorted(own) == ["web-1-0", "web-1-1-2", "web-1-2"]


async def test_an_adoption_of_a_vm_that_is_missing_goes_on_once_it_is_there(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        template = {"image": "tiny", "cpu": 1.0}
        await put_deployment(lab, workload="vm", template=template, replicas=1, adopt="web")

        async def blocked() -> bool:
            return "does not exist" in (await status_of(lab)).message

        await lab.until(blocked)
        envelope = await lab.get("/deployment/default/web")
        assert envelope is not None
        assert (await status_of(lab)).observed_generation < envelope.generation
        await lab.put_vm("web", image="tiny", cpu=1.0)
        await until(lab, "Promoted", 1)


async def test_a_vm_that_is_replicated_is_adopted_only_once_it_is_no_more(tmp_path: Path) -> None:
    """Where its copy is promoted it must stay stopped, and a deployment would start it."""
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        vm = await lab.put_vm("web", image="tiny", cpu=1.0)
        made = await lab.put("replication", "copy", {"of": "vm/web", "cluster": "west"})
        await put_deployment(lab, workload="vm", template={"image": "tiny", "cpu": 1.0}, replicas=1, adopt="web")

        async def blocked() -> bool:
            status = await status_of(lab)
            return status.reason == "isReplicated" and "replication/copy: delete that first" in status.message

        await lab.until(blocked)
        there = await lab.get(vm.key)
        assert there is not None and there.owner is None
        await lab.delete(made.key)
        await until(lab, "Promoted", 1)


async def test_a_change_in_place_keeps_within_the_projects_quota(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await lab.put("quota", "project", QuotaSpec(cpu=0.5))
        await put_deployment(lab)
        await until(lab, "Promoted", 1)
        await act(lab, "update", UpdateInput(template={"cpu": 0.2}))

        async def held() -> bool:
            return (await status_of(lab)).reason == "quotaExceeded"

        await lab.until(held)
        await lab.pass_time(5)
        every = [decode_part(one.spec, ContainerSpec).cpu for one in await lab.every("container")]
        assert sum(every) <= 0.5


async def test_the_quota_is_that_of_the_template_that_instances_are_made_of(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        await lab.put("quota", "project", QuotaSpec(cpu=1.0))
        await put_deployment(lab, replicas=1, template={"cpu": 0.4}, strategy={"rollback_on_failure": True})
        await until(lab, "Promoted", 1)
        small = {"cpu": 0.01, "node": "elsewhere", "image": "registry.example.org/shop:2"}
        await act(lab, "update", UpdateInput(template=small, strategy={"health_check_timeout": 5.0}))
        await until(lab, "RolledBack", 1)
        await act(lab, "scale", ScaleInput(replicas=5))
        await lab.pass_time(5)
        assert len(await instances(lab)) == 2


async def test_controllers_that_die_at_any_moment_make_no_instance_twice(tmp_path: Path) -> None:
    async with Lab(tmp_path, slow=3) as lab:
        await add_nodes(lab)
        await put_deployment(lab)
        most, turns = 0, 0

        async def over() -> bool:
            nonlocal most, turns
            turns += 1
            if turns % 7 == 0:
                await lab.kill_controllers()
                lab.start_controllers(f"holder-{turns}")
            stay = [one for one in await lab.every("container") if one.deleting_since is None]
            most = max(most, len(stay))
            status = await status_of(lab)
            if (status.phase, status.revision) == ("Promoted", 1) and turns < 2000:
                await act(lab, "update", UpdateInput(template={"image": "registry.example.org/shop:2"}))
                turns = 2000
            return (status.phase, status.revision) == ("Promoted", 2)

        await lab.until(over, 3000)
        assert most == 4
        assert set(await instances(lab)) == {"web-2-0", "web-2-1", "web-2-2"}


async def test_a_service_sends_as_many_requests_to_a_new_revision_as_its_deployment_says(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab)
        spec = ServiceSpec(selector={"app": "web"}, ports=["80:8080"], drain=10.0)
        service = await lab.put("service", "web", spec)
        for node in lab.nodes.values():
            node.ready_for = service.uid
        await put_deployment(lab, labels={"app": "web"}, replicas=2)
        await until(lab, "Promoted", 1)
        split = RolloutStrategy(type="blue-green", traffic_split=0.1, health_check_timeout=60.0, keep_old=20.0)
        given = UpdateInput(template={"image": "registry.example.org/shop:2"}, strategy=msgspec.to_builtins(split))
        await act(lab, "update", given)
        await until(lab, "Paused", 2)

        async def weights() -> dict[str, int]:
            envelope = await lab.get("/service/default/web")
            assert envelope is not None
            return {one.workload.name: one.weight for one in decode_part(envelope.status, ServiceStatus).endpoints}

        async def is_split(*shares: int) -> bool:
            return list((await weights()).values()) == list(shares)

        async def count_ready() -> str:
            envelope = await lab.get("/service/default/web")
            assert envelope is not None
            cell = next(column.value for column in SERVICE.display.columns if column.title == "READY")
            return cell({"status": msgspec.json.decode(envelope.status)})

        await lab.until(lambda: is_split(450, 450, 50, 50), 10)
        assert await count_ready() == "4/4"
        await act(lab, "resume")
        await lab.until(lambda: is_split(0, 0, 500, 500), 10)
        assert await count_ready() == "2/2"  # the old ones wait for an undo
        await until(lab, "Promoted", 2)
        await act(lab, "undo", UndoInput())
        await lab.until(lambda: is_split(500, 500, 0, 0), 10)
        await until(lab, "RolledBack", 1)
        assert set((await instances(lab)).values()) == {"1"}
        await lab.until(lambda: is_split(500, 500), 60)


async def adopt(lab: Lab, **strategy: Any) -> None:
    """A deployment of one, which is a VM that there was before."""
    await add_nodes(lab)
    await lab.put_vm("web", memory=256 * MIB)
    await lab.until_phase("web", "Running")
    template = msgspec.to_builtins(VmSpec(image="tiny", memory=256 * MIB))
    fields: dict[str, Any] = {"workload": "vm", "adopt": "web", "replicas": 1, "strategy": strategy}
    await put_deployment(lab, template={"cpu": 1.0, **template}, **fields)
    await until(lab, "Promoted", 1)


async def test_a_vm_that_a_deployment_adopts_is_changed_in_its_place_and_left_when_that_goes(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab)
        uid = (await lab.vm("web")).uid
        await act(lab, "update", UpdateInput(template={"firmware": "bios"}))
        await until(lab, "Promoted", 2)
        vm = await lab.vm("web")
        starts = decode_part(vm.actions, WorkloadActions).restart_generation
        assert (vm.uid, decode_part(vm.spec, VmSpec).firmware, starts) == (uid, "bios", 1)
        assert list(await instances(lab, "vm")) == ["web"]
        await act(lab, "undo", UndoInput())
        await until(lab, "RolledBack", 1)
        assert decode_part((await lab.vm("web")).spec, VmSpec).firmware == "auto"
        await lab.delete("/deployment/default/web")
        await lab.until_gone("/deployment/default/web")
        vm = await lab.vm("web")
        assert (vm.owner, vm.labels, vm.deleting_since) == (None, {}, None)


async def test_an_adopted_vm_that_fails_with_a_change_goes_back_and_no_other_is_made(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab, rollback_on_failure=True)
        before = (await lab.vm("web")).uid
        for node in lab.nodes.values():
            node.refuses = {"bios": "image tiny has no boot loader for bios"}
        await act(lab, "update", UpdateInput(template={"firmware": "bios"}))
        status = await until(lab, "RolledBack", 1)
        assert "no boot loader" in status.verdict
        vm = await lab.vm("web")
        assert (vm.uid, decode_part(vm.spec, VmSpec).firmware) == (before, "auto")
        assert list(await instances(lab, "vm")) == ["web"]


async def test_a_vm_that_gives_way_to_another_image_is_stopped_and_starts_again_at_an_undo(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab, keep_old=5.0)
        await lab.put_image("newer")
        await act(lab, "update", UpdateInput(template={"image": "newer"}, instance="fresh"))
        await until(lab, "Promoted", 2)
        await lab.until_phase("web", "Stopped")
        assert set(await instances(lab, "vm")) == {"web", "fresh"}
        await act(lab, "undo", UndoInput())
        await until(lab, "RolledBack", 1)
        await lab.until_phase("web", "Running")
        await lab.until_phase("fresh", "Stopped")


async def test_an_adopted_vm_that_people_stop_stays_stopped(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab)

        def stop(envelope: Envelope) -> None:
            envelope.spec = merge_part(
                envelope.spec, msgspec.structs.replace(decode_part(envelope.spec, VmSpec), run="stop")
            )
            envelope.generation += 1

        await lab.change("/vm/default/web", stop)
        await lab.until_phase("web", "Stopped")
        await lab.pass_time(30)
        assert decode_part((await lab.vm("web")).spec, VmSpec).run == "stop"
        assert (await status_of(lab)).ready == 0


@pytest.mark.parametrize("firmware", ["auto", "bios"])
async def test_a_vm_runs_beside_the_one_that_had_its_template_before_or_has_it_now(
    tmp_path: Path, firmware: str
) -> None:
    async with Lab(tmp_path) as lab:
        await adopt(lab, keep_old=300.0)
        await act(lab, "update", UpdateInput(template={"firmware": "bios"}))
        await until(lab, "Promoted", 2)
        given = UpdateInput(template={"firmware": firmware}, strategy={"type": "blue-green"}, instance="fresh")
        await act(lab, "update", given)
        await until(lab, "Paused", 3)
        assert set(await instances(lab, "vm")) == {"web", "fresh"}
        assert decode_part((await lab.vm("web")).spec, VmSpec).firmware == "bios"
        await act(lab, "resume")
        await until(lab, "Promoted", 3)
        await act(lab, "undo", UndoInput())
        await until(lab, "RolledBack", 2)
        await lab.until_phase("fresh", "Stopped")
        assert decode_part((await lab.vm("web")).spec, VmSpec).run == "run"


async def nodes_of(lab: Lab) -> list[str]:
    """Where the instances are that stay."""
    stay = [one for one in await lab.every("container") if one.deleting_since is None]
    return sorted([str((await lab.status(one.name, "container")).node) for one in stay])


async def test_replicas_are_spread_over_the_nodes_and_still_are_after_an_update(tmp_path: Path) -> None:
    """Though the strategy fills one node after the other, and the update's surge needs a fourth place."""
    async with Lab(tmp_path, strategy="best_fit") as lab:
        await add_nodes(lab, 3)
        await put_deployment(lab)
        await until(lab, "Promoted", 1)
        assert await nodes_of(lab) == ["n0", "n1", "n2"]
        for revision in (2, 3):
            await act(lab, "update", UpdateInput(template={"image": f"registry.example.org/shop:{revision}"}))
            status = await until(lab, "Promoted", revision)
            assert await nodes_of(lab) == ["n0", "n1", "n2"]
        assert status.message == ""


async def test_replicas_that_no_other_node_takes_share_one_and_the_deployment_says_so(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n0", runtimes=[RUNS])
        await lab.add_node("n1", runtimes=[RUNS], memory=MIB)
        await put_deployment(lab)
        await until(lab, "Promoted", 1)
        assert await nodes_of(lab) == ["n0", "n0", "n0"]

        async def said() -> bool:
            return (await status_of(lab)).message == "not spread: 3 of 3 are on n0, and 2 nodes are ready"

        await lab.until(said)


@pytest.mark.parametrize("place", [{"affinity_groups": ["shop:preferred"]}, {"node": "n1"}])
async def test_a_template_that_says_where_its_instances_go_is_taken_at_its_word(
    tmp_path: Path, place: dict[str, Any]
) -> None:
    async with Lab(tmp_path) as lab:
        await add_nodes(lab, 3)
        await put_deployment(lab, template=place)
        await until(lab, "Promoted", 1)
        assert len(set(await nodes_of(lab))) == 1
        assert (await status_of(lab)).message == ""
