"""Keeps a server's lease in the store while it serves, with where it is reached."""

from __future__ import annotations

import logging
from collections.abc import Callable

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.objects.errors import InUse, StoreUnavailable
from weft.objects.identity import ServerIdentity
from weft.protocol.server.presence import LEASE_PREFIX, LEASE_SECONDS, Presence, encode_presence, name_holder

_log = logging.getLogger(__name__)


async def keep_presence(
    store: Store, identity: ServerIdentity, find_presence: Callable[[], Presence], clock: Clock
) -> None:
    """Renew the lease for ever, each time with the present place; give it back at the end. Raises InUse when another server has
    this one's name."""
    name, holder = LEASE_PREFIX + identity.name, name_holder(identity.name, identity.uid)
    began = clock.elapsed()
    try:
        while True:
            try:
                lease = await store.grant(name, holder, LEASE_SECONDS, encode_presence(find_presence()))
                if lease is None and clock.elapsed() - began >= LEASE_SECONDS:  # not one that was removed a moment ago
                    raise InUse(
                        f"another server of this fabric is called {identity.name}",
                        hint="start this one with another --state and --server NAME",
                    )
                # A lease's age is known to those who look: who leads here next needn't begin to count.
                await store.leases(LEASE_PREFIX)
            except StoreUnavailable as problem:
                _log.info("the lease of server %s wasn't renewed: %s", identity.name, problem)
            await clock.sleep(LEASE_SECONDS / 4)
    finally:
        try:
            await store.release(name, holder)
        except StoreUnavailable as problem:
            _log.info("the lease of server %s will expire: %s", identity.name, problem)
