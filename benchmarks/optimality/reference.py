"""Filters and scores once more, one node at a time in plain Python: what the engine's decisions are checked against.

Written from what the guide promises, without the engine's arrays, masks, rankings or kept scores."""

from __future__ import annotations

import random
from collections.abc import Callable

from weft.contracts.policy import GpuAsk, Request
from weft.language.parse import read_expression
from weft.scheduler.table.snapshot import Gpu, NodeFacts

GIB = 1024**3
WEIGHTS = (0.4, 0.4, 0.2)
# Of 100: scores are kept in steps, and a strategy breaks its ties by room.
SLACK = {"least_loaded": 1e-4, "best_fit": 1e-4, "round_robin": 1e-4, "resource_balance": 0.2, "cost": 0.2}
STORAGES, ZONES, MODELS = ("hdd", "ssd", "nvme"), ("a", "b", "c"), ("T4", "A100")
CONSTRAINTS: dict[str, Callable[[Node], bool]] = {
    "storage=nvme": lambda node: node.facts.texts["storage"] == "nvme",
    "storage!=hdd and zone in (a,b)": lambda node: (
        node.facts.texts["storage"] != "hdd" and node.facts.texts["zone"] in ("a", "b")
    ),
    "memory>=64GiB or exists(tpm)": lambda node: node.facts.capacity[1] >= 64 * GIB or "tpm" in node.facts.texts,
    "not zone=c": lambda node: node.facts.texts["zone"] != "c",
}


class Node:
    """A node and what is counted on it."""

    def __init__(self, facts: NodeFacts) -> None:
        self.facts = facts
        ratio = [facts.overcommit.get(name, 1.0) for name in ("cpu", "memory", "disk")]
        self.capacity = [int(amount * r) for amount, r in zip(facts.capacity, ratio, strict=True)]
        self.used = [0, 0, 0]
        self.extras = dict.fromkeys(facts.extras, 0)
        self.devices = [1000] * len(facts.gpus)
        self.members: list[str] = []

    def fits(self, request: Request, constraint: str | None) -> bool:
        facts = self.facts
        return (
            facts.online
            and not facts.cordoned
            and request.machine in facts.machines
            and request.node in (None, facts.name)
            and request.home in (None, facts.uid)
            and all(taint.split("=")[0] in request.tolerations for taint in facts.taints)
            and (constraint is None or CONSTRAINTS[constraint](self))
            and not any(group in self.members for group in request.apart)
            and all(c - u >= w for c, u, w in zip(self.capacity, self.used, request.amounts, strict=True))
            and all(facts.extras.get(name, 0) - self.extras.get(name, 0) >= much for name, much in request.extras)
            and (request.gpus is None or len(self.fitting_devices(request.gpus)) >= request.gpus.count)
        )

    def fitting_devices(self, ask: GpuAsk) -> list[int]:
        return [
            index
            for index, (gpu, free) in enumerate(zip(self.facts.gpus, self.devices, strict=True))
            if free >= ask.share and gpu.memory >= ask.memory and (not ask.models or gpu.model in ask.models)
        ]

    def count(self, request: Request, gpus: tuple[tuple[int, int], ...], sign: int) -> None:
        for resource, amount in enumerate(request.amounts):
            self.used[resource] += sign * amount
        for name, amount in request.extras:
            self.extras[name] += sign * amount
        for device, share in gpus:
            self.devices[device] -= sign * share
        for group in request.groups:
            (self.members.append if sign > 0 else self.members.remove)(group)

    def shares(self, request: Request) -> list[float]:
        """Of each resource in use with the request there, 0 to 100."""
        asked = zip(self.capacity, self.used, request.amounts, strict=True)
        return [min(100.0 * (used + wanted) / max(capacity, 1), 100.0) for capacity, used, wanted in asked]

    def gpu_share(self, request: Request) -> float:
        """Of the GPUs in use with the request there, 0 to 100."""
        taken = 1000 * len(self.devices) - sum(self.devices)
        taken += request.gpus.count * request.gpus.share if request.gpus else 0
        return min(100.0 * taken / max(1, 1000 * len(self.devices)), 100.0)


