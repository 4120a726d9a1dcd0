"""Devices that subscribe to more than is theirs. Pure.

The broker lets everybody subscribe to what he may not read, and keeps each such subscription: one device could fill the memory of
all with them. Its log has a line for each one.
"""

from __future__ import annotations

from collections.abc import Container

from weft.edge.broker.config import READS, ROOT

MOST_FOREIGN = 16  # subscriptions of one device to what isn't its own


def read_subscription(line: str) -> tuple[str, str] | None:
    """The username and the topic, if the line of the log is of a subscription."""
    user, _, rest = line.partition(" ")
    qos, _, topic = rest.partition(" ")
    return (user, topic) if qos in ("0", "1", "2") and topic else None


class SubscriptionWatch:
    def __init__(self) -> None:
        self._foreign: dict[str, int] = {}  # by username

    def note(self, user: str, topic: str) -> bool:
        """Whether the device has subscribed to too much by this."""
        project, dot, name = user.partition(".")
        root = f"{ROOT}/{project}/{name}/"
        if not dot or topic in {root + leaf for leaf in (*READS, "+", "#")}:
            return False
        self._foreign[user] = count = self._foreign.get(user, 0) + 1
        return count > MOST_FOREIGN

    def keep(self, users: Container[str]) -> None:
        """Forget all others."""
        self._foreign = {user: count for user, count in self._foreign.items() if user in users}

    def forget(self, user: str) -> None:
        self._foreign.pop(user, None)
