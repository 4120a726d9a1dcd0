"""``weft witness --config FILE``: the third place that two clusters ask who is primary, on any small machine that is with neither.

It needs no cluster, and knows none of their guests. Runs until a signal ends it; what it has promised is in its folder."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from asyncio import sslproto
from collections.abc import Sequence
from pathlib import Path

from weft.cli.command.exit_codes import exit_code
from weft.client.context import hash_ca
from weft.contracts.clock import SystemClock, read_boot_time
from weft.kinds.fields.cluster.link import write_witness_token
from weft.launch.process.address import ANY, split_address
from weft.launch.process.certificate import keep_certificate
from weft.launch.process.limits import raise_descriptor_limit
from weft.launch.witness.configuration import WitnessSettings, read_settings
from weft.objects.errors import InUse, NotFound, Unavailable, WeftError
from weft.serving.server import HttpServer, listen, make_server_tls
from weft.trust.ca import Authority
from weft.witness.listener import BOUNDS, WitnessListener, refuse
from weft.witness.metrics import make_metrics_server
from weft.witness.service import Witness
from weft.witness.sites import SiteFile

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
VOTES = "votes.json"
TLS_BYTES = 16 << 10  # that each connection has to read into; asyncio takes 256 KiB, and strangers may open a thousand
log = logging.getLogger("weft.witness")


def main(argv: Sequence[str]) -> int:
    """Run ``weft witness …``: 0 after a signal; a sentence on stderr and its exit code if it can't go on."""
    try:
        settings = read_settings(argv)
        if settings.command == "config":
            return 0
        if settings.command == "remove-site":
            return _remove_site(settings)
        _make_folder(settings.state)
        if settings.command:
            return _add_site(settings)
        return _run(settings)
    except WeftError as problem:
        print(f"error: {problem.message}", file=sys.stderr)
        if problem.hint:
            print(f"  {problem.hint}", file=sys.stderr)
        return exit_code(problem)


def _make_folder(state: Path) -> None:
    try:
        state.mkdir(parents=True, exist_ok=True)
        state.chmod(0o700)
    except OSError as problem:
        raise Unavailable(
            f"{state} can't be the witness's folder: {problem.strerror}", hint="give another one: --state DIR"
        ) from problem


def _remove_site(settings: WitnessSettings) -> int:
    if not settings.state.is_dir():
        raise NotFound(f"the witness's folder {settings.state} doesn't exist", hint="give the one that it runs with")
    SiteFile(settings.state).remove(settings.site)
    print(f"site {settings.site} is removed: the witness refuses it, and forgets its groups")
    return 0


def _add_site(settings: WitnessSettings) -> int:
    sites = SiteFile(settings.state)
    with sites.locked():
        ca = Authority(settings.state, SystemClock()).ca
    secret = sites.add(settings.site)
    print(write_witness_token(settings.site, secret, hash_ca(ca)))
    print(
        f"shown once; at cluster {settings.site}: weft cluster witness OTHER URL --token-stdin, with the other cluster's "
        "name there and this witness's address",
        file=sys.stderr,
    )
    return 0


def _run(settings: WitnessSettings) -> int:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    raise_descriptor_limit()
    lock = _lock(settings.state)
    try:
        for left in settings.state.glob(f".{VOTES}.*"):  # of processes that were killed while they wrote
            left.unlink(missing_ok=True)
        asyncio.run(serve(settings))
    finally:
        os.close(lock)
    return 0


async def serve(settings: WitnessSettings) -> None:
    """Be the witness until SIGTERM or SIGINT."""
    sslproto.SSLProtocol.max_size = TLS_BYTES
    clock, sites = SystemClock(), SiteFile(settings.state)
    host, port = split_address(settings.listen)
    names = [name for name in (host, *settings.names) if name not in ANY]
    with sites.locked():
        authority = Authority(settings.state, clock)
        chain, key = authority.renew_server(names)
    witness = Witness(settings.state / VOTES, sites.read(), read_boot_time)
    listener = WitnessListener(witness, sites, clock, settings.rate)
    tls, sockets = make_server_tls(chain, key), [listen(host, port)]
    servers = [HttpServer(listener.answer, sockets, tls, clock, BOUNDS, refuse)]
    if settings.metrics:
        servers.append(make_metrics_server([listen(*split_address(settings.metrics))], witness, listener, clock))
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    keeping = asyncio.create_task(keep_certificate(tls, chain, key, clock, lambda: authority.renew_server(names)))
    try:
        for server in servers:
            server.start()
        log.info("witness of %d sites and %d groups at %s", *witness.count()[:2], _show_place(sockets[0]))
        await asked.wait()
    finally:
        keeping.cancel()
        for server in servers:
            await server.close()


def _show_place(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _lock(state: Path) -> int:
    """Hold the witness's folder; raises InUse while another witness does."""
    descriptor = os.open(state / "witness.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise InUse(f"another witness runs with {state}", hint="one process has the folder at a time") from None
    return descriptor
