"""Keeps the server's certificate fresh while the server runs: renewed before its end, and used for new connections.

Woken by time. Reads and writes ``server.crt`` and ``server.key`` through what it is given.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

from weft.contracts.clock import Clock

POLL_SECONDS = 6 * 3600.0
_log = logging.getLogger(__name__)


async def keep_certificate(
    tls: ssl.SSLContext, chain: Path, key: Path, clock: Clock, renew: Callable[[], object] | None = None
) -> None:
    """Keep the certificate for ever: let ``renew``, if given, renew the files, and load them into ``tls`` when they change."""
    shown = chain.read_bytes()
    while True:
        await clock.sleep(POLL_SECONDS)
        try:
            if renew is not None:
                await asyncio.to_thread(renew)
            found = chain.read_bytes()
            if found != shown:
                tls.load_cert_chain(chain, key)
                shown = found
                _log.info("the server's certificate was renewed")
        except OSError as problem:  # also what a chain and a key are that don't belong together yet
            _log.warning("the server's certificate can't be renewed: %s", problem)
