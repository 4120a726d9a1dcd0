"""Every commit of the controllers relies on what its preconditions say: each of them is made wrong in turn, just before the commit
lands. The store must refuse it, and what was wished must come about all the same.

``RELIES_ON`` is what each site says it relies on, by kind. A precondition that a site drops is missing among those that were
refused; a new site, or a new precondition, has no line here.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
from tests.scenario.between import Between, find_calls, is_commit
from tests.scenario.clusters import test_cluster_departures, test_cluster_status, test_recovery, test_replication
from tests.scenario.controllers import (
    test_accounting,
    test_backups,
    test_controllers_bad_days,
    test_conversions,
    test_deployments,
    test_disruption_budgets,
    test_drain,
    test_fabric_upgrades,
    test_going_on,
    test_jobs,
    test_made_images,
    test_migrations,
    test_node_loss,
    test_planned_migrations,
    test_power,
    test_quotas,
    test_second_copies,
    test_servers,
    test_services,
    test_snapshots,
    test_storage_pools,
    test_suspended_migrations,
    test_vm_life,
    test_vm_updates,
    test_volume_snapshots,
)
from tests.scenario.controllers_lab import Lab
from tests.scenario.edge import test_reported_devices
from tests.scenario.insight import test_alerts, test_profiles, test_receivers
from tests.scenario.scheduler import (
    test_gangs,
    test_placement_affinity,
    test_plans_ahead,
    test_promises,
    test_rebalance_automatic,
    test_rebalance_plans,
    test_replanned_leases,
    test_reservations,
    test_scheduler_answers,
)
from tests.scenario.scheduler.test_placement_policies import put_policy

from weft.contracts.store import Precondition, Put, Write
from weft.controllers.departure.controller import Departures
from weft.informer.leader_lease import LeaderLease
from weft.kinds.accounting_record import AccountingStatus
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.backup import BackupStatus
from weft.kinds.constraint import ConstraintStatus
from weft.kinds.endpoint import EndpointSpec, EndpointStatus
from weft.kinds.fields.allocated_migration import AllocatedMigration, MigrationReport
from weft.kinds.fields.lease import LEASE_CONFLICT, LeaseRequest, check_lease
from weft.kinds.function import FunctionSpec, FunctionStatus
from weft.kinds.parts.node.orphan import OrphanCopy
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.snapshot import SnapshotDisk
from weft.objects.envelope import Envelope, decode_part, encode_envelope, merge_part
from weft.objects.identity import Ref, new_uid

DAY = 86_400.0
# site → what it relies on ("and goes": and takes away); after "|" what it writes without a word about it, for which another
# one stands.
RELIES_ON = {
    "controllers/network/addresses.py _plan_workload": (
        "workload at, endpoint absent, endpoint at, endpoint at and goes, network at, publishedport at"
    ),
    "controllers/workload/adoption.py plan_adoption": (
        "workload at, node at, allocation absent, endpoint absent, endpoint at and goes"
    ),
    "controllers/workload/departed.py _leave": "allocation at, workload at, volume at, publishedport at and goes",
    "controllers/workload/stale_allocation.py _plan_leaving": "workload at, allocation at",
    "controllers/workload/stale_allocation.py _plan_never_ran": "workload at, allocation at",
    "controllers/alert/controller.py _change": "alertrule at",
    "controllers/alert/controller.py list_commits": "silence at and goes",
    "controllers/alert/due.py note_sent": "alertrule at",
    "controllers/cluster/controller.py _note": "cluster at",
    "controllers/arrival/controller.py plan_one 1": "arrival at and goes",
    "controllers/arrival/controller.py plan_one 2": "allocation at, arrival at, volume at, workload at",
    "controllers/departure/reclaim.py plan_commit": "workload at, allocation at",
    "controllers/departure/controller.py plan_commit": (
        "migration at, allocation at, workload at, volume at, publishedport at and goes"
    ),
    "controllers/delegation/controller.py plan_commit 1": "delegation at and goes",
    "controllers/delegation/controller.py plan_commit 2": "delegation at",
    "controllers/failover/arming.py plan_step": "replication at, workload at, allocation at",
    "controllers/failover/automatic.py _plan_note": "replication at",
    "controllers/failover/controller.py _plan_commit": "replica at, replication at",
    "controllers/failover/take_over.py _commit": "cluster at, replica at, workload absent",
    "controllers/failover/take_over.py plan_disarming": "replica at",
    "controllers/failover/take_over.py plan_return": "replica at",
    "controllers/copies/controller.py plan_copies": (
        "workload at, replica absent, replica at, replication absent, replication at"
    ),
    "controllers/loss/controller.py _plan_loss": (
        "node at, allocation at, replica at, workload at, backup at, snapshot absent"
    ),
    "controllers/loss/controller.py plan_node": "node at",
    "controllers/loss/controller.py plan_release": "allocation at and goes",
    "controllers/loss/points.py plan_end": "workload at",
    "controllers/loss/points.py plan_other": "workload at, backup at, snapshot absent",
    "controllers/recovery/controller.py plan_one 1": "recoveryplan at and goes",
    "controllers/recovery/controller.py plan_one 2": (
        "recoveryplan at, replica at, snapshot at, quota at, network absent, network at and goes, service absent, "
        "service at and goes, volume absent, volume at, workload absent, workload at"
    ),
    "controllers/replica/controller.py plan_one 1": "replica at and goes",
    "controllers/replica/controller.py plan_one 2": (
        "replica at, replication at, snapshot absent, snapshot at, workload at"
    ),
    "controllers/replication/controller.py plan_one 1": "replication at and goes",
    "controllers/replication/controller.py plan_one 2": (
        "replication at, allocation at, replica at, snapshot absent, snapshot at, workload at"
    ),
    "controllers/power/controller.py _note": "node at",
    "controllers/receiver/controller.py _note": "receiver at",
    "controllers/server/controller.py plan_new": "server absent",
    "controllers/server/controller.py plan_server": "server at",
    "controllers/accounting/controller.py _fold": (
        "accountingrecord absent, accountingrecord at, accountingrecord at and goes"
    ),
    "controllers/accounting/controller.py _write": "accountingrecord absent, accountingrecord at",
    "controllers/accounting/controller.py plan_folds": "accountingrecord at and goes",
    "controllers/backup/controller.py plan_one 1": "backup at and goes",
    "controllers/backup/controller.py plan_one 2": "backup at, snapshot absent, snapshot at",
    "controllers/backup/expiry.py plan_expiry": "backup at",
    "controllers/backup/policy.py plan_policy": "backup absent, backuppolicy at",
    "controllers/backup/repository.py plan": "backuprepository at",
    "controllers/conversion/controller.py plan_release": "conversion at and goes",
    "controllers/conversion/controller.py plan_writes": (
        "conversion at, workload at, workload absent, allocation at, image absent, image at and goes, endpoint at, "
        "publishedport absent, publishedport at, quota at, recommendation absent | recommendation"
    ),
    "controllers/node/drain_controller.py plan_condition": "node at",
    "controllers/upgrade/controller.py plan_commit": "upgrade at",
    "controllers/rebalance/controller.py plan_commit": "rebalanceplan at, migration absent, migration at, workload at",
    "controllers/rebalance/policy.py make_commit": (
        "rebalancepolicy at, report absent, rebalanceplan absent, rebalanceplan at and goes"
    ),
    "controllers/node/drain_controller.py plan_migration": "migration absent, disruptionbudget at",
    "controllers/node/drain_controller.py plan_return 1": "migration at",
    "controllers/node/drain_controller.py plan_return 2": "node at",
    "controllers/function/away.py plan": "function at",
    "controllers/function/egress_endpoints.py plan_egress_endpoint 1": "endpoint at and goes",
    "controllers/function/egress_endpoints.py plan_egress_endpoint 2": "endpoint at and goes, node at",
    "controllers/function/egress_endpoints.py plan_egress_endpoint 3": "endpoint at",
    "controllers/device/controller.py _plan_device": "device at",
    "controllers/device/controller.py _plan_function": "function at",
    "controllers/device/controller.py _plan_model": "model at",
    "controllers/device/controller.py _plan_rule": "rule at",
    "controllers/device/rollout.py _plan_one 1": "devicerollout at",
    "controllers/device/rollout.py _plan_one 2": "devicerollout at, device at",
    "controllers/deployment/writes.py plan_adoption": "deployment at, workload at",
    "controllers/deployment/writes.py plan_blocked": "deployment at",
    "controllers/deployment/writes.py plan_removal 1": "deployment at and goes",
    "controllers/deployment/writes.py plan_removal 2": "deployment at, workload at",
    "controllers/deployment/writes.py plan_writes": (
        "deployment at, workload absent, workload at, quota at, disruptionbudget at, endpoint at, publishedport at, "
        "allocation at"
    ),
    "controllers/garbage_collector.py plan": "recommendation at and goes, report at and goes",
    "controllers/garbage_collector.py plan_item": (
        "workload absent, workload at, service absent, decision at and goes, endpoint at and goes, "
        "publishedport at and goes, workloadprofile at and goes"
    ),
    "controllers/garbage_collector.py plan_past": "conversion at, migration at",
    "controllers/image/controller.py _write_status": "image at",
    "controllers/image/making.py plan_image": "image at, snapshot absent",
    "controllers/image/making.py plan_snapshot": "snapshot at",
    "controllers/image/warm.py plan_image": "image at",
    "controllers/job/controller.py plan_blocked": "job at",
    "controllers/job/controller.py plan_removal 1": "job at and goes",
    "controllers/job/controller.py plan_removal 2": "job at, workload at",
    "controllers/job/controller.py plan_schedule": "job at, job absent",
    "controllers/job/controller.py plan_writes": "job at, workload absent, workload at, quota at",
    "controllers/migration/ahead.py _cancel": "migration at",
    "controllers/migration/ahead.py _plan_one": "nodeprofile at, report absent",
    "controllers/migration/ahead.py make_migrations": "report at, workload at, migration absent",
    "controllers/migration/controller.py plan_release": "migration at and goes",
    "controllers/migration/controller.py plan_writes": "migration at, allocation at, allocation at and goes | decision",
    "controllers/network/controller.py plan": "network at",
    "controllers/node/controller.py plan_node": "node at",
    "controllers/pool/controller.py _plan_one": "pool absent",
    "controllers/pool/controller.py plan_pool 1": "pool at and goes",
    "controllers/pool/controller.py plan_pool 2": "pool at",
    "controllers/profile/controller.py step": "nodeprofile at and goes",
    "controllers/profile/plan.py plan_write": (
        "nodeprofile absent, nodeprofile at, workloadprofile absent, workloadprofile at"
    ),
    "controllers/quota/controller.py plan_status": "quota at",
    "controllers/network/security_groups.py plan_count": "securitygroup at",
    "controllers/network/security_groups.py plan_rules": "workload at, allocation at",
    "controllers/service/controller.py plan_status": (
        "service at, endpoint absent, endpoint at, network at, publishedport at"
    ),
    "controllers/snapshot/controller.py _plan_fetched": "snapshot at",
    "controllers/snapshot/controller.py _plan_of_volumes": "snapshot at, volume at, workload at, allocation at, quota at",
    "controllers/snapshot/controller.py plan_one 1": "snapshot at and goes, snapshot at",
    "controllers/snapshot/controller.py plan_one 2": "snapshot at, allocation at, workload at, quota at",
    "controllers/snapshot/controller.py plan_together": "snapshot at, allocation at, workload at",
    "controllers/snapshot/restore.py _begin": "workload at, allocation at, snapshot at, snapshot absent",
    "controllers/snapshot/restore.py _write": "workload at",
    "controllers/snapshot/schedule.py plan_schedule 1": "snapshot at",
    "controllers/snapshot/schedule.py plan_schedule 2": "workload at",
    "controllers/snapshot/schedule.py plan_schedule 3": "workload at",
    "controllers/snapshot/schedule.py plan_schedule 4": "workload at, snapshot absent, quota at",
    "controllers/snapshot/unexplained.py plan_node": "node at",
    "controllers/topology/controller.py plan_topology 1": "networktopology absent",
    "controllers/topology/controller.py plan_topology 2": "networktopology at",
    "controllers/volume/controller.py plan_volume 1": "volume at",
    "controllers/volume/controller.py plan_volume 2": "volume at and goes",
    "controllers/volume/controller.py plan_volume 3": "volume at, snapshot at, snapshot absent, quota at",
    "controllers/volume/orphans.py plan": "volume at",
    "controllers/volume/unbegun.py plan": "volume at",
    "controllers/workload/controller.py plan_removal 1": "workload at | publishedport",
    "controllers/workload/controller.py plan_removal 2": "workload at | publishedport",
    "controllers/workload/controller.py plan_removal 3": "workload at and goes | decision, endpoint, publishedport",
    "controllers/workload/controller.py plan_workload": "workload at, allocation at, allocation at and goes",
    "scheduler/allocation/bind.py plan_addresses": "workload at, endpoint absent, network at",
    "scheduler/allocation/bind.py plan_adopted": "workload at",
    "scheduler/allocation/bind.py plan_placement": (
        "workload at, node at, volume at, snapshot at, allocation absent, allocation present, endpoint absent, "
        "network at | decision"
    ),
    "scheduler/allocation/bind.py plan_refusal": "workload at | decision",
    "scheduler/allocation/bind.py plan_regrouped": "workload at, allocation at",
    "scheduler/allocation/bind.py plan_waiting": "workload at",
    "scheduler/own_policies/status.py _plan_one": "placementpolicy at",
    "scheduler/gang/commit.py join": "workload at, node at, allocation absent, endpoint absent, network at | decision",
    "scheduler/migration/elsewhere.py plan_resume_elsewhere": "migration absent, workload at, allocation at",
    "scheduler/migration/plan.py _plan_condition": "migration at",
    "scheduler/migration/plan.py _plan_refusal": "migration at | decision",
    "scheduler/migration/plan.py plan_reservation": (
        "migration at, workload at, node at, allocation absent, allocation at | decision"
    ),
    "scheduler/migration/plan.py plan_target": (
        "migration at, workload at, node at, volume at, allocation absent, allocation at, allocation at and goes | decision"
    ),
    "scheduler/allocation/preempt.py join_victims": (
        "workload at, node at, disruptionbudget at, allocation absent, allocation at, endpoint absent, network at | decision"
    ),
    "scheduler/recommendation/plan.py plan_recommendation": "recommendation at",
    "scheduler/allocation/lease.py _plan_conflict": "workload at",
    "scheduler/allocation/lease.py plan_extension": "workload at, allocation at",
    "scheduler/allocation/lease.py join_replanned": (
        "workload at, node at, allocation absent, allocation at, endpoint absent, network at | decision"
    ),
    "scheduler/allocation/lease.py plan_shortened": "workload at, allocation at",
    "scheduler/allocation/lease.py plan_within": "workload at, allocation at",
    "scheduler/allocation/promise.py plan_at_risk": "workload at | decision",
    "scheduler/allocation/promise.py clear_risk": "workload at, allocation at",
    "scheduler/allocation/promise.py withdraw": (
        "workload at, node at, allocation absent, allocation present, allocation at | decision"
    ),
    "scheduler/allocation/resume.py plan_resume": "allocation at",
    "scheduler/allocation/resize.py clear_refused": "workload at, volume at",
    "scheduler/allocation/resize.py plan_resize": "workload at, allocation at, volume at",
    "scheduler/report/plan.py plan_report": "report at",
    "scheduler/reservation/plan.py _close": "reservation at and goes, allocation at and goes",
    "scheduler/reservation/plan.py _write": (
        "reservation at, node at, allocation at, allocation absent, allocation at and goes"
    ),
    "scheduler/constraint/status.py plan_constraint_status": "constraint at",
    "scheduler/queue/learned.py _write": "accountingrecord absent, accountingrecord at",
}


async def egress_endpoints_come_and_go(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        node = await lab.add_node("n1")
        network = await lab.put("network", "back", {"cidr": "10.9.0.0/24"})

        async def stand(address: str, node_uid: str, network_uid: str) -> str:
            owner = Ref(kind="node", name="n1", uid=node_uid)
            spec = EndpointSpec(
                workload=owner,
                network="back",
                network_uid=network_uid,
                index=0,
                mac="52:54:00:00:00:01",
                address=address,
            )
            return (await lab.put("endpoint", f"{network_uid}.{address}", spec, project=None)).key

        await lab.until_gone(await stand("10.9.0.2", "another node of that name", network.uid))
        await lab.until_gone(await stand("10.9.0.3", node.uid, "a network that is gone"))
        await node.write_report(egress_endpoints=[network.uid])
        kept = await stand("10.9.0.4", node.uid, network.uid)

        async def told() -> bool:
            endpoint = await lab.get(kept)
            return endpoint is not None and decode_part(endpoint.status, EndpointStatus).node == "n1"

        await lab.until(told)


async def a_function_s_node_is_away(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        made = await lab.put("function", "label", FunctionSpec(code="c"))

        def be(*away: str) -> Callable[[Envelope], None]:
            def write(envelope: Envelope) -> None:
                status = decode_part(envelope.status, FunctionStatus)
                envelope.status = merge_part(envelope.status, msgspec.structs.replace(status, away_nodes=list(away)))

            return write

        async def told() -> bool:
            await lab.change(made.key, be())  # the controllers may not have known of it
            await lab.change(made.key, be("n3"))
            return "NotServedAtNode" in lab.journal.reasons("label")

        await lab.until(told)


async def a_lease_is_extended_gives_way_and_resumes(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=4.0, capabilities=["suspend"])

        def lease(**fields: Any) -> LeaseRequest:
            made = LeaseRequest(**fields)
            check_lease(made)
            return made

        async def lasts(seconds: float) -> bool:
            (one,) = [one.lease for one in await lab.allocations() if one.workload.name == "spare"]
            return one is not None and one.end is not None and one.end - one.start >= seconds

        await lab.put_vm("spare", cpu=4.0, lease=lease(duration=1000.0))
        await lab.until_phase("spare", "Running")
        await lab.change_spec("spare", lease=lease(duration=2000.0))
        await lab.until(lambda: lasts(2000.0))
        await lab.put_vm("web", cpu=4.0, lease=lease(mode="immediate", duration=100.0))
        await lab.until_phase("web", "Running")
        await lab.until_phase("spare", "Suspended")
        await lab.until_phase("spare", "Running", 300)
        start = lab.clock.now() + 2500.0
        later = lease(start=start, duration=100.0)
        await lab.put_vm("later", cpu=4.0, lease=later)
        await lab.pass_time(5)
        await lab.change_spec("spare", lease=lease(duration=9000.0))

        async def refused() -> bool:
            placed = await lab.placed("spare")
            return placed is not None and placed.reason == LEASE_CONFLICT

        await lab.until(refused)


async def others_let_go_of_what_is_deleted_later(tmp_path: Path) -> None:
    """A VM with more belongings than one commit takes, and a volume, which somebody else holds too."""
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        vm = await lab.put_vm("web", hold=True)
        volume = await lab.put("volume", "data", {"size": 2**30}, finalizers=("volume", "somebody"))

        def hold(envelope: Envelope) -> None:
            envelope.finalizers = ["workload", "somebody"]

        await lab.change(vm.key, hold)
        ports = []
        for port in range(20001, 20121):
            spec = {"port": port, "protocol": "tcp", "target_port": 1, "workload": vm.ref}
            raw = msgspec.Raw(msgspec.json.encode(spec))
            ports.append(Envelope(kind="publishedport", name=f"tcp-{port}", uid=new_uid(), owner=vm.ref, spec=raw))
        for some in (ports[:60], ports[60:]):
            await lab.store.commit([Put(one.key, encode_envelope(one)) for one in some])
        await lab.delete(vm.key)
        await lab.delete(volume.key)

        async def held_by_somebody_else_alone() -> bool:
            found = [await lab.get(key) for key in (vm.key, volume.key)]
            return all(item is not None and item.finalizers == ["somebody"] for item in found)

        await lab.until(held_by_somebody_else_alone)
        assert not await lab.every("publishedport")


async def a_guest_went_on_by_a_move_that_the_store_has_lost(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        other = await lab.add_node("n2")
        await lab.put_vm("web", node="n1")
        await lab.until_phase("web", "Running")
        (place,) = await lab.every("allocation")
        spec = decode_part(place.spec, AllocationSpec)
        migration = AllocatedMigration(key="m.1", peer="n1", peer_uid=spec.node_uid, peer_allocation=place.uid)
        came = msgspec.structs.replace(
            spec, node="n2", node_uid=other.uid, role="target", migration=migration, incarnation=2
        )

        async def tell(copy: OrphanCopy) -> None:
            orphans, texts = [f"came {spec.workload.kind}/default/web 2"], [msgspec.json.encode(copy).decode()]
            await other.write_report(orphans=orphans, orphan_allocations=texts)

        await tell(OrphanCopy("came", came, "abandoned", "m.1"))

        async def back() -> bool:
            (one,) = await lab.allocations()
            return one.back_from == ["m.1"]

        await lab.until(back)
        later = msgspec.structs.replace(came, role="active", migration=None, incarnation=3)
        await tell(OrphanCopy("came", later, "here", "m.2"))
        lab.nodes["n1"].slow = True

        def leave(envelope: Envelope) -> None:
            report = decode_part(envelope.report, AllocationReport)
            envelope.report = merge_part(
                envelope.report, msgspec.structs.replace(report, state="stopped", reason="migrated")
            )

        await lab.change(place.key, leave)

        async def goes() -> bool:
            found = await lab.get(place.key)
            return found is not None and found.deleting_since is not None

        await lab.until(goes)


async def a_guest_left_for_another_cluster_by_a_migration_that_the_store_has_lost(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.kill_controllers()
        lab.start_controllers(more=[lambda lease: Departures(lease, None)])  # there is no link to ask over
        node = await lab.add_node("n1")
        await lab.put("volume", "data", {"size": 1 << 20}, finalizers=("volume",))
        await lab.put_vm("web", volumes=["data"], networks=["default"], publish=["8080:80"])
        await lab.until_phase("web", "Running")
        (place,) = await lab.every("allocation")
        node.slow = True

        async def tell(**words: Any) -> None:
            migration = MigrationReport(key="m.1", phase="handedOver", peer="west/w1")

            def change(envelope: Envelope) -> None:
                report = msgspec.structs.replace(
                    decode_part(envelope.report, AllocationReport), migration=migration, **words
                )
                envelope.report = merge_part(envelope.report, report)

            await lab.change(place.key, change)

        async def back() -> bool:
            (one,) = await lab.allocations()
            return one.back_from == ["m.1"]

        await tell(reason="illegalTransition")
        await lab.ask("web", "vm", reclaim={"key": "m.1"})
        await lab.until(back)

        def forget(envelope: Envelope) -> None:
            spec = decode_part(envelope.spec, AllocationSpec)
            envelope.spec = merge_part(envelope.spec, msgspec.structs.replace(spec, back_from=[]))

        await lab.change(place.key, forget)
        await tell(state="stopped", reason="leftCluster")

        async def left() -> bool:
            return bool(decode_part((await lab.vm("web")).marks, WorkloadMarks).departed)

        await lab.until(left)
        node.slow = False
        await node.act(place.key)
        await lab.until_gone(place.key)
        await lab.until_gone("/volume/default/data")


async def a_kept_root_disk_goes_once_a_backup_has_it(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        now = lab.clock.now()
        disks = {"root": SnapshotDisk(key="root", size=1 << 20)}
        taken = BackupStatus(phase="Ready", workload_uid="w", taken_at=now - 10 * DAY, disks=disks)
        await lab.put("backup", "nightly", {"of": "vm/web", "to": "store"}, status=taken)
        orphan = {"of": "vm/web", "workload_uid": "w", "node": "n1", "since": now - 8 * DAY, "lost_at": now - 9 * DAY}
        await lab.put("volume", "kept", {"size": 1 << 20}, marks={"orphan": orphan}, finalizers=("volume",))
        await lab.until_gone("/volume/default/kept")


async def a_guest_is_found_after_its_vm_got_another_address(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        (endpoint,) = await lab.every("endpoint")
        spec = decode_part(endpoint.spec, EndpointSpec)
        await lab.kill_controllers()
        await test_controllers_bad_days.forget(lab, ["allocation", "decision", "endpoint"])
        other = msgspec.structs.replace(spec, address="10.0.0.9", mac="52:54:00:00:00:09")
        raw = msgspec.Raw(msgspec.json.encode(other))
        new = Envelope(
            kind="endpoint", name=f"{spec.network_uid}.10.0.0.9", uid=new_uid(), owner=endpoint.owner, spec=raw
        )
        await lab.store.commit([Put(new.key, encode_envelope(new))])
        await test_controllers_bad_days.report_orphans(lab, "n1")
        lab.start_controllers()

        async def has_its_own() -> bool:
            return [one.address for one in await lab.endpoints()] == [spec.address]

        await lab.until(has_its_own)


async def a_policy_of_ones_own_can_not_be_had(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        lab.has_threads = True
        await lab.add_node("n1")
        await put_policy(lab, "mine", strategy="file:/nowhere/mine.py")
        await lab.put_vm("web", strategy="@mine")
        await lab.until_phase("web", "Running")

        async def said() -> bool:
            policy = await lab.get("/placementpolicy/-/mine")
            working = policy.condition("Working") if policy is not None else None
            return working is not None and working.status == "False"

        await lab.until(said)


async def what_leases_took_is_kept(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        for count, name in enumerate(("one", "two"), 1):
            await lab.put_vm(name, cpu=1.0, grace=0.0, lease={"duration": 5.0})

            async def kept(count: int = count) -> bool:
                record = await lab.get("/accountingrecord/-/recent.default")
                status = AccountingStatus() if record is None else decode_part(record.status, AccountingStatus)
                return len(status.run_times.get("", [])) == count

            await lab.until(kept, 120)


async def nodes_are_counted_for_a_constraint(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.pass_time(5)  # all else is at rest
        named = await lab.put("constraint", "any", {"expression": "cpu>=1"}, project=None)

        async def counted() -> bool:
            constraint = await lab.get(named.key)
            return constraint is not None and decode_part(constraint.status, ConstraintStatus).nodes == 1

        await lab.until(counted)


async def a_clock_is_set_back(tmp_path: Path) -> None:
    await test_snapshots.test_a_snapshot_of_a_clock_that_was_ahead_makes_a_schedule_neither_run_wild_nor_rest(
        tmp_path, restarts=False
    )


async def an_image_is_kept_warm_until_nobody_asks_for_it(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        image = await lab.get("/image/default/tiny")
        assert image is not None
        plain = image.spec

        async def is_told() -> bool:
            found = await lab.get(image.key)
            return found is not None and found.condition("Warm") is not None

        async def is_not_told() -> bool:
            return not await is_told()

        def ask(envelope: Envelope) -> None:
            envelope.spec = msgspec.Raw(msgspec.json.encode({**msgspec.json.decode(plain), "warm": {}}))

        def ask_no_more(envelope: Envelope) -> None:
            envelope.spec = plain

        await lab.change(image.key, ask)
        await lab.until(is_told)
        await lab.change(image.key, ask_no_more)
        await lab.until(is_not_told)


# Short ones that together come by every site; each also says what must come of it.
SCENARIOS: tuple[Callable[[Path], Awaitable[None]], ...] = (
    a_kept_root_disk_goes_once_a_backup_has_it,
    test_vm_life.test_a_volume_whose_growth_its_pool_cannot_give_keeps_its_size_and_others_their_capacity,
    test_vm_life.test_a_restart_that_cannot_give_a_new_size_says_so_and_a_size_that_is_taken_back_is_not_missing,
    test_alerts.test_an_alert_fires_is_sent_and_is_over,
    test_receivers.test_what_a_receiver_refuses_for_its_content_is_abandoned_at_once,
    test_cluster_status.test_a_linked_cluster_is_asked_and_its_phase_follows_what_it_says,
    test_cluster_status.test_a_vm_is_held_before_its_replica_may_take_over,
    test_cluster_status.test_what_the_witness_of_a_link_knows_is_noted,
    test_cluster_status.test_what_is_delegated_is_listed_sent_and_ends_there_first,
    test_cluster_status.test_a_replica_takes_over_what_the_witness_grants,
    test_cluster_departures.test_a_vm_leaves_for_another_cluster_with_all_that_it_had,
    test_cluster_departures.test_a_vm_comes_from_another_cluster_or_nothing_of_it_stays,
    test_replication.test_points_are_sent_one_after_the_other_and_a_failure_is_tried_again,
    test_replication.test_points_that_come_are_snapshots_and_the_oldest_goes,
    test_replication.test_a_vm_whose_replica_was_promoted_is_stopped_and_goes_back_to_what_comes_from_there,
    test_recovery.test_a_plan_is_rehearsed_in_isolation_with_nothing_left_and_then_failed_over,
    test_planned_migrations.test_its_vm_has_gone_there_by_itself,
    test_planned_migrations.test_room_is_held_from_when_it_is_planned_and_gives_way_to_the_target,
    test_conversions.test_a_new_one_that_is_taken_away_gives_all_back,
    test_conversions.test_an_image_that_is_not_there_yet_is_made_of_the_very_digest,
    test_conversions.test_one_that_has_ended_is_kept_for_a_while_only,
    test_rebalance_plans.test_a_plan_is_carried_out_a_few_at_a_time_and_undone,
    test_rebalance_automatic.test_automatic_plans_need_forecasts_that_agree_and_keep_to_their_budget,
    test_rebalance_automatic.test_undo_of_a_plan_whose_target_was_filled_since_ends_without_waiting,
    test_jobs.test_the_winner_waits_until_the_room_is_really_free,
    test_deployments.test_an_update_replaces_the_instances_and_an_undo_brings_the_old_ones_back,
    test_deployments.test_a_change_that_running_guests_can_take_replaces_none,
    test_deployments.test_a_vm_that_gives_way_to_another_image_is_stopped_and_starts_again_at_an_undo,
    test_vm_updates.test_volumes_and_a_chosen_address_go_along_once_the_old_vm_has_stopped,
    test_deployments.test_an_adoption_of_a_vm_that_is_missing_goes_on_once_it_is_there,
    test_jobs.test_only_the_newest_ended_tasks_are_kept,
    test_jobs.test_a_name_that_is_taken_is_waited_for,
    test_jobs.test_runs_that_take_longer_are_left_alone_replaced_or_joined,
    test_accounting.test_old_days_become_part_of_their_month_and_old_months_go,
    test_accounting.test_what_nodes_measure_is_counted_as_used,
    test_fabric_upgrades.test_it_stops_where_an_installation_fails_and_goes_on_once_people_resume_it,
    test_power.test_power_off_that_is_answered_with_on_is_no_off,
    test_quotas.test_as_many_tasks_run_at_once_as_the_quota_has_amounts_for,
    test_quotas.test_a_conversion_needs_amounts_for_both_workloads,
    test_disruption_budgets.test_a_drain_stops_one_after_the_other_and_says_what_it_waits_for,
    test_disruption_budgets.test_whoever_waits_preempts_once_the_budget_lets_it,
    test_reported_devices.test_a_desired_value_drifts_until_its_time_is_over_and_a_rule_that_fired_is_counted,
    test_reported_devices.test_a_rollout_waits_for_its_model_and_sets_each_device_once,
    test_reported_devices.test_a_function_whose_topics_no_device_can_send_says_so_until_one_can,
    test_drain.test_a_drain_after_a_return_begins_at_once,
    test_drain.test_a_guest_with_a_gpu_stays_and_runs_and_both_drain_and_rehearsal_say_why,
    test_controllers_bad_days.test_a_vm_made_anew_in_the_same_way_takes_over_what_runs,
    test_controllers_bad_days.test_what_was_left_over_of_a_vm_that_is_gone_is_removed_but_never_a_place,
    test_gangs.test_a_gang_may_come_before_the_nodes_and_is_held_up_by_one_that_is_on_hold,
    test_vm_life.test_rules_of_security_groups_come_with_the_place_and_follow_every_change,
    test_migrations.test_of_ended_ones_only_the_newest_are_kept_and_not_for_ever,
    test_migrations.test_a_volume_goes_along_and_is_at_home_where_its_vm_went,
    test_placement_affinity.test_where_a_volume_lies_decides_and_when_it_lies_elsewhere_so_does_the_choice,
    test_plans_ahead.test_a_lost_or_filled_target_is_replaced_and_a_deleted_guest_lets_go,
    test_profiles.test_profiles_come_are_kept_through_kills_and_go_with_what_they_are_of,
    test_promises.test_its_owner_is_told_what_was_lost_and_what_is_nearest_and_it_begins_where_capacity_becomes_free,
    test_promises.test_slots_and_what_is_in_them_begin_elsewhere,
    test_reservations.test_its_slots_go_at_its_end_and_when_it_is_deleted,
    test_node_loss.test_guests_that_the_guard_holds_go_on_elsewhere_and_are_released_by_the_returning_node,
    test_going_on.test_a_fetch_that_fails_is_tried_again_and_a_backup_that_turns_out_damaged_is_passed_over,
    test_second_copies.test_a_vm_goes_on_from_its_second_copy_and_is_copied_to_a_third_node_fenced_from_the_first,
    test_second_copies.test_copies_wait_for_another_node_follow_the_volumes_and_go_with_the_spec,
    test_reservations.test_an_extension_is_for_all_of_its_slots_and_for_what_is_in_them,
    test_scheduler_answers.test_an_answer_is_taken_away_when_it_is_old,
    test_services.test_a_service_has_an_address_and_its_endpoints_follow_what_is_reported,
    test_snapshots.test_a_snapshot_that_grows_makes_remembered_sums_of_a_quota_old,
    test_snapshots.test_a_schedule_takes_snapshots_and_keeps_the_newest_and_everybodys_own,
    test_snapshots.test_a_schedule_waits_for_a_full_quota_and_says_so,
    test_snapshots.test_a_restore_in_place_keeps_what_stood_there,
    test_snapshots.test_a_vm_that_begins_from_a_snapshot_waits_for_it_and_is_placed_where_it_lies,
    test_snapshots.test_the_snapshots_of_a_group_are_ordered_of_their_nodes_together,
    test_snapshots.test_a_snapshot_that_goes_leaves_its_parent_to_those_that_stand_on_it,
    test_snapshots.test_a_snapshot_outlives_its_vm_and_goes_once_its_node_lists_it_no_more,
    test_snapshots.test_snapshots_that_no_object_explains_stay_and_are_told,
    test_volume_snapshots.test_all_volumes_of_a_container_are_taken_with_one_order,
    test_volume_snapshots.test_a_volume_goes_back_once_what_stands_there_is_kept_and_nothing_gets_it_meanwhile,
    test_volume_snapshots.test_a_volume_from_a_snapshot_is_made_where_that_lies_and_then_used_there,
    test_backups.test_a_backup_is_made_fetched_and_removed_and_a_policy_makes_the_next,
    test_backups.test_a_backup_whose_time_is_over_is_deleted_but_the_newest_good_one_stays,
    test_backups.test_volumes_of_a_restore_that_never_began_go_with_its_vm,
    test_storage_pools.test_a_pool_comes_with_its_nodes_counts_what_is_promised_and_goes_with_them,
    egress_endpoints_come_and_go,
    a_function_s_node_is_away,
    others_let_go_of_what_is_deleted_later,
    a_guest_went_on_by_a_move_that_the_store_has_lost,
    a_guest_left_for_another_cluster_by_a_migration_that_the_store_has_lost,
    a_guest_is_found_after_its_vm_got_another_address,
    a_lease_is_extended_gives_way_and_resumes,
    test_replanned_leases.test_leases_with_deadlines_that_have_not_begun_make_room_for_one_that_fits_nowhere,
    test_replanned_leases.test_a_pause_is_taken_back_once_the_lease_that_needed_it_begins_on_another_node,
    test_suspended_migrations.test_one_whose_node_stays_full_resumes_on_another_after_a_minute,
    test_gangs.test_the_addresses_of_a_large_gang_come_before_its_places,
    a_policy_of_ones_own_can_not_be_had,
    nodes_are_counted_for_a_constraint,
    what_leases_took_is_kept,
    an_image_is_kept_warm_until_nobody_asks_for_it,
    test_made_images.test_an_image_fails_with_its_nodes_words_and_its_snapshot_goes,
    a_clock_is_set_back,
    test_servers.test_each_server_is_shown_with_its_address_and_one_that_ends_is_not_ready,
)


def read_line(site: str) -> tuple[set[str], set[str]]:
    relied, _, loose = RELIES_ON[site].partition(" | ")
    return set(relied.split(", ")), set(loose.split(", ")) - {""}


def test_every_precondition_of_every_commit_is_refused_when_it_is_wrong_and_the_spec_comes_about(
    tmp_path: Path,
) -> None:
    between = Between()
    for number, scenario in enumerate(SCENARIOS):
        folder = tmp_path / str(number)
        folder.mkdir()
        with between.step_in():
            assert inspect.iscoroutinefunction(scenario), scenario
            asyncio.run(scenario(folder))
    assert not between.wrong, "written though somebody had been there before"
    for site in RELIES_ON:
        assert (between.refused[site], between.loose[site]) == read_line(site), site


def test_every_place_where_a_commit_is_made_is_named_here() -> None:
    assert set(find_calls(("",), is_commit).values()) - {"informer/commit.py commit"} == RELIES_ON.keys()


async def test_nothing_of_a_term_lands_once_another_process_has_the_lease(tmp_path: Path) -> None:
    refused: list[bool] = []
    write = LeaderLease._write

    async def overtaken(term: LeaderLease, writes: Sequence[Write], preconditions: Sequence[Precondition]) -> int:
        if refused:
            return await write(term, writes, preconditions)
        await term.store.release(term.name, term._holder)
        assert await term.store.grant(term.name, "another", 10.0)
        before = await term.store.commit([])
        try:
            return await write(term, writes, preconditions)
        finally:
            refused.append(await term.store.commit([]) == before)
            await term.store.release(term.name, "another")

    with mock.patch.object(LeaderLease, "_write", overtaken):
        async with Lab(tmp_path) as lab:
            await lab.add_node("n1")
            await lab.put_vm("web")
            await lab.until_phase("web", "Running")
    assert refused == [True]
