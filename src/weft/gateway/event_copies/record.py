"""Record of which gateway has the copies of a gateway's events, in the store: one gateway only may take them over, and an owner
that returns finds out that it was done. Keys: ``/-copies/OWNER``, of no object."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from weft.contracts.store import Absent, AtRevision, Put, Store

_PREFIX = "/-copies/"


class CopyRecord(msgspec.Struct, frozen=True):
    """``holder``: the gateway with the copies, "" if none has them; ``era`` and ``since`` as in ``kept_copies.py``; ``taken``: the
    holder has taken the events over."""

    holder: str = ""
    era: int = 0
    since: int = 0
    taken: bool = False

    def take(self) -> CopyRecord:
        return msgspec.structs.replace(self, taken=True)


class FoundRecord(NamedTuple):
    record: CopyRecord
    revision: int


class CopyRecords:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def read(self, owner: str) -> FoundRecord | None:
        """Read an owner's record; None if it never had copies. Raises StoreUnavailable."""
        entry = await self._store.get(_PREFIX + owner)
        return FoundRecord(msgspec.json.decode(entry.value, type=CopyRecord), entry.revision) if entry else None

    async def write(self, owner: str, record: CopyRecord, before: FoundRecord | None) -> FoundRecord:
        """Write it in the place of ``before``. Raises PreconditionFailed if another one is there, and StoreUnavailable when it
        may be written."""
        key = _PREFIX + owner
        precondition = AtRevision(key, before.revision) if before is not None else Absent(key)
        return FoundRecord(record, await self._store.commit([Put(key, msgspec.json.encode(record))], [precondition]))
