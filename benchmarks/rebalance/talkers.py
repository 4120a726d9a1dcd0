"""A cluster of guests in groups that talk: 200 nodes in 10 racks, 2,000 guests of 1–8 cores in groups of 2–12, half of the pairs of
a group talking at log-normal rates, background chatter, placed at random, no node over 90 %."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from weft.scheduler.rebalance.model import Problem
from weft.scheduler.rebalance.objective import FULLEST, Guest, RebalanceNode, make_problem

NODES, RACKS, GUESTS, CORES = 200, 10, 2_000, 112  # so that loads begin with a deviation of 0.14
GIB = 1 << 30


def draw_cluster(seed: int = 1) -> Problem:
    draw = np.random.default_rng(seed)
    cores = draw.integers(1, 9, GUESTS)
    load, at = np.zeros(NODES), np.zeros(GUESTS, dtype=np.int64)
    for guest in range(GUESTS):
        while load[node := int(draw.integers(NODES))] + cores[guest] > FULLEST * CORES:
            pass
        at[guest] = node
        load[node] += cores[guest]
    pairs, guest = dict[tuple[int, int], float](), 0
    while guest < GUESTS:
        group = range(guest, min(GUESTS, guest + int(draw.integers(2, 13))))
        guest = group.stop
        for pair in combinations(group, 2):
            if draw.random() < 0.5:
                pairs[pair] = float(draw.lognormal(10.0, 1.5))
    for _ in range(GUESTS):
        a, b = sorted(int(one) for one in draw.integers(0, GUESTS, 2))
        if a != b:
            pairs.setdefault((a, b), float(draw.lognormal(6.0, 1.0)))
    rack = np.arange(NODES) * RACKS // NODES
    round_trips = np.where(rack[:, None] == rack[None, :], 0.1, 0.5)
    np.fill_diagonal(round_trips, 0.0)
    capacity = (CORES * 1000, 4 * CORES * GIB, 1 << 44)
    machines = [RebalanceNode(f"n{number}", capacity, capacity) for number in range(NODES)]
    guests = []
    for number, (count, node) in enumerate(zip(cores.tolist(), at.tolist(), strict=True)):
        amounts = (count * 1000, count * 2 * GIB, 0)
        guests.append(Guest(f"g{number}", node, amounts, (amounts[0], amounts[1]), float(amounts[1])))
    return make_problem(machines, guests, pairs, round_trips)
