"""Whether places are what they may be: one for a workload, and no more on a node than it has. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from weft.kinds.allocation import AllocationReport, AllocationSpec, Resources, account, is_lost
from weft.kinds.node import NodeReport
from weft.objects.envelope import Envelope, decode_part


def is_one_place(places: list[Envelope]) -> bool:
    """Whether a workload may have these at once: one, or the two sides of a move; and what moves have left for a while."""
    specs = {place.uid: decode_part(place.spec, AllocationSpec) for place in places}
    places = [place for place in places if not is_lost(specs[place.uid])]
    kept = [p for p in places if p.deleting_since is None or specs[p.uid].lease is None]  # its lease has another place
    left = {p.uid for p in kept if p.deleting_since is None or specs[p.uid].role == "active"}
    targets = [uid for uid in left if specs[uid].role == "target"]
    moves = [specs[uid].migration for uid in targets]
    others = left.difference(targets)
    return len(left) <= 1 or (len(moves) == 1 and moves[0] is not None and others == {moves[0].peer_allocation})


def find_overcommitment(
    node: NodeReport, spec: AllocationSpec, was: Envelope | None, places: Sequence[Envelope], now: float
) -> Iterator[str]:
    """What ``spec``, which was ``was``, takes of the node though it isn't there, at any time from ``now`` on. A guest that was
    found may make it too much: from then on nobody may be given more, and whoever is given less makes it better."""
    here = [place for place in places if decode_part(place.spec, AllocationSpec).node_uid == spec.node_uid]
    mine = next(place for place in here if decode_part(place.spec, AllocationSpec) == spec)
    before = _account(was) if was is not None else Resources(cpu=0.0, memory=0, disk=0)
    begin, end = _find_stretch(mine, now)
    victims = (spec.waits_for or "").split(",")  # they go before it begins
    stretches = [(*_find_stretch(place, now), _account(place)) for place in here if place.name not in victims]
    for moment in sorted({begin, *(one[0] for one in stretches if begin < one[0] < end)}):
        taken = [one[2] for one in stretches if one[0] <= moment < one[1]]
        for name, most in (("cpu", node.cpu + 1e-6), ("memory", node.memory), ("disk", node.disk)):
            total = sum(getattr(one, name) for one in taken)
            more = getattr(_account(mine), name) - getattr(before, name)
            if total > most and more > 1e-6:
                yield f"node {spec.node} is over-committed: {total} of {getattr(node, name)} {name}, {more} of them now"
    shares = [gpu for place in here for gpu in decode_part(place.spec, AllocationSpec).gpus]
    held = decode_part(was.spec, AllocationSpec).gpus if was is not None else []
    for gpu in spec.gpus:
        if gpu not in held and sum(other.share for other in shares if other.index == gpu.index) > 1000:
            yield f"GPU {gpu.index} of node {spec.node} is given away twice"


def _account(place: Envelope) -> Resources:
    return account(decode_part(place.spec, AllocationSpec), decode_part(place.report, AllocationReport))


def _find_stretch(place: Envelope, now: float) -> tuple[float, float]:
    """From when to when it takes its capacity, as the calendar says; without a lease, for ever."""
    spec, report = decode_part(place.spec, AllocationSpec), decode_part(place.report, AllocationReport)
    lease = spec.lease
    if lease is None:
        return -math.inf, math.inf
    begin = lease.prepare_at if report.state == "pending" else -math.inf
    if begin <= now:
        begin = -math.inf
    if place.deleting_since is not None and report.state == "pending":
        return begin, begin  # it begins elsewhere
    if lease.suspension is not None:
        return begin, max(begin, lease.suspension.at) if lease.suspension.at > now else begin
    end = math.inf if lease.end is None else lease.end + spec.grace_seconds
    return begin, end if end > now else begin
