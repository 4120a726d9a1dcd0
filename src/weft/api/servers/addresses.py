"""Addresses of the fabric's servers, for clients: where to go when the server that they ask is gone.

Reads the Server objects. Answers name them in a header, unless there is one server only."""

from __future__ import annotations

from weft.client.server.endpoints import HEADER, MOST
from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.informer.prefix_cache import PrefixCache, of_envelope
from weft.kinds.server import SERVER, ServerStatus
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import kind_prefix


class ServerAddresses:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._addresses = PrefixCache(store, kind_prefix(SERVER.name), of_envelope(_find_address), clock, self._note)
        self.header: tuple[tuple[str, str], ...] = ()

    async def run(self) -> None:
        """Follow the store until cancelled."""
        await self._addresses.run()

    def _note(self, _: str) -> None:
        found = [self._addresses.found[key] for key in sorted(self._addresses.found)]
        self.header = ((HEADER, ",".join(found[:MOST])),) if len(found) > 1 else ()


def _find_address(server: Envelope) -> str | None:
    """The URL of a server that serves."""
    status = decode_part(server.status, ServerStatus)
    return status.address if status.phase == "Ready" and status.address else None
