"""The store contract: a small, ordered, transactional key-value log that memory, SQLite and etcd all keep.

Keys are strings such as ``/vm/default/web``; values are bytes the store never reads. Limits are etcd's and hold on
every engine, so what works on one works on all.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec

from weft.objects.errors import CursorGone, StaleRevision, StoreUnavailable, TooLarge

MAX_WRITES = 100
MAX_PRECONDITIONS = 120
MAX_COMMIT_BYTES = 1_000_000
MAX_VALUE_BYTES = 256_000
MAX_DIGEST_BYTES = 64_000


class Put(msgspec.Struct, frozen=True, tag="put"):
    key: str
    value: bytes


class Delete(msgspec.Struct, frozen=True, tag="delete"):
    key: str


Write = Put | Delete


class AtRevision(msgspec.Struct, frozen=True, tag="at"):
    """Holds while ``key`` was last written at exactly ``revision``."""

    key: str
    revision: int


class Absent(msgspec.Struct, frozen=True, tag="absent"):
    key: str


class Present(msgspec.Struct, frozen=True, tag="present"):
    key: str


class LeaseHeld(msgspec.Struct, frozen=True, tag="lease"):
    """Holds while lease ``name`` is live and was granted with exactly this ``fence``."""

    name: str
    fence: int


Precondition = AtRevision | Absent | Present | LeaseHeld


class Entry(msgspec.Struct, frozen=True):
    key: str
    value: bytes
    revision: int  # of the commit that last wrote this key


def epoch_of(cursor: str) -> str:
    """The history a cursor belongs to; it is a new one after a restore."""
    return cursor.partition(":")[0]


def revision_of(cursor: str) -> int:
    """The revision up to which a reader at ``cursor`` has seen everything. Compare only within one epoch."""
    return int(cursor.rpartition(":")[2])


class Page(msgspec.Struct, frozen=True):
    """One page of a list. A watch from ``cursor`` misses nothing; ``next`` continues the list, None at its end."""

    entries: list[Entry]
    cursor: str
    next: str | None = None

    def continue_after(self, key: str) -> str:
        """``next`` of a page of the same list and instant that ends with ``key``."""
        return f"{self.cursor}:{key}"


class Change(msgspec.Struct, frozen=True):
    """One key's change. ``value`` None means deleted; ``previous`` is the value before, None if the key was absent."""

    key: str
    value: bytes | None
    previous: bytes | None = None


class Batch(msgspec.Struct, frozen=True):
    """All changes one commit made under the watched prefix. ``cursor`` resumes right after it."""

    revision: int
    cursor: str
    changes: list[Change]


class Lease(msgspec.Struct, frozen=True):
    """A named claim that lapses."""

    name: str
    holder: str
    fence: int  # grows with every grant to a new holder, in time and across restarts
    remaining_seconds: float
    digest: bytes = b""  # from its holder's newest grant; the store never reads it, and it lapses with the lease


class PreconditionFailed(StaleRevision):
    """A commit's precondition did not hold; nothing was written. ``failed`` is the first one that failed."""

    def __init__(self, failed: Precondition, current_revision: int | None = None) -> None:
        super().__init__(f"precondition failed: {failed}")
        self.failed = failed
        self.current_revision = current_revision


class Compacted(CursorGone):
    """The cursor is older than the log, or of another epoch (the store was restored): list again."""


class LimitExceeded(TooLarge):
    """A commit over MAX_WRITES, MAX_PRECONDITIONS or MAX_COMMIT_BYTES, or a value over MAX_VALUE_BYTES."""


class StoreFull(StoreUnavailable):
    """The disk is full. Nothing was written; reads go on; writes work again once there is space."""

    reason = "storeFull"


class OtherStore(StoreUnavailable):
    """Another store answers beside this one, where there should be one: only a person knows which is the right one."""


