"""The placement contract: filters say where a request may go, a policy says where best. Both look at all nodes at once.

They decide from values and keep nothing: the same table and the same request give the same answer. Amounts are whole
numbers, so that sums never drift: cpu in thousandths of a core, memory and disk in bytes, in this order; of a GPU
thousandths too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import msgspec

from weft.language.tree import Expression, Preference

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Whole = NDArray[np.int64]
    Codes = NDArray[np.int32]
    Flags = NDArray[np.bool_]
    Values = NDArray[np.float64]
else:
    Whole = Codes = Flags = Values = Any

RESOURCES = ("cpu", "memory", "disk")
Amounts = tuple[int, int, int]

# What a filter or a policy reads: facts of nodes (its results are kept until some change), a node's own load as well (kept until
# its row changes), the outlook beside it (kept until either changes), or other nodes too, or chance, or what was chosen before
# (never kept).
Basis = Literal["allocation", "used"]  # what a node's load is: what its allocations request, or what is measured
Reads = Literal["facts", "row", "outlook", "fabric"]


class GpuAsk(msgspec.Struct, frozen=True):
    count: int
    share: int = 1000  # thousandths of each; less than 1000 only of one
    memory: int = 0  # the least bytes of each
    models: tuple[str, ...] = ()  # empty: any


class Spread(msgspec.Struct, frozen=True):
    """The members of ``group`` are spread over the values of ``key``: no value has more than ``skew`` more than another."""

    key: str
    skew: int = 1
    group: str = ""


class Datum(msgspec.Struct, frozen=True):
    """Data that a workload reads."""

    name: str  # image:<sha256>, volume:<uid> or pool:<pool>
    bytes: int = 0
    required: bool = False  # it can't run where this isn't at hand


class DiskAsk(msgspec.Struct, frozen=True):
    """A disk in a pool that isn't the node's own. Sizes in bytes."""

    pool: str  # by name
    size: int
    disk: str = ""  # what it is counted by; "": a new one of the workload
    at: str = ""  # id of the storage that has it already
    held: int = 0  # how much it has there


class PoolBound(msgspec.Struct, frozen=True):
    """The bound of what a storage may promise, and has promised, in bytes."""

    name: str  # of its Pool
    most: int
    given: int


class SoftTerm(msgspec.Struct, frozen=True):
    """A preference of a request, whatever its strategy: to be near or apart from members of a group, spread, close to data, near
    those that it talks to, or near a device."""

    what: Literal["near", "apart", "spread", "data", "talkers", "device"]
    name: str  # of the group, or of the data; of talkers, the workload's own uid; of a device, its node's
    key: str = ""  # whose values the group is spread over; the device's name


class Request(msgspec.Struct, frozen=True, cache_hash=True):
    """The resources and demands of a workload for its node. Equal requests get equal verdicts, so they are decided as one class."""

    amounts: Amounts  # in the order of RESOURCES
    machine: str  # "" is none
    strategy: str
    node: str | None = None  # name of the only node it may go to
    home: str | None = None  # uid of the node that has its volumes
    least_disk: int = 0  # how little disk the image needs
    extras: tuple[tuple[str, int], ...] = ()  # sorted by name
    gpus: GpuAsk | None = None
    constraint: Expression | None = None  # Constraint objects' names in it are resolved; in preferences too
    preferences: tuple[Preference, ...] = ()
    tolerations: tuple[str, ...] = ()
    near: tuple[str, ...] = ()  # groups whose members it must be with, if there are any
    apart: tuple[str, ...] = ()  # groups whose members it must not be with
    groups: tuple[str, ...] = ()  # that it will be a member of
    spread: tuple[Spread, ...] = ()
    data: tuple[Datum, ...] = ()
    leans: tuple[SoftTerm, ...] = ()
    caller: str | None = None  # uid of the node it should be near
    mode: Literal["long-lived", "serverless"] = "long-lived"
    gang: str = ""  # the gang it is placed together with
    leaves: str | None = None  # node that it migrates away from
    avoids: tuple[str, ...] = ()  # nodes that could not take it
    cpu_model: str | None = None  # that its CPU must have; None: any
    pools: tuple[str, ...] = ()  # that its node must have: NAME or, where data exists already, NAME@ID
    disks: tuple[str, ...] = ()  # pools by name in which it needs a new disk
    asks: tuple[DiskAsk, ...] = ()  # what it needs of pools; of the node's own, ``amounts`` has it
    of_volumes: int = 0  # bytes of new volumes in ``amounts``
    alarmed_pools: tuple[str, ...] = ()  # of ``disks``, those that some node has beyond their alarm
    runtime: str = ""  # what its node's runtimes must be able to run, where ``machine`` doesn't say it
    basis: Basis = "allocation"  # of strategies that compare how full nodes are
    preemptible: bool = False  # it is preempted for workloads that find no capacity, and preempts nobody


class Texts(msgspec.Struct, frozen=True):
    """A text of every node: ``words[codes[i]]``, none where the code is -1. ``places`` is the code of each word."""

    codes: Codes
    words: list[str]
    places: dict[str, int]

    def equal(self, word: str) -> Flags:
        """Flags of the nodes that have this very word."""
        flags: Flags = self.codes == self.places.get(word, -2)
        return flags


class PoolColumn(msgspec.Struct, frozen=True):
    """The storage that each node has as a pool: its id, none where it has no such pool, and how many bytes it may still promise, 0
    where there is none. ``bound`` tells of a storage by its id."""

    ids: Texts
    left: Whole
    bound: Callable[[str], PoolBound]

    def bound_of(self, index: int) -> PoolBound:
        """The bound of the storage that node ``index`` has."""
        code = self.ids.codes[index]
        return self.bound(self.ids.words[code] if code >= 0 else "")


class Groups(Protocol):
    """Members of each group."""

    def find(self, group: str) -> Mapping[str, Sequence[str]]:
        """Node uid → the workloads of this group there, as people call them."""


class Table(Protocol):
    """Nodes as columns: row i of each is the same node. ``capacity`` (what may be given: what there is, times the ratio
    of overcommitment), ``allocated`` and ``free`` have one row per resource and one column per node; so has ``used``, what
    is in use where that is ``measured`` (times the same ratio), and elsewhere what is allocated. ``rank`` is the node's place
    when all are sorted by name; ``notes`` why people cordoned it. ``gpu_free`` has one row per node, one column per device:
    thousandths free, -1 where there is none; ``gpu_memory`` and ``gpu_model`` likewise. Change none of the arrays."""

    names: list[str]
    uids: list[str]
    notes: list[str]
    capacity: Whole
    free: Whole
    online: Flags
    cordoned: Flags
    gpu_free: Codes
    gpu_memory: Whole

    @property
    def gpu_model(self) -> Texts: ...
    @property
    def allocated(self) -> Whole: ...
    @property
    def groups(self) -> Groups: ...
    @property
    def rank(self) -> Whole: ...
    @property
    def used(self) -> Whole: ...
    @property
    def measured(self) -> Flags: ...

    def machine(self, name: str) -> Flags:
        """Flags of the nodes that can run this machine type."""

    def taints(self) -> Sequence[tuple[str, Flags]]:
        """Every taint that some node has, and which have it."""

    def text(self, attribute: str) -> Texts | None:
        """A text of every node (``name uid type zone rack arch storage location gpu.model hypervisor``, every label); None
        if no node has it."""

    def number(self, attribute: str) -> Values | None:
        """A number of every node, NaN where it has none (``cpu memory disk gpu`` and ``.free`` of each, ``gpu.memory
        cost``, every declared resource, every label that reads as one); None if no node has it."""

    def extra(self, name: str) -> tuple[Whole, Whole]:
        """Amounts of a resource that nodes declare: its capacity on each, and what is allocated of it."""

    def members(self, group: str) -> Whole:
        """How many workloads of this group (``<project>/<name>``) each node has."""

    def holds(self, datum: str) -> Flags:
        """Flags of the nodes that have this datum."""

    def distance(self, uid: str) -> Values:
        """Round trips from the node ``uid`` to each, in ms; NaN where unknown."""

    def pool(self, name: str) -> PoolColumn:
        """The column of what each node's storage of this name may promise."""


