"""The placement contract: filters say where a request may go, a policy says where best. Both look at all nodes at once.

They decide from values and keep nothing: the same table and the same request give the same answer. Tables hold whole
numbers, so that sums never drift: cpu in thousandths of a core, memory and disk in bytes, in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Whole = NDArray[np.int64]
    Flags = NDArray[np.bool_]
    Values = NDArray[np.float64]
else:
    Whole = Flags = Values = Any

RESOURCES = ("cpu", "memory", "disk")


class Request(msgspec.Struct, frozen=True):
    """What is asked of a node. Equal requests get equal verdicts, so they are decided as one class.

    ``amounts`` in the order of RESOURCES; ``least_disk`` is how little disk the image would do with; ``node`` the only
    node's name it may go to; ``home`` the uid of the node where its volumes lie."""

    amounts: tuple[int, int, int]
    machine: str
    strategy: str
    node: str | None = None
    home: str | None = None
    least_disk: int = 0


class Table(Protocol):
    """Nodes as columns: row i of each is the same node. ``capacity`` and ``allocated`` have one row per resource and one
    column per node. ``rank`` is the node's place when all are sorted by name; ``notes`` why people cordoned it."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def uids(self) -> Sequence[str]: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def capacity(self) -> Whole: ...
    @property
    def allocated(self) -> Whole: ...
    @property
    def online(self) -> Flags: ...
    @property
    def cordoned(self) -> Flags: ...
    @property
    def rank(self) -> Whole: ...

    def machine(self, name: str) -> Flags:
        """Which nodes can run this machine type."""


class Lack(msgspec.Struct, frozen=True):
    """``resource`` (one of RESOURCES): how much is wanted, and how much is free, in the table's units."""

    resource: str
    wanted: int
    free: int


class Filter(Protocol):
    """A condition a node must meet. ``name`` stands in explanations."""

    name: str

    def fits(self, table: Table, request: Request) -> Flags:
        """For every node whether it meets the condition."""

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        """Why node ``index`` does not: a phrase for people, and what it lacks."""


class Column(msgspec.Struct, frozen=True):
    """One term of a score for every node: ``weight · values``, values 0–100, more is better."""

    name: str
    weight: float
    values: Values


class Occasion(msgspec.Struct, frozen=True):
    """What a policy may know beside nodes and request: ``seed`` and the workload's ``uid`` for chance, and ``last``, the
    node that was chosen most recently."""

    seed: int
    uid: str
    last: str | None


class Policy(Protocol):
    """How good each node is. ``steady`` says that a node's values follow from its own row and the request alone, so they
    may be kept until the row changes."""

    name: str
    steady: bool

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]: ...