def score(node: Node, nodes: list[Node], request: Request, last: str | None) -> float:
    """How good the node is, 0 to 100."""
    shares = node.shares(request)
    if request.strategy in ("best_fit", "least_loaded"):
        full = sum(w * share for w, share in zip(WEIGHTS, shares, strict=True))
        if request.gpus:
            full = (full + node.gpu_share(request)) / 2
        return full if request.strategy == "best_fit" else 100.0 - full
    if request.strategy == "resource_balance":
        if node.devices:
            shares.append(node.gpu_share(request))
        return 100.0 - (max(shares) - min(shares))
    if request.strategy == "cost":
        lowest = min(n.facts.numbers["cost"] for n in nodes)
        return 100.0 * lowest / node.facts.numbers["cost"]
    names = sorted(n.facts.name for n in nodes)
    start = 0 if last is None else sum(1 for name in names if name <= last)
    return 100.0 * (1.0 - (names.index(node.facts.name) - start) % len(names) / len(names))


def draw_node(draw: random.Random, number: int) -> NodeFacts:
    cpu = draw.choice((4, 8, 16, 32))
    gpus = draw.choice((0, 0, 0, 1, 4))
    return NodeFacts(
        uid=f"u{number}",
        name=f"n{draw.randrange(10**6):06}-{number}",
        capacity=(cpu * 1000, cpu * draw.choice((2, 4, 8)) * GIB, draw.choice((100, 500)) * GIB),
        online=draw.random() > 0.03,
        cordoned=draw.random() < 0.03,
        machines=frozenset({"q35", "microvm"} if draw.random() < 0.8 else {"q35"}),
        overcommit={"cpu": 2.0} if draw.random() < 0.2 else {},
        texts={"storage": draw.choice(STORAGES), "zone": draw.choice(ZONES)}
        | ({"tpm": "2.0"} if number % 7 == 0 else {}),
        numbers={"cost": draw.choice((0.5, 1.0, 2.0, 3.0))},
        extras={"sriov": draw.choice((2, 8))} if draw.random() < 0.3 else {},
        gpus=tuple(Gpu(draw.choice(MODELS), draw.choice((16, 40)) * GIB) for _ in range(gpus)),
        taints=frozenset({"batch-only"}) if draw.random() < 0.1 else frozenset(),
    )


def draw_request(draw: random.Random, names: list[str]) -> tuple[Request, str | None]:
    """A request, and the text of its constraint."""
    cpu = draw.choice((0.1, 0.5, 1, 2, 4, 7.5))
    constraint = draw.choice((None, None, None, *CONSTRAINTS))
    apart = ("p/g",) if draw.random() < 0.1 else ()
    request = Request(
        amounts=(round(cpu * 1000), int(cpu * draw.uniform(0.5, 9) * GIB), draw.choice((0, 1, 20)) * GIB),
        machine=draw.choice(("q35", "q35", "microvm")),
        strategy=draw.choice(tuple(SLACK)),
        node=draw.choice(names) if draw.random() < 0.02 else None,
        home=f"u{draw.randrange(len(names))}" if draw.random() < 0.02 else None,
        extras=(("sriov", draw.choice((1, 3))),) if draw.random() < 0.1 else (),
        gpus=draw_gpus(draw) if draw.random() < 0.2 else None,
        constraint=None if constraint is None else read_expression(constraint),
        tolerations=("batch-only",) if draw.random() < 0.2 else (),
        apart=apart,
        groups=apart,
    )
    return request, constraint


def draw_gpus(draw: random.Random) -> GpuAsk:
    if draw.random() < 0.5:
        return GpuAsk(1, draw.choice((200, 500)))
    models = (draw.choice(MODELS),) if draw.random() < 0.3 else ()
    return GpuAsk(draw.choice((1, 1, 2)), 1000, draw.choice((0, 32)) * GIB, models)
