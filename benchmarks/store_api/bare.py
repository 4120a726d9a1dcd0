"""The peer of reads, and the bounds of writes: Starlette and msgspec on uvicorn, over TLS, with nothing else. What is PUT is
not kept (``vms``), or is durable when it is answered (``kept``): a row in SQLite, and one commit for all that came meanwhile.

``python -m benchmarks.store_api.bare STATE FILE``: certificates from the API server's folder STATE; FILE gets the port.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import sqlite3
import sys
import threading
from pathlib import Path

import msgspec
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.store_api.load import make_vm
from weft.contracts.clock import SystemClock
from weft.objects.envelope import Envelope
from weft.trust.ca import Authority


class Table:
    """Rows that are durable once ``keep`` has returned; a thread commits what came since its last commit."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[tuple[str, bytes, asyncio.Future[None]]] = queue.SimpleQueue()
        self._path = path
        threading.Thread(target=self._run, daemon=True).start()

    def keep(self, key: str, value: bytes) -> asyncio.Future[None]:
        done: asyncio.Future[None] = self._loop.create_future()
        self._queue.put((key, value, done))
        return done

    def _run(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE object(key TEXT PRIMARY KEY, value BLOB NOT NULL)")
        while True:
            group = [self._queue.get()]
            while not self._queue.empty():
                group.append(self._queue.get())
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR REPLACE INTO object VALUES (?, ?)", [row[:2] for row in group])
            connection.execute("COMMIT")
            self._loop.call_soon_threadsafe(_tell, [done for _, _, done in group])


def _tell(group: list[asyncio.Future[None]]) -> None:
    for done in group:
        done.set_result(None)


async def serve(state: Path, file: Path) -> None:
    objects = {f"bench-{n}": make_vm(n) for n in range(1000)}
    encode = msgspec.json.Encoder().encode

    async def get(request: Request) -> Response:
        found: Envelope = objects[request.path_params["name"]]
        return Response(encode(found), media_type="application/json")

    async def put(request: Request) -> Response:
        """What a write costs before anything is checked or kept."""
        given = msgspec.json.decode(await request.body())
        found = objects[request.path_params["name"]]
        found.generation = given["generation"] + 1
        return Response(encode(found), media_type="application/json")

    async def keep(request: Request) -> Response:
        """The same, and it is on the disk."""
        given = msgspec.json.decode(await request.body())
        found = objects[request.path_params["name"]]
        found.generation = given["generation"] + 1
        value = encode(found)
        await table.keep(found.name, value)
        return Response(value, media_type="application/json")

    table = Table(state / "kept.db")
    path = "/v1/projects/{project}/vms/{name}"
    kept = Route("/v1/projects/{project}/kept/{name}", keep, methods=["PUT"])
    app = Starlette(routes=[Route(path, get), Route(path, put, methods=["PUT"]), kept])
    chain, key = Authority(state, SystemClock()).renew_server(["127.0.0.1"])
    config = uvicorn.Config(
        app,
        ssl_certfile=chain,
        ssl_keyfile=key,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=3600,  # its connections rest while it is weft's turn
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        file.write_text(str(listener.getsockname()[1]))
        await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), Path(sys.argv[2])))
