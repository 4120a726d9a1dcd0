"""The placement contract: filters say where a request may go, a policy says where best. Both look at all nodes at once.

They decide from values and keep nothing: the same table and the same request give the same answer. Amounts are whole
numbers, so that sums never drift: cpu in thousandths of a core, memory and disk in bytes, in this order; of a GPU
thousandths too.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
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

# What a filter or a policy looks at: facts of nodes (kept until some change), a node's own load as well (kept until its
# row changes), the outlook beside it (kept until either changes), or other nodes too, or chance, or what was chosen
# before (never kept).
Basis = Literal["allocation", "used"]  # how full a node is: by what was asked for there, or by what is measured
Reads = Literal["facts", "row", "outlook", "fabric"]


class GpuAsk(msgspec.Struct, frozen=True):
    """``count`` devices, ``share`` thousandths of each (less than 1000 only of one), each with at least ``memory`` bytes
    and of one of ``models`` (any if empty)."""

    count: int
    share: int = 1000
    memory: int = 0
    models: tuple[str, ...] = ()


class Spread(msgspec.Struct, frozen=True):
    """The members of ``group`` are spread over the values of ``key``: no value has more than ``skew`` more than another."""

    key: str
    skew: int = 1
    group: str = ""


class Datum(msgspec.Struct, frozen=True):
    """What a workload reads: ``image:<sha256>``, ``volume:<uid>`` or ``pool:<pool>``, and how many bytes of it;
    ``required`` where it can't do without having it at hand."""

    name: str
    bytes: int = 0
    required: bool = False


class SoftTerm(msgspec.Struct, frozen=True):
    """What a request would rather have, whatever its strategy: to be ``near`` or ``apart`` from the members of group
    ``name``, to ``spread`` them over the values of ``key``, or ``data`` of this name at hand."""

    what: Literal["near", "apart", "spread", "data"]
    name: str
    key: str = ""


class Request(msgspec.Struct, frozen=True, cache_hash=True):
    """What is asked of a node. Equal requests get equal verdicts, so they are decided as one class.

    ``amounts`` in the order of RESOURCES, ``extras`` sorted by name; ``least_disk`` is how little disk the image would
    do with;
    ``node`` the only node's name it may go to, ``leaves`` the one it moves away from, ``avoids`` those where it couldn't come
    to; ``cpu_model`` what its CPU must be, None for any; ``runtime`` what its runtimes must be able to run, where ``machine``
    doesn't say it; ``home`` the uid of the node where its volumes lie; ``pools`` those that it must have, NAME or, where data
    lies already, NAME@ID; ``near`` the groups whose members it must be with, if there are any, and ``apart`` those it must not
    be with; ``groups`` those it will be a member of; ``caller`` the uid of the node it should be near; ``gang`` those it is
    placed together with; ``basis`` what strategies go by that look at how full nodes are; to one that ``gives_way`` nobody
    does. No name of a Constraint is left in ``constraint`` and ``preferences``."""

    amounts: Amounts
    machine: str  # "" is none
    strategy: str
    node: str | None = None
    home: str | None = None
    least_disk: int = 0
    extras: tuple[tuple[str, int], ...] = ()
    gpus: GpuAsk | None = None
    constraint: Expression | None = None
    preferences: tuple[Preference, ...] = ()
    tolerations: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    spread: tuple[Spread, ...] = ()
    data: tuple[Datum, ...] = ()
    leans: tuple[SoftTerm, ...] = ()
    caller: str | None = None
    mode: Literal["long-lived", "serverless"] = "long-lived"
    gang: str = ""
    leaves: str | None = None
    avoids: tuple[str, ...] = ()
    cpu_model: str | None = None
    pools: tuple[str, ...] = ()
    runtime: str = ""
    basis: Basis = "allocation"
    gives_way: bool = False


class Texts(msgspec.Struct, frozen=True):
    """A text of every node: ``words[codes[i]]``, none where the code is -1. ``places`` is the code of each word."""

    codes: Codes
    words: list[str]
    places: dict[str, int]

    def equal(self, word: str) -> Flags:
        """Which nodes have this very word."""
        flags: Flags = self.codes == self.places.get(word, -2)
        return flags


class Groups(Protocol):
    """Who is a member of which group."""

    def find(self, group: str) -> Mapping[str, Sequence[str]]:
        """Node uid → the workloads of this group there, as people call them."""


