"""Functions' events of the whole fabric for a backup: those of this server lie in its folder, and the other servers' gateways are
asked for theirs. Of a server that is away there are the copies that others have."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.gateway.event_copies.kept_copies import EventPage
from weft.gateway.event_copies.other_gateways import READ, OtherGateways, make_gateway_context
from weft.gateway.function_events.backup import encode_event, read_rows
from weft.launch.server.membership.identity import FILE, keep_identity
from weft.objects.errors import Unavailable
from weft.trust.tickets import read_ticket_key

EVENTS = "gateway/events.db"  # in a server's state folder


class AllEvents(NamedTuple):
    """``away``: the servers that didn't answer; ``asked``: the gateways whose own events there are."""

    path: Path
    asked: frozenset[str]
    file: BinaryIO
    away: list[str]

    def read(self) -> Iterator[bytes]:
        """Each row as JSON. Raises Unavailable if the file of this server can't be read."""
        yield from read_rows(self.path, self.asked)
        self.file.seek(0)
        for line in self.file:
            yield line.rstrip(b"\n")


@asynccontextmanager
async def gather_events(state: Path, store: Store, clock: Clock) -> AsyncIterator[AllEvents]:
    """Ask the other servers of the fabric. Raises StoreUnavailable."""
    with tempfile.TemporaryFile() as file:
        if not (state / FILE).exists():  # of an earlier weft, which was the only server
            yield AllEvents(state / EVENTS, frozenset(), file, [])
            return
        own = keep_identity(state, None)
        key, context = read_ticket_key(state / "ticket.key"), make_gateway_context(state / "ca.crt")
        others = OtherGateways(store, own, key, context, clock)
        try:
            await others.refresh()
            asked = {others.name}
            for gateway in sorted(others.live):
                try:
                    await _copy_all(others, gateway, file)
                    asked.add(gateway)
                except Unavailable:
                    continue
        finally:
            others.close()
        heard = {others.live[gateway] for gateway in asked - {others.name}}
        yield AllEvents(state / EVENTS, frozenset(asked), file, sorted(others.servers - heard))


async def _copy_all(others: OtherGateways, gateway: str, file: BinaryIO) -> None:
    """Write all events of a gateway, and its copies, which come first: taken over meanwhile, they are among its own."""
    for kind in ("copy", "event"):
        after = 0
        while True:
            page = await others.ask(gateway, READ, (kind, after), EventPage)
            file.writelines(encode_event(event) + b"\n" for event in page.events)
            if not page.more:
                break
            after = page.last
