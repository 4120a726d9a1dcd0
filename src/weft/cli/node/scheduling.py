"""Facts about a node that placement sees, for a person: how much of it is allocated, its devices, what keeps workloads off, how far
it is from other nodes. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from weft.cli.node.usage import RESOURCES, describe_used
from weft.kinds.fields.cells import dig
from weft.kinds.parts.node.columns import bar, read_type
from weft.objects.quantity import format_bytes, format_cpu, format_time

Object = Mapping[str, Any]
SHOWN = ("gpus", "sriov", "coordinate", "round_trips")  # parts of a node's report that are shown here, and not again
_NEAREST = 8
_WHOLE = 1000  # thousandths of a GPU


def describe_scheduling(
    node: Object, allocations: Sequence[Object], names: Mapping[str, str], used: Object | None = None
) -> list[tuple[str, str]]:
    """Lines of a title and its text; ``names`` are the other nodes' by uid, ``used`` what its guests really use, if known."""
    return [
        ("type", read_type(dig(node, "spec.type"), bool(dig(node, "report.gpus")))),
        *_describe_amounts(node),
        *_describe_use(node, used),
        *_describe_declared(node, allocations),
        *_describe_gpus(node, allocations),
        *_describe_refusals(node),
        *_describe_distances(node, names),
    ]


def _describe_amounts(node: Object) -> Iterator[tuple[str, str]]:
    for name, show in (("cpu", format_cpu), ("memory", format_bytes), ("disk", format_bytes)):
        used, there = dig(node, f"status.allocated_{name}", 0), dig(node, f"report.{name}", 0)
        ratio = float(dig(node, f"spec.overcommit.{name}", 1.0))
        most = there * ratio
        times = f" ({show(there)} x {ratio:g})" if ratio != 1.0 else ""
        yield (
            name,
            f"{show(used)} of {show(most)} allocated{times}, free {show(max(0, most - used))}  {bar(used, most)}",
        )


def _describe_use(node: Object, used: Object | None) -> Iterator[tuple[str, str]]:
    if used is not None:
        yield "used", describe_used(used, {name: dig(node, f"report.{name}", 0) for name in RESOURCES})
    elif dig(node, "status.phase") == "Ready":
        yield "used", "not measured: strategies with basis used count its allocations instead"


def _describe_declared(node: Object, allocations: Sequence[Object]) -> Iterator[tuple[str, str]]:
    found = dig(node, "report.sriov", 0)
    there = {**({"sriov": found} if found else {}), **dig(node, "spec.resources", {})}
    used: Counter[str] = Counter()
    for allocation in allocations:
        used.update(dict(dig(allocation, "spec.extras", {})))
    for name, amount in sorted(there.items()):
        show = format_bytes if amount >= 2**20 else str
        yield name, f"{show(used[name])} of {show(amount)} allocated"


def _describe_gpus(node: Object, allocations: Sequence[Object]) -> Iterator[tuple[str, str]]:
    used: Counter[int] = Counter()
    for allocation in allocations:
        for part in dig(allocation, "spec.gpus", []):
            used[part["index"]] += part["share"]
    for index, gpu in enumerate(dig(node, "report.gpus", [])):
        memory = f", {format_bytes(gpu['memory'])}" if gpu.get("memory") else ""
        free = (_WHOLE - used[index]) / _WHOLE
        state = f"not available to guests: {gpu['kept']}" if gpu.get("kept") else f"free {free:.0%}"
        yield f"gpu {index}", f"{gpu['model']}{memory}, {state}  {gpu.get('address', '')}".rstrip()


def _describe_refusals(node: Object) -> Iterator[tuple[str, str]]:
    """Describe what keeps workloads off."""
    for taint in dig(node, "spec.taints", []):
        yield "taint", f"{taint}: only with --tolerate {taint.partition('=')[0]}"
    for word, on, reason in (
        ("cordoned", "cordoned", "cordon_reason"),
        ("maintenance", "maintenance", "maintenance_reason"),
    ):
        if dig(node, f"actions.{on}"):
            yield word, f"no new workloads are placed here{_bracket(dig(node, f'actions.{reason}', ''))}"
    if newer_than := dig(node, "status.newer_than"):
        release = dig(node, "report.version", "")
        yield (
            "newer",
            f"no new workloads are placed here: its agent is weft {release}, newer than the servers; upgrade them, or install weft "
            f"{newer_than} here",
        )
    if (quarantine := dig(node, "status.quarantine")) is not None:
        yield "quarantined", _describe_quarantine(quarantine, str(dig(node, "name", "")))


def _describe_quarantine(quarantine: Object, name: str) -> str:
    failed = f"the starts of {quarantine['workloads']} workloads failed here"
    if quarantine.get("on_probation"):
        return (
            f"until {format_time(quarantine['until'])}, since {failed}; on probation, workloads are placed here again"
        )
    return (
        f"no new workloads are placed here before {format_time(quarantine['until'])}, since {failed}; once the cause is gone: "
        f"weft node uncordon {name}"
    )


def _bracket(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _describe_distances(node: Object, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    known = sorted((trip, names[uid]) for uid, trip in dig(node, "report.round_trips", {}).items() if uid in names)
    if known:
        rest = f", and {len(known) - _NEAREST} others" if len(known) > _NEAREST else ""
        yield "round trips", ", ".join(f"{name} {trip:.3g} ms" for trip, name in known[:_NEAREST]) + rest
