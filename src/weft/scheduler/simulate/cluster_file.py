"""Clusters from files, to rebalance: the text format of Ganeti's htools, or JSON.

Of Ganeti's score all is counted that a migration on shared storage changes (docs/reference/simulate.md). Guests of drbd
and plain disks stay where they are.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np

from weft.objects.errors import InvalidInput
from weft.objects.quantity import parse_bytes, parse_cpu
from weft.objects.schema import field, read_strict
from weft.scheduler.rebalance.model import Problem, Reals
from weft.scheduler.rebalance.objective import Guest, RebalanceNode, make_problem
from weft.scheduler.simulate.csv_file import read_text

MOST_NODES, MOST_GUESTS, MOST_PAIRS = 10_000, 200_000, 2_000_000
MIB = 1024 * 1024
_SHARED = ("ext", "sharedfile", "gluster", "rbd", "blockdev", "diskless")  # templates that any node can begin
_OFFLINE_PENALTY = 20.0  # 4 for each guest on a node that is offline, and 16 as it is its primary
_NEAR_MS, _FAR_MS = 0.1, 0.5  # in a rack, across racks: where a file has no round trips


class ClusterFile(NamedTuple):
    nodes: list[str]
    guests: list[str]
    problem: Problem


def read_cluster(path: Path, form: str) -> ClusterFile:
    """Raises NotFound, InvalidInput."""
    return _read_json(path) if form == "json" else _read_ganeti(path)


def _read_ganeti(path: Path) -> ClusterFile:
    blocks = [block.splitlines() for block in read_text(path).split("\n\n")]
    if len(blocks) < 3:
        raise InvalidInput(f"{path}: {len(blocks)} of 5 blocks", hint="write one with: hscan, or gnt-cluster's htools")
    nodes = [line.split("|") for line in blocks[1] if line]
    guests = [line.split("|") for line in blocks[2] if line]
    _check_counts(path, len(nodes), len(guests), 0)
    for kind, rows, least in (("node", nodes, 9), ("guest", guests, 9)):
        short = next((row for row in rows if len(row) < least), None)
        if short is not None:
            raise InvalidInput(f"{path}: a {kind} has {len(short)} of {least} columns: {'|'.join(short)[:80]}")
    index = {row[0]: number for number, row in enumerate(nodes)}
    if len(index) != len(nodes):
        raise InvalidInput(f"{path}: two nodes have the same name")
    lost = next((row for row in guests if row[6] not in index), None)
    if lost is not None:
        raise InvalidInput(f"{path}: guest {lost[0][:60]} is on node {lost[6][:60]!r}, which the file doesn't have")
    n, g = len(nodes), len(guests)
    memory, free, disk, free_disk, cores = (_read_column(path, nodes, at) for at in (1, 3, 4, 5, 6))
    wants, cpus = _read_column(path, guests, 1), _read_column(path, guests, 3)
    wants = np.where([row[4] in ("ADMIN_down", "ADMIN_offline") for row in guests], 0.0, wants)
    at = np.array([index[row[6]] for row in guests], dtype=np.int64)
    online = np.array([row[7] != "Y" for row in nodes], dtype=np.bool_)
    held = np.bincount(at, wants, minlength=n)
    cells = np.maximum(np.stack([memory, disk, cores]), 1.0)
    ratio = _read_ratio(blocks)
    need = np.stack([wants, cpus], axis=1).astype(np.int64)
    return ClusterFile(
        [row[0] for row in nodes],
        [row[0] for row in guests],
        Problem(
            # memory, disk and cores × ½; without measured loads, the number of guests stands for all four
            weights=np.array([0.5 + 0.5, 0.5 + 0.5, 0.5 + 0.5, 4.0]),
            base=np.stack([(free + held) / cells[0], free_disk / cells[1], np.zeros(n), np.zeros(n)]),
            scale=np.stack([1.0 / cells[0], np.zeros(n), 1.0 / cells[2], np.ones(n)]),
            counted=online,
            load=np.stack([-wants, np.zeros(g), cpus, np.ones(g)], axis=1),
            at=at,
            need=need,
            free=np.stack([free, np.floor(cores * ratio) - np.bincount(at, cpus, minlength=n)]).astype(np.int64),
            target=online,
            mobile=np.array([row[5] != "N" and row[8] in _SHARED for row in guests], dtype=np.bool_),
            penalty=np.where(online, 0.0, _OFFLINE_PENALTY),
            price=np.zeros(g),
            size=wants * MIB,
        ),
    )


def _read_column(path: Path, rows: list[list[str]], at: int) -> Reals:
    try:
        values = np.array([float(row[at]) for row in rows], dtype=np.float64)
    except ValueError:
        bad = next(row for row in rows if not _is_number(row[at]))
        raise InvalidInput(f"{path}: {bad[0][:60]}: column {at + 1} is {bad[at][:40]!r}, not a number") from None
    if values.size and not (np.isfinite(values) & (values >= 0) & (values < 1e12)).all():
        raise InvalidInput(f"{path}: column {at + 1} has a number below 0, or one that is too large")
    return values


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _read_ratio(blocks: list[list[str]]) -> float:
    """How many virtual cores a core may have, by the cluster's policy."""
    for line in blocks[4] if len(blocks) > 4 else ():
        words = line.split("|")
        if len(words) > 4 and _is_number(words[4]) and 0 < float(words[4]) < 1e6:
            return float(words[4])
    return 64.0


