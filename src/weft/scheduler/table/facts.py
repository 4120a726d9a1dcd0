"""What placement knows of one node, and what an allocation takes: the values that a snapshot is fed with."""

from __future__ import annotations

import msgspec

from weft.contracts.policy import RESOURCES, Amounts
from weft.kinds.allocation import AllocationSpec, Resources
from weft.objects.identity import Ref

# Texts of nodes: why all of their GPUs are kept from guests; that they give GPUs away whole only.
GPUS_KEPT, GPUS_WHOLE = "gpu.kept", "gpu.whole"


class Gpu(msgspec.Struct, frozen=True):
    """One device. ``memory`` in bytes; one that is ``kept`` goes to nobody."""

    model: str = ""
    memory: int = 0
    kept: bool = False


class NodeFacts(msgspec.Struct, frozen=True):
    """What placement needs to know of one node.

    ``capacity`` is what there is; ``overcommit`` the ratio to which each resource may be given away (1 where none is
    named). ``texts`` and ``numbers`` are its attributes beside those that follow from the rest; ``extras`` resources by
    name; ``gpus`` in the order of their index; ``data`` what lies there (see Datum); ``coordinate`` its place in the space
    of round trips, in ms: a position and, last, a height; ``round_trips`` those measured directly, by uid of the other."""

    uid: str
    name: str
    capacity: Amounts
    online: bool
    cordoned: bool
    machines: frozenset[str]
    note: str = ""
    overcommit: dict[str, float] = {}
    texts: dict[str, str] = {}
    numbers: dict[str, float] = {}
    extras: dict[str, int] = {}
    gpus: tuple[Gpu, ...] = ()
    taints: frozenset[str] = frozenset()
    data: frozenset[str] = frozenset()
    coordinate: tuple[float, ...] = ()
    round_trips: dict[str, float] = {}

    def given(self) -> Amounts:
        """How much of each of RESOURCES may be given away."""
        if not self.overcommit:
            return self.capacity
        cpu, memory, disk = (
            int(amount * self.overcommit.get(name, 1.0)) for name, amount in zip(RESOURCES, self.capacity, strict=True)
        )
        return cpu, memory, disk

    def given_extra(self, name: str) -> int:
        return int(self.extras.get(name, 0) * self.overcommit.get(name, 1.0))


class Load(msgspec.Struct, frozen=True):
    """What an allocation takes beside ``amounts`` of RESOURCES: ``extras`` by name, thousandths of ``gpus`` by index; and
    the ``groups`` that its ``workload`` (named where it has any) is a member of."""

    extras: tuple[tuple[str, int], ...] = ()
    gpus: tuple[tuple[int, int], ...] = ()
    groups: tuple[str, ...] = ()
    workload: str = ""


NO_LOAD = Load()


def load_of(spec: AllocationSpec) -> Load:
    """What an allocation takes beside amounts."""
    if not (spec.memberships or spec.extras or spec.gpus):
        return NO_LOAD
    return Load(
        extras=tuple(sorted(spec.extras.items())),
        gpus=tuple((gpu.index, gpu.share) for gpu in spec.gpus),
        groups=tuple(spec.memberships),
        workload=name_workload(spec.workload) if spec.memberships else "",
    )


def name_workload(ref: Ref) -> str:
    """``vm/web-1``"""
    return f"{ref.kind}/{ref.name}"


def amounts_of(resources: Resources) -> Amounts:
    """Resources in the units of the table."""
    return (round(resources.cpu * 1000), int(resources.memory), int(resources.disk))


def name_pool(pool: str) -> str:
    """A storage pool, NAME or NAME@ID, beside the machines that a node can build."""
    return f"pool {pool}"


def name_runtime(runtime: str) -> str:
    """What a node's runtimes run beside machines, KIND or KIND/ISOLATION, beside the machines that it can build."""
    return f"runtime {runtime}"


def name_cpu(model: str) -> str:
    """A CPU model beside the machines that a node can build."""
    return f"cpu {model}"
