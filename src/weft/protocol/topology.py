"""The network between the nodes as one answer: nodes, devices that people declared, and links with what is known of each. Pure.

A pair of nodes that measured each other has what they measured: the shorter of two round trips, since a busy machine only adds
delay, and the lower of two bandwidths. What a pair lacks is estimated: the round trip by the nodes' coordinates, the bandwidth as
the median of what pairs between the same two places (zone and rack) have. Of few nodes each pair has a link; of many, those that
measured, so that the answer grows with the nodes and not with their square; of very many, their places stand for them.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from weft.kinds.network_topology import FARTHEST_MS, FASTEST_MBPS, NetworkTopologySpec
from weft.protocol.heartbeat import MOST_PATHS, LinkLoad, PathFigures

MOST_PAIRED = 64  # nodes of which each pair has a link
MOST_SINGLE = 200  # nodes; of more, their places are shown, unless people ask for the nodes
MOST_LINKS = 10_000  # in one answer
OLDEST_SECONDS = 86_400.0
By = Literal["node", "place"]
Pair = tuple[str, str]
Carried = Mapping[frozenset[str], float]  # Mbit/s that migrations got between two nodes, by their names
NOTHING_CARRIED: Carried = {}


class NodeFacts(msgspec.Struct, frozen=True):
    """Facts of one node; ``paths`` by the other's uid."""

    uid: str
    name: str
    zone: str = ""
    rack: str = ""
    online: bool = True
    coordinate: Sequence[float] = ()
    round_trips: Mapping[str, float] = {}  # in ms, as reported; their age isn't known
    paths: Mapping[str, PathFigures] = {}
    paths_age: float = 0.0  # seconds since the heartbeat that brought them
    link: LinkLoad = LinkLoad()

    @property
    def place(self) -> str:
        return "/".join(filter(None, (self.zone, self.rack)))


class TopologyNode(msgspec.Struct, frozen=True):
    name: str
    type: str  # host, switch, router; place: a rack or zone with ``nodes`` hosts
    zone: str = ""
    rack: str = ""
    online: bool | None = None  # of a host
    nodes: int = 1
    received_mbps: float | None = None  # what passes the host's own link now
    sent_mbps: float | None = None
    speed_mbps: float | None = None  # of that link, as its driver says


class TopologyLink(msgspec.Struct, frozen=True):
    """Leads both ways. None: unknown."""

    source: str
    target: str
    latency_ms: float | None  # round trip
    bandwidth_mbps: float | None
    utilisation: float | None  # share of the bandwidth, 0–1: of the busier end, whatever it exchanges with whom
    age_seconds: float | None  # of the older of the measured figures
    measured: bool  # by one of the two ends, both figures; else estimated or declared
    declared: bool = False


class Topology(msgspec.Struct, frozen=True):
    nodes: list[TopologyNode]
    links: list[TopologyLink]
    left_out: int = 0  # links beyond MOST_LINKS


class _Figures(msgspec.Struct):
    latency: float | None = None
    bandwidth: float | None = None
    at_least: float = 0.0  # a bandwidth that was too high to measure
    ages: list[float] = []


def make_topology(
    hosts: Sequence[NodeFacts],
    declared: NetworkTopologySpec,
    *,
    by: By | None = None,
    of: str = "",
    carried: Carried = NOTHING_CARRIED,
) -> Topology:
    """Topology of these nodes; with ``of``, the name of one, only its links, to each other node. What a node claims beyond what a
    network can be is left out. ``carried`` is what migrations had, where a bandwidth is too high to be measured otherwise."""
    hosts = sorted(hosts, key=lambda host: host.name)
    found = _collect(hosts, carried)
    shared = _share(hosts, found)
    if of or by == "node" or (by is None and len(hosts) <= MOST_SINGLE):
        nodes = [_make_host(host) for host in hosts]
        links = [_make_link(pair, found, shared) for pair in _list_pairs(hosts, found, of)]
    else:
        nodes, links = _make_places(hosts, shared)
    devices = [
        TopologyNode(device.name, device.type, device.zone, device.rack, nodes=0)
        for device in declared.devices
        if device.name not in {host.name for host in hosts}
    ]
    named = {node.name: node for node in (*nodes, *devices)}
    for link in declared.links:
        if link.source in named and link.target in named and of in ("", link.source, link.target):
            ends = (named[link.source], named[link.target])
            use = _find_use(ends, link.bandwidth_mbps)
            links.append(
                TopologyLink(
                    *(link.source, link.target, link.latency_ms, link.bandwidth_mbps, use, None), False, declared=True
                )
            )
    links.sort(key=lambda link: (not link.declared, not link.measured))  # what is known best is left out last
    return Topology([*nodes, *devices], links[:MOST_LINKS], max(0, len(links) - MOST_LINKS))


