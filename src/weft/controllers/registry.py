"""The controllers that the loop runs, one line each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from weft.controllers.accounting.controller import Accounting
from weft.controllers.arrival.controller import Arrivals
from weft.controllers.backup.controller import Backups
from weft.controllers.backup.expiry import BackupExpiry
from weft.controllers.backup.policy import BackupPolicies
from weft.controllers.backup.repository import BackupRepositories
from weft.controllers.conversion.controller import Conversions
from weft.controllers.device.controller import Devices
from weft.controllers.device.rollout import DeviceRollouts
from weft.controllers.function.away import FunctionsAway
from weft.controllers.garbage_collector import Garbage
from weft.controllers.image.making import MadeImages
from weft.controllers.image.warm import WarmImages
from weft.controllers.job.controller import Jobs
from weft.controllers.loop import Controller
from weft.controllers.migration.ahead import PlansAhead
from weft.controllers.migration.controller import Migrations
from weft.controllers.network.addresses import Addresses
from weft.controllers.network.controller import Networks
from weft.controllers.network.security_groups import SecurityGroups
from weft.controllers.node.controller import Nodes
from weft.controllers.node.drain_controller import Drain
from weft.controllers.pool.controller import Pools
from weft.controllers.quota.controller import Quotas
from weft.controllers.rebalance.controller import Rebalancing
from weft.controllers.rebalance.policy import RebalancePolicies
from weft.controllers.recovery.controller import RecoveryPlans
from weft.controllers.replica.controller import Replicas
from weft.controllers.replication.controller import Replications
from weft.controllers.service.controller import Services
from weft.controllers.snapshot.controller import Snapshots
from weft.controllers.snapshot.restore import Restores
from weft.controllers.snapshot.schedule import ScheduledSnapshots
from weft.controllers.snapshot.unexplained import UnexplainedSnapshots
from weft.controllers.topology.controller import NetworkTopologies
from weft.controllers.volume.controller import Volumes
from weft.controllers.volume.orphans import OrphanedVolumes
from weft.controllers.volume.unbegun import UnbegunVolumes
from weft.controllers.workload.controller import Workloads
from weft.informer.leader_lease import LeaderLease
from weft.informer.silent_nodes import find_silent

CONTROLLERS: tuple[Callable[[LeaderLease], Controller], ...] = (
    lambda _: Addresses(),
    lambda _: Networks(),
    lambda _: SecurityGroups(),
    lambda _: Services(),
    lambda lease: Workloads(partial(find_silent, lease.cache)),
    lambda lease: Nodes(lease.store, lease.clock),
    lambda lease: Volumes(partial(find_silent, lease.cache)),
    lambda lease: Snapshots(partial(find_silent, lease.cache)),
    lambda _: UnbegunVolumes(),
    lambda _: OrphanedVolumes(),
    lambda _: Restores(),
    lambda _: ScheduledSnapshots(),
    lambda _: Backups(),
    lambda _: BackupRepositories(),
    lambda _: BackupPolicies(),
    lambda _: BackupExpiry(),
    lambda _: Replications(),
    lambda _: Replicas(),
    lambda _: RecoveryPlans(),
    lambda _: UnexplainedSnapshots(),
    lambda _: Pools(),
    lambda _: NetworkTopologies(),
    lambda _: Devices(),
    lambda _: DeviceRollouts(),
    lambda _: FunctionsAway(),
    lambda _: Migrations(),
    lambda lease: Arrivals(partial(find_silent, lease.cache)),
    lambda _: PlansAhead(),
    lambda _: Conversions(),
    lambda _: Rebalancing(),
    lambda _: RebalancePolicies(),
    lambda _: Drain(),
    lambda _: Jobs(),
    lambda _: WarmImages(),
    lambda _: MadeImages(),
    lambda _: Quotas(),
    lambda _: Garbage(),
    lambda lease: Accounting(lease.store, lease.clock),
)
