"""Commits to etcd: one transaction each, so all its writes share a revision; when refused, it also says by what.

A transaction is sent again when its answer doesn't come, and what was sent before may still be done, even seconds later by a
member that hung. So each has a mark: an empty key that it writes, and that must be as it was. An idempotency key is the
mark of its commit, and kept for an hour; other commits take a mark from a few that are used again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from weft.contracts.clock import Clock
from weft.contracts.store import LeaseHeld, Precondition, PreconditionFailed, Put, StoreFull, Write
from weft.objects.errors import StoreUnavailable
from weft.store.etcd.connection import EtcdConnection
from weft.store.etcd.leases import EtcdLeases
from weft.store.etcd.marks import Mark, Marks
from weft.store.etcd.transaction import (
    NEVER,
    find_value,
    is_absent,
    is_present,
    plan_compare,
    plan_writes,
    put,
    read,
)
from weft.store.limits import find_failed


class _Plan(NamedTuple):
    """A transaction, whether it writes its mark, the keys that must be there to be deleted, and which leases seem to be held."""

    compare: list[Any]
    success: list[Any]
    failure: list[Any]
    marks: bool
    deleted: list[bytes]
    held: dict[LeaseHeld, bool]


class Commits:
    """Commits whose keys are where ``place`` says; their marks are under ``folder``."""

    def __init__(
        self, connection: EtcdConnection, clock: Clock, leases: EtcdLeases, place: Callable[[str], bytes], folder: bytes
    ) -> None:
        self._connection = connection
        self._leases = leases
        self._place = place
        self._marks = Marks(connection, clock, folder)
        self.folder = folder
        self.newest_write = 0  # the revision of the newest commit of this process that changed something

    async def commit(
        self, writes: Sequence[Write], preconditions: Sequence[Precondition], idempotency_key: str | None
    ) -> int:
        """The contract's ``commit``, after its limits have been checked."""
        mark = await self._marks.take(idempotency_key)
        missing: frozenset[bytes] = frozenset()
        while True:
            plan = await self._plan(writes, preconditions, mark, missing)
            try:
                answer = await self._connection.transact(plan.compare, plan.success, plan.failure)
            except StoreFull:
                # etcd does so, too, with the write that it finds to pass its quota only when it applies it
                looked = [await self._connection.range(key=key, keys_only=True) for key in mark.keys]
                written = mark.find_done([each.kvs[0] if each.kvs else None for each in looked])
                if written is None:
                    self._marks.give_back(mark)
                    raise
                return self._finish(mark, written, wrote=bool(writes))
            if answer.succeeded:
                if not plan.marks:
                    self._marks.give_back(mark)
                    return int(answer.header.revision)
                wrote = any(r.HasField("put") or r.delete_range.deleted for r in answer.responses[: len(writes)])
                return self._finish(mark, int(answer.header.revision), wrote=wrote)
            found = iter([find_value(response) for response in answer.responses])
            marks = [next(found) for _ in mark.keys]
            done = mark.find_done(marks)
            if done is not None:
                return self._finish(mark, done, wrote=bool(writes))
            if mark.is_lost(marks):
                if answer.header.revision >= mark.revision:
                    raise StoreUnavailable("the mark of a commit was deleted; it is unknown whether it was written")
                mark = await self._marks.take(None)  # an older copy of etcd, where nothing of it is
                continue
            failed = _explain(preconditions, [next(found) for _ in preconditions], plan.held)
            if failed is not None:
                self._marks.give_back(mark)
                raise failed
            # once more: a key to delete is missing or back, or a lease that looked lapsed was renewed between two looks
            missing = frozenset(key for key, kv in zip(plan.deleted, found, strict=True) if kv is None)

    async def kept_keys(self) -> Sequence[str]:
        """The contract's ``kept_keys``."""
        return await self._marks.kept_keys()

    async def _plan(
        self, writes: Sequence[Write], preconditions: Sequence[Precondition], mark: Mark, missing: frozenset[bytes]
    ) -> _Plan:
        """The transaction; a refused one reads the mark's keys, then what each precondition names, then what it deletes."""
        held = {p: await self._leases.holds(p.name, p.fence) for p in preconditions if isinstance(p, LeaseHeld)}
        places = [self._leases.place(p.name) if isinstance(p, LeaseHeld) else self._place(p.key) for p in preconditions]
        # What deletes nothing mustn't change the store, so it has no mark.
        puts = mark.kept or any(isinstance(write, Put) for write in writes)
        deleted = [] if puts else [self._place(write.key) for write in writes]
        marks = puts or len(missing) < len(deleted)
        compare = [*mark.compare(), *plan_compare(preconditions, places)]
        compare += [is_absent(key) if key in missing else is_present(key) for key in deleted]
        success = plan_writes(writes, self._place)
        return _Plan(
            compare if all(held.values()) else [NEVER],
            [*success, put(mark.key, b"")] if marks else success,
            [read(key, keys_only=True) for key in (*mark.keys, *places, *deleted)],
            marks, deleted, held,
        )  # fmt: skip

    def _finish(self, mark: Mark, revision: int, *, wrote: bool) -> int:
        self._marks.give_back(mark, revision)
        if wrote:
            self.newest_write = max(self.newest_write, revision)
        return revision


def _explain(
    preconditions: Sequence[Precondition], found: Sequence[Any], held: dict[LeaseHeld, bool]
) -> PreconditionFailed | None:
    revisions: dict[str, int | None] = {}
    fences: dict[str, int] = {}
    for precondition, kv in zip(preconditions, found, strict=True):
        if not isinstance(precondition, LeaseHeld):
            revisions[precondition.key] = None if kv is None else int(kv.mod_revision)
        elif kv is not None:
            fences[precondition.name] = int(kv.create_revision)
    return find_failed(
        preconditions,
        revisions.__getitem__,
        lambda name, fence: held[LeaseHeld(name, fence)] and fences.get(name) == fence,
    )
