"""Coordinates from round trips, in networks that are made of numbers."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import random
from statistics import median

from weft.agent.node.coordinates import Position, distance

SITES = ((0.0, 0.0), (30.0, 0.0), (0.0, 80.0), (150.0, 40.0))


class Network:
    """Nodes at sites, each a little away from its own; every one asks some of the others."""

    def __init__(self, size: int, peers: int, seed: int = 1) -> None:
        self.chance = random.Random(seed)
        self.site = [SITES[number % len(SITES)] for number in range(size)]
        self.away = [self.chance.uniform(0.05, 0.5) for _ in range(size)]
        self.nodes = [Position(str(number)) for number in range(size)]
        others = [[other for other in range(size) if other != number] for number in range(size)]
        self.peers = [self.chance.sample(known, min(peers, size - 1)) for known in others]

    def round_trip(self, one: int, other: int) -> float:
        return math.dist(self.site[one], self.site[other]) + self.away[one] + self.away[other]

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            for number, node in enumerate(self.nodes):
                seen = [
                    (self.nodes[p].at, self.nodes[p].error, self.round_trip(number, p) + self.chance.expovariate(10.0))
                    for p in self.peers[number]
                ]
                node.learn(seen)

    def wrong(self) -> list[float]:
        pairs = itertools.combinations(range(len(self.nodes)), 2)
        return [abs(distance(self.nodes[a].at, self.nodes[b].at) - self.round_trip(a, b)) for a, b in pairs]


def test_nodes_that_never_asked_each_other_know_how_far_apart_they_are() -> None:
    network = Network(80, 16)
    network.run(40)
    wrong = sorted(network.wrong())
    assert median(wrong) < 2.0 and wrong[len(wrong) * 9 // 10] < 6.0, (median(wrong), wrong[len(wrong) * 9 // 10])
    assert all(node.error < 0.6 for node in network.nodes)  # so sure that it is told


def settled() -> Network:
    """A network of one's own that has known itself for a while."""
    return copy.deepcopy(_settle())


@functools.cache
def _settle() -> Network:
    network = Network(40, 16)
    network.run(60)
    return network


def test_a_network_that_stands_still_has_coordinates_that_stand_still() -> None:
    network = settled()
    network.run(20)
    before = [node.at for node in network.nodes]
    network.run(20)
    moved = [math.dist(node.at, at) for node, at in zip(network.nodes, before, strict=True)]
    assert median(moved) < 0.5 and max(moved) < 2.0, max(moved)


def test_a_node_that_moves_is_followed() -> None:
    network = settled()
    network.site[0] = SITES[3]
    network.run(60)
    trips = [(distance(network.nodes[0].at, network.nodes[n].at), network.round_trip(0, n)) for n in range(1, 40)]
    assert median(abs(known - true) for known, true in trips) < 5.0


def test_nodes_that_begin_at_one_point_come_apart_and_nothing_seen_changes_nothing() -> None:
    one, other = Position("a"), Position("b")
    one.learn([])
    assert one.at[:2] == (0.0, 0.0)
    for _ in range(50):
        one.learn([(other.at, other.error, 40.0)])
        other.learn([(one.at, one.error, 40.0)])
    assert abs(distance(one.at, other.at) - 40.0) < 4.0
