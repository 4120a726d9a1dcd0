"""The peer of reads, and the bound of writes: Starlette and msgspec on uvicorn, over TLS, with nothing else.

``python -m benchmarks.store_api.bare STATE FILE``: certificates from the doors' folder STATE; FILE gets the port.
"""

from __future__ import annotations

import socket
import sys
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
