"""The facts of a node for placement: from its spec, its report and its labels. Pure.

Of several values of the same name a label wins over a report, and the spec over both.
"""

from __future__ import annotations

from collections.abc import Mapping

from weft.informer.view import Item, View
from weft.kinds.allocation import LOCAL
from weft.kinds.node import NodeActions, NodeReport, NodeSpec, NodeStatus, find_cordon, is_quarantined
from weft.kinds.parts.node.columns import read_type
from weft.kinds.pool import DEFAULT_OVERCOMMIT, POOLS_BY_ID, PoolSpec, PoolStatus
from weft.kinds.record import GUARD
from weft.scheduler.table.facts import (
    GPUS_KEPT,
    GPUS_WHOLE,
    NEWER,
    NOT_READY,
    QUARANTINED,
    Gpu,
    NodeFacts,
    name_alarm,
    name_cpu,
    name_pool,
    name_runtime,
    name_shut,
)
from weft.scheduler.table.pools import UNBOUND, Bound

SAVED, CAN = "saved", "yes"  # the isolation of restored containers, and the report of a node that can restore them
NONE_SHUT: Mapping[str, str] = {}
_SILENCES = {"Autonomous": "autonomous, sends no heartbeat", "NotReady": "sends no heartbeat"}  # by phase
MOST_ROUND_TRIPS = 64  # a node measures fewer; a longer report must not slow every decision


def read_node(item: Item, shut: Mapping[str, str] = NONE_SHUT) -> NodeFacts:
    """Facts of a Node object for placement; ``shut`` has why pools of it take no new disks, or come last, as attributes."""
    spec, status, report = item.spec(NodeSpec), item.status(NodeStatus), item.report(NodeReport)
    asked = item.actions(NodeActions)
    return NodeFacts(
        uid=item.uid,
        name=item.envelope.name,
        capacity=(round(report.cpu * 1000), report.memory, report.disk),
        online=status.phase == "Ready" and not item.deleting,
        cordoned=bool(find_cordon(asked, status)),
        machines=frozenset(
            (
                *report.machines,
                *map(name_cpu, report.cpu_models),
                *map(name_runtime, read_runtimes(report)),
                *([name_runtime(GUARD)] if report.guard == "yes" else []),
            )
        ),
        note=asked.cordon_reason,
        overcommit=spec.overcommit,
        texts={
            **read_texts(spec, report, item.envelope.labels),
            **({"maintenance": asked.maintenance_reason or "on"} if asked.maintenance else {}),
            **{name_pool(pool.name): pool.id for pool in report.pools if pool.id and pool.name != LOCAL},
            **shut,
            **({NOT_READY: _SILENCES[status.phase]} if status.phase in _SILENCES else {}),
            **({QUARANTINED: describe_quarantine(status)} if is_quarantined(status) and not asked.cordoned else {}),
            **({NEWER: describe_newer(status, report)} if status.newer_than and not asked.cordoned else {}),
        },
        numbers=read_numbers(spec, report),
        extras={**({"sriov": report.sriov} if report.sriov else {}), **spec.resources},
        gpus=tuple(Gpu(gpu.model, gpu.memory, bool(gpu.kept)) for gpu in report.gpus),
        taints=frozenset(spec.taints),
        data=read_data(spec, report),
        coordinate=tuple(report.coordinate),
        round_trips=report.round_trips if len(report.round_trips) <= MOST_ROUND_TRIPS else {},
    )


def describe_quarantine(status: NodeStatus) -> str:
    """``quarantined: the starts of 3 workloads failed there``"""
    assert status.quarantine is not None
    return f"quarantined: the starts of {status.quarantine.workloads} workloads failed there"


