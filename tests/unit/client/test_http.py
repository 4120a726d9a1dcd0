"""What a client is told when nobody answers."""

from __future__ import annotations

import socket

import pytest

from weft.client.context import Context
from weft.client.http import Http
from weft.objects.errors import Unavailable


def test_a_watch_that_finds_nobody_listening_is_told_so_like_any_request() -> None:
    """Whoever follows the server catches this one error and dials again; another would end its thread for ever."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: refused, and nobody else gets the port
        http = Http(Context(server=f"https://127.0.0.1:{held.getsockname()[1]}"))
        for ask in (http.request, http.stream):
            with pytest.raises(Unavailable, match="no weft server answers"):
                ask("GET", "/v1/publications")
