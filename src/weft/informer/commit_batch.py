"""Several independent commits as one, which costs less. Pure.

The store checks all preconditions before it writes, so a commit with a precondition on a key that another one writes is never
in the same batch: committed after that one it might fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.contracts.store import (
    MAX_COMMIT_BYTES,
    MAX_PRECONDITIONS,
    MAX_WRITES,
    LeaseHeld,
    Precondition,
    Put,
    Write,
)
from weft.informer.commit import Commit

_MOST_BYTES = MAX_COMMIT_BYTES - 100_000
_MOST_PRECONDITIONS = MAX_PRECONDITIONS - 1  # one is the lease


class CommitBatch:
    """Commits that are sent as one."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self._written: set[str] = set()
        self._checked: set[str] = set()
        self._preconditions: dict[Precondition, None] = {}
        self._bytes = 0

    @property
    def writes(self) -> list[Write]:
        return [write for commit in self.commits for write in commit.writes]

    @property
    def preconditions(self) -> list[Precondition]:
        return list(self._preconditions)

    def add(self, commit: Commit) -> bool:
        """Add it; False if it doesn't fit."""
        written = {write.key for write in commit.writes}
        size = sum(len(write.value) + len(write.key) for write in commit.writes if isinstance(write, Put))
        checked = _checked(commit.preconditions)
        if self.commits:
            new = set(commit.preconditions) - self._preconditions.keys()
            if (
                len(self._written) + len(written) > MAX_WRITES
                or len(self._preconditions) + len(new) > _MOST_PRECONDITIONS
                or self._bytes + size > _MOST_BYTES
                or not self._written.isdisjoint(written)
                or not self._written.isdisjoint(checked)
                or not written.isdisjoint(self._checked)
            ):
                return False
        self.commits.append(commit)
        self._written |= written
        self._checked |= checked
        self._preconditions.update(dict.fromkeys(commit.preconditions))
        self._bytes += size
        return True


def batch_commits(commits: Sequence[Commit]) -> list[CommitBatch]:
    """The commits in few batches, in their order."""
    bundles: list[CommitBatch] = []
    for commit in commits:
        if not bundles or not bundles[-1].add(commit):
            bundles.append(CommitBatch())
            bundles[-1].add(commit)
    return bundles


def batch_of_one(commit: Commit) -> CommitBatch:
    one = CommitBatch()
    one.add(commit)
    return one


def _checked(preconditions: Iterable[Precondition]) -> set[str]:
    return {precondition.key for precondition in preconditions if not isinstance(precondition, LeaseHeld)}
