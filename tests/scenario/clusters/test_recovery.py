"""Recovery plans as the controllers carry them out, with a pretend node: rehearsed with nothing left, and failed over for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.clusters.test_replication import LOCAL, SPEC, put_cluster, receive, replicate_vm, send, until
from tests.scenario.controllers_lab import GIB
from tests.scenario.migration_lab import MovingLab
from tests.scenario.snapshot_lab import SnapshotNode, join

from weft.kinds.allocation import AllocationSpec
from weft.kinds.endpoint import EndpointSpec
from weft.kinds.fields.recovery.run import RecoveryRun
from weft.kinds.network import NetworkSpec
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.recovery_plan import RecoveryPlanActions, RecoveryPlanStatus
from weft.kinds.replica import ReplicaMarks, ReplicaStatus
from weft.kinds.vm import VM, VmSpec
from weft.objects.envelope import Envelope, decode_part, merge_part

WORKLOAD = {"image": "tiny", "memory": 64 << 20, "networks": ["default"], "volumes": ["data"], "publish": ["8080:80"]}


async def seed(lab: MovingLab, node: SnapshotNode, name: str, *, of: str = "", **changes: Any) -> None:
    """A replica with one point."""
    workload = {**WORKLOAD, **changes}
    spec = {
        "of": of or f"vm/{name}",
        "origin": name,
        "workload": workload,
        "disks": {"root": GIB, "data": GIB},
        "keep": 1,
    }
    made = await lab.put("replica", name, spec, finalizers=("replica",))
    await receive(lab, node, made.key, 1)
    await until(lab, made.key, ReplicaStatus, lambda status: status.points)


async def ask(lab: MovingLab, key: str, mode: Any) -> None:
    def change(envelope: Envelope) -> None:
        asked = decode_part(envelope.actions, RecoveryPlanActions)
        asked.run_generation, asked.run_mode = asked.run_generation + 1, mode
        envelope.actions = merge_part(envelope.actions, asked)
        envelope.generation += 1

    await lab.change(key, change)


async def begin(lab: MovingLab, key: str, mode: str) -> RecoveryRun:
    """The run once all of its VMs are made."""

    def has_begun(status: RecoveryPlanStatus) -> bool:
        return status.run is not None and status.run.mode == mode and all(one.begun_at for one in status.run.members)

    status: RecoveryPlanStatus = await until(lab, key, RecoveryPlanStatus, has_begun)
    assert status.run is not None
    return status.run


async def pass_checks(lab: MovingLab, node: SnapshotNode, run: RecoveryRun) -> None:
    """Let the node find ready what the plan's service leads to."""
    (service,) = [check.service for one in run.members for check in one.checks if check.service]
    found = await lab.get(f"/service/default/{service}")
    assert found is not None
    node.ready_for = found.uid
    for allocation in await lab.every("allocation"):
        await node.act(allocation.key)


async def read_vm(lab: MovingLab, name: str) -> tuple[Envelope, VmSpec]:
    envelope = await lab.get(f"/vm/default/{name}")
    assert envelope is not None, name
    return envelope, decode_part(envelope.spec, VmSpec)


