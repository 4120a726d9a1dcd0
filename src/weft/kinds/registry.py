"""All kinds. A new one is its file, its controller if it behaves, and its line here."""

from __future__ import annotations

from weft.kinds.accounting_record import ACCOUNTING_RECORD
from weft.kinds.alert_rule import ALERT_RULE
from weft.kinds.allocation import ALLOCATION
from weft.kinds.arrival import ARRIVAL
from weft.kinds.backup import BACKUP
from weft.kinds.backup_policy import BACKUP_POLICY
from weft.kinds.backup_repository import BACKUP_REPOSITORY
from weft.kinds.cluster import CLUSTER
from weft.kinds.constraint import CONSTRAINT
from weft.kinds.container import CONTAINER
from weft.kinds.conversion import CONVERSION
from weft.kinds.decision import DECISION
from weft.kinds.delegation import DELEGATION
from weft.kinds.deployment import DEPLOYMENT
from weft.kinds.device import DEVICE
from weft.kinds.device_model import DEVICE_MODEL
from weft.kinds.device_rollout import DEVICE_ROLLOUT
from weft.kinds.disruption_budget import DISRUPTION_BUDGET
from weft.kinds.endpoint import ENDPOINT
from weft.kinds.function import FUNCTION
from weft.kinds.function_version import FUNCTION_VERSION
from weft.kinds.group import GROUP
from weft.kinds.image import IMAGE
from weft.kinds.job import JOB
from weft.kinds.migration import MIGRATION
from weft.kinds.model import MODEL
from weft.kinds.network import NETWORK
from weft.kinds.network_topology import NETWORK_TOPOLOGY
from weft.kinds.node import NODE
from weft.kinds.permissions import learn
from weft.kinds.placement_policy import PLACEMENT_POLICY
from weft.kinds.pool import POOL
from weft.kinds.priority_class import PRIORITY_CLASS
from weft.kinds.profile import NODE_PROFILE, WORKLOAD_PROFILE
from weft.kinds.project import PROJECT
from weft.kinds.published_port import PUBLISHED_PORT
from weft.kinds.quota import QUOTA
from weft.kinds.rebalance_plan import REBALANCE_PLAN
from weft.kinds.rebalance_policy import REBALANCE_POLICY
from weft.kinds.receiver import RECEIVER
from weft.kinds.recommendation import RECOMMENDATION
from weft.kinds.record import Kind, Workload
from weft.kinds.recovery_plan import RECOVERY_PLAN
from weft.kinds.replica import REPLICA
from weft.kinds.replication import REPLICATION
from weft.kinds.report import REPORT
from weft.kinds.reservation import RESERVATION
from weft.kinds.role import ROLE
from weft.kinds.rolebinding import ROLE_BINDING
from weft.kinds.rule import RULE
from weft.kinds.secret import SECRET
from weft.kinds.securitygroup import SECURITY_GROUP
from weft.kinds.server import SERVER
from weft.kinds.service import SERVICE
from weft.kinds.silence import SILENCE
from weft.kinds.snapshot import SNAPSHOT
from weft.kinds.token import TOKEN
from weft.kinds.upgrade import UPGRADE
from weft.kinds.user import USER
from weft.kinds.vm import VM
from weft.kinds.volume import VOLUME
from weft.objects.errors import NotFound
from weft.objects.schema import suggest

KINDS: tuple[Kind, ...] = (
    VM,
    CONTAINER,
    DEPLOYMENT,
    FUNCTION,
    JOB,
    IMAGE,
    NETWORK,
    SECURITY_GROUP,
    SERVICE,
    VOLUME,
    SNAPSHOT,
    BACKUP,
    BACKUP_POLICY,
    BACKUP_REPOSITORY,
    REPLICATION,
    REPLICA,
    DELEGATION,
    ARRIVAL,
    RECOVERY_PLAN,
    CONSTRAINT,
    NODE,
    SERVER,
    NETWORK_TOPOLOGY,
    POOL,
    CLUSTER,
    PROJECT,
    PRIORITY_CLASS,
    QUOTA,
    RESERVATION,
    DISRUPTION_BUDGET,
    PLACEMENT_POLICY,
    DEVICE_MODEL,
    DEVICE,
    DEVICE_ROLLOUT,
    RULE,
    MODEL,
    ALERT_RULE,
    SILENCE,
    RECEIVER,
    SECRET,
    TOKEN,
    USER,
    GROUP,
    ROLE,
    ROLE_BINDING,
    MIGRATION,
    CONVERSION,
    REBALANCE_PLAN,
    REBALANCE_POLICY,
    UPGRADE,
    ALLOCATION,
    ACCOUNTING_RECORD,
    DECISION,
    ENDPOINT,
    FUNCTION_VERSION,
    PUBLISHED_PORT,
    RECOMMENDATION,
    REPORT,
    WORKLOAD_PROFILE,
    NODE_PROFILE,
)

learn(KINDS)
BY_NAME: dict[str, Kind] = {k.name: k for k in KINDS}
WORKLOADS: dict[str, Workload] = {k.name: k.workload for k in KINDS if k.workload is not None}
COUNTED: tuple[Kind, ...] = tuple(k for k in KINDS if k.admission.counts is not None)
_BY_WORD: dict[str, Kind] = {w: k for k in KINDS for w in (k.name, k.plural, *k.display.aliases)}


def is_workload(kind: str) -> bool:
    """Whether objects of the kind are placed and run."""
    return kind in WORKLOADS


def find_kind(word: str) -> Kind:
    """The kind that ``word`` names (singular, plural, alias, any case). Raises NotFound with a suggestion."""
    kind = _BY_WORD.get(word.lower())
    if kind is None:
        meant = suggest(word.lower(), list(_BY_WORD))
        raise NotFound(
            f"no such kind: {word[:40]!r}",
            reason="unknownKind",
            field="kind",
            hint=f"did you mean {meant}?" if meant else "kinds: " + ", ".join(BY_NAME),
        )
    return kind
