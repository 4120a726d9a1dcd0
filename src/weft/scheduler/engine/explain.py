"""Why a decision is as it is: verdicts of the very scores and filters it was made from, and sentences for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from weft.contracts.policy import RESOURCES, Column, Filter, Flags, GpuAsk, Lack, Request, Values
from weft.kinds.decision import Shortfall, Term, Verdict
from weft.objects.quantity import format_amount, format_bytes, format_cpu
from weft.scheduler.constraint.expressions import find_warnings
from weft.scheduler.constraint.filters import FREE_CAPACITY, POOL_BOUND, describe_pools, describe_runtime
from weft.scheduler.constraint.near_device import describe_device
from weft.scheduler.constraint.talkers import describe_talkers
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.table.devices import WHOLE, find_fitting
from weft.scheduler.table.facts import name_runtime
from weft.scheduler.table.snapshot import Snapshot

ALL_UP_TO = 64  # nodes; of more, a sample gets verdicts
RUNNERS_UP = 4
NAMED = 5  # most nodes that a warning names
REFUSED_SAMPLE = 16
LEAST_MEMORY = 64 * 1024 * 1024
LEAST_CPU = 100
MIB, GIB = 1024**2, 1024**3


class Explanation(msgspec.Struct, frozen=True):
    """The content of a Decision but for the workload and the time: see DecisionSpec."""

    nodes: int
    verdicts: list[Verdict]
    refused_by: dict[str, int]
    error: str = ""
    message: str = ""
    nearest: str = ""
    nearest_node: str = ""
    warnings: list[str] = []
    gang: str = ""
    notes: list[str] = []  # what was known when it was decided


def explain(engine: Engine, request: Request, uid: str, chosen: int | None, *, also: Sequence[int] = ()) -> Explanation:
    """Explain as ``_explain`` does, and say whom the workload talks to, or where its device is, where that counts."""
    found = _explain(engine, request, uid, chosen, also=also)
    notes = describe_talkers(engine.snapshot, request, chosen) + describe_device(engine.snapshot, request, chosen)
    return msgspec.structs.replace(found, notes=notes) if notes else found


def _explain(engine: Engine, request: Request, uid: str, chosen: int | None, *, also: Sequence[int]) -> Explanation:
    """The explanation of ``engine.choose``, made before anything changes; the rows ``also`` get a verdict in any case."""
    snapshot = engine.snapshot
    leaders = (
        engine.leaders(request, RUNNERS_UP + 1)
        if chosen is not None and not also and len(snapshot) > ALL_UP_TO
        else None
    )
    if leaders is not None:  # no node is refused, and the best are known without scoring the others
        rows, best_scores = [row for row, _ in leaders], [score for _, score in leaders]
        verdicts = _describe_fits(engine, request, uid, rows, chosen, best_scores)
        return Explanation(len(snapshot), verdicts, {}, warnings=_warn(request, snapshot))
    scores = engine.scores(request, uid)
    refusing = bool(len(scores)) and bool(scores.min() < 0.0)
    refusers = engine.refusers(request) if refusing else []
    refused_by = {filter_.name: int(np.count_nonzero(flags)) for filter_, flags in refusers}
    everything = len(snapshot) <= ALL_UP_TO
    best = find_best(scores, len(snapshot) if everything else RUNNERS_UP + 1)
    best += [row for row in also if scores[row] >= 0.0 and row not in best]
    verdicts = _describe_fits(engine, request, uid, best, chosen, scores[best].tolist())
    if chosen is not None and not refusing:
        return Explanation(len(snapshot), verdicts, refused_by, warnings=_warn(request, snapshot))
    wanting = next(
        (flags for filter_, flags in refusers if filter_ is FREE_CAPACITY), np.zeros(len(snapshot), dtype=np.bool_)
    )
    nearest = _find_nearest(engine, request, wanting) if chosen is None else None
    refused = _sample(scores < 0.0, everything, chosen is None, nearest)
    refused += [row for row in also if scores[row] < 0.0 and row not in refused]
    for index in refused:
        filter_ = next(filter_ for filter_, flags in refusers if flags[index])
        reason, lacks = filter_.explain(snapshot, request, index)
        verdicts.append(
            Verdict(
                node=snapshot.names[index],
                outcome="refused",
                filter=filter_.name,
                reason=reason,
                shortfalls=[_shortfall(lack) for lack in lacks],
            )
        )
    warnings = _warn(request, snapshot)
    if chosen is not None:
        return Explanation(len(snapshot), verdicts, refused_by, warnings=warnings)
    return Explanation(
        nodes=len(snapshot),
        verdicts=verdicts,
        refused_by=refused_by,
        error="insufficientResources" if wanting.any() or refused_by.get(POOL_BOUND.name) else "noAvailableAgents",
        message=_describe_shortage(engine, request, wanting, _count_others(snapshot, request, refusers)),
        nearest=_describe_nearest(engine, request, nearest),
        nearest_node="" if nearest is None else snapshot.names[nearest],
        warnings=warnings,
    )


def _warn(request: Request, snapshot: Snapshot) -> list[str]:
    """Warn people about the spec, and name the nodes whose usage isn't measured, where usage counts."""
    warnings = find_warnings(request, snapshot)
    if request.basis == "allocation":
        return warnings
    names = [snapshot.names[row] for row in np.flatnonzero(snapshot.online & ~snapshot.measured)]
    nodes = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return [*warnings, f"usage not measured, so what is allocated counts: {nodes}"] if names else warnings


