"""How the two ends of a migration reach each other: the target listens, the source connects. They exchange requests with their
answers, files of disks, and what the machines send to each other.
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
    """The target's. ``receive`` takes the files of disks; without it there are none to come."""

    meter: Meter
    receive: Receive | None

    @property
    def port(self) -> int:
        """0 while it isn't open."""

    def open(self, address: str, port: int = 0) -> str:
        """Let in who comes there, at ``port`` if that is free still; ``host:port``. Raises DriverFailed."""

    def lead(self, sockets: dict[Channel, str]) -> None:
        """From now on these channels end at these sockets."""

    def close(self) -> None:
        """Accept no more connections, and cut those that there are."""


class Connection(Protocol):
    """The source's."""

    meter: Meter

    async def ask(self, ask: MigrationRequest) -> MigrationAnswer:
        """The target's answer. Raises Unavailable if there is none; then the question may have been heard."""

    async def order(self, ask: MigrationRequest) -> None:
        """Like ``ask``; raises DriverFailed if the target answers that it can't."""

    def offer(self, sockets: dict[Channel, Path], *, ahead: int = 0) -> None:
        """What the machine sends to these paths is carried over; ``ahead``: how many connections it is about to open for its
        memory. Raises DriverFailed."""

    async def carry_file(self, disk: str, path: Path, form: str = "qcow2") -> None:
        """The file of ``disk``, in format ``form``; returns once the target has it. Raises OSError, WeftError."""

    def close(self) -> None:
        """Cut all there is."""


class Transport(Protocol):
    def make_listener(
        self,
        key: str,
        peer_uid: str,
        respond: Callable[[MigrationRequest], Awaitable[MigrationAnswer]],
        limits: Sequence[Limit],
    ) -> Listener:
        """For migration ``key``, for node ``peer_uid`` and no other; ``respond`` answers its requests; what comes keeps to
        ``limits``."""

    def make_connection(self, key: str, address: str, peer_uid: str, limits: Sequence[Limit]) -> Connection:
        """To the listener of migration ``key`` at ``address``, which is node ``peer_uid``'s; what goes keeps to ``limits``."""


class TlsTransport:
    """Connections between nodes, each of which shows its certificate."""

    def __init__(self, credentials: Credentials, clock: Clock) -> None:
        self._credentials, self._clock = credentials, clock

    def make_listener(
        self,
        key: str,
        peer_uid: str,
        respond: Callable[[MigrationRequest], Awaitable[MigrationAnswer]],
        limits: Sequence[Limit],
    ) -> TlsListener:
        return TlsListener(key, peer_uid, self._credentials, respond, limits, self._clock)

    def make_connection(self, key: str, address: str, peer_uid: str, limits: Sequence[Limit]) -> TlsConnection:
        return TlsConnection(key, address, peer_uid, self._credentials, limits, self._clock)
