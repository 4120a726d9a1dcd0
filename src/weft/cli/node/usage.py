"""Real usage of nodes and VMs, joined with what they have, and drawn as tables. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weft.cli.output.table import make_columns
from weft.kinds.fields.cells import dig
from weft.objects.quantity import format_bytes, format_cpu

Object = Mapping[str, Any]
SORTS = ("cpu", "memory", "disk", "name")
RESOURCES = ("cpu", "memory", "disk")
NODE_COLUMNS = make_columns("NAME", "CPU>", "CPU %>", "MEMORY>", "MEMORY %>", "DISK>", "DISK %>", "ALLOCATED>", "NOTE~")
VM_COLUMNS = make_columns("NAME", "NODE", "CPU>", "OF>", "MEMORY>", "OF>", "DISK>", "NOTE~")


def join_nodes(nodes: Sequence[Object], used: Sequence[Object], sort: str) -> list[dict[str, Any]]:
    """Join each node's capacity, what is allocated, and its usage; ``used`` is None where it isn't known."""
    known = {each["node"]: each for each in used}
    rows = []
    for node in nodes:
        usage = known.get(node["uid"])
        rows.append(
            {
                "kind": "node",
                "name": node["name"],
                "capacity": {name: dig(node, f"report.{name}", 0) for name in RESOURCES},
                "allocated": {name: dig(node, f"status.allocated_{name}", 0) for name in RESOURCES},
                "used": {name: usage["use"][name] for name in RESOURCES} if usage else None,
                "age_seconds": usage["age_seconds"] if usage else None,
                "instances": usage.get("instances") if usage else None,
            }
        )
    return _sorted(rows, sort)


def join_vms(vms: Sequence[Object], used: Sequence[Object], sort: str) -> list[dict[str, Any]]:
    """Join each VM's requests and its usage."""
    known = {uid: use for each in used for uid, use in each["guests"].items()}
    rows = []
    for vm in vms:
        usage = known.get(vm["uid"])
        rows.append(
            {
                "kind": vm["kind"],
                "name": vm["name"],
                "project": vm.get("project"),
                "phase": dig(vm, "status.phase", "Pending"),
                "node": dig(vm, "status.node"),
                "allocated": {name: dig(vm, f"spec.{name}", 0) for name in RESOURCES},
                "used": {name: usage[name] for name in RESOURCES} if usage else None,
                "settled": bool(usage and usage["settled"]),
            }
        )
    return _sorted(rows, sort)


def draw_nodes(rows: Sequence[Object]) -> list[list[str]]:
    """A row of NODE_COLUMNS each."""
    out = []
    for row in rows:
        capacity, used = row["capacity"], row["used"]
        cells = []
        for name, show in (("cpu", _cores), ("memory", format_bytes), ("disk", format_bytes)):
            cells += [show(used[name]), _percent(used[name], capacity[name])] if used else ["–", "–"]
        allocated = _percent(row["allocated"]["cpu"], capacity["cpu"])
        note = describe_instances(row.get("instances")) if used else "not measured"
        out.append([row["name"], *cells, f"{allocated} cpu", note])
    return out


def draw_vms(rows: Sequence[Object]) -> list[list[str]]:
    """A row of VM_COLUMNS each."""
    out = []
    for row in rows:
        used, asked = row["used"], row["allocated"]
        cells = [_cores(used["cpu"]) if used else "–", format_cpu(asked["cpu"])]
        cells += [format_bytes(used["memory"]) if used else "–", format_bytes(asked["memory"])]
        cells.append(format_bytes(used["disk"]) if used else "–")
        note = (
            row["phase"]
            if row["phase"] != "Running"
            else "measured for only a few seconds"
            if not row["settled"]
            else ""
        )
        out.append([row["name"], row["node"] or "–", *cells, note])
    return out


def describe_used(used: Object, capacity: Object) -> str:
    """``0.31 of 8 cpu (4 %), 210 MiB of 22.0 GiB memory (1 %), …``"""
    parts = []
    for name, show in (("cpu", _cores), ("memory", format_bytes), ("disk", format_bytes)):
        whole = format_cpu(capacity[name]) if name == "cpu" else format_bytes(capacity[name])
        share = f" of {whole} {name} ({_percent(used[name], capacity[name])})" if capacity[name] else f" {name}"
        if name == "memory" and 0 < capacity[name] < used[name]:
            share = f" {name} ({whole} requested; the rest is overhead of its machine)"
        parts.append(show(used[name]) + share)
    return ", ".join(parts)


def describe_instances(instances: Object | None) -> str:
    """``functions: 1 running, 2 ready, 336 MiB``; "" if there are none."""
    counts = ((instances or {}).get(part, 0) for part in ("busy", "idle", "ready"))
    usage = [f"{count} {word}" for count, word in zip(counts, ("running", "idle", "ready"), strict=True) if count]
    return f"functions: {', '.join(usage)}, {format_bytes((instances or {})['memory'])}" if usage else ""


def _cores(cores: float) -> str:
    return f"{cores:.2f}"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def _sorted(rows: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    if sort == "name":
        return sorted(rows, key=lambda row: row["name"])
    return sorted(rows, key=lambda row: (-(row["used"] or {}).get(sort, -1), row["name"]))
