"""Refuses a growth that nobody could give: a workload larger than any node, a volume larger than what its pool may promise.

A new object may wait for a node that is yet to come. What has a place already is refused instead, before anything is stored: as a
stored spec it would count in quotas, copies and lists for good. What fits nowhere only now is the scheduler's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weft.api.admission.view import View
from weft.kinds.allocation import LOCAL
from weft.kinds.deployment import DEPLOYMENT, decode_template
from weft.kinds.node import NODE, NodeReport, NodeSpec
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.pool import POOL, PoolMarks, PoolStatus
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.kinds.volume import VOLUME, VolumeMarks, VolumeSpec, VolumeStatus, has_size
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import Unplaceable
from weft.objects.identity import kind_prefix
from weft.objects.quantity import format_bytes, format_cpu

_AMOUNTS = ("cpu", "memory", "disk")


async def refuse_growth(view: View, kind: Kind, current: Envelope, old: Any, new: Any) -> None:
    """Raises Unplaceable."""
    if kind is VOLUME:
        await _refuse_volume(view, current, old, new)
    elif kind is DEPLOYMENT:
        made = BY_NAME[new.workload]
        has, wants = (decode_template(spec.workload, spec.template) for spec in (old, new))
        await _refuse_larger(view, made, has, wants, "spec.template.")
    elif kind.workload is not None and decode_part(current.status, WorkloadStatus).node is not None:
        await _refuse_larger(view, kind, old, new, "spec.")


async def _refuse_larger(view: View, kind: Kind, old: Any, new: Any, where: str) -> None:
    assert kind.workload is not None
    before, after = _read_amounts(kind, old), _read_amounts(kind, new)
    grown = [name for name in _AMOUNTS if after[name] > before[name]]
    if grown:
        await _refuse_workload(view, kind.workload.needs(new).pool, grown, after, where)


def _read_amounts(kind: Kind, spec: Any) -> dict[str, float]:
    assert kind.workload is not None
    return {"cpu": spec.cpu, "memory": spec.memory, "disk": kind.workload.needs(spec).disk}


async def _refuse_workload(view: View, pool: str, grown: Sequence[str], asked: dict[str, float], path: str) -> None:
    most = dict.fromkeys(_AMOUNTS, 0.0)
    for node in await _list(view, NODE):
        report, factor = decode_part(node.report, NodeReport), decode_part(node.spec, NodeSpec).overcommit
        for name in _AMOUNTS:
            most[name] = max(most[name], getattr(report, name) * factor.get(name, 1.0))
    if pool != LOCAL:
        most["disk"] = max((bound for _, bound in await _list_pools(view, pool)), default=0)
    for name in grown:
        if asked[name] > most[name] > 0:
            show = format_cpu if name == "cpu" else format_bytes
            what = f"{show(asked[name])}{' cores' if name == 'cpu' else ''}"
            where = "node has" if name != "disk" or pool == LOCAL else f"storage pool {pool} may promise"
            raise Unplaceable(
                f"{path}{name}: {what} is more than any {where}: {show(most[name])} at most",
                field=f"{path}{name}",
                hint="weft node list shows what nodes have",
            )


async def _refuse_volume(view: View, current: Envelope, old: VolumeSpec, new: VolumeSpec) -> None:
    if new.size <= old.size:
        return
    status = decode_part(current.status, VolumeStatus)
    if status.node_uid is None:
        pools = await _list_pools(view, new.pool)
        most = max((bound for _, bound in pools), default=0)
        if new.size > most > 0:
            raise Unplaceable(
                f"spec.size: {format_bytes(new.size)} is more than any storage pool {new.pool} may promise: "
                f"{format_bytes(most)} at most",
                field="spec.size",
                hint="weft pool list -o wide shows what pools may promise",
            )
        return
    pool = next((one for one in await _list(view, POOL) if _is_its(one, status)), None)
    if pool is None:
        return
    told = decode_part(pool.status, PoolStatus)
    has = has_size(old, decode_part(current.marks, VolumeMarks), status)
    more, free = new.size - has, max(0, told.bound - told.given)
    if more > free and told.bound:
        raise Unplaceable(
            f"spec.size: pool/{pool.name} may promise {format_bytes(told.bound)} and has promised {format_bytes(told.given)}: "
            f"{format_bytes(more)} more are too much",
            field="spec.size",
            hint=f"give at most {format_bytes(has + free)}; weft pool list -o wide shows what pools may promise",
        )


def _is_its(pool: Envelope, status: VolumeStatus) -> bool:
    marks, told = decode_part(pool.marks, PoolMarks), decode_part(pool.status, PoolStatus)
    if status.pool_id:
        return marks.id == status.pool_id
    return marks.pool == (status.pool or LOCAL) and told.node_names == [status.node]


async def _list_pools(view: View, name: str) -> list[tuple[Envelope, int]]:
    """The pools that disks call so, and what each may promise, in bytes."""
    pools = await _list(view, POOL)
    return [
        (one, decode_part(one.status, PoolStatus).bound)
        for one in pools
        if decode_part(one.marks, PoolMarks).pool == name
    ]


async def _list(view: View, kind: Kind) -> list[Envelope]:
    page = await view.store.list(kind_prefix(kind.name))
    return [decode_envelope(entry.value) for entry in page.entries]