class Lack(msgspec.Struct, frozen=True):
    """Amounts in the table's units."""

    resource: str  # one of RESOURCES, gpu, or a declared one
    wanted: int
    free: int


class Filter(Protocol):
    """A condition that a node must meet. ``name`` stands in explanations; ``reads`` is the most it reads."""

    name: str
    reads: Reads

    def asks(self, request: Request) -> Hashable:
        """The part of the request that it judges by; None if it doesn't apply. Requests with the same part get the same
        verdicts: those of a filter that reads ``facts`` are kept by it."""

    def fits(self, table: Table, request: Request) -> Flags:
        """Whether each node meets the condition."""

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        """Why node ``index`` does not: a phrase for people, and what it lacks."""


class Column(msgspec.Struct, frozen=True):
    """One term of a score for every node: ``weight · values``, values 0–100, more is better."""

    name: str
    weight: float
    values: Values


class Sort(msgspec.Struct, frozen=True):
    """One sort of workload that is expected."""

    amounts: Amounts  # that one of them requests
    gpus: GpuAsk | None
    often: float  # its share of all workloads, 0-1
    # How much of all GPUs it could still use if no other sort came (0-1); of one without GPUs, how many still fit of those that
    # would on empty nodes.
    left: float = 1.0


class Outlook(msgspec.Struct, frozen=True, eq=False):
    """The outlook on what workloads are likely to request next."""

    sorts: tuple[Sort, ...] = ()  # the most frequent first
    largest: tuple[int, int, int, int] = (1, 1, 1, 1)  # the largest node, of each of RESOURCES, and thousandths of GPUs
    gpus_wanted: bool = False  # whether any sort wants GPUs that nodes have
    gpus_everywhere: bool = False  # whether every node has some
    # What workloads ask nodes to be, each with how much of the cpu of such nodes is requested that way (0-1), the most first.
    bound: tuple[tuple[Expression, float], ...] = ()

    def lasts(self, request: Request) -> bool:
        """Whether what a node is worth to the request follows from its own row and this outlook; where not, a policy that
        reads the outlook looks at all nodes together."""
        return self.gpus_wanted and (self.gpus_everywhere or request.gpus is not None)


