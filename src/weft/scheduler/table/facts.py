"""The facts of one node, and what an allocation takes: the input of a snapshot."""

from __future__ import annotations

import msgspec

from weft.contracts.policy import RESOURCES, Amounts
from weft.informer.pool.claims import Claim, list_claims, name_root
from weft.kinds.allocation import LOCAL, AllocationSpec, Resources
from weft.objects.identity import Ref

# Texts of nodes: why guests can't get any of their GPUs; that guests get only whole GPUs.
GPUS_KEPT, GPUS_WHOLE = "gpu.kept", "gpu.whole"
NOT_READY = "not ready"  # why a node isn't, if it is silent
NEWER = "newer"  # why, of a node whose agent is newer than the servers, and that people didn't cordon
QUARANTINED = "quarantined"  # why, of a node that people didn't cordon


class Gpu(msgspec.Struct, frozen=True):
    model: str = ""
    memory: int = 0  # bytes
    kept: bool = False  # guests can't get it


class NodeFacts(msgspec.Struct, frozen=True):
    """Facts of one node for placement."""

    uid: str
    name: str
    capacity: Amounts
    online: bool
    cordoned: bool
    machines: frozenset[str]
    note: str = ""
    overcommit: dict[str, float] = {}  # by resource: allocatable to capacity; default 1
    texts: dict[str, str] = {}  # attributes that don't follow from the other fields
    numbers: dict[str, float] = {}  # as texts
    extras: dict[str, int] = {}  # declared resources by name
    gpus: tuple[Gpu, ...] = ()  # by their index
    taints: frozenset[str] = frozenset()
    data: frozenset[str] = frozenset()  # on it, or near it: see Datum
    coordinate: tuple[float, ...] = ()  # in the space of round trips, in ms: a position and, last, a height
    round_trips: dict[str, float] = {}  # measured directly, in ms, by uid of the other node

    def given(self) -> Amounts:
        """How much of each of RESOURCES may be allocated."""
        if not self.overcommit:
            return self.capacity
        cpu, memory, disk = (
            int(amount * self.overcommit.get(name, 1.0)) for name, amount in zip(RESOURCES, self.capacity, strict=True)
        )
        return cpu, memory, disk

    def given_extra(self, name: str) -> int:
        return int(self.extras.get(name, 0) * self.overcommit.get(name, 1.0))


class Load(msgspec.Struct, frozen=True):
    """Load of an allocation beside amounts of RESOURCES."""

    extras: tuple[tuple[str, int], ...] = ()  # amounts by name
    gpus: tuple[tuple[int, int], ...] = ()  # thousandths by index
    groups: tuple[str, ...] = ()  # of which its workload is a member
    workload: str = ""  # its name, if it has groups
    claims: tuple[Claim, ...] = ()  # disks in pools; that of a new root disk has no name


NO_LOAD = Load()


def load_of(spec: AllocationSpec) -> Load:
    """Load of an allocation beside amounts."""
    claims = claims_of(spec)
    if not (spec.memberships or spec.extras or spec.gpus or claims):
        return NO_LOAD
    return Load(
        extras=tuple(sorted(spec.extras.items())),
        gpus=tuple((gpu.index, gpu.share) for gpu in spec.gpus),
        groups=tuple(spec.memberships),
        workload=name_workload(spec.workload) if spec.memberships else "",
        claims=claims,
    )


def disks_of(spec: AllocationSpec) -> Load:
    """Load of an allocation beside amounts once all but its disks is free."""
    claims = claims_of(spec)
    return Load(claims=claims) if claims else NO_LOAD


def claims_of(spec: AllocationSpec) -> tuple[Claim, ...]:
    """Its disks, but for a root disk in its node's own pool, which ``amounts_on`` has."""
    if spec.pool != LOCAL:
        return list_claims(spec)
    if not spec.volumes and spec.storage is None:
        return ()
    own = (spec.node_uid, name_root(spec.workload.uid))
    return tuple(claim for claim in list_claims(spec) if claim[:2] != own)


def name_shut(pool: str) -> str:
    """A storage pool by name, as the attribute of nodes that says why theirs takes no new disks."""
    return f"shut {pool}"


OF_ANOTHER = "a workload of another project"


def name_workload(ref: Ref) -> str:
    """``vm/web-1``"""
    return f"{ref.kind}/{ref.name}"


def name_for(project: str | None, ref: Ref) -> str:
    """``vm/web-1`` for what people of ``project`` read; they aren't told the names of others' workloads."""
    return name_workload(ref) if ref.project == project else OF_ANOTHER


def amounts_of(resources: Resources) -> Amounts:
    """Resources in the units of the table."""
    return (round(resources.cpu * 1000), int(resources.memory), int(resources.disk))


def amounts_on(spec: AllocationSpec, resources: Resources) -> Amounts:
    """Amounts as of ``amounts_of``, of the node that it is on: a root disk in another pool than the node's own is counted there."""
    cpu, memory, disk = amounts_of(resources)
    return cpu, memory, disk if spec.pool == LOCAL else 0


def name_pool(pool: str) -> str:
    """A storage pool by name, as the attribute of nodes that says which storage theirs is, by its id."""
    return f"pool {pool}"


def name_alarm(pool: str) -> str:
    """A storage pool by name, as the attribute of nodes that says why theirs is beyond its alarm."""
    return f"alarm {pool}"


def name_runtime(runtime: str) -> str:
    """Workloads of a node's runtimes, KIND or KIND/ISOLATION, as an entry of ``machines``."""
    return f"runtime {runtime}"


def name_cpu(model: str) -> str:
    """A CPU model as an entry of ``machines``."""
    return f"cpu {model}"
