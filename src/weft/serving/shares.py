"""Something bounded that strangers use together (bytes held, connections): so much for all, and of that a part for each. Pure."""

from __future__ import annotations

import ipaddress
import sys
from collections import Counter

import msgspec


class Bounds(msgspec.Struct, frozen=True):
    """What one server bears; how long it waits is the same for all (``protocol``). One address may have a ``parts``-th of
    the connections, and of the bodies under way."""

    most_connections: int
    most_unwanted_bytes: int  # of a body that was answered before it had come
    most_body_bytes: int = sys.maxsize
    most_held_bytes: int = sys.maxsize  # of all bodies under way together
    parts: int = 1


class Shares:
    """``whole`` is for all together, ``part`` for one. ``held`` is what each has now, of those who have anything."""

    def __init__(self, whole: int, part: int) -> None:
        self.whole, self.part = whole, part
        self.held: Counter[str] = Counter()
        self.total = 0

    def take(self, who: str, count: int) -> None:
        self.held[who] += count
        self.total += count

    def give_back(self, who: str, count: int) -> None:
        self.total -= count
        left = self.held[who] - count
        if left > 0:
            self.held[who] = left
        else:
            del self.held[who]

    def has_capacity(self, who: str, count: int) -> bool:
        """Whether he may have so much more."""
        return self.total + count <= self.whole and self.held[who] + count <= self.part

    def is_too_much(self, who: str) -> bool:
        """Whether one has more than his part."""
        return self.held[who] > self.part

    @property
    def is_full(self) -> bool:
        """Whether all together have more than there is."""
        return self.total > self.whole


def who_is(address: str) -> str:
    """Whose address that is, as far as it tells: of IPv6, where one has 2^64 of them, the network."""
    try:
        at = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(at, ipaddress.IPv6Address):
        return str(at.ipv4_mapped or ipaddress.ip_network((at, 64), strict=False))
    return str(at)
