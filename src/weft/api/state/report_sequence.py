"""Which report of each node's own facts the server has: a request may come late, after a newer one.

A node numbers them, beginning anew with each life of its agent. One that is older than the last of the same life is passed
over; of another life's nothing can be known, so each answer says which one counts, and a node whose newest it isn't says it
again. Kept in memory: requests to a process don't outlive it. A process that has just begun knows of none, and has each node
say its facts once more: what the store has may have come late, from a former life.
"""

from __future__ import annotations

_NONE = "none.0"  # a version that no agent has: it says all again


class ReportSequence:
    """By node uid; a version is ``LIFE.NUMBER``, or nothing of an agent that doesn't number its reports."""

    def __init__(self) -> None:
        self._versions: dict[str, str] = {}

    def is_late(self, node_uid: str, version: str) -> bool:
        """Whether a newer one of the same life was heard."""
        life, _, number = version.rpartition(".")
        last_life, _, last = self._versions.get(node_uid, "").rpartition(".")
        return bool(life) and life == last_life and number.isdecimal() and int(number) < int(last)

    def put(self, node_uid: str, version: str) -> None:
        """This one is written."""
        if version.rpartition(".")[2].isdecimal():
            self._versions[node_uid] = version

    def forget(self, node_uid: str) -> None:
        """What the store has of it isn't known any more."""
        self._versions.pop(node_uid, None)

    def get(self, node_uid: str) -> str:
        """The version that was written last; one that no agent has if that isn't known."""
        return self._versions.get(node_uid, _NONE)
