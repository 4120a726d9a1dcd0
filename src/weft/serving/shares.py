"""A bounded resource that clients share (bytes held, connections): a bound for all, and a part of it for each. Pure."""

from __future__ import annotations

import ipaddress
import sys
from collections import Counter

import msgspec


class Bounds(msgspec.Struct, frozen=True):
    """The bounds of one server. The time limits are the same for all (``protocol``)."""

    most_connections: int
    most_unwanted_bytes: int  # that still arrive of a body after its answer
    most_body_bytes: int = sys.maxsize
    most_held_bytes: int = sys.maxsize  # of all unanswered bodies together
    parts: int = 1  # one client may have a ``parts``-th of the connections, and of the bytes held


class Shares:
    """``whole`` is the bound for all together, ``part`` for one client."""

    def __init__(self, whole: int, part: int) -> None:
        self.whole, self.part = whole, part
        self.held: Counter[str] = Counter()  # by client
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
        """Whether the client may have ``count`` more."""
        return self.total + count <= self.whole and self.held[who] + count <= self.part

    def is_too_much(self, who: str) -> bool:
        """Whether the client has more than its part."""
        return self.held[who] > self.part

    @property
    def is_full(self) -> bool:
        """Whether all together have more than the whole."""
        return self.total > self.whole


def who_is(address: str) -> str:
    """The client that an address counts for: an IPv4 address, or an IPv6 /64, since one client has all of it."""
    try:
        at = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(at, ipaddress.IPv6Address):
        return str(at.ipv4_mapped or ipaddress.ip_network((at, 64), strict=False))
    return str(at)
