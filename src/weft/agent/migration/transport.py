"""How the two sides of a move reach each other: the target opens a door, the source has a line to it. What goes over is
questions with their answers, files of disks, and whatever machines send to each other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from weft.agent.migration.connection import TlsLine
from weft.agent.migration.credentials import Credentials
from weft.agent.migration.listener import TlsDoor
from weft.agent.migration.relay import Limit, Meter
from weft.contracts.clock import Clock
from weft.protocol.migration import Answer, Ask, Channel, Receive


class Door(Protocol):
    """Where a target lets its move in. ``receive`` takes the files of disks; without it there are none to come."""

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
        """Nobody comes in any more, and who is in is cut off."""


class Line(Protocol):
    """A source's way to the door of its move."""

    meter: Meter

    async def ask(self, ask: Ask) -> Answer:
        """The target's answer. Raises Unavailable if there is none; then the question may have been heard."""

    async def order(self, ask: Ask) -> None:
        """Like ``ask``; raises DriverFailed if the target answers that it can't."""

    def offer(self, sockets: dict[Channel, Path], *, ahead: int = 0) -> None:
        """What the machine sends to these paths is carried over; ``ahead``: how many connections it is about to open for its
        memory. Raises DriverFailed."""

    async def carry_file(self, disk: str, path: Path, form: str = "qcow2") -> None:
        """The file of ``disk``, in format ``form``; returns once the target has it. Raises OSError, WeftError."""

    def close(self) -> None:
        """Cut all there is."""


class Wire(Protocol):
    def make_door(
        self, key: str, peer_uid: str, respond: Callable[[Ask], Awaitable[Answer]], limits: Sequence[Limit]
    ) -> Door:
        """For the move ``key``, for node ``peer_uid`` and no other; ``respond`` answers what it asks; what comes keeps to
        ``limits``."""

    def make_line(self, key: str, address: str, peer_uid: str, limits: Sequence[Limit]) -> Line:
        """To the door of the move ``key`` at ``address``, behind which is node ``peer_uid``; what goes keeps to ``limits``."""


class TlsWire:
    """Connections between nodes, each of which shows its certificate."""

    def __init__(self, credentials: Credentials, clock: Clock) -> None:
        self._credentials, self._clock = credentials, clock

    def make_door(
        self, key: str, peer_uid: str, respond: Callable[[Ask], Awaitable[Answer]], limits: Sequence[Limit]
    ) -> TlsDoor:
        return TlsDoor(key, peer_uid, self._credentials, respond, limits, self._clock)

    def make_line(self, key: str, address: str, peer_uid: str, limits: Sequence[Limit]) -> TlsLine:
        return TlsLine(key, address, peer_uid, self._credentials, limits, self._clock)
