"""History of etcd, revision by revision: one watch that survives lost connections, and replays of the past.

A response may hold parts of a revision (etcd splits large ones); they are joined, so that a commit is always whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, NamedTuple

from weft.contracts.store import Change
from weft.store.cursors import gone
from weft.store.etcd import wire
from weft.store.etcd.connection import EtcdConnection


class RevisionChanges(NamedTuple):
    """Everything up to and including ``revision`` is known now; ``changes`` are those of this revision."""

    revision: int
    changes: list[Change]


class EtcdHistory:
    """The changes to keys that start with ``folder``, with the folder taken off their names."""

    def __init__(self, connection: EtcdConnection, folder: bytes, range_end: bytes) -> None:
        self._connection = connection
        self._folder = folder
        self._range_end = range_end

    async def follow(self, position: int) -> AsyncGenerator[RevisionChanges, None]:
        """Every revision after ``position``; a quiet time shows as a step without changes.

        Raises Compacted when something after ``position`` is forgotten, StoreUnavailable when the connection is lost."""
        open_revision = 0
        changes: list[Change] = []
        async with aclosing(self._connection.watch(self._folder, self._range_end, position + 1)) as responses:
            async for response in responses:
                if response.created:
                    continue  # its revision is one member's, which may lag
                for event in response.events:
                    if event.kv.mod_revision != open_revision:
                        if open_revision:
                            yield RevisionChanges(open_revision, changes)
                        open_revision, changes = event.kv.mod_revision, []
                    changes.append(self._read(event))
                if response.fragment:
                    continue  # the rest of the revision is still to come
                if open_revision:
                    yield RevisionChanges(open_revision, changes)
                    open_revision, changes = 0, []
                elif not response.events:
                    yield RevisionChanges(response.header.revision, [])

    async def replay(self, position: int, until: int) -> AsyncGenerator[RevisionChanges, None]:
        """Every revision after ``position`` up to ``until``, at which something in the folder must have changed."""
        async with aclosing(self.follow(position)) as steps:
            async for step in steps:
                if step.revision <= until:
                    yield step
                if step.revision >= until:
                    return

    def _read(self, event: Any) -> Change:
        kv = event.kv
        key = kv.key[len(self._folder) :].decode()
        if not key:  # the mark, whose content means nothing
            return Change(key, b"")
        previous = event.prev_kv.value if event.HasField("prev_kv") else None
        if event.type == wire.DELETED:
            existed, value = True, None
        else:
            existed, value = kv.version > 1, kv.value
        if existed and previous is None:
            raise gone(f"what {key} was before revision {kv.mod_revision} is forgotten")
        return Change(key, value, previous)
