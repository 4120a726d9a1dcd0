"""How full a fabric gets: a mixed load that asks for 97 % of the scarcest resource, on nodes of five types, online."""

from __future__ import annotations

import random
import statistics

from benchmarks.measurement import Figure, Measurement
from weft.contracts.policy import Amounts, GpuAsk, Request
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.demand import Demand
from weft.scheduler.table.snapshot import Gpu, NodeFacts, Snapshot

SEEDS = range(1, 11)
ASKED, GOAL = 0.97, 0.95
STRATEGIES = ("fragmentation", "best_fit", "least_loaded", "fgd")
GIB = 1024**3
# type: how many, cores, memory in GiB, GPUs
TYPES = {
    "cloud": (80, 64, 256, 0),
    "hybrid": (40, 32, 128, 0),
    "storage": (20, 32, 256, 0),
    "edge": (40, 8, 32, 0),
    "gpu": (40, 96, 512, 8),
}
RESOURCES = ("cpu", "memory", "gpu")
RATIOS = (1, 2, 4, 8)  # GiB a core, with which memory is not what is scarce
SCARCE_RATIOS = (2, 4, 8)  # with which it is nearly as scarce as cpu


def make_nodes() -> list[NodeFacts]:
    return [
        NodeFacts(
            uid=f"{type_}{number}",
            name=f"{type_}{number:02}",
            capacity=(cpu * 1000, memory * GIB, 0),
            online=True,
            cordoned=False,
            machines=frozenset({"q35"}),
            texts={"type": type_},
            gpus=(Gpu("A100", 40 * GIB),) * gpus,
        )
        for type_, (count, cpu, memory, gpus) in TYPES.items()
        for number in range(count)
    ]


def draw_request(draw: random.Random, strategy: str, ratios: tuple[int, ...]) -> Request:
    """One in twelve wants GPUs, or a share of one; the others are of all sizes, few of them large."""
    if draw.random() < 1 / 12:
        count, share = draw.choices(
            ((1, 250), (1, 500), (1, 1000), (2, 1000), (4, 1000), (8, 1000)), (20, 20, 35, 12, 8, 5)
        )[0]
        cpu = draw.choice((4, 6, 8, 10)) * count * share // 1000
        amounts: Amounts = (max(cpu, 1) * 1000, int(max(cpu, 1) * draw.choice((4, 5)) * GIB), 0)
        return Request(amounts, "q35", strategy, gpus=GpuAsk(count, share))
    cpu = draw.choices((0.5, 1, 2, 4, 8, 16, 24), (10, 20, 25, 25, 12, 6, 2))[0]
    return Request(
        (round(cpu * 1000), int(cpu * draw.choice(ratios) * draw.uniform(0.75, 1.25) * GIB), 0), "q35", strategy
    )


def amounts_of(request: Request) -> tuple[int, int, int]:
    gpus = request.gpus.count * request.gpus.share if request.gpus else 0
    return request.amounts[0], request.amounts[1], gpus


def draw_load(seed: int, strategy: str, capacity: tuple[int, ...], ratios: tuple[int, ...]) -> list[Request]:
    """As many as come until they ask for ASKED of one resource."""
    draw = random.Random(seed)
    asked = [0, 0, 0]
    load = []
    while max(a / c for a, c in zip(asked, capacity, strict=True)) < ASKED - 0.001:
        request = draw_request(draw, strategy, ratios)
        more = [a + b for a, b in zip(asked, amounts_of(request), strict=True)]
        if all(a <= ASKED * c for a, c in zip(more, capacity, strict=True)):
            asked = more
            load.append(request)
    return load


def fill(seed: int, strategy: str, ratios: tuple[int, ...] = RATIOS) -> tuple[str, float, float, int]:
    """The scarcest resource, which share of it is asked for and given, and how many were turned away."""
    snapshot = Snapshot()
    for facts in make_nodes():
        snapshot.put_node(facts)
    gpus = sum(count * each for count, _, _, each in TYPES.values()) * 1000
    capacity = (int(snapshot.capacity[0].sum()), int(snapshot.capacity[1].sum()), gpus)
    running: list[tuple[Amounts, GpuAsk | None]] = []
    engine = Engine(snapshot, seed=seed, demand=Demand(lambda: running, learns=True))  # as on a cluster
    asked, given = [0, 0, 0], [0, 0, 0]
    refused = 0
    for number, request in enumerate(draw_load(seed, strategy, capacity, ratios)):
        amounts = amounts_of(request)
        asked = [a + b for a, b in zip(asked, amounts, strict=True)]
        if engine.place(request, f"vm{number}", f"a{number}") is None:
            refused += 1
        else:
            running.append((request.amounts, request.gpus))
            given = [a + b for a, b in zip(given, amounts, strict=True)]
    shares = [a / c for a, c in zip(asked, capacity, strict=True)]
    scarcest = shares.index(max(shares))
    return RESOURCES[scarcest], shares[scarcest], given[scarcest] / capacity[scarcest], refused


def measure() -> Measurement:
    figures = []
    for strategy, ratios in [*((strategy, RATIOS) for strategy in STRATEGIES), (STRATEGIES[0], SCARCE_RATIOS)]:
        runs = [fill(seed, strategy, ratios) for seed in SEEDS]
        given = [share for _, _, share, _ in runs]
        asked = statistics.mean(share for _, share, _, _ in runs)
        scarcest = ", ".join(sorted({name for name, *_ in runs}))
        has_goal = strategy == STRATEGIES[0] and ratios == RATIOS
        figures.append(
            Figure(
                f"the scarcest resource, `{strategy}`" + ("" if ratios == RATIOS else ", cpu and memory both scarce"),
                f"{100 * statistics.mean(given):.2f} % given ({100 * min(given):.2f}–{100 * max(given):.2f})",
                f"{100 * asked:.2f} % asked for ({scarcest})",
                f"{statistics.mean(refused for *_, refused in runs):.1f} turned away",
                f"≥ {100 * GOAL:g} %" if has_goal else "–",
                min(given) >= GOAL if has_goal else None,
            )
        )
    sizes = ", ".join(
        f"{count} {name} ({cpu} cores, {memory} GiB{f', {g} GPUs' if g else ''})"
        for name, (count, cpu, memory, g) in TYPES.items()
    )
    return Measurement(
        "utilisation",
        f"{sizes}; VMs of 0.5 to 24 cores, one in twelve with GPUs (shares of one, up to eight), in random order, nothing moved "
        f"and nothing tried twice; seeds {SEEDS[0]} to {SEEDS[-1]}, the goal is held against the worst of them.",
        figures,
    )
