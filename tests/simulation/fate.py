"""What may go wrong, how often, and the hand that draws it from the seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

# The chance that a message, a commit or a driver's step meets a fault while faults happen.
CHANCES = {
    "request lost": 0.03,
    "answer lost": 0.03,
    "request repeated": 0.05,
    "stream broken": 0.01,
    "watch broken": 0.004,
    "commit late": 0.01,
    "commit's answer lost": 0.01,
    "killed before a placement lands": 0.06,
    "killed after a placement was sent": 0.06,
    "driver fails": 0.04,
    "driver is slow": 0.05,
}
# And where several servers share an etcd.
ETCD_CHANCES = {
    "request to etcd lost": 0.004,
    "answer of etcd lost": 0.006,
    "request to etcd late": 0.006,
    "watch of etcd late": 0.002,
    "watch of etcd broken": 0.003,
}
# What befalls the fabric as a whole, and how often compared to the others.
MISFORTUNES = {
    "API server killed": 3,
    "controllers killed": 4,
    "agent killed": 8,
    "node cut off": 4,
    "node loses power": 2,
    "guest dies": 4,
    "clock jumps": 2,
    "disk full begins": 1,
    "node cordoned": 2,
    "older store restored": 1,
    "node removed": 1,
}
# Other weathers, for histories in which something is looked at more closely.
MOVING = {**MISFORTUNES, "older store restored": 0, "node removed": 0}
BEHIND = {
    **MISFORTUNES,
    "older store restored": 15,
    "node removed": 0,
}  # stores that know nothing of moves that have been
GIVEN_UP = {**MISFORTUNES, "older store restored": 0, "node removed": 8}
# Clocks of nodes that differ from the server's begin leases at other times (decision 0142).
LEASES = {**MOVING, "clock jumps": 0, "node cordoned": 4}
TENANTS = {**LEASES, "controllers killed": 8}
# Of several servers. An older store is put back only where none of them runs.
SERVERS = {
    **MISFORTUNES,
    "older store restored": 0,
    "server killed": 5,
    "server frozen": 6,
    "server cut off from etcd": 5,
    "server deaf to etcd": 3,
    "server cut off from a node": 4,
    "server cut off from all": 3,
    "etcd without a leader": 4,
    "server's clock jumps": 3,
}
SERVERS_KEPT = {**SERVERS, "node removed": 0}
SKEW_SECONDS = 1800.0  # of a server's clock at most: an hour between two
LOST_OFTEN = 0.2  # how often a misfortune is that a node counts as lost, where leases are looked at
_ALL_CHANCES = CHANCES | ETCD_CHANCES
BACKUP_EVERY = 8  # misfortunes, on average, between two backups of the store
LOST_EVERY = 30  # and between two nodes that are silent for so long that they count as lost


class Fate:
    """Draws all that goes wrong, until ``most`` faults were met."""

    def __init__(self, seed: int, most: int, weather: Mapping[str, int]) -> None:
        self.seed, self.weather = seed, weather
        self.draw = random.Random(f"fate {seed}")
        self.most = most
        self.count: Counter[str] = Counter()
        self.met = 0  # all of them
        self.on = False
        self.disk_full = False
        self.cut_off: set[str] = set()
        self.deaf: set[str] = set()  # who speak, but get no list and no watch

    @property
    def spent(self) -> bool:
        return self.met >= self.most

    def hit(self, name: str) -> bool:
        """Whether a fault of this name happens now; it is counted."""
        if name == "disk full":
            return self.disk_full
        if not self.on or self.spent or self.draw.random() >= _ALL_CHANCES[name]:
            return False
        self.note(name)
        return True

    def note(self, name: str) -> None:
        """A fault was met."""
        self.count[name] += 1
        self.met += 1

    def delay(self, seconds: float) -> float:
        """Some time around ``seconds``, seldom much more: so messages overtake each other."""
        much = self.on and self.draw.random() < 0.02
        return seconds * self.draw.random() * (20.0 if much else 2.0)

    def is_cut_off(self, who: str) -> bool:
        return who in self.cut_off

    def is_deaf(self, who: str) -> bool:
        """Whether what it reads and follows doesn't reach it."""
        return who in self.deaf or self.is_cut_off(who)
