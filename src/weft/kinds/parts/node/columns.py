"""The columns of ``weft node list``: nodes as the API gives them in, cells out. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from weft.kinds.fields.cells import AGE, NAME, dig, joined, text
from weft.kinds.parts.goal import find_condition
from weft.kinds.parts.node.reboot import describe_need
from weft.kinds.record import Column, Object
from weft.objects.quantity import format_bytes, format_cpu, format_duration

NodeType = Literal["cloud", "edge", "hybrid", "gpu", "storage"]
NODE_TYPES: tuple[str, ...] = get_args(NodeType)


def read_status(obj: Object) -> str:
    """Its phase as lists show it: what people or the scheduler keep from it stands for Ready."""
    phase = str(dig(obj, "status.phase", "Joining"))
    if phase == "Ready" and dig(obj, "actions.maintenance"):
        return "Maintenance"
    if phase == "Ready" and dig(obj, "actions.drain"):
        return "Drained" if is_drained(obj) else "Draining"
    if phase == "Ready" and dig(obj, "actions.cordoned"):
        return "Cordoned"
    quarantine = dig(obj, "status.quarantine")
    if phase == "Ready" and quarantine and not quarantine.get("on_probation"):
        return "Quarantined"
    if phase == "Ready" and dig(obj, "status.newer_than"):
        return "Newer"
    fit = find_condition(obj, "ConnectionsFit")
    return "Ready,ConnectionsHigh" if phase == "Ready" and fit is not None and fit["status"] == "False" else phase


def _type(obj: Object) -> str:
    return read_type(dig(obj, "spec.type"), bool(dig(obj, "report.gpus")))


def _pools(obj: Object) -> str:
    """Each with the beginning of its id, by which shared ones are known."""
    pools = dig(obj, "report.pools") or []
    return ",".join(f"{pool['name']}({pool['id'][:4] or '!'})" for pool in pools) or "–"


def read_type(given: NodeType | None, has_gpus: bool) -> NodeType:
    """A node's type: as given, else by what it has."""
    return given or ("gpu" if has_gpus else "cloud")


def _need(obj: Object) -> str:
    return describe_need(str(dig(obj, "report.reboot", "")), int(dig(obj, "report.outdated", 0))) or "–"


def _autonomy(obj: Object) -> str:
    seconds = float(dig(obj, "spec.autonomy_seconds", 0.0))
    return format_duration(seconds) if seconds else "–"


def _ratio(obj: Object, resource: str) -> float:
    return float(dig(obj, f"spec.overcommit.{resource}", 1.0))


def bar(used: float, total: float, width: int = 4) -> str:
    """A small bar in eighths of a block; empty when nothing is used."""
    if total <= 0 or used <= 0:
        return ""
    eighths = max(1, round(min(1.0, used / total) * width * 8))
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")


def _cpu(obj: Object) -> str:
    used, total = dig(obj, "status.allocated_cpu", 0), dig(obj, "report.cpu", 0) * _ratio(obj, "cpu")
    later = dig(obj, "status.allocations_later", 0)
    more = f" +{later} later" if later else ""
    return f"{format_cpu(used)}/{format_cpu(total)} {bar(used, total)}".rstrip() + more


def _bytes(part: str) -> Any:
    def cell(obj: Object) -> str:
        used, total = dig(obj, f"status.allocated_{part}", 0), dig(obj, f"report.{part}", 0) * _ratio(obj, part)
        return f"{used / 2**30:.1f}/{total / 2**30:.1f} GiB {bar(used, total)}".rstrip()

    return cell


def _used(part: str, show: Callable[[float], str]) -> Callable[[Object], str]:
    """Usage of its guests, if the command has fetched it: no object has it."""

    def cell(obj: Object) -> str:
        use = dig(obj, f"use.{part}")
        return "–" if use is None else show(use)

    return cell


def is_drained(obj: Object | None) -> bool:
    drained, generation = find_condition(obj, "Drained"), dig(obj or {}, "generation", 0)
    is_so = drained is not None and drained["status"] == "True" and drained.get("generation", generation) >= generation
    return not dig(obj or {}, "actions.drain") or is_so  # what an earlier drain came to says nothing of this one


NODE_COLUMNS = (
    NAME,
    Column("STATUS", read_status, keep=True),
    Column("CPU", _cpu),
    Column("MEMORY", _bytes("memory")),
    Column("DISK", _bytes("disk")),
    Column("WORKLOADS", text("status.allocations", "0"), align="right"),
    Column("VERSION", text("report.version")),
    Column("CPU USED", _used("cpu", "{:.2f}".format), align="right", wide=True),
    Column("MEMORY USED", _used("memory", format_bytes), align="right", wide=True),
    Column("DISK USED", _used("disk", format_bytes), align="right", wide=True),
    Column("ADDRESS", text("report.address"), wide=True),
    Column("TYPE", _type, wide=True),
    Column("ZONE", text("labels.zone"), wide=True),
    Column("POOLS", _pools, wide=True),
    Column("TAINTS", joined("spec.taints"), wide=True),
    Column("AUTONOMY", _autonomy, wide=True),
    Column("ACCEL", text("report.accelerator"), wide=True),
    Column("POWER", text("marks.power_reading.state"), wide=True),
    Column("HYPERVISOR", text("report.hypervisor"), wide=True),
    Column("TO RENEW", _need, wide=True, flexible=True),
    Column("AGE", AGE.value, wide=True),
)
