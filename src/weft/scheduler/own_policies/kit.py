"""Tests a user's own policy with the server's worker, over fabrics drawn from a seed, small and large.

Finds what a server would refuse: an answer that isn't one number from 0 to 100 for each node, two answers to one question,
a slow answer. Reads the file, writes nothing.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator

import msgspec
import numpy as np

from weft.contracts.clock import Clock
from weft.contracts.policy import Column, Datum, GpuAsk, Occasion, Request, Spread, Table
from weft.scheduler.own_policies.process import START_SECONDS, PolicyFailed, PolicyWorker
from weft.scheduler.own_policies.registry import TIMEOUT_SECONDS
from weft.scheduler.table.facts import Gpu, Load, NodeFacts
from weft.scheduler.table.snapshot import Snapshot

SIZES = (1, 2, 7, 100, 1_000, 10_000)
PATIENCE_SECONDS = 2.0  # for an answer: one that takes longer than TIMEOUT_SECONDS is reported as slow
ASKED_AGAIN = 5
_GIB = 1024**3


class Check(msgspec.Struct, frozen=True):
    """One check and what was seen."""

    name: str
    passed: bool
    seen: str


def try_policy(name: str, clock: Clock, seed: int = 0) -> Iterator[Check]:
    """The checks of the policy ``name`` (``file:PATH`` or ``entry:NAME``), one after the other, up to the first failure that makes
    the others pointless."""
    workers: list[PolicyWorker] = []
    try:
        began = clock.elapsed()
        for _ in range(2):
            workers.append(PolicyWorker(name))
            while not workers[-1].start(START_SECONDS):
                continue
        yield Check("read", True, f"a worker is ready after {(clock.elapsed() - began) / 2:.1f} s")
        yield from _try_answers(workers, clock, seed)
    except PolicyFailed as problem:
        yield Check(
            "read" if not workers or not workers[-1].ready else "answers", False, f"{problem.reason}: {problem.message}"
        )
    finally:
        for worker in workers:
            worker.close()


def _try_answers(workers: list[PolicyWorker], clock: Clock, seed: int) -> Iterator[Check]:
    first, second = workers
    asked, differ, slow, highest, lowest = 0, "", "", 0.0, 100.0
    took: dict[int, list[float]] = {}
    for number, (size, table, request, occasion) in enumerate(make_cases(seed)):
        answers: list[list[Column]] = []
        for worker in (*[first] * ASKED_AGAIN, second):
            began = clock.elapsed()
            try:
                answers.append(worker.ask(table, request, occasion, number, PATIENCE_SECONDS))
            except PolicyFailed as problem:
                yield Check("answers", False, f"{problem.reason}: {problem.message}; {describe(size, request)}")
                return
            if worker is first:
                took.setdefault(size, []).append(clock.elapsed() - began)
        asked += 1
        total = sum(column.weight * column.values for column in answers[0])
        highest, lowest = max(highest, float(np.max(total))), min(lowest, float(np.min(total)))
        if not differ and not all(_equal(answers[0], other) for other in answers[1:]):
            differ = f"the same question got two answers; {describe(size, request)}"
        if size == SIZES[-1] and statistics.median(took[size]) > TIMEOUT_SECONDS:
            slow = f"{size} nodes take {statistics.median(took[size]) * 1000:.0f} ms"
    yield Check(
        "answers", True, f"{asked} requests over 1 to {SIZES[-1]} nodes: numbers from {lowest:.1f} to {highest:.1f}"
    )
    yield Check("same", not differ, differ or "the same question gets the same answer, from another worker too")
    middle = ", ".join(f"{statistics.median(took[size]) * 1000:.1f} ms at {size} nodes" for size in SIZES[-3:])
    yield Check("time", not slow, f"{slow or middle}; the limit is {TIMEOUT_SECONDS * 1000:g} ms")


def make_cases(seed: int) -> Iterator[tuple[int, Table, Request, Occasion]]:
    """Fabrics of all SIZES and requests; how many nodes have labels, GPUs and data differs."""
    draw = random.Random(seed)  # noqa: S311 (the same for the same seed)
    for size in SIZES:
        snapshot = Snapshot()
        rich = draw.random() if size > 1 else 1.0
        for number in range(size):
            snapshot.put_node(_make_node(draw, number, rich))
        for number in range(size * 2):
            at = draw.randrange(size)
            amounts = (draw.choice([0, 500, 1000, 4000]), draw.choice([0, 1, 4]) * _GIB, draw.choice([0, 10]) * _GIB)
            snapshot.put_allocation(f"a{number}", f"u{at}", amounts, Load(groups=("default/web",) * draw.randint(0, 1)))
        snapshot.settle()
        for number, request in enumerate(_make_requests(draw)):
            yield size, snapshot, request, Occasion(seed, f"w{size}-{number}", None if number % 2 else "n0")


def _make_node(draw: random.Random, number: int, rich: float) -> NodeFacts:
    texts = {"zone": draw.choice("abc"), "rack": f"r{draw.randint(1, 40)}", "storage": draw.choice(["nvme", "hdd"])}
    return NodeFacts(
        uid=f"u{number}",
        name=f"n{number}",
        capacity=(
            draw.choice([0, 4000, 32000, 128000]),
            draw.choice([0, 8, 64, 512]) * _GIB,
            draw.choice([0, 500]) * _GIB,
        ),
        online=draw.random() < 0.95,
        cordoned=draw.random() < 0.05,
        machines=frozenset({"q35"}),
        texts={key: text for key, text in texts.items() if draw.random() < rich},
        numbers={"cost": draw.choice([0.0, 0.05, 3.0])} if draw.random() < rich else {},
        extras={"sriov": draw.randint(0, 8)} if draw.random() < rich / 2 else {},
        gpus=(Gpu("T4", 16 * _GIB),) * draw.randint(0, 4) if draw.random() < rich / 2 else (),
        data=frozenset({"pool:raw"}) if draw.random() < rich / 2 else frozenset(),
        coordinate=(draw.uniform(0, 50), draw.uniform(0, 50), 0.1) if draw.random() < rich else (),
    )


def _make_requests(draw: random.Random) -> list[Request]:
    def ask(**more: object) -> Request:
        amounts = (draw.choice([100, 1000, 8000]), draw.choice([1, 4, 32]) * _GIB, draw.choice([0, 20]) * _GIB)
        return Request(amounts, "q35", "own", **more)  # type: ignore[arg-type]

    return [
        ask(),
        ask(gpus=GpuAsk(1, 500)),
        ask(gpus=GpuAsk(4, memory=16 * _GIB, models=("T4",))),
        ask(data=(Datum("pool:raw", _GIB), Datum("volume:gone")), groups=("default/web",), mode="serverless"),
        ask(spread=(Spread("zone", 1, "default/web"),), apart=("default/web",), caller="u0"),
        ask(extras=(("sriov", 1),), tolerations=("spot",)),
        Request((10**9, 1 << 60, 1 << 60), "q35", "own"),  # more than there is anywhere
    ]


def describe(size: int, request: Request) -> str:
    """Description of the case."""
    more = [name for name in ("gpus", "data", "spread", "extras") if getattr(request, name)]
    return f"{size} node{'s' * (size > 1)}, request with {', '.join(more) or 'amounts only'}"


def _equal(one: list[Column], other: list[Column]) -> bool:
    return [(c.name, c.weight) for c in one] == [(c.name, c.weight) for c in other] and all(
        np.array_equal(a.values, b.values) for a, b in zip(one, other, strict=True)
    )
