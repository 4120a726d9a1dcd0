"""The conditions that every placement meets, in order: the first that fails is the node's verdict.

Pure. The cheap ones that explain most come first; resources come last, so a shortfall is reported only of a node that could take
the workload if it had more.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np

from weft.contracts.policy import RESOURCES, Filter, Flags, Lack, PoolBound, PoolColumn, Reads, Request, Table, Whole
from weft.kinds.fields.taint import is_tolerated
from weft.kinds.record import GUARD
from weft.objects.quantity import format_bytes
from weft.scheduler.constraint.affinity import Apart, AtHand, Near, Spreading
from weft.scheduler.constraint.match import Meets
from weft.scheduler.table.devices import WHOLE, count_fitting, find_fitting
from weft.scheduler.table.facts import (
    GPUS_KEPT,
    GPUS_WHOLE,
    NEWER,
    NOT_READY,
    QUARANTINED,
    name_cpu,
    name_pool,
    name_runtime,
    name_shut,
)


class Online:
    name = "online"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return True

    def fits(self, table: Table, request: Request) -> Flags:
        return table.online

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        texts = table.text(NOT_READY)
        if texts is None or texts.codes[index] < 0:
            return "not ready", []
        return texts.words[texts.codes[index]], []


class Cordon:
    name = "cordon"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return True

    def fits(self, table: Table, request: Request) -> Flags:
        return ~table.cordoned | _has_text(table, QUARANTINED) | _has_text(table, NEWER)

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        note = table.notes[index]
        return f"cordoned ({note})" if note else "cordoned", []


class Quarantine:
    """Filter of nodes on which starts failed; such a node is marked as cordoned, so that plans leave it out like those."""

    name = "quarantine"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return True

    def fits(self, table: Table, request: Request) -> Flags:
        return ~_has_text(table, QUARANTINED)

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        texts = table.text(QUARANTINED)
        return (texts.words[texts.codes[index]] if texts is not None else ""), []


class Release:
    """Filter of nodes whose agents are newer than the servers; such a node is marked as cordoned, too."""

    name = "release"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return True

    def fits(self, table: Table, request: Request) -> Flags:
        return ~_has_text(table, NEWER)

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        texts = table.text(NEWER)
        return (texts.words[texts.codes[index]] if texts is not None else ""), []


class Maintenance:
    name = "maintenance"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return True

    def fits(self, table: Table, request: Request) -> Flags:
        return ~_has_text(table, "maintenance")

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        texts = table.text("maintenance")
        reason = texts.words[texts.codes[index]] if texts is not None else ""
        return f"in maintenance ({reason})" if reason not in ("", "on") else "in maintenance", []


class Pinned:
    """The one node whose ``attribute`` is the ``word`` of the request, if that has one; ``why`` the others are refused."""

    reads: Reads = "facts"

    def __init__(self, name: str, attribute: str, word: Callable[[Request], str | None], why: str) -> None:
        self.name = name
        self._attribute, self._word, self._why = attribute, word, why

    def asks(self, request: Request) -> Hashable:
        return self._word(request)

    def fits(self, table: Table, request: Request) -> Flags:
        return _is_text(table, self._attribute, self._word(request))

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        return self._why.format(self._word(request)), []


class Leaving:
    name = "leaves"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return (request.leaves, request.avoids) if request.leaves or request.avoids else None

    def fits(self, table: Table, request: Request) -> Flags:
        fits = np.ones(len(table.names), dtype=np.bool_)
        for name in filter(None, (request.leaves, *request.avoids)):
            fits &= ~_is_text(table, "name", name)
        return fits

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        left = table.names[index] == request.leaves
        return "the source of the migration" if left else "an attempt to migrate to it has failed", []


class HasPools:
    name = "pool"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return request.pools

    def fits(self, table: Table, request: Request) -> Flags:
        fits = np.ones(len(table.names), dtype=np.bool_)
        for pool in request.pools:
            fits &= find_pool(table, pool)
        return fits

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        for pool in request.pools:
            if find_pool(table, pool)[index]:
                continue
            name, _, exactly = pool.partition("@")
            if exactly and find_pool(table, name)[index]:
                return f"its pool {name} is not the storage that holds a volume's data", []
            return f"has no usable storage pool {name}", []
        return "", []


def find_pool(table: Table, pool: str) -> Flags:
    """Flags of the nodes that have this pool: NAME, or the very storage NAME@ID."""
    name, _, storage = pool.partition("@")
    texts = table.text(name_pool(name))
    if texts is None:
        return np.zeros(len(table.names), dtype=np.bool_)
    return texts.equal(storage) if storage else texts.codes >= 0


class OpenPools:
    """Pools that take new disks, where the request needs some: neither closed nor full."""

    name = "pool closed"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return request.disks or None

    def fits(self, table: Table, request: Request) -> Flags:
        fits = np.ones(len(table.names), dtype=np.bool_)
        for pool in request.disks:
            texts = table.text(name_shut(pool))
            if texts is not None:
                fits &= texts.codes < 0
        return fits

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        for pool in request.disks:
            texts = table.text(name_shut(pool))
            if texts is not None and texts.codes[index] >= 0:
                return texts.words[texts.codes[index]], []
        return "", []


class BoundedPools:
    """Pools that may still promise what the request asks of them. What others are promised there counts, wherever they are."""

    name = "pool given"
    reads: Reads = "fabric"

    def asks(self, request: Request) -> Hashable:
        return request.asks or None

    def fits(self, table: Table, request: Request) -> Flags:
        fits = np.ones(len(table.names), dtype=np.bool_)
        for pool in dict.fromkeys(ask.pool for ask in request.asks):
            column = table.pool(pool)
            wanted = _sum_wanted(column, request, pool)
            fits &= (wanted <= 0) | (wanted <= column.left)
        return fits

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        for pool in dict.fromkeys(ask.pool for ask in request.asks):
            column = table.pool(pool)
            wanted = int(_sum_wanted(column, request, pool)[index])
            if wanted > max(0, int(column.left[index])):
                return describe_excess(column.bound_of(index), wanted), []
        return "", []


def describe_excess(bound: PoolBound, wanted: int) -> str:
    """``pool/fast may promise 200 GiB and has promised 190 GiB: 20 GiB more are too much``"""
    return (
        f"pool/{bound.name} may promise {format_bytes(bound.most)} and has promised {format_bytes(bound.given)}: "
        f"{format_bytes(wanted)} more are too much"
    )


def _sum_wanted(column: PoolColumn, request: Request, pool: str) -> Whole:
    """How many bytes the request needs anew of each node's storage of this name."""
    wanted = np.zeros(len(column.left), dtype=np.int64)
    for ask in request.asks:
        if ask.pool == pool:
            wanted += ask.size
            if ask.at:
                wanted[column.ids.equal(ask.at)] -= min(ask.held, ask.size)
    return wanted