def find_shut(view: View, node: Item) -> dict[str, str]:
    """Attributes of the node: why pools of it take no new disks, being closed or full; which are beyond their alarm."""
    found = {}
    for offered in node.report(NodeReport).pools:
        for pool in view.find(POOLS_BY_ID, offered.id) if offered.id else ():
            status, name = pool.status(PoolStatus), f"pool/{pool.envelope.name}"
            if pool.spec(PoolSpec).closed:
                found[name_shut(offered.name)] = f"{name} is closed"
            elif status.phase == "Full":
                found[name_shut(offered.name)] = f"{name} is full: {status.message}"
            elif status.phase == "NearlyFull":
                found[name_alarm(offered.name)] = f"{name}: {status.message}"
    return found


def read_bounds(view: View, node: Item) -> dict[str, Bound]:
    """Bounds of the storages that a node offers, by id: what they may promise. Its own pool's bound is its allocatable disk."""
    found = {}
    for offered in node.report(NodeReport).pools:
        if offered.id and offered.name != LOCAL:
            pools = view.find(POOLS_BY_ID, offered.id)
            found[offered.id] = read_bound(pools[0], offered.total) if pools else bound_of(offered.name, offered.total)
    return found


def read_bound(pool: Item, total: int) -> Bound:
    """Bound of a pool's storage: what it may promise; ``total``: the capacity that nodes report, where the Pool hasn't one yet."""
    return bound_of(pool.envelope.name, pool.status(PoolStatus).capacity or total, pool.spec(PoolSpec).overcommit)


def bound_of(name: str, capacity: int, overcommit: float | None = None) -> Bound:
    return Bound(name, int(capacity * (overcommit or DEFAULT_OVERCOMMIT)) if capacity else UNBOUND)


def read_texts(spec: NodeSpec, report: NodeReport, labels: dict[str, str]) -> dict[str, str]:
    """Its attributes that are texts. ``hypervisor`` is the driver's name without its version."""
    found = {
        "arch": report.arch,
        "storage": report.storage,
        "tpm": report.tpm,
        "hypervisor": report.hypervisor.partition(" ")[0],
        "accelerator": report.accelerator,
    }
    derived: dict[str, str] = {"type": read_type(spec.type, bool(report.gpus))}
    if report.gpus and all(gpu.kept for gpu in report.gpus):
        derived[GPUS_KEPT] = report.gpus[0].kept.partition("; ")[0]
    if report.gpus and "gpu-shares" not in report.capabilities:
        derived[GPUS_WHOLE] = "yes"
    return {**{name: text for name, text in found.items() if text}, **labels, **derived}


def read_numbers(spec: NodeSpec, report: NodeReport) -> dict[str, float]:
    """Its attributes that are numbers, without the resources that workloads take."""
    found = {"cost": spec.cost, "numa": float(report.numa) if report.numa else None}
    return {name: number for name, number in found.items() if number is not None}


def read_runtimes(report: NodeReport) -> list[str]:
    """Workloads that its runtimes can run, each as KIND and as KIND/ISOLATION. A runtime that only makes machines of their own
    doesn't run workloads without an isolation."""
    return [
        word
        for runtime in report.runtimes
        if runtime.usable
        for kind in runtime.kinds
        for word in (
            *([kind] if runtime.isolations != ["vm"] else []),
            *(f"{kind}/{isolation}" for isolation in runtime.isolations),
            *([f"{kind}/{SAVED}"] if runtime.checkpoint == CAN else []),
        )
    ]


def read_data(spec: NodeSpec, report: NodeReport) -> frozenset[str]:
    """The data on it, or near it by its spec: see Datum."""
    images = (f"image:{sha256}" for sha256 in report.images)
    volumes = (f"volume:{uid}" for uid in report.volumes)
    return frozenset((*images, *volumes, *(f"pool:{pool}" for pool in spec.data)))


def describe_newer(status: NodeStatus, report: NodeReport) -> str:
    """``its agent 0.2.0 is newer than the servers (0.1.0)``"""
    return f"its agent {report.version} is newer than the servers ({status.newer_than})"
