"""Upkeep of the etcd in which the objects of a server are, while it serves: its own member among the others, and space in it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NoReturn

from weft.api.context import ApiContext
from weft.contracts.clock import Clock
from weft.kinds.server import SERVER
from weft.launch.server.membership.members import OwnMember, keep_member
from weft.launch.store.engine import ETCD, MEMBERS, SQLITE
from weft.launch.store.etcd import find_socket
from weft.launch.store.member import FOLDER, read_member
from weft.objects.envelope import decode_envelope
from weft.objects.identity import object_key
from weft.protocol.server.presence import LEASE_PREFIX, read_presence
from weft.store.switch import StoreSwitch

SWITCHED_SECONDS = 0.5  # how soon another store is noticed


async def keep_store(
    store: StoreSwitch, context: ApiContext, state: Path, own_member: OwnMember, quota_bytes: int, clock: Clock
) -> NoReturn:
    """Keep whichever store is in force, for ever. Raises Removed once this server's member was removed from it."""
    while True:
        present: Any = store.store
        context.members = present.members if store.url == MEMBERS else None
        keeping = [
            asyncio.create_task(each) for each in _list_upkeep(store, context, state, own_member, quota_bytes, clock)
        ]
        try:
            while store.store is present and not any(task.done() for task in keeping):
                await clock.sleep(SWITCHED_SECONDS)
            for task in keeping:
                if task.done():
                    task.result()
        finally:
            for task in keeping:
                task.cancel()
            context.members = None


def _list_upkeep(
    store: StoreSwitch, context: ApiContext, state: Path, own_member: OwnMember, quota_bytes: int, clock: Clock
) -> list[Coroutine[Any, Any, NoReturn]]:
    present: Any = store.store

    async def note(reason: str, message: str) -> None:
        assert context.own is not None
        entry = await store.get(object_key(SERVER.name, None, context.own.name))
        if entry is not None:
            about = decode_envelope(entry.value, entry.revision).ref
            context.add_event(about, reason, message, "Warning" if reason == "StoreFull" else "Normal")

    async def find_others() -> dict[str, int]:
        found = [read_presence(lease.digest) for lease in await store.leases(LEASE_PREFIX, digests=True)]
        return {one.member: one.free for one in found if one is not None and one.free is not None}

    def keep_space(own: str) -> Coroutine[Any, Any, NoReturn]:
        keeping: Coroutine[Any, Any, NoReturn] = present.space.keep(own, quota_bytes, note, state / FOLDER, find_others)
        return keeping

    if store.url == SQLITE:
        return []
    if store.url == ETCD:
        return [keep_space(find_socket(state))]
    if store.url == MEMBERS:
        return [keep_member(present, state, own_member, clock), keep_space(read_member(state).place.client)]
    return [present.space.watch()]
