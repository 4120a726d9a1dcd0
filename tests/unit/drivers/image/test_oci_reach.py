"""A server pulls from no registry on its own machine unless that was allowed; nodes pull from wherever they are told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from weft.drivers.image.oci.fetch.exchange import Broken, Exchange, Patience


class Registry(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def place() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def ask(place: str, reach: list[str] | None) -> int:
    exchange = Exchange(Patience(), reach=reach)
    try:
        async with exchange.ask(
            {"do": "http", "method": "GET", "url": f"http://{place}/v2/", "headers": {}, "ca": ""}
        ) as answer:
            return int(answer.head["status"]) + len(await answer.read(100))
    finally:
        await exchange.close()


async def test_what_is_on_the_own_machine_must_be_named(place: str) -> None:
    with pytest.raises(Broken, match="start the server with --allow-fetch"):
        await ask(place, [])
    with pytest.raises(Broken, match="start the server with --allow-fetch"):
        await ask(f"localhost:{place.rpartition(':')[2]}", ["192.0.2.0/24"])
    for reach in (["127.0.0.0/8"], ["localhost"], None):
        assert await ask(place, reach) == 202