def _collect(hosts: Sequence[NodeFacts], carried: Carried) -> dict[Pair, _Figures]:
    """Collect the measurements of pairs of nodes, by both uids in order."""
    known = {host.uid: host for host in hosts}
    found: dict[Pair, _Figures] = defaultdict(_Figures)
    for host in hosts:
        for uid, path in list(host.paths.items())[:MOST_PATHS]:
            if uid not in known or uid == host.uid:
                continue
            latency = _bound(path.latency_ms, FARTHEST_MS)
            bandwidth = _bound(path.bandwidth_mbps, FASTEST_MBPS)
            if latency is None and bandwidth is None:
                continue
            pair = found[_order(host.uid, uid)]
            pair.latency = _least(pair.latency, latency)
            if path.at_least:
                pair.at_least = max(pair.at_least, bandwidth or 0.0)
                bandwidth = carried.get(frozenset((host.name, known[uid].name)))
            pair.bandwidth = _least(pair.bandwidth, bandwidth)
            ages = ((path.latency_age, latency), (path.bandwidth_age, bandwidth))
            pair.ages += [host.paths_age + age for age, figure in ages if figure is not None and age >= 0.0]
        for uid, trip in list(host.round_trips.items())[:MOST_PATHS]:  # of a node whose heartbeat is not there yet
            if uid in known and uid != host.uid and (latency := _bound(trip, FARTHEST_MS)) is not None:
                pair = found[_order(host.uid, uid)]
                pair.latency = latency if pair.latency is None else pair.latency
    return found


class _Shared(msgspec.Struct):
    """Values shared by pairs that didn't measure."""

    hosts: dict[str, NodeFacts]
    bandwidths: dict[Pair, float]  # by two places in order
    latencies: dict[Pair, float]

    def between(self, pair: Pair) -> tuple[float | None, float | None]:
        """Round trip and bandwidth, as estimated."""
        one, other = self.hosts[pair[0]], self.hosts[pair[1]]
        return estimate(one.coordinate, other.coordinate), self.bandwidths.get(_order(one.place, other.place))


def _share(hosts: Sequence[NodeFacts], found: Mapping[Pair, _Figures]) -> _Shared:
    by_uid = {host.uid: host for host in hosts}
    bandwidths, latencies = defaultdict[Pair, list[float]](list), defaultdict[Pair, list[float]](list)
    for (one, other), figures in found.items():
        places = _order(by_uid[one].place, by_uid[other].place)
        if figures.bandwidth is not None:
            bandwidths[places].append(figures.bandwidth)
        if figures.latency is not None:
            latencies[places].append(figures.latency)
    return _Shared(by_uid, _medians(bandwidths), _medians(latencies))


def _list_pairs(hosts: Sequence[NodeFacts], found: Mapping[Pair, _Figures], of: str) -> list[Pair]:
    """The pairs to show, by uid, in the order of their names."""
    at = {host.uid: index for index, host in enumerate(hosts)}
    if of:
        own = next((host.uid for host in hosts if host.name == of), None)
        return [(own, host.uid) for host in hosts if own is not None and host.uid != own]
    if len(hosts) <= MOST_PAIRED:
        return [(one.uid, other.uid) for index, one in enumerate(hosts) for other in hosts[index + 1 :]]
    return sorted(((min(p, key=at.get), max(p, key=at.get)) for p in found), key=lambda p: (at[p[0]], at[p[1]]))  # type: ignore[arg-type]


