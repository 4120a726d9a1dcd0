"""Newest report of each node's own facts that the server has: a request may arrive late, after a newer one.

A node numbers its reports, from the start of each process of its agent. A report that is older than the last of the same process
is ignored. Reports of two processes can't be ordered, so each answer names the version that counts, and a node with a newer one
sends its facts again. Kept in memory: requests to a process don't outlive it. A new process has every node send its facts once
more: what the store has may have arrived late, from a former process.
"""

from __future__ import annotations

_NONE = "none.0"  # a version that no agent has: it sends all again


class ReportSequence:
    """Sequence of reports by node uid; a version is ``PROCESS.NUMBER``, or "" from an agent that doesn't number its reports."""

    def __init__(self) -> None:
        self._versions: dict[str, str] = {}

    def is_late(self, node_uid: str, version: str) -> bool:
        """Whether a newer report of the same process was written."""
        life, _, number = version.rpartition(".")
        last_life, _, last = self._versions.get(node_uid, "").rpartition(".")
        return bool(life) and life == last_life and number.isdecimal() and int(number) < int(last)

    def put(self, node_uid: str, version: str) -> None:
        """This report was written."""
        if version.rpartition(".")[2].isdecimal():
            self._versions[node_uid] = version

    def forget(self, node_uid: str) -> None:
        """Nobody knows any more which report of the node the store has."""
        self._versions.pop(node_uid, None)

    def get(self, node_uid: str) -> str:
        """The version that was written last; one that no agent has if nobody knows."""
        return self._versions.get(node_uid, _NONE)
