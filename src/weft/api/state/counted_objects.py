"""What the objects of projects with a quota count, kept by revision: each is decoded once, not for every request that asks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from weft.contracts.store import Entry, Store
from weft.kinds.image import IMAGE, ImageStatus
from weft.kinds.record import Counted, Kind
from weft.kinds.registry import COUNTED
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.identity import kind_prefix

MOST_PROJECTS = 100
_AT_ONCE = 100  # decoded on the loop; more of them in a thread

Known = dict[str, tuple[int, Counted]]  # revision and counted by key


class CountedObjects:
    """A memory of what was read; every answer is of the store's present state."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}

    async def read(self, store: Store, project: str) -> Known:
        """What each object of the project counts, by key."""
        before, now = self._known.get(project, {}), Known()
        for kind in COUNTED:
            page = await store.list(kind_prefix(kind.name, project))
            changed = []
            for entry in page.entries:
                known = before.get(entry.key)
                if known is not None and known[0] == entry.revision:
                    now[entry.key] = known
                else:
                    changed.append(entry)
            now |= _count(kind, changed) if len(changed) <= _AT_ONCE else await asyncio.to_thread(_count, kind, changed)
        if len(self._known) >= MOST_PROJECTS and project not in self._known:
            self._known.clear()
        self._known[project] = now
        return now


async def read_image_sizes(store: Store, project: str) -> Mapping[str, int]:
    """How large a disk of each image of the project is at least, in bytes by name."""
    page = await store.list(kind_prefix(IMAGE.name, project))
    images = [decode_envelope(entry.value) for entry in page.entries]
    return {image.name: decode_part(image.status, ImageStatus).virtual_size for image in images}


def count(kind: Kind, envelope: Envelope) -> Counted:
    """What an object of a kind that counts does."""
    assert kind.counts is not None
    return kind.counts(decode_part(envelope.spec, kind.spec), decode_part(envelope.status, kind.status))


def _count(kind: Kind, entries: Sequence[Entry]) -> Known:
    return {entry.key: (entry.revision, count(kind, decode_envelope(entry.value))) for entry in entries}
