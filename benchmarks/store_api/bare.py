"""The peer of reads, and the bound of writes: Starlette and msgspec with nothing else, on the very server stack that the doors use.

``python -m benchmarks.store_api.bare STATE FILE``: certificates from the doors' folder STATE; FILE gets the port.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import msgspec
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.store_api.load import make_vm
from weft.api.server import make_doors_server
from weft.contracts.clock import SystemClock
from weft.objects.envelope import Envelope
from weft.serving.server import listen, make_server_tls
from weft.trust.ca import Authority


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

    path = "/v1/projects/{project}/vms/{name}"
    app = Starlette(routes=[Route(path, get), Route(path, put, methods=["PUT"])])
    clock = SystemClock()
    authority = Authority(state, clock)
    chain, key = authority.renew_server(["127.0.0.1"])
    socket = listen("127.0.0.1", 0)
    server = make_doors_server(app, [socket], make_server_tls(chain, key, authority.ca_path), clock)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server.start()
    file.write_text(str(socket.getsockname()[1]))
    await stop.wait()
    await server.close()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), Path(sys.argv[2])))
