"""The gateway's HTTP API of functions, and the queue of asynchronous invocations, on a server."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from weft.contracts.clock import Clock
from weft.gateway.function_events.queue import EventQueue
from weft.gateway.function_events.schedules import Schedules
from weft.gateway.lambda_api.answers import FAILED, refuse
from weft.gateway.lambda_api.api import LambdaApi
from weft.gateway.lambda_api.authenticate import Authenticator
from weft.gateway.lambda_api.dead_letters import DeadLetterApi
from weft.gateway.lambda_api.http import make_app
from weft.gateway.lambda_api.idempotency import IdempotencyCache
from weft.gateway.lambda_api.router import MOST_BODY_BYTES, FunctionRouter
from weft.launch.gateway.functions import GatewayFunctions
from weft.launch.process.address import split_address
from weft.launch.process.certificate import keep_certificate
from weft.objects.errors import WeftError
from weft.serving.server import HttpServer, listen, make_server_tls
from weft.serving.shares import Bounds
from weft.trust.seal import open_seal_keys

AGAIN_SECONDS = 5.0
BOUNDS = Bounds(
    most_connections=2048,
    most_unwanted_bytes=64 * 2**20,
    most_body_bytes=MOST_BODY_BYTES,
    most_held_bytes=256 * 2**20,
    parts=4,
)
log = logging.getLogger("weft.gateway")


@asynccontextmanager
async def serve_function_api(
    places: Sequence[str], state: Path, functions: GatewayFunctions, clock: Clock
) -> AsyncIterator[HttpServer]:
    """Listen at ``places`` (ADDRESS:PORT), and run the events that wait, for the server whose state folder is ``state``. Raises
    Unavailable if they can't be kept."""
    service, deliveries = functions.service, functions.deliveries
    view, dispatcher = service.cache.view, service.dispatcher
    seal_keys, chain, key = open_seal_keys(state), state / "server.crt", state / "server.key"
    tls = make_server_tls(chain, key)  # callers are asked for no certificate
    await functions.events.open()
    schedules = Schedules(
        functions.fired,
        EventQueue(functions.events),
        view,
        lambda: bool(service.cache.epoch),
        deliveries.stir,
        clock,
    )
    unsubscribe = service.cache.subscribe(lambda changes: schedules.changed(), ("function",))
    router = FunctionRouter(
        Authenticator(view, functions.directory, seal_keys, clock),
        service.catalogue,
        dispatcher,
        LambdaApi(service.catalogue, dispatcher, deliveries, IdempotencyCache(clock)),
        DeadLetterApi(functions.letters),
        clock,
        functions.gateways,
    )
    sockets: list[socket.socket] = []
    app = make_app(router.answer, FAILED)
    server = HttpServer(app, sockets, tls, clock, BOUNDS, refuse, dated=False)
    tasks = [
        asyncio.ensure_future(keep_certificate(tls, chain, key, clock)),
        asyncio.ensure_future(deliveries.run()),
        asyncio.ensure_future(schedules.run()),
    ]
    for task in tasks:
        task.add_done_callback(_report_end)
    try:
        for place in places:
            sockets.append(listen(*split_address(place)))  # noqa: PERF401 (those before one that fails are closed)
        server.start()
        log.info("functions are invoked at https://%s", ", https://".join(places))
        yield server
    finally:
        await server.close()
        unsubscribe()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await functions.events.close()


async def keep_function_api(places: Sequence[str], state: Path, functions: GatewayFunctions, clock: Clock) -> None:
    """Serve them for ever. A failure (a damaged file, a taken port) is logged and tried again, and doesn't affect the gateway's
    streams."""
    said = ""
    while True:
        try:
            async with serve_function_api(places, state, functions, clock):
                said = ""
                await asyncio.Event().wait()
        except (WeftError, OSError) as problem:
            if said != str(problem):
                log.error("functions can't be served over HTTP: %s", problem)
            said = str(problem)
        await clock.sleep(AGAIN_SECONDS)


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("asynchronous invocations are not delivered any more", exc_info=task.exception())
