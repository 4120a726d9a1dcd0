"""Rates between workloads as their nodes reported them, and where the peers are now.

Kept in memory only. A new scheduler has it again with the nodes' next heartbeats, which begin with the flows of the last day
(``agent/flow/talkers.py``); both ends of a pair see its traffic, so of a workload that runs nowhere its peers' nodes know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from weft.contracts.policy import Table
from weft.protocol.heartbeat import MOST_TALKERS

MOST_HEARD = 64  # others that name a workload as their peer, of which the greatest count
LEAST_RATE = 100.0  # bytes a second: less isn't worth a place


class Whereabouts(msgspec.Struct, frozen=True):
    """A workload and its node."""

    kind: str
    project: str | None
    name: str
    node_uid: str | None


def _nowhere(uid: str) -> Whereabouts | None:
    return None


class TalkingPeer(msgspec.Struct, frozen=True):
    uid: str
    rate: float  # bytes a second, both directions


class Talkers:
    """``locate`` says where a workload is now, by uid."""

    def __init__(self) -> None:
        self.locate: Callable[[str], Whereabouts | None] = _nowhere
        self._rates: dict[str, dict[str, float]] = {}  # by workload uid and its peer's
        self._heard: dict[str, dict[str, float]] = {}  # the same, by the peer's

    def __len__(self) -> int:
        return len(self._rates)

    def put(self, uid: str, rates: Mapping[str, float]) -> None:
        """Put in the rates of a workload that its node reports, by its peers' uids; they replace the former ones."""
        for peer in self._rates.pop(uid, {}):
            others = self._heard.get(peer, {})
            others.pop(uid, None)
            if not others:
                self._heard.pop(peer, None)
        kept = sorted(((rate, peer) for peer, rate in rates.items() if peer != uid and rate > 0), reverse=True)
        if kept:
            self._rates[uid] = {peer: rate for rate, peer in kept[:MOST_TALKERS]}
            for peer, rate in self._rates[uid].items():
                self._heard.setdefault(peer, {})[uid] = rate

    def prune(self, exists: Callable[[str], bool]) -> None:
        """Forget workloads that are gone."""
        for uid in [uid for uid in self._rates if not exists(uid)]:
            self.put(uid, {})

    def of(self, uid: str) -> list[TalkingPeer]:
        """The peers of a workload with what they exchange, the greatest first."""
        rates = dict(self._rates.get(uid, {}))
        heard = sorted(self._heard.get(uid, {}).items(), key=lambda one: -one[1])[:MOST_HEARD]
        for peer, rate in heard:
            rates[peer] = max(rate, rates.get(peer, 0.0))
        return [
            TalkingPeer(peer, rate)
            for peer, rate in sorted(rates.items(), key=lambda one: (-one[1], one[0]))[:MOST_TALKERS]
        ]

    def find_places(self, uid: str) -> list[tuple[str, float]]:
        """The nodes on which its peers are, with what it exchanges with those of each, in bytes a second."""
        places: dict[str, float] = {}
        for peer in self.of(uid):
            at = self.locate(peer.uid)
            if at is not None and at.node_uid is not None:
                places[at.node_uid] = places.get(at.node_uid, 0.0) + peer.rate
        return sorted((node, float(f"{rate:.2g}")) for node, rate in places.items() if rate >= LEAST_RATE)


def find_talkers(table: Table, uid: str) -> list[tuple[str, float]]:
    """Find talkers as ``Talkers.find_places`` does; a user's own policy, which sees the table from a process of its own, doesn't
    see them."""
    talkers = getattr(table, "talkers", None)
    return talkers.find_places(uid) if isinstance(talkers, Talkers) else []


def name_talkers(talkers: Talkers, uid: str, project: str | None) -> Iterable[tuple[str, str | None, float]]:
    """Its peers as people of ``project`` may know them: name, node uid, rate; those of other projects together, without a node."""
    strangers = 0.0
    for peer in talkers.of(uid):
        at = talkers.locate(peer.uid)
        if at is None:
            continue
        if at.project == project:
            yield f"{at.kind}/{at.name}", at.node_uid, peer.rate
        else:
            strangers += peer.rate
    if strangers:
        yield "workloads of other projects", None, strangers