async def test_a_plan_is_rehearsed_in_isolation_with_nothing_left_and_then_failed_over(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await node.write_report(pools=[LOCAL])
        await lab.put("quota", "project", {"instances": 10})
        await seed(lab, node, "db")
        await seed(lab, node, "web")
        plan = await lab.put(
            "recoveryplan", "shop", {"groups": ["db", "web"], "checks": ["web=tcp:80"]}, finalizers=("recoveryplan",)
        )
        await until(lab, plan.key, RecoveryPlanStatus, lambda status: status.phase == "Ready")

        await ask(lab, plan.key, "rehearse")
        run = await begin(lab, plan.key, "rehearse")
        (network,) = run.networks.values()
        made = await lab.get(f"/network/default/{network}")
        assert made is not None
        isolated = decode_part(made.spec, NetworkSpec)
        assert (isolated.nat, isolated.open, isolated.shared_with) == (False, [], [])

        async def are_named() -> bool:
            """As at their sources, so that they find each other."""
            places = {decode_part(one.spec, AllocationSpec).hostname for one in await lab.every("allocation")}
            endpoints = [decode_part(one.spec, EndpointSpec) for one in await lab.every("endpoint")]
            return places == {one.hostname for one in endpoints if one.served is None} == {"db", "web"}

        await lab.until(are_named)
        for member in run.members:
            vm, spec = await read_vm(lab, member.vm)
            assert (spec.networks, spec.publish) == ([network], [])
            test = decode_part(vm.marks, WorkloadMarks).test
            assert test is not None and (test.recovery, test.hostname) == ("shop", member.replica)  # as at its source
            assert VM.count_envelope(spec, vm).amounts == {}
            assert vm.owner is not None and vm.owner.uid == plan.uid
        # A newer point comes: the one that is used stays, though only one is kept.
        await receive(lab, node, "/replica/default/web", 2)
        there = await until(
            lab, "/replica/default/web", ReplicaStatus, lambda status: any(one.number == 2 for one in status.points)
        )
        assert [one.number for one in there.points] == [1, 2]
        await pass_checks(lab, node, run)
        ended = await until(lab, plan.key, RecoveryPlanStatus, lambda status: status.ended_generation == 1)
        result = ended.rehearsal
        assert (result.phase, [check.passed for check in result.checks]) == ("Passed", [True] * 3)
        assert result.rpo_seconds >= 2.0 and result.rto_seconds is not None
        for kind in ("vm", "service", "volume"):
            assert await lab.every(kind) == []
        assert [one.name for one in await lab.every("network")] == ["default"]
        replica = await lab.get("/replica/default/web")
        assert replica is not None and decode_part(replica.marks, ReplicaMarks).role == "standby"

        await ask(lab, plan.key, "rehearse")
        await begin(lab, plan.key, "rehearse")
        await ask(lab, plan.key, "failover")  # which ends that
        await pass_checks(lab, node, await begin(lab, plan.key, "failover"))
        ended = await until(lab, plan.key, RecoveryPlanStatus, lambda status: status.ended_generation == 3)
        assert (ended.failover.phase, [one.vm for one in ended.failover.vms]) == ("Passed", ["db", "web"])
        assert (ended.phase, ended.rehearsal.reason) == ("Promoted", "superseded") and await lab.every("service") == []
        for name in ("db", "web"):
            vm, spec = await read_vm(lab, name)
            assert (vm.owner, spec.networks, spec.volumes) == (None, ["default"], [f"{name}-data"])
            assert spec.origin is not None and decode_part(vm.marks, WorkloadMarks).test is None
            replica = await lab.get(f"/replica/default/{name}")
            assert replica is not None
            promoted = decode_part(replica.marks, ReplicaMarks)
            assert (promoted.role, promoted.generation) == ("primary", 2)
        await ask(lab, plan.key, "failover")  # again: what was promoted is only checked
        await pass_checks(lab, node, await begin(lab, plan.key, "failover"))
        again = await until(lab, plan.key, RecoveryPlanStatus, lambda status: status.ended_generation == 4)
        assert again.failover.phase == "Passed" and again.failover.rpo_seconds is not None
        assert len(await lab.every("vm")) == 2
        await lab.delete(plan.key)
        await lab.until_gone(plan.key)


async def test_a_plan_says_what_its_replicas_lack(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await node.write_report(pools=[LOCAL])
        await seed(lab, node, "db", networks=["blue"])
        await lab.put("replica", "web", {"of": "vm/web", "origin": "o", "disks": {"root": 1}}, finalizers=("replica",))
        await seed(lab, node, "odd", of="vm/Odd name")
        plan = await lab.put("recoveryplan", "shop", {"groups": ["db"], "all": True}, finalizers=("recoveryplan",))
        status = await until(lab, plan.key, RecoveryPlanStatus, lambda status: status.reason)
        assert (status.phase, status.reason) == ("Pending", "notRecoverable")
        assert status.message == (
            "replica/db: spec.networks: network/blue is not here; "
            "replica/odd: spec.of 'Odd name' is not a valid name; replica/web has no point that can be used yet"
        )
        await ask(lab, plan.key, "rehearse")
        ended = await until(lab, plan.key, RecoveryPlanStatus, lambda status: status.ended_generation == 1)
        assert (ended.rehearsal.phase, ended.rehearsal.message) == ("Refused", status.message)
        assert await lab.every("vm") == []


async def test_a_failover_is_refused_while_the_source_answers_unless_its_vms_were_handed_over(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await node.write_report(pools=[LOCAL])
        await put_cluster(lab)
        await seed(lab, node, "db")

        def come_from_there(envelope: Envelope) -> None:
            envelope.created_by = "cluster:west"

        def hand_over(envelope: Envelope) -> None:
            status = decode_part(envelope.status, ReplicaStatus)
            status.points = [msgspec.structs.replace(one, final=True) for one in status.points]
            envelope.status = merge_part(envelope.status, status)

        await lab.change("/replica/default/db", come_from_there)
        plan = await lab.put("recoveryplan", "shop", {"groups": ["db"]}, finalizers=("recoveryplan",))
        await ask(lab, plan.key, "failover")
        ended = await until(lab, plan.key, RecoveryPlanStatus, lambda status: status.ended_generation == 1)
        assert (ended.failover.phase, ended.failover.reason) == ("Refused", "primaryAnswers")
        assert await lab.every("vm") == [] and "cluster/west answers" in ended.failover.message
        await lab.change("/replica/default/db", hand_over)
        await ask(lab, plan.key, "failover")
        ended = await until(lab, plan.key, RecoveryPlanStatus, lambda status: status.ended_generation == 2)
        assert (ended.failover.phase, ended.failover.rpo_seconds) == ("Passed", 0.0)


async def test_a_plan_brings_back_a_vm_that_was_left_here_as_its_replica_s_promotion_does(tmp_path: Path) -> None:
    """It was at the other cluster and its points came back: the disaster there is what the plan is for."""
    async with MovingLab(tmp_path) as lab:
        node, vm, made = await replicate_vm(lab)
        await send(lab, node, made.key, 1, phase="done", number=4, bytes=100, seconds=0.5, is_whole=True)
        await send(lab, node, made.key, 2, phase="failed", reason="staleGeneration", message="promoted")
        await lab.until_phase("web", "Stopped")
        back = {**SPEC, "disks": {"root": GIB}, "origin": "back", "returns": made.uid}
        lab.creator = "cluster:west"
        replica = await lab.put("replica", "web", back, finalizers=("replica",))
        order = await receive(lab, node, replica.key, 5, data=False)
        await until(lab, replica.key, ReplicaStatus, lambda status: len(status.points) == 2 and status.vm)

        def lose(envelope: Envelope) -> None:
            envelope.status = merge_part(envelope.status, msgspec.defstruct("S", [("phase", str, "Unreachable")])())

        await lab.change("/cluster/-/west", lose)
        plan = await lab.put("recoveryplan", "shop", {"groups": ["web"]}, finalizers=("recoveryplan",))
        await until(lab, plan.key, RecoveryPlanStatus, lambda status: status.phase == "Ready")
        await ask(lab, plan.key, "failover")
        ended = await until(lab, plan.key, RecoveryPlanStatus, lambda status: status.ended_generation == 1)
        assert (ended.failover.phase, ended.failover.message) == ("Passed", "")
        assert [(one.vm, one.point) for one in ended.failover.vms] == [("web", 5)]
        there, spec = await read_vm(lab, "web")
        assert (there.uid, spec.run, decode_part(there.marks, WorkloadMarks).fenced) == (vm.uid, "run", "")
        assert node.begun_from["web"].snapshot == order.snapshot
        await until(lab, replica.key, ReplicaStatus, lambda status: status.phase == "Promoted")
        assert len(await lab.every("vm")) == 1


@pytest.mark.parametrize("taken", ["vm", "volume"])
async def test_a_rehearsal_is_refused_where_a_failover_would_be_and_says_what_could_be_recovered(
    tmp_path: Path, taken: str
) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await node.write_report(pools=[LOCAL])
        for name in ("db", "web"):
            await seed(lab, node, name, networks=[])
        if taken == "vm":
            await lab.put_vm("web")
        else:
            await lab.put("volume", "web-data", {"size": GIB})
        plan = await lab.put("recoveryplan", "shop", {"groups": ["db", "web"]}, finalizers=("recoveryplan",))
        problem = f"replica/web: {'vm/web' if taken == 'vm' else 'volume/web-data'} exists here already"
        await until(lab, plan.key, RecoveryPlanStatus, lambda status: status.message == problem)
        for generation, mode in ((1, "rehearse"), (2, "failover")):
            await ask(lab, plan.key, mode)
            ended = await until(
                lab, plan.key, RecoveryPlanStatus, lambda status, to=generation: status.ended_generation == to
            )
            result = ended.rehearsal if mode == "rehearse" else ended.failover
            assert (result.phase, result.reason) == ("Refused", "notRecoverable")
            assert result.message == f"{problem}; so nothing is begun, also not replica/db, which could be recovered"
