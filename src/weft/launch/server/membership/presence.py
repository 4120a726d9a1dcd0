"""Keeps a server's lease in the store while it serves, with where it is reached."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.kinds.server import SERVER
from weft.launch.server.membership.removal import Removed
from weft.objects.envelope import decode_envelope
from weft.objects.errors import InUse, StoreUnavailable
from weft.objects.identity import ServerIdentity, object_key
from weft.protocol.server.presence import LEASE_PREFIX, LEASE_SECONDS, Presence, encode_presence, name_holder

_log = logging.getLogger(__name__)


class NameTaken(InUse):
    """Another server of the fabric has this one's name, and lives."""


async def keep_presence(
    store: Store,
    identity: ServerIdentity,
    find_presence: Callable[[], Presence],
    clock: Clock,
    pause: Callable[[float], Awaitable[None]] | None = None,
) -> None:
    """Renew the lease for ever, each time with the present place; give it back at the end. ``pause`` waits between two renewals.
    Raises NameTaken when another server has this one's name, and Removed once people have removed the server."""
    name, holder, known = LEASE_PREFIX + identity.name, name_holder(identity.name, identity.uid), ""
    began = clock.elapsed()
    try:
        while True:
            try:
                known = await _find_own(store, identity.name, known)
                presence = msgspec.structs.replace(find_presence(), is_known=bool(known))
                lease = await store.grant(name, holder, LEASE_SECONDS, encode_presence(presence))
                if lease is None and clock.elapsed() - began >= LEASE_SECONDS:  # not one that was removed a moment ago
                    raise _taken(identity)
                # A lease's age is known to those who look: who leads here next needn't begin to count.
                await store.leases(LEASE_PREFIX)
            except StoreUnavailable as problem:
                _log.info("the lease of server %s wasn't renewed: %s", identity.name, problem)
            await (pause or clock.sleep)(LEASE_SECONDS / 4)
    finally:
        try:
            await store.release(name, holder)
        except StoreUnavailable as problem:
            _log.info("the lease of server %s will expire: %s", identity.name, problem)


async def wait_for_name(store: Store, identity: ServerIdentity, clock: Clock) -> None:
    """Wait until no other server has this one's name: the lease of one that died lapses. Raises NameTaken when one keeps it."""
    name, holder = LEASE_PREFIX + identity.name, name_holder(identity.name, identity.uid)
    until, is_said = clock.elapsed() + LEASE_SECONDS, False
    while any(lease.name == name and lease.holder != holder for lease in await store.leases(name)):
        if clock.elapsed() >= until:
            raise _taken(identity)
        if not is_said:
            is_said = True
            _log.warning(
                "another server has the name %s: waiting %.0f s at most for its end", identity.name, LEASE_SECONDS
            )
        await clock.sleep(1.0)


def _taken(identity: ServerIdentity) -> NameTaken:
    return NameTaken(
        f"another server of this fabric is called {identity.name}",
        field="server",
        hint="start this one with another --state and --server NAME",
    )


async def _find_own(store: Store, name: str, known: str) -> str:
    """The uid of the server's object; "" while there is none yet. ``known``: it as it was found before. Raises Removed."""
    entry = await store.get(object_key(SERVER.name, None, name))
    uid = decode_envelope(entry.value, entry.revision).uid if entry is not None else ""
    if known and uid != known:
        raise Removed(f"server {name} was deleted")
    return uid
