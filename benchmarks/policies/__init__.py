"""What each strategy costs for a request that was never seen, at 10,000 nodes; what a user's own policy adds, and a broken one.

Strategies in CPU time of one process, all filters on. An own policy's answer crosses to its worker and back, so it is told in
wall time; a broken one (it never answers) is told by what a hundred decisions in a row wait for it.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.measurement import Figure, Measurement, spread
from benchmarks.placement.load import make_requests
from weft.contracts.policy import Datum, Request
from weft.kinds.fields.strategy import SERVERLESS_STRATEGY, STRATEGIES
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.own_policies.registry import TIMEOUT_SECONDS, OwnPolicies
from weft.scheduler.own_policies.template import TEMPLATE
from weft.scheduler.policies import POLICIES, Policies
from weft.scheduler.table.facts import Gpu, Load, NodeFacts
from weft.scheduler.table.snapshot import Snapshot

NODES, DECISIONS, GOAL_MS = 10_000, 200, 1.0
BROKEN = "def score(table, request, occasion):\n    while True:\n        pass\n"
GIB = 2**30
COMBINED = ("best_fit:0.7,data_locality:0.3", SERVERLESS_STRATEGY)


def make_fabric(nodes: int) -> Snapshot:
    """Nodes with all that a policy may look at: prices, zones, data, coordinates, a load, groups."""
    draw, snapshot = random.Random(1), Snapshot()
    for number in range(nodes):
        cores = draw.choice((16, 32, 64, 96))
        snapshot.put_node(
            NodeFacts(
                uid=f"u{number:06}",
                name=f"n{number:06}",
                capacity=(cores * 1000, cores * draw.choice((2, 4, 8)) * GIB, 4000 * GIB),
                online=True,
                cordoned=False,
                machines=frozenset({"q35", "microvm"}),
                texts={"zone": draw.choice("abcdef"), "storage": draw.choice(("nvme", "ssd"))},
                numbers={"cost": draw.uniform(0.1, 4.0)},
                gpus=(Gpu("T4", 16 * GIB),) * 4 if number % 10 == 0 else (),
                data=frozenset({"volume:v"}) if number % 50 == 0 else frozenset(),
                coordinate=(draw.uniform(0, 50), draw.uniform(0, 50), 0.1),
            )
        )
    for number in range(nodes):
        load = Load(groups=("default/web",)) if number % 100 == 0 else Load()
        snapshot.put_allocation(f"a{number}", f"u{draw.randrange(nodes):06}", (2000, 4 * GIB, 10 * GIB), load)
    return snapshot


def make_asked(count: int, strategy: str) -> list[Request]:
    """Requests no two of which are equal, each with data, a caller and a group."""
    return [
        Request(
            request.amounts,
            request.machine,
            strategy,
            constraint=request.constraint,
            data=(Datum("volume:v", 5 * GIB),),
            caller="u000001",
            groups=("default/web",),
        )
        for request in make_requests(count)
    ]


def measure() -> Measurement:
    snapshot = make_fabric(NODES)
    figures = []
    for strategy in (*STRATEGIES, *COMBINED):
        took = time_decisions(snapshot, strategy)
        p99 = sorted(took)[int(0.99 * len(took))] * 1000
        goal = strategy not in ("fragmentation", "fgd") and strategy not in COMBINED
        figures.append(
            Figure(
                f"`{'serverless weights' if strategy == SERVERLESS_STRATEGY else strategy}`, {NODES:,} nodes, p99",
                f"{p99:.2f} ms (median {statistics.median(took) * 1000:.2f})",
                goal=f"≤ {GOAL_MS:g} ms" if goal else "–",
                kept=p99 <= GOAL_MS if goal else None,
            )
        )
    with tempfile.TemporaryDirectory() as folder:
        figures += measure_own(Path(folder))
    return Measurement(
        "policies",
        "Decisions on requests that were never seen, one after the other; strategies in CPU time, own policies in wall time.",
        figures,
    )


def time_decisions(snapshot: Snapshot, strategy: str) -> list[float]:
    engine = Engine(snapshot)
    first, *rest = make_asked(DECISIONS + 1, strategy)
    engine.choose(first, "w")
    took = []
    for number, request in enumerate(rest):
        began = time.process_time()
        engine.choose(request, f"w{number}")
        took.append(time.process_time() - began)
    return took


def measure_own(folder: Path) -> list[Figure]:
    figures = []
    for nodes in (1_000, NODES):
        took, _ = time_own(folder / "mine.py", TEMPLATE, nodes)
        figures.append(Figure(f"an own policy (that of `policykit init`), {nodes:,} nodes", spread(took, digits=2)))
    took, told = time_own(folder / "broken.py", BROKEN, 1_000)
    waited = sum(took)
    figures.append(
        Figure(
            f"{len(took)} decisions by one that never answers, all together",
            f"{waited:.2f} s ({told})",
            goal=f"≤ {2 * TIMEOUT_SECONDS:g} s",
            kept=waited <= 2 * TIMEOUT_SECONDS,
        )
    )
    return figures


def time_own(path: Path, source: str, nodes: int) -> tuple[list[float], str]:
    """How long each of a hundred decisions took, and why the last one was skipped."""
    path.write_text(source)
    strategy = f"file:{path}"
    own = OwnPolicies(POLICIES["least_loaded"], isolated=True)
    try:
        engine = Engine(make_fabric(nodes), policies=Policies(own.find))
        own.prepare(strategy, 15.0)
        took = []
        for number, request in enumerate(make_asked(100, strategy)):
            began = time.monotonic()
            own.prepare(strategy)
            engine.choose(request, f"w{number}")
            took.append(time.monotonic() - began)
        return took, "; ".join(own.skipped(strategy)).rpartition(": ")[2] or "none skipped"
    finally:
        own.close()
