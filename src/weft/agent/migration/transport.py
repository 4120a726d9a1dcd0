"""The transport between the two ends of a migration: the target listens, the source connects. It carries requests and answers,
disk files, and the machines' own bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from weft.agent.migration.connection import TlsConnection
from weft.agent.migration.credentials import Credentials
from weft.agent.migration.listener import TlsListener
from weft.agent.migration.relay import Limit, Meter
from weft.contracts.clock import Clock
from weft.protocol.migration import Channel, MigrationAnswer, MigrationRequest, Receive


class Listener(Protocol):
    """The target's."""

    meter: Meter
    receive: Receive | None  # takes disk files; None: none are accepted

    @property
    def port(self) -> int:
        """0 while it is closed."""

    def open(self, address: str, port: int = 0) -> str:
        """Listen at ``address``, at ``port`` if that is free; returns ``host:port``. Raises DriverFailed."""

    def lead(self, sockets: dict[Channel, str]) -> None:
        """Relay these channels to these sockets from now on."""

    def close(self) -> None:
        """Accept no more connections, and cut the open ones."""


class MigrationConnection(Protocol):
    """The source's."""

    meter: Meter

    async def ask(self, ask: MigrationRequest) -> MigrationAnswer:
        """The target's answer. Raises Unavailable without one; the target may have received the request."""

    async def order(self, ask: MigrationRequest) -> None:
        """Send a request like ``ask``; raises DriverFailed if the target answers that it can't."""

    def offer(self, sockets: dict[Channel, Path], *, ahead: int = 0) -> None:
        """Relay the bytes that the machine sends to these paths; ``ahead``: how many connections it will open for its memory.
        Raises DriverFailed."""

    async def carry_file(self, disk: str, path: Path, form: str = "qcow2") -> None:
        """Send the file of ``disk``, in format ``form``; returns once the target has it. Raises OSError, WeftError."""

    def close(self) -> None:
        """Cut all connections."""


class Transport(Protocol):
    def make_listener(
        self,
        key: str,
        peer_uid: str,
        respond: Callable[[MigrationRequest], Awaitable[MigrationAnswer]],
        limits: Sequence[Limit],
        peer_ca: str = "",
    ) -> Listener:
        """A listener for migration ``key``, only for node ``peer_uid``, signed by ``peer_ca`` if that is another cluster's.
        ``respond`` answers its requests; ``limits`` bound the incoming rate."""

    def make_connection(
        self, key: str, address: str, peer_uid: str, limits: Sequence[Limit], peer_ca: str = ""
    ) -> MigrationConnection:
        """A connection to the listener of migration ``key`` at ``address`` on node ``peer_uid``; ``limits`` bound the outgoing
        rate. ``peer_ca`` as above; raises InvalidInput for an unusable one."""


class TlsTransport:
    def __init__(self, credentials: Credentials, clock: Clock) -> None:
        self._credentials, self._clock = credentials, clock

    def make_listener(
        self,
        key: str,
        peer_uid: str,
        respond: Callable[[MigrationRequest], Awaitable[MigrationAnswer]],
        limits: Sequence[Limit],
        peer_ca: str = "",
    ) -> TlsListener:
        return TlsListener(key, peer_uid, self._credentials, respond, limits, self._clock, peer_ca)

    def make_connection(
        self, key: str, address: str, peer_uid: str, limits: Sequence[Limit], peer_ca: str = ""
    ) -> TlsConnection:
        return TlsConnection(key, address, peer_uid, self._credentials, limits, self._clock, peer_ca)