def _make_link(pair: Pair, found: Mapping[Pair, _Figures], shared: _Shared) -> TopologyLink:
    figures = found.get(_order(*pair), _Figures())
    latency, bandwidth = shared.between(pair)
    measured = figures.latency is not None and (figures.bandwidth is not None or bandwidth is None)
    latency = figures.latency if figures.latency is not None else latency
    ends = shared.hosts[pair[0]], shared.hosts[pair[1]]
    if figures.bandwidth is not None:
        bandwidth = figures.bandwidth
    elif figures.at_least:  # as fast as the slower of the two ends, if their drivers know
        speeds = [end.link.speed_mbps for end in ends if 0.0 < end.link.speed_mbps <= FASTEST_MBPS]
        measured, bandwidth = False, max(figures.at_least, min(speeds, default=0.0))
    return TopologyLink(
        source=ends[0].name,
        target=ends[1].name,
        latency_ms=_round(latency),
        bandwidth_mbps=_round(bandwidth),
        utilisation=_find_use([_make_host(end) for end in ends], bandwidth),
        age_seconds=round(min(max(figures.ages), OLDEST_SECONDS), 1) if figures.ages else None,
        measured=measured,
    )


def _make_places(hosts: Sequence[NodeFacts], shared: _Shared) -> tuple[list[TopologyNode], list[TopologyLink]]:
    """The places and their links: of each two of which some nodes measured each other."""
    members = defaultdict[str, list[NodeFacts]](list)
    for host in hosts:
        members[host.place].append(host)
    nodes = [
        TopologyNode(place or "elsewhere", "place", of[0].zone, of[0].rack, nodes=len(of))
        for place, of in sorted(members.items())
    ]
    links = [
        TopologyLink(
            source=pair[0] or "elsewhere",
            target=pair[1] or "elsewhere",
            latency_ms=_round(latency),
            bandwidth_mbps=_round(shared.bandwidths.get(pair)),
            utilisation=None,
            age_seconds=None,
            measured=True,
        )
        for pair, latency in sorted(shared.latencies.items())
    ]
    return nodes, links


def _make_host(host: NodeFacts) -> TopologyNode:
    received, sent, speed = (
        _bound(figure, FASTEST_MBPS) for figure in (host.link.received_mbps, host.link.sent_mbps, host.link.speed_mbps)
    )
    return TopologyNode(
        host.name, "host", host.zone, host.rack, host.online, 1, _round(received), _round(sent), _round(speed or None)
    )


def _find_use(ends: Iterable[TopologyNode], bandwidth: float | None) -> float | None:
    """The share of the bandwidth that the busier end takes, in its busier direction."""
    rates = [rate for end in ends for rate in (end.received_mbps, end.sent_mbps) if rate is not None]
    return round(min(1.0, max(rates) / bandwidth), 3) if rates and bandwidth else None


def estimate(one: Sequence[float], other: Sequence[float]) -> float | None:
    """The round trip between two coordinates (``agent/node/coordinates.py``) in ms; None where either isn't known."""
    if len(one) != 3 or len(other) != 3:
        return None
    return _bound(math.dist(one[:2], other[:2]) + one[2] + other[2], FARTHEST_MS)


def _bound(figure: float, most: float) -> float | None:
    """None for what isn't known, or can't be."""
    return figure if 0.0 <= figure <= most else None


def _least(one: float | None, other: float | None) -> float | None:
    return min((figure for figure in (one, other) if figure is not None), default=None)


def _round(figure: float | None) -> float | None:
    return None if figure is None else float(f"{figure:.4g}")


def _order(one: str, other: str) -> Pair:
    return (one, other) if one <= other else (other, one)


def _medians(values: Mapping[Pair, list[float]]) -> dict[Pair, float]:
    return {pair: statistics.median(found) for pair, found in values.items()}
