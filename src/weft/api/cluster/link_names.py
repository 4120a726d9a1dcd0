"""Keep the owner of a link's name. What a linked cluster makes is by ``cluster:NAME``, so a name goes to another cluster only once
nothing is left of what the former one made. The store keeps whose each name was last, also after its link was deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from weft.api.context import ApiContext
from weft.contracts.store import Absent, AtRevision, Entry, Precondition, Put, Write
from weft.kinds.cluster import ClusterMarks
from weft.kinds.fields.cluster.link import GRANTS
from weft.kinds.registry import BY_NAME
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import AlreadyExists
from weft.objects.identity import CLUSTER_PREFIX, FABRIC, kind_prefix

_PAGE = 500


class _Holder(msgspec.Struct):
    peer_uid: str


def plan_leaving(link: Envelope) -> Put:
    """Keep the name in the store when a Cluster object is deleted: also one that an older release made."""
    return _write(link.name, decode_part(link.marks, ClusterMarks).peer_uid)


async def plan_name(context: ApiContext, name: str, uid: str) -> tuple[list[Write], list[Precondition]]:
    """Plan the part of a commit that gives ``name``, which no link has now, to the cluster ``uid``. Raises AlreadyExists if
    something is here that another cluster made under this name, or one of which that isn't known any more. It names no object: the
    other cluster reads this, too."""
    entry = await context.store.get(_key(name))
    known = msgspec.json.decode(entry.value, type=_Holder).peer_uid if entry is not None else ""
    if known != uid and (kind := await _find_left(context, f"{CLUSTER_PREFIX}{name}")):
        raise AlreadyExists(
            f'name "{name}" was another cluster\'s, and {BY_NAME[kind].a_title} that it made is still here',
            reason="nameWasAnothers",
            field="name",
            hint=f"use another name; if nobody needs what weft {kind} list -A --field created_by={CLUSTER_PREFIX}{name} shows, "
            "delete that first",
        )
    last: Precondition = AtRevision(entry.key, entry.revision) if entry is not None else Absent(_key(name))
    return [_write(name, uid)], [last]


def _key(name: str) -> str:
    return f"/linkname/{FABRIC}/{name}"


def _write(name: str, uid: str) -> Put:
    return Put(_key(name), msgspec.json.encode(_Holder(uid)))


async def _find_left(context: ApiContext, creator: str) -> str:
    """A kind of which there are objects by ``creator``, among those that links make; "": none. Reads each page in a thread."""
    for kind in sorted({kind for kinds in GRANTS.values() for kind in kinds}):
        after = None
        while True:
            page = await context.store.list(kind_prefix(kind), limit=_PAGE, after=after)
            if await asyncio.to_thread(_has_one, page.entries, creator):
                return kind
            if page.next is None:
                break
            after = page.next
    return ""


def _has_one(entries: Sequence[Entry], creator: str) -> bool:
    quoted = f'"{creator}"'.encode()
    return any(quoted in entry.value and decode_envelope(entry.value).creator == creator for entry in entries)
