"""How many refused and failed requests are recorded one by one: so many a minute of one address, and of all. The rest is counted:
strangers can't fill the disk. Pure."""

from __future__ import annotations

import ipaddress

MOST_OF_ONE = 20  # in a minute
MOST_OF_ALL = 200
MOST_ADDRESSES = 1000  # that are told apart
MOST_LINES = 20  # addresses that have a line of their own for what was left out of a minute
OTHERS = ""  # the address of the line for all others


class Bound:
    """The count of one minute after the other."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._left_out: dict[str, int] = {}
        self._all = 0

    def takes(self, address: str) -> bool:
        """Whether a request from ``address`` is recorded; if not, it is counted."""
        of = group_of(address)
        if of not in self._seen and len(self._seen) >= MOST_ADDRESSES:
            of = OTHERS
        count = self._seen[of] = self._seen.get(of, 0) + 1
        if count <= MOST_OF_ONE and self._all < MOST_OF_ALL:
            self._all += 1
            return True
        self._left_out[of] = self._left_out.get(of, 0) + 1
        return False

    def end_minute(self) -> list[tuple[str, int]]:
        """Counts of what was left out: address and count, the most first. A new minute begins."""
        left = sorted(self._left_out.items(), key=lambda one: (one[0] == OTHERS, -one[1]))
        self._seen, self._left_out, self._all = {}, {}, 0
        named, rest = left[:MOST_LINES], sum(count for _, count in left[MOST_LINES:])
        return [*named, (OTHERS, rest)] if rest else named


def group_of(address: str) -> str:
    """An IPv6 address's network of 64 bits, which one stranger may have to himself; else the address."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address