def find_best(scores: Values, most: int) -> list[int]:
    """The rows of the best scores, at most so many, the best first; of equals the first row."""
    if most > RUNNERS_UP + 1:
        order = np.argsort(-scores, kind="stable")
        return [int(row) for row in order[:most] if scores[row] >= 0.0]
    left, rows = scores.copy(), []
    for _ in range(min(most, left.size)):
        row = int(left.argmax())
        if left[row] < 0.0:
            break
        rows.append(row)
        left[row] = -1.0
    return rows


def describe_choice(engine: Engine, index: int) -> str:
    """How full node ``index`` is, for the journal: allocated/capacity."""
    snapshot = engine.snapshot
    all_, free = snapshot.capacity[:, index].tolist(), snapshot.free[:, index].tolist()
    cpu, memory, disk = (there - left for there, left in zip(all_, free, strict=True))
    return (
        f"CPU: {cpu / 1000:g}/{all_[0] / 1000:g}, Memory: {format_bytes(memory)}/{format_bytes(all_[1])}, "
        f"Disk: {format_bytes(disk)}/{format_bytes(all_[2])}"
    )


def _describe_fits(
    engine: Engine, request: Request, uid: str, rows: Sequence[int], chosen: int | None, scores: Sequence[float]
) -> list[Verdict]:
    if not rows:
        return []
    columns = _join_alike(engine.terms(request, uid, rows))
    values = np.round([column.values for column in columns], 3).tolist()
    terms = zip(
        *([Term(c.name, c.weight, v) for v in row] for c, row in zip(columns, values, strict=True)), strict=True
    )
    return [
        Verdict(
            node=engine.snapshot.names[index],
            outcome="chosen" if index == chosen else "fits",
            score=score,
            terms=list(parts),
            reason="runner-up" if place == 1 and rows[0] == chosen else "",
        )
        for place, (index, score, parts) in enumerate(zip(rows, scores, terms, strict=True))
    ]


def _join_alike(columns: list[Column]) -> list[Column]:
    """Parts of a score that are named alike, such as one spread of two groups, as one."""
    joined: dict[str, Column] = {}
    for column in columns:
        if (other := joined.get(column.name)) is not None and (total := column.weight + other.weight):
            values = (column.weight * column.values + other.weight * other.values) / total
            column = Column(column.name, total, values)
        joined[column.name] = column
    return list(joined.values())


