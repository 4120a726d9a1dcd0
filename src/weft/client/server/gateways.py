"""Opens a stream at the gateway of some server: a ticket names that of the server that gives it. One out of reach is passed
over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from weft.client.http import Http
from weft.client.server.endpoints import CONNECT_SECONDS
from weft.objects.errors import Unavailable

DIAL_SECONDS = 10.0  # to the only one
S = TypeVar("S")


def open_at_gateway(
    http: Http, ask: Callable[[], Mapping[str, Any]], dial: Callable[[Mapping[str, Any], float], S]
) -> S:
    """The result of ``dial``, with a ticket of ``ask`` and the seconds that it may take. A gateway that can't be reached has begun
    nothing: then another server is asked for a ticket. Raises Unavailable when none can be reached, and what ``ask`` raises."""
    tried: dict[str, Unavailable] = {}
    while True:
        ticket = ask()
        address = str(ticket.get("address"))
        if address in tried:
            raise tried[address]
        try:
            return dial(ticket, CONNECT_SECONDS if http.endpoints.are_several else DIAL_SECONDS)
        except Unavailable as problem:
            tried[address] = problem
            if not http.leave_server():
                raise
