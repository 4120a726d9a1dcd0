"""Finds the guest of a lost stream again: asks node after node, as the guest's former agent or the server report.

Woken by the stream's carrier. Decides only which node to ask next, and when to give up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.gateway.stream.connection import StreamConnection
from weft.objects.errors import Unavailable, WeftError
from weft.protocol.frames import Frame, FrameType

FIND_SECONDS = 30.0  # less than a guest keeps a session
AGAIN_SECONDS = 0.2


class WorkloadLocation(msgspec.Struct, frozen=True):
    """The location of a guest: the node, and its allocation there. ``node``: the node's name, if it is known."""

    node_uid: str
    allocation: str
    guest_id: str
    node: str = ""


Open = Callable[[WorkloadLocation, dict[str, Any]], Awaitable[StreamConnection]]
FindPlace = Callable[[dict[str, Any]], Awaitable[WorkloadLocation | None]]
Ask = Callable[[], dict[str, Any]]


class Reconnector:
    """Reconnector for one ticket's guest. ``open_stream`` has the agent of a place dial, with the ticket's ``claims`` and what
    ``ask`` adds to them; ``find_place`` asks the server where the claims' workload is (None: unknown)."""

    def __init__(
        self, claims: dict[str, Any], ask: Ask, open_stream: Open, find_place: FindPlace, clock: Clock
    ) -> None:
        self._claims, self._ask = claims, ask
        self._open, self._find_place, self._clock = open_stream, find_place, clock

    async def open(self, place: WorkloadLocation) -> StreamConnection:
        """A stream to the agent there. Raises Unavailable."""
        return await self._open(place, {**self._claims, **msgspec.structs.asdict(place), **self._ask()})

    async def take_up(
        self, place: WorkloadLocation, final: tuple[str, ...], begin: Callable[[Frame], None], what: str
    ) -> tuple[StreamConnection, WorkloadLocation]:
        """A stream at ``place``, or where the guest is now; ``begin`` has got its first frame. Raises errors with ``final``
        reasons, and Unavailable naming ``what`` if no node has the guest within FIND_SECONDS."""
        began, last = self._clock.elapsed(), ""
        while self._clock.elapsed() - began < FIND_SECONDS:
            hint: WorkloadLocation | None = None
            try:
                stream = await self.open(place)
            except WeftError as problem:
                last = problem.message
            else:
                answer = await self._receive_within(stream, began + FIND_SECONDS - self._clock.elapsed())
                if answer is not None and answer.type == FrameType.SESSION:
                    begin(answer)
                    return stream, place
                stream.writer.close()
                if answer is not None and answer.type == FrameType.DETACHED:
                    hint = read_place(answer)
                elif answer is not None and answer.type == FrameType.ERROR:
                    error = answer.error()
                    if error.token in final:
                        raise error
                    last = error.message
            place = hint or await self._find_place(self._claims) or place
            await self._clock.sleep(AGAIN_SECONDS)
        raise Unavailable(
            f"the connection to its node was lost, and {what} could not be reached again within "
            f"{FIND_SECONDS:g} s{f' ({last})' if last else ''}; the workload goes on",
            reason="streamLost",
        )

    async def _receive_within(self, stream: StreamConnection, seconds: float) -> Frame | None:
        receiving = asyncio.ensure_future(stream.receive())
        try:
            await self.within(receiving, seconds)
            return receiving.result() if receiving.done() else None
        finally:
            receiving.cancel()

    async def within(self, work: asyncio.Future[Any], seconds: float) -> None:
        """Wait for ``work`` so long; it goes on after that."""
        limit = asyncio.ensure_future(self._clock.sleep(max(0.0, seconds)))
        try:
            await asyncio.wait((work, limit), return_when=asyncio.FIRST_COMPLETED)
        finally:
            limit.cancel()


def read_place(frame: Frame) -> WorkloadLocation | None:
    """Read where the guest went, as an agent reports; None if it doesn't know. Raises InvalidInput for what is no JSON."""
    try:
        return msgspec.convert(frame.json(), WorkloadLocation)
    except msgspec.ValidationError:
        return None
