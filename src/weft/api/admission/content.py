"""Find what lies in a project, and what of that is past: what has ended and is kept as history only, and what goes with that. The
past doesn't keep a project from being deleted, and needs no controller any more. Reads the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from weft.contracts.store import AtRevision, Entry, Store
from weft.informer.view import Item
from weft.kinds.record import Kind
from weft.kinds.registry import KINDS
from weft.objects.envelope import decode_envelope
from weft.objects.identity import Ref, kind_prefix

_PAGE = 500


class Content(NamedTuple):
    users: list[str]  # what keeps the project, like ``vm/web``
    past: list[AtRevision]  # as it was read; what goes with others comes after them


async def read_content(store: Store, project: str, most: int) -> Content:
    """The content of ``project``. With more than ``most`` users it isn't whole: no more are sought."""
    content = Content([], [])
    ended: set[Ref] = set()
    for kind in KINDS:  # those with history come before decisions, which go with them
        may_be_past = kind.lifetime.history is not None or (kind.lifetime.goes_with_owner and bool(ended))
        after: str | None = None
        while kind.scope == "project" and len(content.users) <= most:
            limit = _PAGE if may_be_past else most + 1
            page = await store.list(kind_prefix(kind.name, project), limit=limit, after=after)
            past = await asyncio.to_thread(_find_past, kind, page.entries, ended) if may_be_past else set()
            ended |= past if kind.lifetime.history is not None else set()
            names = {ref.name for ref in past}
            for entry in page.entries:
                name = entry.key.rpartition("/")[2]
                if name in names:
                    content.past.append(AtRevision(entry.key, entry.revision))
                else:
                    content.users.append(f"{kind.name}/{name}")
            after = page.next
            if after is None or not may_be_past:
                break
    return content


def _find_past(kind: Kind, entries: Sequence[Entry], ended: set[Ref]) -> set[Ref]:
    """Those of one page that have ended, or whose owner is among ``ended``."""
    history = kind.lifetime.history
    items = [Item(decode_envelope(entry.value)) for entry in entries]
    if history is not None:
        return {item.envelope.ref for item in items if history.has_ended(item)}
    return {item.envelope.ref for item in items if item.envelope.owner in ended}
