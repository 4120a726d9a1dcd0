"""The controllers, one line each, with what they need beside the store."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from weft.client.server.files import ServerFiles
from weft.contracts.history import History
from weft.contracts.machine.packages import PackageInstaller
from weft.controllers.accounting.controller import Accounting
from weft.controllers.alert.controller import Alerts, Evaluates, Unevaluated
from weft.controllers.arrival.controller import Arrivals
from weft.controllers.asking import Asking, run_asking
from weft.controllers.backup.controller import Backups
from weft.controllers.backup.expiry import BackupExpiry
from weft.controllers.backup.policy import BackupPolicies
from weft.controllers.backup.repository import BackupRepositories
from weft.controllers.cluster.controller import Clusters
from weft.controllers.conversion.controller import Conversions
from weft.controllers.copies.controller import SecondCopies
from weft.controllers.delegation.controller import Delegations
from weft.controllers.departure.controller import Departures
from weft.controllers.deployment.controller import Deployments
from weft.controllers.device.controller import Devices
from weft.controllers.device.rollout import DeviceRollouts
from weft.controllers.failover.controller import Witnesses
from weft.controllers.function.away import FunctionsAway
from weft.controllers.garbage_collector import Garbage
from weft.controllers.image.controller import Images, MakeBundle
from weft.controllers.image.credentials import Unseal
from weft.controllers.image.making import MadeImages
from weft.controllers.image.warm import WarmImages
from weft.controllers.job.controller import Jobs
from weft.controllers.loop import Controller, run_controller
from weft.controllers.loss.controller import Losses
from weft.controllers.loss.points import Points
from weft.controllers.metrics.recorder import INTERVAL_SECONDS, Recorder
from weft.controllers.migration.ahead import PlansAhead
from weft.controllers.migration.controller import Migrations
from weft.controllers.network.addresses import Addresses
from weft.controllers.network.controller import Networks
from weft.controllers.network.security_groups import SecurityGroups
from weft.controllers.node.controller import Nodes
from weft.controllers.node.drain_controller import Drain
from weft.controllers.pool.controller import Pools
from weft.controllers.power.controller import OpenBmc, Power
from weft.controllers.profile.controller import Analyses, Profiles
from weft.controllers.quota.controller import Quotas
from weft.controllers.rebalance.controller import Rebalancing
from weft.controllers.rebalance.policy import RebalancePolicies
from weft.controllers.receiver.controller import Receivers
from weft.controllers.receiver.outbox import EventReader
from weft.controllers.receiver.sender import Send
from weft.controllers.recovery.controller import RecoveryPlans
from weft.controllers.replica.controller import Replicas
from weft.controllers.replication.controller import Replications
from weft.controllers.server.controller import Servers
from weft.controllers.service.controller import Services
from weft.controllers.snapshot.controller import Snapshots
from weft.controllers.snapshot.restore import Restores
from weft.controllers.snapshot.schedule import ScheduledSnapshots
from weft.controllers.snapshot.unexplained import UnexplainedSnapshots
from weft.controllers.topology.controller import NetworkTopologies
from weft.controllers.upgrade.controller import Upgrades
from weft.controllers.volume.controller import Volumes
from weft.controllers.volume.orphans import OrphanedVolumes
from weft.controllers.volume.unbegun import UnbegunVolumes
from weft.controllers.workload.controller import Workloads
from weft.informer.leader_lease import LeaderLease
from weft.informer.loss.renewals import Renewals
from weft.informer.silent_nodes import find_silent
from weft.objects.errors import Unavailable
from weft.telemetry.metrics.database import make_off
from weft.telemetry.metrics.sample import Sample


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """Dependencies of controllers beside store, clock and journal of events. A controller that lacks one doesn't run."""

    images: Path  # the folder of images' files
    files: ServerFiles | None = None  # that folder's, and those of the other servers
    make_bundle: MakeBundle | None = None
    unseal: Unseal | None = None  # decrypts what is sealed: secrets, tokens of linked clusters
    open_bmc: OpenBmc | None = None  # of nodes' machines
    allow_fetch: Sequence[str] = ()  # which of the machine's own places images may come from
    put_samples: Callable[[Sequence[Sample]], None] | None = None  # takes the samples of metrics of one moment
    read_ends: Callable[[], Mapping[str, float]] = dict  # when the server's certificates end, in unix seconds by name
    metrics_interval: float = INTERVAL_SECONDS
    evaluator: Evaluates | Unevaluated | None = None  # of alert rules
    journal: EventReader | None = None  # whose events receivers are told of
    send: Send | None = None
    history: History | Unavailable = msgspec.field(default_factory=make_off)  # or why there is none
    analyst: Analyses | None = None  # does the arithmetic of profiles
    installer: PackageInstaller | None = None  # of this server's packages
    renewals: Renewals | None = None  # of one leadership: ``list_runs`` makes them


