"""Several placements as one commit, so that all of them are stored or none. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from weft.contracts.store import MAX_COMMIT_BYTES, MAX_PRECONDITIONS, MAX_WRITES, Put
from weft.informer.commit import Commit

_SPARE_BYTES = 10_000  # for keys, and the precondition that every commit carries


def join(commits: Sequence[Commit]) -> Commit:
    """One commit of several; if it fails, the first one's workload is planned anew."""
    conditions = {(type(each), each.key): each for commit in commits for each in commit.preconditions}  # type: ignore[union-attr]
    return Commit(
        key=commits[0].key,
        writes=[write for commit in commits for write in commit.writes],
        preconditions=list(conditions.values()),
        events=[event for commit in commits for event in commit.events],
        made=[item for commit in commits for item in commit.made],
    )


def find_excess(commit: Commit) -> str:
    """The excess that makes it too large for one commit, for people; empty if it isn't."""
    size = sum(len(write.value) for write in commit.writes if isinstance(write, Put))
    if size > MAX_COMMIT_BYTES - _SPARE_BYTES:
        return f"{size / 1e6:.1f} MB of {MAX_COMMIT_BYTES / 1e6:.0f} MB: shorten user_data"
    if len(commit.writes) > MAX_WRITES or len(commit.preconditions) >= MAX_PRECONDITIONS:
        return f"{len(commit.preconditions)} objects of {MAX_PRECONDITIONS}: fewer volumes"
    return ""
