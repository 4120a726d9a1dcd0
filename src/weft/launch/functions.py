"""The gateway's part in functions, on a server: its store over the doors' socket, and placement by the serverless score."""

from __future__ import annotations

from pathlib import Path

from weft.client.cache import Cache
from weft.contracts.clock import Clock
from weft.gateway.functions.service import Functions, make_view
from weft.gateway.lambda_api.callers import TOKENS_BY_KEY
from weft.scheduler import function_places
from weft.scheduler.function_places import FunctionPlaces
from weft.store.remote import RemoteStore


def make_functions(state: Path, store: RemoteStore, clock: Clock, ticket_key: bytes) -> Functions:
    """For the server whose state folder is ``state``; run it beside the gateway."""
    cache = Cache(store, make_view(*function_places.KINDS, "token", indexes=(TOKENS_BY_KEY,)), clock)
    places = FunctionPlaces(cache.view)
    cache.subscribe(places.notice, function_places.KINDS)
    return Functions(store, cache, places, clock, ticket_key=ticket_key, folder=state / "gateway")
