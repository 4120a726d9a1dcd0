"""Upgrades objects of an older schema, at the API server's start before it accepts requests.

Reads all objects of kinds that have had another schema; writes the older ones. After a kill half-way the next start goes on.
Objects of a newer schema stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec

from weft.contracts.store import AtRevision, Entry, PreconditionFailed, Put, Store
from weft.kinds.parts.schema_upgrade import upgrade
from weft.kinds.record import Kind
from weft.kinds.registry import KINDS
from weft.objects.identity import kind_prefix

_PAGE_ENTRIES = 500
_log = logging.getLogger("weft.api")


async def upgrade_objects(store: Store, kinds: Iterable[Kind] = KINDS) -> int:
    """Bring every stored object to its kind's schema; how many were older. Raises what the store raises."""
    count = 0
    for kind in kinds:
        if kind.schema == 1:
            continue
        upgraded, after = 0, None
        while True:
            page = await store.list(kind_prefix(kind.name), limit=_PAGE_ENTRIES, after=after)
            for entry in page.entries:
                upgraded += await _upgrade_entry(store, kind, entry)
            after = page.next
            if after is None:
                break
        if upgraded:
            _log.info("%d objects of kind %s brought to schema %d", upgraded, kind.name, kind.schema)
        count += upgraded
    return count


async def _upgrade_entry(store: Store, kind: Kind, entry: Entry) -> bool:
    found: Entry | None = entry
    while found is not None:
        fresh = upgrade(kind, msgspec.json.decode(found.value))
        if fresh is None:
            return False
        try:
            await store.commit([Put(found.key, msgspec.json.encode(fresh))], [AtRevision(found.key, found.revision)])
            return True
        except PreconditionFailed:  # another server upgrades it too
            found = await store.get(found.key)
    return False