class Registered(msgspec.Struct, frozen=True):
    """A controller. ``needs`` names the fields of Needs without which it doesn't run."""

    make: Callable[[LeaderLease, Any], Controller | Asking]
    needs: tuple[str, ...] = ()


CONTROLLERS: tuple[Registered, ...] = (
    Registered(lambda *_: Addresses()),
    Registered(lambda *_: Networks()),
    Registered(lambda *_: SecurityGroups()),
    Registered(lambda *_: Services()),
    Registered(lambda lease, _: Workloads(partial(find_silent, lease.cache))),
    Registered(lambda lease, needs: Nodes(needs.renewals, lease.clock), ("renewals",)),
    Registered(lambda lease, needs: Losses(needs.renewals, lease.clock), ("renewals",)),
    Registered(lambda *_: Points()),
    Registered(lambda lease, _: Servers(lease)),
    Registered(lambda lease, _: Volumes(partial(find_silent, lease.cache))),
    Registered(lambda lease, _: Snapshots(partial(find_silent, lease.cache))),
    Registered(lambda *_: SecondCopies()),
    Registered(lambda *_: UnbegunVolumes()),
    Registered(lambda *_: OrphanedVolumes()),
    Registered(lambda *_: Restores()),
    Registered(lambda *_: ScheduledSnapshots()),
    Registered(lambda *_: Backups()),
    Registered(lambda *_: BackupRepositories()),
    Registered(lambda *_: BackupPolicies()),
    Registered(lambda *_: BackupExpiry()),
    Registered(lambda *_: Replications()),
    Registered(lambda *_: Replicas()),
    Registered(lambda *_: RecoveryPlans()),
    Registered(lambda *_: UnexplainedSnapshots()),
    Registered(lambda *_: Pools()),
    Registered(lambda *_: NetworkTopologies()),
    Registered(lambda *_: Devices()),
    Registered(lambda *_: DeviceRollouts()),
    Registered(lambda *_: FunctionsAway()),
    Registered(lambda *_: Migrations()),
    Registered(lambda lease, _: Arrivals(partial(find_silent, lease.cache))),
    Registered(lambda *_: PlansAhead()),
    Registered(lambda *_: Conversions()),
    Registered(lambda *_: Rebalancing()),
    Registered(lambda *_: RebalancePolicies()),
    Registered(lambda *_: Upgrades()),
    Registered(lambda *_: Drain()),
    Registered(lambda *_: Jobs()),
    Registered(lambda *_: WarmImages()),
    Registered(lambda *_: MadeImages()),
    Registered(lambda *_: Quotas()),
    Registered(lambda *_: Garbage()),
    Registered(lambda lease, _: Accounting(lease.store, lease.clock)),
    Registered(lambda lease, needs: Deployments(lease, needs.history)),
    Registered(
        lambda lease, needs: Images(
            needs.images, lease, needs.make_bundle, needs.unseal, needs.allow_fetch, needs.files
        )
    ),
    Registered(
        lambda lease, needs: Recorder(lease, needs.put_samples, needs.read_ends, needs.metrics_interval),
        ("put_samples",),
    ),
    Registered(lambda lease, needs: Alerts(lease, needs.evaluator), ("evaluator",)),
    Registered(lambda lease, needs: Receivers(lease, needs.journal, needs.send, needs.unseal), ("journal", "send")),
    Registered(lambda lease, needs: Profiles(lease, needs.history, needs.analyst), ("analyst",)),
    Registered(
        lambda lease, needs: Power(lease, needs.renewals, needs.unseal, needs.open_bmc),
        ("renewals", "unseal", "open_bmc"),
    ),
    Registered(lambda lease, needs: Clusters(lease, needs.unseal), ("unseal",)),
    Registered(lambda lease, needs: Witnesses(lease, needs.unseal), ("unseal",)),
    Registered(lambda lease, needs: Delegations(lease, needs.unseal), ("unseal",)),
    Registered(lambda lease, needs: Departures(lease, needs.unseal), ("unseal",)),
)


def list_runs(
    lease: LeaderLease, needs: Needs, registered: Sequence[Registered] = CONTROLLERS
) -> list[Coroutine[Any, Any, None]]:
    """Runs of each controller that has what it needs, while ``lease`` is held."""
    needs = msgspec.structs.replace(needs, renewals=Renewals(lease.store, lease.clock))
    runs = []
    for one in registered:
        if all(getattr(needs, name) is not None for name in one.needs):
            controller = one.make(lease, needs)
            run = run_asking(controller, lease) if isinstance(controller, Asking) else run_controller(controller, lease)
            runs.append(run)
    return runs
