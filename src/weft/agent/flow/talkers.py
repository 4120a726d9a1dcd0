"""Peers of this node's workloads, and how much they exchange: decayed rates from the minutes that the recorder closes, for
placement.

After each minute r = .9 r + .1 bytes / 60, at least the mean of the last day: so what a workload does now counts most, and one that
was silent for an hour is still known by whom it talks to. Nothing is kept here that the recorded flows don't have: a new process,
and the node that a workload has migrated to, begin with those.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from weft.agent.flow.folded import DAY, HOUR, MINUTE, OTHERS, Interval, choose
from weft.protocol.heartbeat import MOST_TALKERS

DECAY = 0.9
LEAST_RATE = 1.0  # bytes a second; less is forgotten
FRESH_SECONDS = 3600.0  # after which the mean of the day is made again
Peer = tuple[str, str]  # network uid, address
Rates = dict[Peer, float]


class Talkers:
    """Rates in bytes a second, both directions together, by workload uid."""

    def __init__(self) -> None:
        self.rates: Mapping[str, Rates] = {}
        self._means: dict[str, Rates] = {}
        self._made_at: dict[str, float] = {}
        self._minute: defaultdict[str, Rates] = defaultdict(dict)

    def count(self, uid: str, peer: Peer, count: int) -> None:
        """Bytes of the minute that runs; ``peer`` is another workload."""
        known = self._minute[uid]
        if peer in known or len(known) < 4 * MOST_TALKERS:
            known[peer] = known.get(peer, 0.0) + count

    def is_stale(self, uid: str, now: float) -> bool:
        """Whether ``begin`` should come before the next ``turn``."""
        return not 0 <= now - self._made_at.get(uid, float("-inf")) < FRESH_SECONDS

    def begin(self, uid: str, intervals: Iterable[Interval], networks: Mapping[str, str], now: float) -> None:
        """Begin with what was recorded of a workload, with its ``networks``' uids by name."""
        chosen = list(choose(list(intervals), now - DAY))
        since = min((one.start for one in chosen), default=now)
        decayed, means = defaultdict[Peer, float](float), defaultdict[Peer, float](float)
        for one in chosen:
            for entry in one.entries:
                network = networks.get(entry.key.network)
                if (
                    network is None
                    or not entry.key.name
                    or entry.key.address == OTHERS
                    or entry.key.verdict == "refused"
                ):
                    continue
                total, peer = entry.sent_bytes + entry.received_bytes, (network, entry.key.address)
                means[peer] += total / max(HOUR, now - since)
                if one.seconds == MINUTE:
                    age = max(0.0, (now - one.end) / MINUTE)
                    decayed[peer] += (1 - DECAY) * DECAY**age * total / MINUTE
        self._means[uid], self._made_at[uid] = _keep(means), now
        self.rates = {**self.rates, uid: _keep(decayed)}

    def turn(self, here: Iterable[str]) -> None:
        """A minute has ended; ``here`` are the workloads that are on this node."""
        rates = dict[str, Rates]()
        for uid in here:
            means, minute = self._means.get(uid, {}), self._minute.get(uid, {})
            old = self.rates.get(uid, {})
            rates[uid] = _keep(
                {
                    peer: max(
                        means.get(peer, 0.0),
                        DECAY * old.get(peer, 0.0) + (1 - DECAY) * minute.get(peer, 0.0) / MINUTE,
                    )
                    for peer in (*means, *old, *minute)
                }
            )
        self._minute.clear()
        self.rates = rates
        for kept in (self._means, self._made_at):
            for uid in kept.keys() - rates.keys():
                del kept[uid]


def _keep(rates: Mapping[Peer, float]) -> Rates:
    """The greatest."""
    ranked = sorted(rates, key=lambda peer: (-rates[peer], peer))[:MOST_TALKERS]
    return {peer: rates[peer] for peer in ranked if rates[peer] >= LEAST_RATE}