class Table(Protocol):
    """Nodes as columns: row i of each is the same node. ``capacity`` (what may be given: what there is, times the ratio
    of overcommitment), ``allocated`` and ``free`` have one row per resource and one column per node; so has ``used``, what
    is in use where that is ``measured`` (times the same ratio), and elsewhere what is allocated. ``rank`` is the node's place
    when all are sorted by name; ``notes`` why people cordoned it. ``gpu_free`` has one row per node, one column per device:
    thousandths free, -1 where there is none; ``gpu_memory`` and ``gpu_model`` likewise. No array is to be changed."""

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
        """Which nodes can run this machine type."""

    def taints(self) -> Sequence[tuple[str, Flags]]:
        """Every taint that some node has, and which have it."""

    def text(self, attribute: str) -> Texts | None:
        """A text of every node (``name uid type zone rack arch storage location gpu.model hypervisor``, every label); None
        if no node has it."""

    def number(self, attribute: str) -> Values | None:
        """A number of every node, NaN where it has none (``cpu memory disk gpu`` and ``.free`` of each, ``gpu.memory
        cost``, every declared resource, every label that reads as one); None if no node has it."""

    def extra(self, name: str) -> tuple[Whole, Whole]:
        """Of a resource that nodes declare: what each may give, and has given."""

    def members(self, group: str) -> Whole:
        """How many workloads of this group (``<project>/<name>``) lie on each node."""

    def holds(self, datum: str) -> Flags:
        """Where this datum lies."""

    def distance(self, uid: str) -> Values:
        """Round trips from the node ``uid`` to each, in ms; NaN where unknown."""


class Lack(msgspec.Struct, frozen=True):
    """``resource`` (one of RESOURCES, ``gpu``, or a declared one): how much is wanted, and how much is free, in the
    table's units."""

    resource: str
    wanted: int
    free: int


class Filter(Protocol):
    """A condition a node must meet. ``name`` stands in explanations; ``reads`` is the most it looks at."""

    name: str
    reads: Reads

    def asks(self, request: Request) -> Hashable:
        """What of the request it judges by; None if it has nothing to say to it. Requests that ask the same get the same
        verdicts: those of a filter that reads ``facts`` are kept by this."""

    def fits(self, table: Table, request: Request) -> Flags:
        """For every node whether it meets the condition."""

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        """Why node ``index`` does not: a phrase for people, and what it lacks."""


class Column(msgspec.Struct, frozen=True):
    """One term of a score for every node: ``weight · values``, values 0–100, more is better."""

    name: str
    weight: float
    values: Values


class Sort(msgspec.Struct, frozen=True):
    """One sort of workload that is expected: what one of them asks for, and which share of all it is (``often``, of 1).
    ``left`` is how much of all GPUs it could still use if no other sort came (0–1); of one without GPUs, how many still
    fit of those that would on empty nodes."""

    amounts: Amounts
    gpus: GpuAsk | None
    often: float
    left: float = 1.0


class Outlook(msgspec.Struct, frozen=True, eq=False):
    """What is likely to be asked for next: ``sorts``, the most frequent first, and the ``largest`` node there is (of each
    of RESOURCES, and thousandths of GPUs). ``gpus_wanted``: whether any sort wants some that nodes have;
    ``gpus_everywhere``: whether every node has some. ``bound``: what workloads ask nodes to be, each with how much of the cpu of
    the nodes that are so is asked for that way (0–1), the most first."""

    sorts: tuple[Sort, ...] = ()
    largest: tuple[int, int, int, int] = (1, 1, 1, 1)
    gpus_wanted: bool = False
    gpus_everywhere: bool = False
    bound: tuple[tuple[Expression, float], ...] = ()

    def lasts(self, request: Request) -> bool:
        """Whether what a node is worth to the request follows from its own row and this outlook; where not, a policy that
        reads the outlook looks at all nodes together."""
        return self.gpus_wanted and (self.gpus_everywhere or request.gpus is not None)


class PreferenceTerm(Protocol):
    """What adds to the score whatever the strategy, because the request says so. ``name``, ``reads`` and ``asks`` as with
    a filter; a weight of 1 is as much as the strategy itself has."""

    name: str
    reads: Reads

    def asks(self, request: Request) -> Hashable: ...

    def weight(self, request: Request) -> float:
        """Of all its terms together."""

    def terms(self, table: Table, request: Request) -> list[Column]: ...


class Occasion(msgspec.Struct, frozen=True):
    """What a policy may know beside nodes and request: ``seed`` and the workload's ``uid`` for chance, ``last``, the
    node that was chosen most recently, and the ``outlook``."""

    seed: int
    uid: str
    last: str | None
    outlook: Outlook = Outlook()


class Policy(Protocol):
    """How good each node is. ``reads`` is the most it looks at: what follows from facts, or from a node's own row, and the
    request alone, is kept until they change; it must then give the same for a row whichever rows lie beside it."""

    name: str
    reads: Reads

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]: ...


@runtime_checkable
class LoadPolicy(Policy, Protocol):
    """A policy that goes by how full a node is and nothing else: decided much faster than others."""

    def load(self, request: Request) -> tuple[float, float, float] | None:
        """The weight of each of RESOURCES: above 0 for how much of it (0–100) is in use once the request is there, below
        0 for how much is left. None where ``terms`` must be asked."""