def _sample(refused: Flags, everything: bool, failed: bool, nearest: int | None) -> list[int]:
    rows = np.flatnonzero(refused)
    out: list[int] = (rows if everything else rows[: REFUSED_SAMPLE if failed else RUNNERS_UP]).tolist()
    if nearest is not None and nearest not in out:
        out.insert(0, nearest)
    return out


def _shortfall(lack: Lack) -> Shortfall:
    scale = 1000.0 if lack.resource in ("cpu", "gpu") else 1.0
    return Shortfall(lack.resource, lack.wanted / scale, lack.free / scale)


def _counted(snapshot: Snapshot, request: Request) -> tuple[Values, Values]:
    """The requested amount of each counted resource, and how much each node has free: RESOURCES, declared ones, GPUs."""
    free = [*(snapshot.capacity - snapshot.allocated)]
    for name, _ in request.extras:
        capacity, allocated = snapshot.extra(name)
        free.append(capacity - allocated)
    wanted = [*request.amounts, *(amount for _, amount in request.extras)]
    if request.gpus is not None:
        free.append(find_fitting(snapshot, request.gpus).sum(axis=1))
        wanted.append(request.gpus.count)
    return np.asarray(wanted, dtype=np.float64), np.asarray(free, dtype=np.float64)


def _find_nearest(engine: Engine, request: Request, wanting: Flags) -> int | None:
    """The node that could take the largest share of the request, of those that lack nothing but capacity."""
    snapshot = engine.snapshot
    wanted, free = _counted(snapshot, request)
    useful = wanting & (free[0] >= LEAST_CPU) & (free[1] >= LEAST_MEMORY) & (free[2] >= request.least_disk)
    rows = np.flatnonzero(useful & (free[len(RESOURCES) :] >= 1).all(axis=0))
    if not rows.size:
        return None
    shares = np.minimum(free[:, rows] / np.maximum(wanted, 1.0)[:, None], 1.0)
    order = np.lexsort((snapshot.rank[rows], -shares.sum(axis=0), -shares.min(axis=0)))
    return int(rows[order[0]])