class Store(Protocol):
    """Durable when ``commit`` returns; ordered; a watch never skips and never repeats."""

    async def open(self) -> None:
        """Make ready; call once, before anything else. Raises StoreUnavailable."""

    async def commit(
        self,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        *,
        idempotency_key: str | None = None,
    ) -> int:
        """Apply all writes or none and return the one revision they share.

        A commit that changes nothing (no writes, or only deletes of absent keys) returns the current revision.
        A repeated ``idempotency_key`` writes nothing and returns the first commit's revision (kept ≥ 1 hour).
        Raises PreconditionFailed, LimitExceeded, StoreFull, StoreUnavailable, and InvalidInput for a key that does
        not start with "/" or is written twice.
        """

    async def get(self, key: str) -> Entry | None:
        """The latest committed entry, or None."""

    async def list(self, prefix: str, *, limit: int = 0, after: str | None = None) -> Page:
        """Entries whose key starts with ``prefix``, in key order. ``after`` is a page's ``next``: it pins the
        revision, so all pages show one instant. ``limit`` 0 means all. Raises Compacted if that instant is gone."""

    async def count(self, prefix: str) -> int:
        """How many keys start with ``prefix`` now."""

    def watch(self, prefix: str, cursor: str) -> AsyncGenerator[Batch, None]:
        """Every commit after ``cursor`` that touches ``prefix``, each whole and in order, for ever.

        Raises StoreUnavailable when the store goes away: watch again from the last batch's cursor. Raises Compacted
        when the cursor is too old, foreign, or the reader fell too far behind."""

    async def grant(self, name: str, holder: str, ttl_seconds: float, digest: bytes = b"") -> Lease | None:
        """Take or renew a lease. None if another holder has it. A renewal keeps the fence; its ``digest`` takes the place
        of the last one, at no more cost than that of the renewal. Raises LimitExceeded for one over MAX_DIGEST_BYTES."""

    async def release(self, name: str, holder: str) -> None:
        """Give a lease up at once; not held is fine."""

    async def leases(self, prefix: str, *, digests: bool = False) -> Sequence[Lease]:
        """Live leases whose name starts with ``prefix``, with their digests if ``digests``."""

    async def kept_keys(self) -> Sequence[str]:
        """Idempotency keys that a repeat of its commit would be recognised by, in any order."""

    async def compact(self, keep_revisions: int) -> None:
        """Forget history older than the newest ``keep_revisions`` revisions."""

    async def close(self) -> None: ...


COPY, LEFT = "copy ", "left "  # begin the note of an unfinished copy, and of a store that its fabric has left


class Occupant(msgspec.Struct, frozen=True):
    """Whatever lies where a store may be copied to: objects, and the note at the place."""

    objects: int
    note: str | None = None


class Refill(Protocol):
    """Another content for a store that nobody has open, brought piece by piece; it counts from ``finish`` on."""

    async def inspect(self) -> Occupant:
        """Whatever is there before ``begin``. Raises StoreUnavailable."""

    async def begin(self, revision: int, note: str = "") -> None:
        """Begin with nothing. No number up to ``revision``, which the copied history has reached, is given out again.
        Raises InUse or StoreUnavailable when somebody uses the store."""

    async def apply(self, writes: Sequence[Write]) -> None:
        """Put and delete entries, MAX_WRITES at most; done twice is fine. Raises StoreFull and StoreUnavailable."""

    async def keep(self, keys: Sequence[str]) -> None:
        """Keep idempotency keys from now on."""

    def read(self) -> AsyncGenerator[Sequence[tuple[str, bytes]], None]:
        """All that was brought, in order of keys."""

    async def finish(self, revision: int) -> None:
        """Make it the store's content, of a history that has reached ``revision``, with a new epoch."""

    async def abandon(self) -> None:
        """Give the copy up: nothing of it stays."""

    async def retire(self, note: str, *, keep: bool) -> None:
        """Let no server take what is there for its store any more, but as the target of another copy; remove it unless ``keep``."""

    async def revive(self) -> None:
        """Let a store that was retired, and kept, be one again: in a new epoch, with numbers beyond those of its copy."""

    async def close(self) -> None: ...