class Machine:
    name = "machine"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return request.machine or None

    def fits(self, table: Table, request: Request) -> Flags:
        if not request.machine:
            return np.ones(len(table.names), dtype=np.bool_)
        return table.machine(request.machine)

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        type_, _, version = request.machine.partition("@")
        if version and table.machine(type_)[index]:
            return f"its QEMU can't build machine type {type_} of version {version}, which the guest runs on", []
        return f"can't run machine type {type_}", []


class Runtime:
    name = "runtime"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return request.runtime or None

    def fits(self, table: Table, request: Request) -> Flags:
        if not request.runtime:
            return np.ones(len(table.names), dtype=np.bool_)
        return table.machine(name_runtime(request.runtime))

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        if request.runtime == GUARD:
            return "can't end guests whose cluster isn't primary any more", []
        return f"runs no {describe_runtime(request.runtime)}", []


def describe_runtime(runtime: str) -> str:
    """``containers``, or ``containers in machines of their own``."""
    if runtime == GUARD:
        return "guests whose replica takes over automatically"
    kind, _, isolation = runtime.partition("/")
    return f"{kind}s{_ISOLATED.get(isolation, '')}"


_ISOLATED = {"vm": " in machines of their own", "saved": " restored from a checkpoint"}


class CpuModel:
    name = "cpu model"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return request.cpu_model

    def fits(self, table: Table, request: Request) -> Flags:
        if request.cpu_model is None:
            return np.ones(len(table.names), dtype=np.bool_)
        return table.machine(name_cpu(request.cpu_model))

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        model, _, exactly = (request.cpu_model or "").partition("@")
        if exactly:
            return f"its CPU differs from the one that the guest runs with ({model} {exactly})", []
        return f"can't provide CPU model {model}", []


