"""Keeps a connection to every gateway of the fabric, so that streams and functions work at whichever server people ask.

Reads what servers' answers name. A gateway that isn't named any more is kept for as long as its connection holds: its server may
only have lost the store. Woken by answers and by connections that end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from weft.agent.stream.gateway import Gateway, GatewayConnection
from weft.objects.identity import SERVER_NAME

MOST = 9


class Gateways:
    """``given`` (HOST:PORT) is always kept; ``known`` were named before. ``connect`` makes a connection, and ``on_named`` is called
    with others than before."""

    def __init__(
        self,
        given: str,
        known: Sequence[str],
        connect: Callable[[Gateway], GatewayConnection],
        on_named: Callable[[Sequence[str]], None] = lambda named: None,
    ) -> None:
        self._given, self._named = given, list(known)
        self._connect, self._on_named = connect, on_named
        self._changed = asyncio.Event()
        self._kept: dict[str, asyncio.Task[None]] = {}

    def put(self, named: Sequence[str]) -> None:
        """The gateways of the servers that serve; none: the fabric has one server, or its release is older."""
        if named and list(named) != self._named:
            self._named = list(named)
            self._on_named(named)
            self._changed.set()

    async def keep(self) -> None:
        """Stay connected to all of them for ever; ends their streams when cancelled."""
        try:
            while True:
                self._changed.clear()
                for place in self._list_wanted():
                    if (
                        place not in self._kept
                        and len(self._kept) < MOST
                        and (gateway := read_gateway(place)) is not None
                    ):
                        self._begin(place, self._connect(gateway))
                await self._changed.wait()
        finally:
            for task in self._kept.values():
                task.cancel()
            await asyncio.gather(*self._kept.values(), return_exceptions=True)

    def _begin(self, place: str, connection: GatewayConnection) -> None:
        task = self._kept[place] = asyncio.ensure_future(connection.keep(lambda: place in self._list_wanted()))

        def end(_: object) -> None:
            del self._kept[place]
            self._changed.set()

        task.add_done_callback(end)

    def _list_wanted(self) -> list[str]:
        return list(dict.fromkeys((self._given, *self._named)))[:MOST]


def read_gateway(place: str) -> Gateway | None:
    """The gateway at HOST:PORT; None for what names none, as another release's server may."""
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        return None
    return Gateway(host.strip("[]"), int(port), SERVER_NAME)
