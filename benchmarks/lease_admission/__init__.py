"""Leases of all four modes onto many nodes: how long each decision takes, and that nothing is given twice.

What is admitted is checked against a sum over all leases at each moment, in plain Python, that shares no code with the calendar.
"""

from __future__ import annotations

import gc
import math
import random
import resource
import time
from collections import defaultdict

from benchmarks.measurement import Figure, Measurement
from weft.contracts.policy import Amounts, Request
from weft.kinds.fields.lease import LeaseRequest, check_lease
from weft.scheduler.allocation.lease import Conflict, find_slot
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.lease.calendar import CalendarEntry
from weft.scheduler.table.snapshot import NodeFacts, Snapshot

NODES, LEASES, DAYS = 1000, 10_000, 30
GIB = 1024**3
NODE: Amounts = (16_000, 64 * GIB, 1000 * GIB)
NOW = 1_800_000_000.0
GRACE_SECONDS = 20.0
MOST_MS, MOST_MB = 5.0, 300.0


def draw_request(rng: random.Random, now: float) -> tuple[Request, LeaseRequest]:
    cpu = rng.choice((4, 8, 12, 16))
    duration = rng.choice((1, 4, 12, 48, 120)) * 3600.0 * rng.uniform(0.5, 1.5)
    mode = rng.choice(("immediate", "best-effort", "reservation", "deadline"))
    start = now + rng.uniform(0, DAYS * 86400.0) if mode == "reservation" else None
    deadline = now + duration + rng.uniform(600, DAYS * 86400.0) if mode == "deadline" else None
    lease = LeaseRequest(mode=mode, start=start, duration=duration, deadline_at=deadline)  # type: ignore[arg-type]
    check_lease(lease)
    amounts = (cpu * 1000, cpu * rng.choice((2, 4)) * GIB, 10 * GIB)
    return Request(amounts=amounts, machine="q35", strategy="least_loaded"), lease


def make_nodes() -> Snapshot:
    snapshot = Snapshot()
    for number in range(NODES):
        name = f"n{number:04}"
        snapshot.put_node(NodeFacts(name, name, NODE, True, False, frozenset({"q35"})))
    return snapshot


def count_twice_given(admitted: list[tuple[str, float, float, Amounts]]) -> float:
    """Core-seconds above what nodes have."""
    changes: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
    for node, start, end, amounts in admitted:
        changes[node] += [(start, amounts[0], amounts[1]), (end, -amounts[0], -amounts[1])]
    over = 0.0
    for of_node in changes.values():
        cpu = memory = 0
        last = -math.inf
        for at, more_cpu, more_memory in sorted(of_node):
            excess = max(0, cpu - NODE[0]) / 1000
            if memory > NODE[1]:
                excess = max(excess, 1.0)
            over += excess * (at - last) if excess else 0.0
            cpu, memory, last = cpu + more_cpu, memory + more_memory, at
    return over


def measure() -> Measurement:
    rng, before = random.Random(16), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    snapshot = make_nodes()
    engine = Engine(snapshot)
    admitted: list[tuple[str, float, float, Amounts]] = []
    took: list[float] = []
    refused = 0
    gc.collect()
    for number in range(LEASES):
        request, lease = draw_request(rng, NOW)
        began = time.perf_counter()
        found = find_slot(engine, request, str(number), lease, GRACE_SECONDS, NOW)
        if not isinstance(found, Conflict):
            node, end = snapshot.uids[found.row], (found.lease.end or math.inf) + GRACE_SECONDS
            held = CalendarEntry(node, found.lease.prepare_at, end, request.amounts[:2])
            snapshot.put_leased(f"/allocation/-/{number}", held, request.amounts[2])
        took.append(time.perf_counter() - began)
        if isinstance(found, Conflict):
            refused += 1
        else:
            admitted.append((node, found.lease.prepare_at, end, request.amounts))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    took.sort()
    p50, p99 = took[len(took) // 2] * 1000, took[int(len(took) * 0.99)] * 1000
    over = count_twice_given(admitted)
    return Measurement(
        "lease_admission",
        f"{LEASES:,} leases of all modes, 4 to 16 cores for half an hour to a week within {DAYS} days, onto {NODES:,} nodes of "
        f"{NODE[0] // 1000} cores: {len(admitted):,} admitted, {refused:,} refused.",
        [
            Figure("admission, median", f"{p50:.2f} ms", "–", "–", "–"),
            Figure("admission, p99", f"{p99:.2f} ms", "–", "–", f"≤ {MOST_MS:g} ms", p99 <= MOST_MS),
            Figure("memory", f"{grown:.0f} MB", "–", "–", f"< {MOST_MB:g} MB", grown < MOST_MB),
            Figure("core-seconds given twice", f"{over:.0f}", "–", "–", "0", over == 0),
        ],
    )
