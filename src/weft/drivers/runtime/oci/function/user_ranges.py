"""Ranges of users for instances, above those of containers: each of 65,536, given to one instance at a time and used again."""

from __future__ import annotations

import hashlib
import os

from weft.drivers.runtime.oci.user_namespace import FIRST_INSTANCE_USER, INSTANCE_RANGES, USERS_EACH, open_mapping
from weft.objects.errors import DriverFailed


class Ranges:
    """``node_uid`` spreads the agents of one machine. A range's namespace is kept open, since making one takes longest of all."""

    def __init__(self, node_uid: str) -> None:
        self._start = int.from_bytes(hashlib.sha256(node_uid.encode()).digest()[:4], "big") % INSTANCE_RANGES
        self._taken: set[int] = set()
        self._mappings: dict[int, int] = {}

    def take(self) -> int:
        """The first user of a range that no instance here has. Raises DriverFailed when there is none left."""
        for step in range(INSTANCE_RANGES):
            first = FIRST_INSTANCE_USER + (self._start + step) % INSTANCE_RANGES * USERS_EACH
            if first not in self._taken:
                self._taken.add(first)
                return first
        raise DriverFailed(
            f"all {INSTANCE_RANGES} user id ranges for instances are taken on this node", details={"step": "users"}
        )

    def give_back(self, first_user: int) -> None:
        self._taken.discard(first_user)

    def mapping(self, first_user: int) -> int:
        """A descriptor of the range's user namespace, to shift owners by. Blocks. Raises DriverFailed."""
        if first_user not in self._mappings:
            self._mappings[first_user] = open_mapping(first_user)
        return self._mappings[first_user]

    def close(self) -> None:
        for descriptor in self._mappings.values():
            os.close(descriptor)
        self._mappings.clear()