class _Node(msgspec.Struct, kw_only=True):
    name: Annotated[str, field("Name")]
    cpu: Annotated[str | float, field("Cores")]
    memory: Annotated[str | int, field("Memory")]
    disk: Annotated[str | int, field("Disk")] = 1 << 60
    rack: Annotated[str, field("Rack")] = ""
    cordoned: Annotated[bool, field("Whether it takes no guests")] = False
    offline: Annotated[bool, field("Whether it is lost")] = False


class _Used(msgspec.Struct, kw_only=True):
    cpu: Annotated[float, field("Cores that are used, as 95th percentile", ge=0)]
    memory: Annotated[str | int, field("Memory that is used")]


class _Workload(msgspec.Struct, kw_only=True):
    name: Annotated[str, field("Name")]
    node: Annotated[str, field("Where it is")]
    cpu: Annotated[str | float, field("Cores")]
    memory: Annotated[str | int, field("Memory")]
    disk: Annotated[str | int, field("Disk")] = 0
    copies_disk: Annotated[bool, field("Whether a migration copies its disk")] = False
    used: Annotated[_Used | None, field("What it really uses")] = None
    mobile: Annotated[bool, field("Whether it may be migrated")] = True


class _Talk(msgspec.Struct, kw_only=True):
    between: Annotated[tuple[str, str], field("Two workloads")]
    bytes_per_second: Annotated[float, field("Their traffic", ge=0)]


class _RoundTrip(msgspec.Struct, kw_only=True):
    between: Annotated[tuple[str, str], field("Two nodes")]
    ms: Annotated[float, field("Round trip", ge=0)]


class _Cluster(msgspec.Struct, kw_only=True):
    nodes: Annotated[list[_Node], field("Nodes")]
    workloads: Annotated[list[_Workload], field("Workloads")]
    traffic: Annotated[list[_Talk], field("Who talks with whom")] = []
    round_trips: Annotated[list[_RoundTrip], field("Round trips that differ from those by rack")] = []


def _read_json(path: Path) -> ClusterFile:
    try:
        raw = msgspec.json.decode(read_text(path))
    except msgspec.DecodeError as fault:
        raise InvalidInput(f"{path}: not valid JSON: {fault}") from None
    cluster = read_strict(raw, _Cluster, "cluster")
    _check_counts(path, len(cluster.nodes), len(cluster.workloads), len(cluster.traffic) + len(cluster.round_trips))
    index = _number(path, "node", [node.name for node in cluster.nodes])
    guest_index = _number(path, "workload", [one.name for one in cluster.workloads])
    machines = [_read_node(node) for node in cluster.nodes]
    guests = [_read_workload(path, one, index) for one in cluster.workloads]
    pairs: dict[tuple[int, int], float] = {}
    for talk in cluster.traffic:
        a, b = sorted(_find(path, "traffic", name, guest_index) for name in talk.between)
        pairs[a, b] = pairs.get((a, b), 0.0) + talk.bytes_per_second
    racks = np.array([node.rack for node in cluster.nodes])
    round_trips = np.where(racks[:, None] == racks[None, :], _NEAR_MS, _FAR_MS)
    np.fill_diagonal(round_trips, 0.0)
    for one in cluster.round_trips:
        x, y = (_find(path, "round_trips", name, index) for name in one.between)
        round_trips[x, y] = round_trips[y, x] = one.ms
    problem = make_problem(machines, guests, pairs, round_trips)
    return ClusterFile([m.name for m in machines], [guest.name for guest in guests], problem)


def _read_node(node: _Node) -> RebalanceNode:
    capacity = (
        round(parse_cpu(node.cpu, "nodes.cpu") * 1000),
        parse_bytes(node.memory, "nodes.memory"),
        parse_bytes(node.disk, "nodes.disk"),
    )
    return RebalanceNode(
        node.name, capacity, capacity, counts=not node.offline, takes=not (node.offline or node.cordoned)
    )


def _read_workload(path: Path, one: _Workload, index: dict[str, int]) -> Guest:
    memory, disk = parse_bytes(one.memory, "workloads.memory"), parse_bytes(one.disk, "workloads.disk")
    cpu = round(parse_cpu(one.cpu, "workloads.cpu") * 1000)
    used = (float(cpu), float(memory))
    if one.used is not None:
        used = (one.used.cpu * 1000, float(parse_bytes(one.used.memory, "workloads.used.memory")))
    size = float(memory + (disk if one.copies_disk else 0))
    return Guest(one.name, _find(path, "workloads", one.node, index), (cpu, memory, disk), used, size, one.mobile)


def _number(path: Path, kind: str, names: list[str]) -> dict[str, int]:
    index = {name: number for number, name in enumerate(names)}
    if len(index) != len(names):
        twice = next(name for number, name in enumerate(names) if index[name] != number)
        raise InvalidInput(f"{path}: {kind} {twice[:60]!r} appears twice")
    return index


def _find(path: Path, where: str, name: str, index: dict[str, int]) -> int:
    if name not in index:
        raise InvalidInput(f"{path}: {where}: {name[:60]!r} is not in the file")
    return index[name]


def _check_counts(path: Path, nodes: int, guests: int, pairs: int) -> None:
    for count, most, what in (
        (nodes, MOST_NODES, "nodes"),
        (guests, MOST_GUESTS, "guests"),
        (pairs, MOST_PAIRS, "pairs"),
    ):
        if count > most:
            raise InvalidInput(f"{path}: {count:,} {what}; at most {most:,} can be rebalanced together")
    if not nodes:
        raise InvalidInput(f"{path}: no node", hint="--format ganeti|json says which form the file has")