class PreferenceTerm(Protocol):
    """A term that adds to the score whatever the strategy, because the request says so. ``name``, ``reads`` and ``asks`` as with a
    filter; a weight of 1 is as much as the strategy itself has."""

    name: str
    reads: Reads

    def asks(self, request: Request) -> Hashable: ...

    def weight(self, request: Request) -> float:
        """The weight of all its terms together."""

    def terms(self, table: Table, request: Request) -> list[Column]: ...


class Occasion(msgspec.Struct, frozen=True):
    """The facts that a policy may know beside nodes and request: ``seed`` and the workload's ``uid`` for chance, ``last``, the node
    that was chosen most recently, and the ``outlook``."""

    seed: int
    uid: str
    last: str | None
    outlook: Outlook = Outlook()


class Policy(Protocol):
    """How good each node is. ``reads`` is the most it reads: what follows from facts, or from a node's own row, and the request
    alone, is kept until they change; it must then give the same for a row whichever other rows there are."""

    name: str
    reads: Reads

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]: ...


@runtime_checkable
class LoadPolicy(Policy, Protocol):
    """A policy that goes by how full a node is and nothing else: decided much faster than others."""

    def load(self, request: Request) -> tuple[float, float, float] | None:
        """The weight of each of RESOURCES: above 0 for how much of it (0–100) is in use once the request is there, below
        0 for how much is left. None where ``terms`` must be asked."""
