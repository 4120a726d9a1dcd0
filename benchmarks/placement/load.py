"""Nodes and requests of the decision benchmarks, the same for each run."""

from __future__ import annotations

import random

from weft.contracts.policy import GpuAsk, Request, SoftTerm
from weft.language.parse import read_expression
from weft.language.tree import Preference
from weft.scheduler.constraint.affinity import Affinity, read_affinity
from weft.scheduler.table.facts import Gpu, NodeFacts
from weft.scheduler.table.snapshot import Snapshot

GIB = 2**30
CORES = (16, 32, 64, 96, 128)
CONSTRAINTS = ("storage=nvme", "zone in (a,b)", "cpu>=32,storage=nvme", "zone!=c or storage=ssd")


def make_snapshot(nodes: int) -> Snapshot:
    """Nodes of fifteen sizes in three zones; every tenth with GPUs, every fiftieth tainted."""
    draw, snapshot = random.Random(1), Snapshot()
    for number in range(nodes):
        cores = draw.choice(CORES)
        snapshot.put_node(
            NodeFacts(
                uid=f"u{number:06}",
                name=f"n{number:06}",
                capacity=(cores * 1000, cores * draw.choice([2, 4, 8]) * GIB, 4000 * GIB),
                online=True,
                cordoned=number % 100 == 99,
                machines=frozenset({"q35", "microvm"}),
                texts={"zone": "abc"[number % 3], "storage": draw.choice(["nvme", "ssd"])},
                gpus=(Gpu("T4", 16 * GIB),) * 4 if number % 10 == 0 else (),
                taints=frozenset({"edge"}) if number % 50 == 7 else frozenset(),
                data=frozenset({"image:a"}) if number % 4 == 0 else frozenset(),
            )
        )
    return snapshot


def make_requests(count: int, strategy: str = "least_loaded", *, plain: bool = False) -> list[Request]:
    """Requests no two of which are equal; unless ``plain``, one in four has a constraint, one in twenty wants a GPU, one in
    ten tolerates a taint."""
    draw, requests = random.Random(2), []
    constraints = [read_expression(text) for text in CONSTRAINTS]
    for number in range(count):
        amounts = (
            draw.randrange(1, 40) * 100 + number % 97,
            draw.randrange(1, 32) * GIB // 4 + number,
            draw.randrange(1, 20) * GIB,
        )
        if plain:
            requests.append(Request(amounts, "q35", strategy))
            continue
        requests.append(
            Request(
                amounts,
                draw.choice(["q35", "microvm"]),
                strategy,
                constraint=draw.choice(constraints) if number % 4 == 0 else None,
                gpus=GpuAsk(1, 100) if number % 20 == 1 else None,
                tolerations=("edge",) if number % 10 == 2 else (),
            )
        )
    return requests


def make_wishes(count: int) -> list[Request]:
    """Requests no two of which are equal, with all kinds of wishes: a twelfth each wish for a room or a taint, facts, what is
    free, one preference, two of them and facts, data, a share of a GPU, a group to be apart from or rather apart, near or
    rather near, and a spread over zones (every other one: if possible). The groups have up to fifty members."""
    nvme, zone, room = (read_expression(text) for text in ("storage=nvme", "zone in (a,b)", "memory.free>=8GB"))
    requests = []
    for number, plain in enumerate(make_requests(count, plain=True)):
        kind, group = number % 12, f"g{number // 120}"
        affinity = _read_affinity(kind, group, number // 12 % 2)
        requests.append(
            Request(
                plain.amounts,
                "q35",
                plain.strategy,
                tolerations=("edge",) if kind == 0 else (),
                constraint={1: nvme, 2: room, 4: zone}.get(kind),
                preferences=tuple(Preference(tree, 0.5, 0) for tree in {3: [nvme], 4: [nvme, zone]}.get(kind, [])),
                gpus=GpuAsk(1, 50) if kind == 6 else None,
                groups=affinity.groups,
                near=affinity.near,
                apart=affinity.apart,
                spread=affinity.spread,
                leans=(SoftTerm("data", "image:a"),) if kind == 5 else affinity.leans,
            )
        )
    return requests


def _read_affinity(kind: int, group: str, turn: int) -> Affinity:
    soft = f"{group}:preferred"
    to = {9: [group], 10: [soft]}.get(kind, [])
    from_ = {7: [group], 8: [soft], 11: [soft]}.get(kind, [])
    return read_affinity("default", to, from_, [["zone", "zone:preferred"][turn]] if kind == 11 else [])
