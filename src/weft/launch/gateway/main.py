"""``weft gateway``: the gateway's process. Waits for the certificates and keys that the API server makes in the server's
state folder, then serves until a signal ends it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import ssl
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from weft.contracts.clock import Clock, SystemClock
from weft.gateway.function.invocation.traces import InvocationTraces
from weft.gateway.gateway import Gateway
from weft.gateway.published_port.listeners import PortListeners
from weft.gateway.stream.origins import Origins, read_origin
from weft.gateway.stream.rights import OpenStreams, make_check
from weft.gateway.stream.workload_location import WorkloadLocator
from weft.informer.enrolments import Enrolments
from weft.launch.gateway.function_api import keep_function_api
from weft.launch.gateway.functions import make_functions
from weft.launch.process.address import split_address, take_address, take_by, take_host, take_server, url_at
from weft.launch.process.amounts import Parser
from weft.launch.process.certificate import keep_certificate
from weft.launch.process.limits import raise_descriptor_limit
from weft.launch.server.logs import keep_log
from weft.launch.server.traces import make_tracer
from weft.launch.store.listening import wait_for_store
from weft.objects.errors import Unavailable, WeftError
from weft.store.remote import RemoteStore
from weft.trust.tickets import read_ticket_key

log = logging.getLogger("weft.gateway")
DEFAULT_LISTEN = "127.0.0.1:8443"
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.1


def main(argv: Sequence[str]) -> int:
    """Run the gateway on its own; the exit status."""
    parser = Parser(prog="weft gateway", description="Run the gateway in the foreground.")
    parser.add_argument("--state", type=Path, required=True, help="the server's state folder")
    parser.add_argument(
        "--gateway",
        action="append",
        type=take_address,
        metavar="ADDRESS:PORT",
        help="where to listen (default 127.0.0.1:8444)",
    )
    parser.add_argument(
        "--functions",
        action="append",
        type=take_address,
        metavar="ADDRESS:PORT",
        help="where functions are invoked by HTTP and the Lambda API (default 127.0.0.1:8445)",
    )
    parser.add_argument(
        "--publish-on", metavar="ADDRESS", type=take_host, help="also offer published ports on this address"
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        type=partial(take_by, read_origin),
        metavar="URL",
        help="origin whose pages may open web sockets",
    )
    parser.add_argument(
        "--server", metavar="URL", type=take_server, help="the API server's address (default https://127.0.0.1:8443)"
    )
    options = parser.parse_args(argv)
    options.gateway = options.gateway or ["127.0.0.1:8444"]
    options.functions = options.functions or ["127.0.0.1:8445"]
    return run_gateway(options)


def run_gateway(options: argparse.Namespace) -> int:
    """Run the gateway until SIGTERM or SIGINT. Reads ``state``, ``gateway`` and ``functions`` (ADDRESS:PORT, several),
    ``publish_on``, ``allow_origin``, and where the API is: ``server``, or the first of ``listen``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    keep_log(options.state, "gateway", SystemClock())
    raise_descriptor_limit()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(options, SystemClock()))
    except WeftError as problem:
        print(f"weft gateway: {problem.message}" + (f"\n{problem.hint}" if problem.hint else ""), file=sys.stderr)
        return 1
    return 0


async def _run(options: argparse.Namespace, clock: Clock) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    state: Path = options.state
    await wait_for_files([state / "server.crt", state / "server.key", state / "ca.crt"], clock)
    await wait_for_store(state / "store.sock", asked, clock)
    tls = make_tls(state)
    ticket_key = read_ticket_key(state / "ticket.key")
    store = RemoteStore(state / "store.sock", clock)
    enrolments = Enrolments(store, clock, lambda uid: gateway.check_again(uid))
    functions = make_functions(state, store, clock, ticket_key)
    if (tracer := make_tracer(options, "gateway", clock)) is not None:
        functions.service.dispatcher.traces = InvocationTraces(tracer, getattr(options, "traces_sample", 0.01))
    clients = OpenStreams(clock, make_check(functions.service.cache, functions.directory, clock))
    gateway = Gateway(
        tls,
        ticket_key,
        clock,
        WorkloadLocator(store).find,
        _make_origins(options),
        enrolments.check,
        functions.streams,
        clients,
    )
    serving = asyncio.ensure_future(functions.service.run(gateway.dial, lambda uid: uid in gateway.nodes))
    function_api = asyncio.ensure_future(keep_function_api(options.functions or (), state, functions, clock))
    for place in options.gateway:
        try:
            await gateway.listen(*split_address(place))
        except OSError as problem:
            raise Unavailable(f"can't listen at {place}: {problem.strerror or problem}") from None
        log.info("listening on %s", place)
    works = [keep_certificate(tls, state / "server.crt", state / "server.key", clock), enrolments.run(), clients.run()]
    if options.publish_on:
        works.append(PortListeners(options.publish_on, store, clock).keep())
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        stopping = asyncio.ensure_future(asked.wait())
        await asyncio.wait((stopping, serving), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if serving.done() and not serving.cancelled():
            serving.result()
    finally:
        for task in (*tasks, function_api):
            task.cancel()
        await asyncio.gather(*tasks, function_api, return_exceptions=True)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await gateway.close()
        await store.close()


def _make_origins(options: argparse.Namespace) -> Origins:
    """Pages from the API's origin are the server's own, like its dashboard's will be."""
    ports = (urlsplit(url).port or 443 for url in _find_servers(options))
    return Origins(ports, options.allow_origin or ())


def _find_servers(options: argparse.Namespace) -> list[str]:
    """URLs of the API."""
    if named := getattr(options, "server", None):
        return [named]
    return [url_at(*split_address(text)) for text in getattr(options, "listen", None) or [DEFAULT_LISTEN]]


def make_tls(state: Path) -> ssl.SSLContext:
    """TLS of the server: our certificate, and any client's that our CA signed."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.num_tickets = 0  # see make_server_tls
    tls.options |= ssl.OP_NO_TICKET
    tls.load_cert_chain(state / "server.crt", state / "server.key")
    tls.load_verify_locations(state / "ca.crt")
    tls.verify_mode = ssl.CERT_OPTIONAL
    return tls


async def wait_for_files(paths: list[Path], clock: Clock) -> None:
    """Wait until all of ``paths`` are there. Raises Unavailable naming one that stays missing."""
    deadline = clock.elapsed() + WAIT_SECONDS
    while missing := [path for path in paths if not path.exists()]:
        if clock.elapsed() > deadline:
            raise Unavailable(f"{missing[0]} does not exist", hint="weft server creates it: is the server running?")
        await clock.sleep(POLL_SECONDS)
