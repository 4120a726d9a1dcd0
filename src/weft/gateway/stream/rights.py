"""The streams that clients have open, each as long as the client's token gives the right to it: they end within a second after a
token was deleted, or a user disabled or without the role. Reads these out of a view that follows the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec

from weft.contracts.clock import Clock
from weft.gateway.stream.connection import StreamConnection
from weft.informer.accounts import read_token
from weft.informer.cache import Cache
from weft.objects.errors import WeftError
from weft.objects.identity import object_key
from weft.protocol.claims import Claims
from weft.protocol.frames import encode_error
from weft.trust.credentials import invalid_token, make_actor
from weft.trust.directory import Directory

log = logging.getLogger("weft.gateway")
CHECK_SECONDS = 0.5
LINGER_SECONDS = 2.0  # for the last frame to a client that reads slowly


class CheckHolder(Protocol):
    def __call__(self, claims: Claims, project: str | None) -> None:
        """Raise NotAuthenticated or Forbidden if the client with ``claims`` has no right to the stream in ``project`` any more."""


class _Open(msgspec.Struct):
    claims: Claims
    project: str | None
    since: float  # elapsed seconds
    ended: bool = False


class OpenStreams:
    """``check`` is asked while ``run`` runs; without one, the ticket is all that counts."""

    def __init__(self, clock: Clock, check: CheckHolder | None = None) -> None:
        self._clock, self._check = clock, check
        self._open: dict[StreamConnection, _Open] = {}

    @contextlib.contextmanager
    def hold(self, client: StreamConnection, claims: Claims, workload: object) -> Iterator[None]:
        """Hold the rights while the stream of ``client`` is open; ``workload`` is what its ticket names."""
        project = workload.get("project") if isinstance(workload, Mapping) else None
        self._open[client] = _Open(claims, project, self._clock.elapsed())
        try:
            yield
        finally:
            del self._open[client]

    async def run(self) -> None:
        """End streams until cancelled."""
        while True:
            await self._clock.sleep(CHECK_SECONDS)
            now = self._clock.elapsed()
            for client, stream in list(self._open.items()):
                # A token that was just made may not be in the view yet.
                if self._check and not stream.ended and stream.claims.token and now - stream.since >= CHECK_SECONDS:
                    try:
                        self._check(stream.claims, stream.project)
                    except WeftError as problem:
                        stream.ended = True
                        self._end(client, stream.claims, problem)

    def _end(self, client: StreamConnection, claims: Claims, problem: WeftError) -> None:
        """End the stream as if the client had gone, but it learns why."""
        log.info("%s of %s at %s is ended: %s", claims.verb, claims.subject or "-", client.address, problem.message)
        with contextlib.suppress(OSError):
            client.writer.write(encode_error(problem))
            client.writer.close()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, client.writer.transport.abort)


def make_check(cache: Cache, directory: Directory, clock: Clock) -> CheckHolder:
    """The check by the tokens in the view of ``cache``."""

    def check(claims: Claims, project: str | None) -> None:
        if not cache.epoch:
            return
        item = cache.view.get(object_key("token", None, claims.token))
        if item is None or item.deleting:
            raise invalid_token()
        make_actor(read_token(item), directory, clock.now()).require(claims.right, project, claims.verb)

    return check