def _describe_nearest(engine: Engine, request: Request, nearest: int | None) -> str:
    if nearest is None:
        return ""
    wanted, free = _counted(engine.snapshot, request)
    flags = []
    names = [*RESOURCES, *(f"resources {name}=" for name, _ in request.extras), "gpus"]
    for name, most, there in zip(names, wanted, free[:, nearest], strict=False):
        if most > there:
            amount = int(there) - (request.of_volumes if name == "disk" else 0)
            text = format_cpu(amount // 100 / 10) if name == "cpu" else _whole(amount) if name in RESOURCES else amount
            flags.append(f"--{name}{'' if name.endswith('=') else ' '}{text}")
    return f"{engine.snapshot.names[nearest]}, if you ask for at most {' '.join(flags)}"


def _whole(size: int) -> str:
    """A size no larger than ``size``, as people type it."""
    return f"{size // GIB}G" if size >= 4 * GIB else f"{size // MIB}M"


def _count_others(snapshot: Snapshot, request: Request, refusers: Iterable[tuple[Filter, Flags]]) -> dict[str, int]:
    """How many nodes each filter refuses, not counting the one that the workload leaves."""
    row = (
        next((row for row, name in enumerate(snapshot.names) if name == request.leaves), None)
        if request.leaves
        else None
    )
    return {
        filter_.name: int(np.count_nonzero(flags)) - (row is not None and bool(flags[row]))
        for filter_, flags in refusers
    }


def describe_deleted_node(snapshot: Snapshot, request: Request) -> str:
    """Say that the requested node isn't there any more: it was when the request was admitted. "": it is, or none was requested."""
    is_there = not request.node or request.node in snapshot.names
    return "" if is_there else f"node {request.node}, which was requested, was deleted"


def _describe_shortage(engine: Engine, request: Request, wanting: Flags, refused_by: dict[str, int]) -> str:
    snapshot = engine.snapshot
    if deleted := describe_deleted_node(snapshot, request):
        return deleted
    if not len(snapshot):
        return "there are no nodes"
    if request.runtime and not snapshot.machine(name_runtime(request.runtime)).any():
        return f"no node runs {describe_runtime(request.runtime)}"
    others = [
        f"{count} {_PHRASES.get(name, name)}"
        for name, count in refused_by.items()
        if name != FREE_CAPACITY.name and count
    ]
    if excess := describe_pools(snapshot, request) if refused_by.get(POOL_BOUND.name) else "":
        others[-1] += f"; {excess}"
    rows = np.flatnonzero(wanting)
    if not rows.size and not others:
        return f"there is no node other than {request.leaves}"
    if not rows.size:
        beside = f" other than {request.leaves}" if request.leaves else ""
        return f"no node{beside} can take it: of {len(snapshot) - bool(beside)}, " + ", ".join(others)
    free = (snapshot.capacity - snapshot.allocated)[:, rows]
    parts = []
    for row, (resource, wanted) in enumerate(zip(RESOURCES, request.amounts, strict=True)):
        most = int(free[row].max())
        if wanted > most:
            where = snapshot.names[int(rows[int(free[row].argmax())])]
            parts.append(
                f"needs {_amount(resource, wanted)} {resource}, largest free is {_amount(resource, most)} ({where})"
            )
    for name, wanted in request.extras:
        capacity, allocated = snapshot.extra(name)
        most = int((capacity - allocated)[rows].max())
        if wanted > most:
            parts.append(f"needs {format_amount(wanted)} {name}, largest free is {format_amount(max(0, most))}")
    if request.gpus is not None:
        most = int(find_fitting(snapshot, request.gpus)[rows].sum(axis=1).max())
        if request.gpus.count > most:
            parts.append(f"needs {describe_gpus(request.gpus)}, the most free on one node is {most}")
    if not parts:
        asked = ", ".join(f"{_amount(r, a)} {r}" for r, a in zip(RESOURCES, request.amounts, strict=True))
        asked += "".join(f", {format_amount(amount)} {name}" for name, amount in request.extras)
        asked += f", {describe_gpus(request.gpus)}" if request.gpus is not None else ""
        parts.append(f"no node has {asked} free at the same time")
    return "; ".join(parts) + (f"; {', '.join(others)}" if others else "")


def describe_gpus(ask: GpuAsk) -> str:
    """``2 GPUs (A100 or T4, 16.0 GiB each)``"""
    what = f"{ask.share / 10:g} % of a GPU" if ask.share < WHOLE else f"{ask.count} GPU{'s' * (ask.count != 1)}"
    of = [" or ".join(ask.models)] if ask.models else []
    of += [f"{format_bytes(ask.memory)} each"] if ask.memory else []
    return f"{what} ({', '.join(of)})" if of else what


_PHRASES = {
    "online": "not ready",
    "cordon": "cordoned",
    "quarantine": "quarantined",
    "release": "newer than the servers",
    "maintenance": "in maintenance",
    "node": "not the requested node",
    "leaves": "where an attempt to migrate has failed",
    "volume": "without its data",
    "pool": "without its storage pool",
    "pool given": "whose storage pool may promise no more",
    "pool closed": "whose storage pool takes no new disks",
    "runtime": "without a runtime for it",
    "machine": "without its machine type",
    "gpu": "with GPUs that it can't use",
    "taint": "tainted",
    "constraint": "not meeting its constraint",
    "available": "without the free capacity that its constraint requires",
    "data": "without its data",
    "affinity": "without a member of its affinity group",
    "anti-affinity": "with a member of an anti-affinity group",
    "spread": "where one more would exceed the skew",
}


def _amount(resource: str, amount: int) -> str:
    return format_cpu(amount / 1000) if resource == "cpu" else format_bytes(max(0, amount))
