"""Nodes and workloads from files, in weft's own columns or those of the openb trace, as input of the engine.

Columns go by name; a missing one has the default of docs/reference/simulate.md.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from weft.contracts.policy import Datum, GpuAsk, Request, SoftTerm
from weft.kinds.constraint import read_plain, read_plain_preference
from weft.kinds.fields.affinity import check_affinity
from weft.kinds.fields.strategy import read_plain_strategy
from weft.kinds.fields.taint import check_taints
from weft.kinds.node import OVERCOMMITTED
from weft.kinds.parts.node.columns import NODE_TYPES
from weft.objects.errors import InvalidInput
from weft.objects.quantity import parse_amount, parse_bytes, parse_cpu, parse_ratio
from weft.scheduler.constraint.affinity import NO_AFFINITY, Affinity, read_affinity
from weft.scheduler.simulate.csv_file import Sheet, read_count
from weft.scheduler.table.facts import Gpu, NodeFacts

MACHINE = "q35"
MIB = 1024 * 1024
_DEFAULT_MEMORY = 256 * MIB
_MOST_GPUS = 1024
_NO_LIMIT = 1 << 48  # bytes of disk of nodes without that column
_MACHINES = frozenset({MACHINE})
_TEXTS = ("zone", "rack", "type", "arch", "storage", "location", "hypervisor")
_NODE_COLUMNS = (
    *(
        "name",
        "cpu",
        "memory",
        "disk",
        "gpus",
        "gpu_model",
        "gpu_memory",
        "labels",
        "resources",
        "cost",
        "taints",
        "overcommit",
        "data",
    ),
    *_TEXTS,
)
_WORKLOAD_COLUMNS = (
    *("name", "cpu", "memory", "disk", "gpus", "gpu_share", "gpu_model", "gpu_memory", "resources"),
    *("constraint", "prefer", "tolerations", "strategy", "node"),
    *("affinity_groups", "anti_affinity_groups", "spread", "data_hints", "storage_locality"),
)


class Workload(NamedTuple):
    name: str
    request: Request
    node: str = ""  # where it is placed already


class Input(NamedTuple):
    nodes: list[NodeFacts]
    workloads: list[Workload]
    unread: list[str]  # warnings on unknown columns


def read_input(nodes: Path, workloads: Path, form: str, strategy: str) -> Input:
    """Both files. ``form`` is weft or openb; ``strategy`` is that of workloads that name none. Raises InvalidInput, NotFound."""
    if form == "openb":
        return Input(_read_openb_nodes(Sheet(nodes)), _read_openb_workloads(Sheet(workloads), strategy), [])
    node_sheet, workload_sheet = Sheet(nodes), Sheet(workloads)
    unread = [
        f"{sheet.path}: unknown column {name} is ignored"
        for sheet, known in ((node_sheet, _NODE_COLUMNS), (workload_sheet, _WORKLOAD_COLUMNS))
        for name in sheet.unread(known)
    ]
    facts = _read_nodes(node_sheet)
    known = {node.name for node in facts}
    found = _read_workloads(workload_sheet, strategy, known)
    return Input(facts, found, unread)


def _read_nodes(sheet: Sheet) -> list[NodeFacts]:
    sheet.require("cpu", "memory")
    column = _places(sheet)
    has_disk = "disk" in column
    nodes: dict[str, NodeFacts] = {}
    for row in sheet.rows():
        cell = _Cells(sheet, row, column)
        name = cell.text("name") or f"node-{len(nodes) + 1}"
        if name in nodes:
            sheet.refuse("name", f"node {name} appears twice")
        texts = {key: value for key in _TEXTS if (value := cell.text(key))}
        if texts.get("type", NODE_TYPES[0]) not in NODE_TYPES:
            sheet.refuse("type", f"{texts['type'][:60]!r} is not one of {', '.join(NODE_TYPES)}")
        texts.update(cell.pairs("labels"))
        gpus = cell.get("gpus", read_count, 0)
        if gpus > _MOST_GPUS:
            sheet.refuse("gpus", f"{gpus} is more than {_MOST_GPUS}")
        gpu = Gpu(cell.text("gpu_model"), cell.get("gpu_memory", parse_bytes, 0))
        cost = cell.get("cost", _read_number, None)
        nodes[name] = NodeFacts(
            uid=name,
            name=name,
            capacity=(
                round(1000 * cell.need("cpu", parse_cpu)),
                cell.need("memory", parse_bytes),
                cell.get("disk", parse_bytes, 0) if has_disk else _NO_LIMIT,
            ),
            online=True,
            cordoned=False,
            machines=_MACHINES,
            texts=texts,
            numbers={} if cost is None else {"cost": cost},
            extras={key: sheet.read("resources", text, parse_amount) for key, text in cell.pairs("resources").items()},
            gpus=(gpu,) * gpus,
            taints=frozenset(_read_taints(cell, "taints")),
            overcommit=_read_overcommit(sheet, cell.pairs("overcommit")),
            data=frozenset(f"pool:{datum}" for datum in cell.words("data")),
        )
    return list(nodes.values())


def _read_taints(cell: _Cells, column: str) -> list[str]:
    taints = cell.words(column)
    try:
        check_taints(taints, column)
    except InvalidInput as problem:
        cell.sheet.refuse(column, problem)
    return taints


def _read_overcommit(sheet: Sheet, pairs: dict[str, str]) -> dict[str, float]:
    for name in pairs:
        if name not in OVERCOMMITTED:
            sheet.refuse("overcommit", f"{name[:60]!r} is not one of {', '.join(OVERCOMMITTED)}")
    return {name: sheet.read("overcommit", text, parse_ratio) for name, text in pairs.items()}


def _read_workloads(sheet: Sheet, strategy: str, nodes: set[str]) -> list[Workload]:
    if not any(name in _WORKLOAD_COLUMNS for name in sheet.header):
        sheet.require("cpu")
    column = _places(sheet)
    name_at, node_at = column.get("name"), column.get("node")
    alike = [place for place in range(len(sheet.header)) if place not in (name_at, node_at)]
    key_of = operator.itemgetter(*alike) if alike else lambda row: ()
    requests: dict[Any, Request] = {}
    found: list[Workload] = []
    for row in sheet.rows():
        key = key_of(row)
        request = requests.get(key)
        if request is None:
            request = requests[key] = _read_request(_Cells(sheet, row, column), strategy)
        name = row[name_at] if name_at is not None else ""
        node = row[node_at].strip() if node_at is not None else ""
        if node and node not in nodes:
            sheet.refuse("node", f"unknown node {node[:60]}")
        found.append(Workload(name, request, node))
    return found


def _read_request(cell: _Cells, strategy: str) -> Request:
    named = cell.text("strategy")
    affinity, data, leans = _read_affinity(cell)
    constraint = cell.text("constraint")
    return Request(
        amounts=(
            round(1000 * cell.get("cpu", parse_cpu, 1.0)),
            cell.get("memory", parse_bytes, _DEFAULT_MEMORY),
            cell.get("disk", parse_bytes, 0),
        ),
        machine=MACHINE,
        strategy=cell.sheet.read("strategy", named, read_plain_strategy) if named else strategy,
        extras=tuple(
            sorted(
                (key, cell.sheet.read("resources", text, parse_amount)) for key, text in cell.pairs("resources").items()
            )
        ),
        gpus=_read_gpus(cell),
        constraint=cell.sheet.read("constraint", constraint, read_plain) if constraint else None,
        preferences=tuple(
            cell.sheet.read("prefer", text, read_plain_preference) for text in cell.text("prefer").split("|") if text
        ),
        tolerations=tuple(sorted(_read_taints(cell, "tolerations"))),
        near=affinity.near,
        apart=affinity.apart,
        groups=affinity.groups,
        spread=affinity.spread,
        data=data,
        leans=affinity.leans + leans,
    )


def _read_affinity(cell: _Cells) -> tuple[Affinity, tuple[Datum, ...], tuple[SoftTerm, ...]]:
    """Groups and spread, all of one project; data, and whether that is preferred or required."""
    near, apart, spread, hints = (
        cell.words(column) for column in ("affinity_groups", "anti_affinity_groups", "spread", "data_hints")
    )
    locality = cell.text("storage_locality")
    if locality not in ("", "required", "preferred"):
        cell.sheet.refuse("storage_locality", f"{locality[:60]!r} must be required or preferred")
    if not (near or apart or spread or hints):
        return NO_AFFINITY, (), ()
    try:
        check_affinity(near, apart, spread, hints)
    except InvalidInput as problem:
        column = (problem.field or "").removeprefix("spec.").partition("[")[0]
        cell.sheet.refuse(column, problem)
    required = locality == "required"
    data = tuple(Datum(f"pool:{hint}", 0, required) for hint in hints)
    leans = () if required else tuple(SoftTerm("data", datum.name) for datum in data)
    return read_affinity("default", near, apart, spread), data, leans


def _read_gpus(cell: _Cells) -> GpuAsk | None:
    share = cell.get("gpu_share", parse_ratio, None)
    count = cell.get("gpus", read_count, 0 if share is None else 1)
    if count == 0:
        if cell.text("gpu_model") and not cell.text("gpus"):
            cell.sheet.refuse(
                "gpu_model", InvalidInput("the number of GPUs is missing", hint="put it into column gpus")
            )
        return None
    if share is not None and (share > 1 or (share < 1 and count > 1)):
        cell.sheet.refuse("gpu_share", f"{share:g} of {count} GPUs: a share is of one GPU and at most 1")
    models = tuple(sorted(filter(None, (word.strip() for word in cell.text("gpu_model").split("|")))))
    return GpuAsk(count, 1000 if share is None else round(1000 * share), cell.get("gpu_memory", parse_bytes, 0), models)


def _read_openb_nodes(sheet: Sheet) -> list[NodeFacts]:
    sheet.require("cpu_milli", "memory_mib", "gpu")
    column = _places(sheet)
    nodes: dict[str, NodeFacts] = {}
    for row in sheet.rows():
        cell = _Cells(sheet, row, column)
        name = cell.text("sn") or f"node-{len(nodes) + 1}"
        if name in nodes:
            sheet.refuse("sn", f"node {name} appears twice")
        gpus = cell.need("gpu", read_count)
        if gpus > _MOST_GPUS:
            sheet.refuse("gpu", f"{gpus} is more than {_MOST_GPUS}")
        nodes[name] = NodeFacts(
            uid=name,
            name=name,
            capacity=(cell.need("cpu_milli", read_count), MIB * cell.need("memory_mib", read_count), _NO_LIMIT),
            online=True,
            cordoned=False,
            machines=_MACHINES,
            gpus=(Gpu(cell.text("model")),) * gpus,
        )
    return list(nodes.values())


def _read_openb_workloads(sheet: Sheet, strategy: str) -> list[Workload]:
    sheet.require("cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
    column = _places(sheet)
    places = [column[name] for name in ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli")]
    if "gpu_spec" in column:
        places.append(column["gpu_spec"])
    key_of, name_at = operator.itemgetter(*places), column.get("name")
    requests: dict[Any, Request] = {}
    found: list[Workload] = []
    for row in sheet.rows():
        key = key_of(row)
        request = requests.get(key)
        if request is None:
            request = requests[key] = _read_pod(_Cells(sheet, row, column), strategy)
        found.append(Workload(row[name_at] if name_at is not None else "", request))
    return found


def _read_pod(cell: _Cells, strategy: str) -> Request:
    count, share = cell.get("num_gpu", read_count, 0), cell.get("gpu_milli", read_count, 0)
    gpus = None
    if count and share:
        if share > 1000 or (share < 1000 and count > 1):
            cell.sheet.refuse("gpu_milli", f"{share} of {count} GPUs: a share is of one GPU and at most 1000")
        models = tuple(sorted({word for word in cell.text("gpu_spec").split("|") if word}))
        gpus = GpuAsk(count, share, 0, models)
    amounts = (cell.get("cpu_milli", read_count, 0), MIB * cell.get("memory_mib", read_count, 0), 0)
    return Request(amounts=amounts, machine=MACHINE, strategy=strategy, gpus=gpus)


class _Cells:
    """The cells of a row by their column's name."""

    def __init__(self, sheet: Sheet, row: list[str], places: dict[str, int]) -> None:
        self.sheet = sheet
        self._row = row
        self._places = places

    def text(self, column: str) -> str:
        place = self._places.get(column)
        return "" if place is None else self._row[place].strip()

    def get(self, column: str, read: Callable[[str, str], Any], default: Any) -> Any:
        text = self.text(column)
        return self.sheet.read(column, text, read) if text else default

    def need(self, column: str, read: Callable[[str, str], Any]) -> Any:
        text = self.text(column)
        if not text:
            self.sheet.refuse(column, "the cell is empty")
        return self.sheet.read(column, text, read)

    def words(self, column: str) -> list[str]:
        return [word for part in self.text(column).split(";") if (word := part.strip())]

    def pairs(self, column: str) -> dict[str, str]:
        """``a=1;b=2``."""
        found = {}
        for word in self.words(column):
            key, sign, value = word.partition("=")
            if not sign or not key.strip():
                self.sheet.refuse(column, InvalidInput(f"{word[:60]!r} is not KEY=VALUE", hint="write a=1;b=2"))
            found[key.strip()] = value.strip()
        return found


def _places(sheet: Sheet) -> dict[str, int]:
    return {name: place for place, name in enumerate(sheet.header)}


def _read_number(text: str, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e300:
        raise InvalidInput(f"{column}: {text[:60]!r} is not a number of 0 or more")
    return value
