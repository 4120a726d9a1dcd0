"""Bandwidth between two nodes, by trains of packets, and what the answer about a large fabric costs.

Two namespaces are joined by a link that tbf shapes; a node in one sends twelve trains to a node in the other. A figure is the
median of the last three trains, as the product takes it; the worst of those from the third on counts.
"""

from __future__ import annotations

import time

import msgspec
from tests.host.shaped_lab import ShapedLab

from benchmarks.measurement import Figure, Measurement
from weft.kinds.network_topology import NetworkTopologySpec
from weft.protocol.heartbeat import MOST_PATHS, PathFigures
from weft.protocol.topology import NodeFacts, make_topology

RATES, TRAINS, MOST_ERROR = (10, 100, 1000), 12, 0.1
NODES = 10_000


def measure() -> Measurement:
    lab = ShapedLab()
    try:
        figures = [_measure_rate(lab, megabits) for megabits in RATES]
    finally:
        lab.close()
    return Measurement("topology", (__doc__ or "").split("\n\n")[1].replace("\n", " "), [*figures, _measure_answer()])


def _measure_rate(lab: ShapedLab, megabits: int) -> Figure:
    lab.shape(megabits)
    found = [mbps for mbps, at_least in lab.measure(TRAINS) if not at_least][2:]
    worst = max((abs(mbps / megabits - 1) for mbps in found), default=1.0)
    return Figure(
        f"bandwidth of a link shaped to {megabits} Mbit/s",
        f"{min(found, default=0):.1f}–{max(found, default=0):.1f} Mbit/s",
        ratio=f"{worst:.1%} off",
        goal=f"≤ {MOST_ERROR:.0%}",
        kept=worst <= MOST_ERROR,
    )


def _measure_answer() -> Figure:
    peers = [[f"u{(number + step * 613) % NODES}" for step in range(1, MOST_PATHS + 1)] for number in range(NODES)]
    path = PathFigures(0.4, 5.0, 9400.0, 60.0)
    hosts = [
        NodeFacts(f"u{n}", f"n{n}", f"z{n % 5}", f"r{n % 250}", paths=dict.fromkeys(peers[n], path))
        for n in range(NODES)
    ]
    began = time.process_time()
    made = make_topology(hosts, NetworkTopologySpec())
    took = time.process_time() - began
    size = len(msgspec.json.encode(made))
    return Figure(
        f"topology of {NODES:,} nodes in 250 racks",
        f"{took:.2f} s of CPU",
        ratio=f"{size / 1e6:.1f} MB of JSON",
        kept=None,
    )
