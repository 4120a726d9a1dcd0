"""Commits to etcd: one transaction each, so all its writes share a revision; when refused, it also says by what.

An idempotency key is an empty key of etcd's, made in the same transaction: the revision it was made at is the answer
to every repetition. It lies in the folder of its hour, and the folders of hours long past are deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from weft.contracts.clock import Clock
from weft.contracts.store import LeaseHeld, Precondition, PreconditionFailed, Put, StoreFull, Write
from weft.objects.errors import StoreUnavailable
from weft.store.etcd.connection import EtcdConnection
from weft.store.etcd.leases import EtcdLeases
from weft.store.etcd.transaction import NEVER, find_value, is_absent, plan_compare, plan_writes, put, read
from weft.store.limits import KEEP_SECONDS, find_failed

_AGAIN_SECONDS = 0.1


class Commits:
    """Commits whose keys are where ``place`` says; idempotency keys are under ``folder``."""

    def __init__(
        self, connection: EtcdConnection, clock: Clock, leases: EtcdLeases, place: Callable[[str], bytes], folder: bytes
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._leases = leases
        self._place = place
        self.folder = folder
        self._cleared_until = 0
        self.newest_write = 0  # the revision of the newest commit of this process that changed something

    async def commit(
        self, writes: Sequence[Write], preconditions: Sequence[Precondition], idempotency_key: str | None
    ) -> int:
        """The contract's ``commit``, after its limits have been checked."""
        once = [] if idempotency_key is None else await self._plan_once(idempotency_key)
        while True:
            known = self._connection.newest_revision
            try:
                answer, held = await self._try(writes, preconditions, once)
            except StoreFull:
                written = await self._find_written(writes, known)
                if written is None:
                    raise
                self.newest_write = max(self.newest_write, written)
                return written
            if answer.succeeded:
                if any(r.HasField("put") or r.delete_range.deleted for r in answer.responses[: len(writes)]):
                    self.newest_write = max(self.newest_write, answer.header.revision)
                return int(answer.header.revision)
            found = [find_value(response) for response in answer.responses]
            for made in found[: len(once)]:
                if made is not None:
                    return int(made.mod_revision)
            failed = _explain(preconditions, found[len(once) :], held)
            if failed is not None:
                raise failed
            # a lease that looked lapsed was renewed between two looks at it: once more

    async def _try(
        self, writes: Sequence[Write], preconditions: Sequence[Precondition], once: Sequence[bytes]
    ) -> tuple[Any, dict[LeaseHeld, bool]]:
        """One attempt; a refused one has read ``once`` and then what each precondition names, in their order."""
        held = {p: await self._leases.holds(p.name, p.fence) for p in preconditions if isinstance(p, LeaseHeld)}
        places = [self._leases.place(p.name) if isinstance(p, LeaseHeld) else self._place(p.key) for p in preconditions]
        compare = [*map(is_absent, once), *plan_compare(preconditions, places)]
        if not all(held.values()):
            compare = [NEVER]
        success = plan_writes(writes, self._place)
        if once:
            success.append(put(once[1], b""))
        failure = [read(key, keys_only=True) for key in [*once, *places]]
        asked_at = self._clock.elapsed()
        while True:
            try:
                return await self._connection.transact(compare, success, failure), held
            except StoreUnavailable:
                patience_left = self._clock.elapsed() - asked_at < self._connection.timeout_seconds
                if not once or not patience_left or self._connection.closed:
                    raise  # without an idempotency key, doing it twice may do harm
            await self._clock.sleep(_AGAIN_SECONDS)

    async def _find_written(self, writes: Sequence[Write], known: int) -> int | None:
        """The revision of what was refused for lack of space and written all the same: etcd does so with the write that it finds to
        pass its quota only when it applies it. None if nothing was written since ``known``. Raises StoreUnavailable where that
        can't be found out any more."""
        found = None
        for write in writes:
            found = await self._connection.range(key=self._place(write.key))
            if isinstance(write, Put):
                if not found.kvs or found.kvs[0].mod_revision <= known:
                    return None
                if found.kvs[0].value != write.value:
                    raise StoreUnavailable(f"etcd is full; it is unknown whether {write.key} was written")
                return int(found.kvs[0].mod_revision)
            if found.kvs:
                return None
        return None if found is None else int(found.header.revision)  # all that was to go is gone

    async def _plan_once(self, idempotency_key: str) -> list[bytes]:
        """Keys where the idempotency key may have been kept: last hour, this one (the second), or the next, by a clock that is
        ahead."""
        hour = int(self._clock.now() // KEEP_SECONDS)
        if hour > self._cleared_until:
            self._cleared_until = hour
            await self._connection.delete_range(self.folder, self._hour(hour - 1))
        return [self._hour(near) + idempotency_key.encode() for near in (hour - 1, hour, hour + 1)]

    def _hour(self, hour: int) -> bytes:
        return self.folder + b"%010d/" % hour


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
