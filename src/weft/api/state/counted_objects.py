"""Counts of the objects of projects with a quota, remembered so that few requests must read all of them.

A sum stays an upper bound while its quota has the revision that it had then: whatever adds to the sum writes the quota in the same
commit (``api/admission/quota.py``). What goes makes it less: that is noticed when the sum is made again, before a refusal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.store import Entry, Store
from weft.kinds.image import IMAGE, ImageStatus
from weft.kinds.quota import add_up_accounts, quota_key, resolve
from weft.kinds.record import Counted, Kind
from weft.kinds.registry import COUNTED
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.identity import kind_prefix, named_key

MOST_PROJECTS = 100
_AT_ONCE = 100  # decoded on the loop; more of them in a thread


class Sum(msgspec.Struct, frozen=True):
    """The amounts of all objects of a project by account and field, or more."""

    quota_revision: int
    total: Mapping[str, Mapping[str, float]]
    began_at: float = -1.0  # when the objects were read, in seconds of the monotonic clock; -1: they were not


class _Known(msgspec.Struct, frozen=True):
    """An object that counts."""

    revision: int
    user: str  # who created it
    counted: Counted


class CountedObjects:
    """All by the quota's key."""

    def __init__(self) -> None:
        self._turns: dict[str, asyncio.Lock] = {}
        self._sums: dict[str, Sum] = {}
        self._known: dict[str, dict[str, _Known]] = {}  # by object

    def turn(self, quota: str) -> asyncio.Lock:
        """Held by the request that counts on the quota's free amounts."""
        return self._turns.setdefault(quota, asyncio.Lock())

    def find(self, quota: str, revision: int) -> Sum | None:
        """The sum that holds at this revision of the quota; 0: it isn't stored yet, so nothing holds."""
        found = self._sums.get(quota)
        return found if revision and found is not None and found.quota_revision == revision else None

    def note(self, quota: str, revision: int, total: Mapping[str, Mapping[str, float]]) -> None:
        """A commit wrote the quota at this revision, and what it added is in ``total``."""
        self._sums[quota] = Sum(revision, total)

    def has(self, project: str, key: str) -> bool:
        """Whether the object was there when the project's objects were last read."""
        return key in self._known.get(quota_key(project), {})

    async def read(self, store: Store, clock: Clock, project: str, quota_revision: int) -> Sum:
        """The sum as it is now. ``quota_revision`` was read before."""
        quota, began_at = quota_key(project), clock.elapsed()
        before, now = self._known.get(quota, {}), dict[str, _Known]()
        for kind in COUNTED:
            page = await store.list(kind_prefix(kind.name, project))
            changed = []
            for entry in page.entries:
                known = before.get(entry.key)
                if known is not None and known.revision == entry.revision:
                    now[entry.key] = known
                else:
                    changed.append(entry)
            few = len(changed) <= _AT_ONCE
            now |= _count_entries(kind, changed) if few else await asyncio.to_thread(_count_entries, kind, changed)
        others = {one.counted.image for one in now.values() if "/" in one.counted.image}
        sizes = await read_image_sizes(store, project, others)
        if len(self._known) >= MOST_PROJECTS and quota not in self._known:
            self._known.clear()
            self._sums.clear()
        self._known[quota] = now
        total = add_up_accounts((one.user, resolve(one.counted, sizes)) for one in now.values())
        self._sums[quota] = found = Sum(quota_revision, total, began_at)
        return found


async def read_image_sizes(store: Store, project: str, others: Iterable[str]) -> Mapping[str, int]:
    """How large a disk of each image of the project, and of those of ``others`` (PROJECT/NAME), is at least, in bytes by name."""
    page = await store.list(kind_prefix(IMAGE.name, project))
    images = {entry.key.rpartition("/")[2]: entry for entry in page.entries}
    for name in others:
        if (entry := await store.get(named_key(IMAGE.name, project, name))) is not None:
            images[name] = entry
    envelopes = {name: decode_envelope(entry.value) for name, entry in images.items()}
    return {name: decode_part(image.status, ImageStatus).virtual_size for name, image in envelopes.items()}


def count(kind: Kind, envelope: Envelope) -> Counted:
    """Count an object of a kind that counts."""
    return kind.count_envelope(decode_part(envelope.spec, kind.spec), envelope)


def _count_entries(kind: Kind, entries: Sequence[Entry]) -> dict[str, _Known]:
    found = {}
    for entry in entries:
        envelope = decode_envelope(entry.value)
        found[entry.key] = _Known(entry.revision, envelope.creator, count(kind, envelope))
    return found
