"""Addresses of the fabric's servers: for clients, to go to when the server that they ask is gone; the gateways that nodes keep
connections to; and for this server, which asks the others, and answers those only.

Reads the Server objects and the servers' leases. Answers name the servers in a header, and those to nodes' reports the gateways,
unless there is one server only."""

from __future__ import annotations

from weft.client.server.endpoints import HEADER, MOST
from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.informer.prefix_cache import PrefixCache, of_envelope
from weft.kinds.server import SERVER, ServerStatus
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import Forbidden
from weft.objects.identity import ServerIdentity, kind_prefix, object_key
from weft.protocol.server.presence import LEASE_PREFIX, read_presence


class ServerAddresses:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._servers = PrefixCache(store, kind_prefix(SERVER.name), of_envelope(_read_status), clock, self._note)
        self.header: tuple[tuple[str, str], ...] = ()
        self.urls: list[str] = []  # as the header has them
        self.gateways: list[str] = []  # HOST:PORT

    async def run(self) -> None:
        """Follow the store until cancelled."""
        await self._servers.run()

    def list_others(self, name: str) -> dict[str, str]:
        """The URL of each server but ``name``, by its name; "" of one that doesn't serve."""
        found = {key.rpartition("/")[2]: status for key, status in sorted(self._servers.found.items())}
        return {other: one.address if one.phase == "Ready" else "" for other, one in found.items() if other != name}

    async def require(self, server: ServerIdentity) -> None:
        """Raise Forbidden unless ``server`` is one of the fabric. One that was removed still has its certificate. One that
        has just begun may have its lease before its object. Raises StoreUnavailable."""
        name = LEASE_PREFIX + server.name
        leases = await self._store.leases(name, digests=True)
        present = next((read_presence(one.digest) for one in leases if one.name == name), None)
        is_new = present is not None and not present.is_known
        is_known = is_new or await self._servers.find(object_key(SERVER.name, None, server.name)) is not None
        if not is_known or (present is not None and present.uid != server.uid):
            raise Forbidden(
                f"server {server.name} was removed from its fabric",
                reason="serverRemoved",
                hint="to let it join again: weft server join with a new token",
            )

    def _note(self, _: str) -> None:
        ready = [one for _, one in sorted(self._servers.found.items()) if one.phase == "Ready" and one.address][:MOST]
        self.urls = [one.address for one in ready] if len(ready) > 1 else []
        self.header = ((HEADER, ",".join(self.urls)),) if self.urls else ()
        # The gateway of the last of several is named, too: that of the first may be all that a node knows.
        self.gateways = [one.gateway for one in ready if one.gateway] if len(self._servers.found) > 1 else []


def _read_status(server: Envelope) -> ServerStatus:
    return decode_part(server.status, ServerStatus)