class GivenGpus:
    """GPUs that guests can get, whole or shared as requested; FreeCapacity refuses nodes without any."""

    name = "gpu"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return None if request.gpus is None else request.gpus.share < WHOLE

    def fits(self, table: Table, request: Request) -> Flags:
        fits = np.ones(len(table.names), dtype=np.bool_)
        for attribute in self._attributes(request):
            texts = table.text(attribute)
            if texts is not None:
                fits &= texts.codes < 0
        return fits

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        for attribute in self._attributes(request):
            texts = table.text(attribute)
            if texts is not None and texts.codes[index] >= 0:
                if attribute == GPUS_WHOLE:
                    return "its GPUs are not shared: each goes whole to one VM", []
                return f"its GPUs can't be passed to guests: {texts.words[texts.codes[index]]}", []
        return "", []

    def _attributes(self, request: Request) -> tuple[str, ...]:
        shared = request.gpus is not None and request.gpus.share < WHOLE
        return (GPUS_KEPT, GPUS_WHOLE) if shared else (GPUS_KEPT,)


class Taints:
    name = "taint"
    reads: Reads = "facts"

    def asks(self, request: Request) -> Hashable:
        return request.tolerations

    def fits(self, table: Table, request: Request) -> Flags:
        fits = np.ones(len(table.names), dtype=np.bool_)
        for taint, flags in table.taints():
            if not is_tolerated(taint, request.tolerations):
                fits &= ~flags
        return fits

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        taints = sorted(
            taint for taint, flags in table.taints() if flags[index] and not is_tolerated(taint, request.tolerations)
        )
        return f"tainted {', '.join(taints)}", []


class FreeCapacity:
    """Enough of everything that is counted: RESOURCES, declared ones, GPUs."""

    name = "resources"
    reads: Reads = "row"

    def asks(self, request: Request) -> Hashable:
        return request.amounts, request.extras, request.gpus

    def fits(self, table: Table, request: Request) -> Flags:
        enough: Flags = table.free[0] >= request.amounts[0]
        for free, amount in zip(table.free[1:], request.amounts[1:], strict=True):
            enough &= free >= amount
        for name, amount in request.extras:
            capacity, allocated = table.extra(name)
            enough = enough & (capacity - allocated >= amount)
        if request.gpus is not None:
            enough = enough & (count_fitting(table, request.gpus) >= request.gpus.count)
        return enough

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        lacks = []
        for row, (resource, wanted) in enumerate(zip(RESOURCES, request.amounts, strict=True)):
            free = int(table.free[row, index])
            if wanted > free:
                lacks.append(Lack(resource, wanted, free))
        for name, amount in request.extras:
            capacity, allocated = table.extra(name)
            free = int(capacity[index] - allocated[index])
            if amount > free:
                lacks.append(Lack(name, amount, free))
        if request.gpus is not None:
            ask = request.gpus
            fitting = int(find_fitting(table, ask)[index].sum())
            if fitting < ask.count:
                lacks.append(Lack("gpu", ask.count * ask.share, fitting * ask.share))
        return "not enough " + " and ".join(lack.resource for lack in lacks), lacks


def _has_text(table: Table, attribute: str) -> Flags:
    texts = table.text(attribute)
    return np.zeros(len(table.names), dtype=np.bool_) if texts is None else texts.codes >= 0


def _is_text(table: Table, attribute: str, word: str | None) -> Flags:
    texts = table.text(attribute)
    if word is None or texts is None:
        return np.full(len(table.names), word is None, dtype=np.bool_)
    return texts.equal(word)


FREE_CAPACITY: Filter = FreeCapacity()
POOL_BOUND: Filter = BoundedPools()
FACTS: tuple[Filter, ...] = (
    Online(),
    Cordon(),
    Quarantine(),
    Release(),
    Maintenance(),
    Leaving(),
    Pinned("node", "name", lambda request: request.node, "node {} was requested"),
    Pinned("volume", "uid", lambda request: request.home, "its data is on another node"),
    HasPools(),
    OpenPools(),
    Runtime(),
    Machine(),
    CpuModel(),
    GivenGpus(),
    Taints(),
    Meets(now=False),
    AtHand(),
)
FILTERS: tuple[Filter, ...] = (*FACTS, Meets(now=True), Near(), Apart(), Spreading(FACTS), POOL_BOUND, FREE_CAPACITY)


def describe_pools(table: Table, request: Request) -> str:
    """Describe the pool that lacks most to promise what the request asks of it; empty if all may promise it."""
    rows = np.flatnonzero(~POOL_BOUND.fits(table, request))
    if not rows.size:
        return ""
    left = np.sum([table.pool(pool).left for pool in dict.fromkeys(ask.pool for ask in request.asks)], axis=0)
    return POOL_BOUND.explain(table, request, int(rows[np.argmax(left[rows])]))[0]
