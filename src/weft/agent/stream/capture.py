"""Captures packets of this node's guests, for one stream each: the driver opens the socket, and a process of its own
(``capture_worker.py``) reads it. Nothing outlives the stream, the agent or the guest's stay on this node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from weft.agent.state.allocation import LocalAllocation, port_id
from weft.agent.stream.capture_worker import DATA, HEAD, PIECE_BYTES
from weft.agent.stream.connection import Stream
from weft.agent.stream.guest_location import Departed, GuestLocator
from weft.agent.stream.wait import run_until_first_ends
from weft.contracts.clock import Clock
from weft.contracts.driver.network import CapturesPackets, NetworkDriver
from weft.kinds.parts.stream_verbs import CaptureInput
from weft.objects.errors import DriverFailed, InvalidInput, TimedOut, Unavailable
from weft.protocol.frames import FrameType, encode_exit

MOST_AT_ONCE, MOST_OF_ONE = 8, 2  # on this node, and of one person
CHECK_SECONDS = 0.25
LATE_SECONDS = 20.0  # beyond the asked seconds, for a client that reads slowly


class Captures:
    def __init__(self, network: NetworkDriver, clock: Clock) -> None:
        self._network, self._clock = network, clock
        self._under_way: list[str] = []  # a subject for each

    async def serve(
        self, stream: Stream, subject: str, local: LocalAllocation, given: CaptureInput, where: GuestLocator
    ) -> None:
        """Send packets until a limit is reached, the client wants no more, or the guest has gone. Raises WeftError."""
        with self._take_place(subject):
            source = self._open(local, given)
            try:
                await self._serve(stream, source, local, given, where)
            finally:
                source.close()

    @contextlib.contextmanager
    def _take_place(self, subject: str) -> Iterator[None]:
        own = self._under_way.count(subject)
        if own >= MOST_OF_ONE or len(self._under_way) >= MOST_AT_ONCE:
            whose = f"{own} captures of yours" if own >= MOST_OF_ONE else f"{MOST_AT_ONCE} captures"
            raise Unavailable(
                f"{whose} are under way on this node, and no more are possible",
                reason="tooManyStreams",
                hint="end one of them (Ctrl-C), or wait",
                retry_after_seconds=5.0,
            )
        self._under_way.append(subject)
        try:
            yield
        finally:
            self._under_way.remove(subject)

    def _open(self, local: LocalAllocation, given: CaptureInput) -> socket.socket:
        network = self._network
        if not isinstance(network, CapturesPackets):
            raise Unavailable(f"network driver {network.name} can't capture packets", reason="unsupported")
        nics = local.spec.nics
        if given.nic >= len(nics):
            has = f"NICs 0 to {len(nics) - 1}" if len(nics) > 1 else "only NIC 0" if nics else "no NIC"
            raise InvalidInput(f"{local.short_name} has {has}, and no NIC {given.nic}", field="nic")
        return network.taps.open(port_id(local.uid, nics[given.nic].uid), given.filter, given.snaplen)

    async def _serve(
        self,
        stream: Stream,
        source: socket.socket,
        local: LocalAllocation,
        given: CaptureInput,
        where: GuestLocator,
    ) -> None:
        order = {"seconds": given.seconds, "size": given.size, "snaplen": given.snaplen}
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "weft.agent.stream.capture_worker", str(os.getpid()), json.dumps(order)),
            stdin=source.fileno(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=2 * PIECE_BYTES,
        )
        source.close()
        departures: list[Departed] = []
        watching = asyncio.ensure_future(self._end_with_the_guest(worker, where, departures))
        try:
            await run_until_first_ends(
                _send(stream, worker, departures, local.short_name),
                _until_gone(stream, worker),
                self._end_late(given.seconds),
            )
        finally:
            watching.cancel()
            if worker.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    worker.kill()
            await worker.wait()

    async def _end_with_the_guest(
        self, worker: asyncio.subprocess.Process, where: GuestLocator, departures: list[Departed]
    ) -> None:
        while (gone := await where.inspect()) is None:
            await self._clock.sleep(CHECK_SECONDS)
        departures.append(gone)
        _ask_to_end(worker)

    async def _end_late(self, seconds: float) -> None:
        await self._clock.sleep(seconds + LATE_SECONDS)
        raise TimedOut("the capture ended: its packets were not read in time", hint="write them to a file")


async def _send(stream: Stream, worker: asyncio.subprocess.Process, departures: list[Departed], what: str) -> None:
    assert worker.stdout is not None
    try:
        while True:
            kind, length = HEAD.unpack(await worker.stdout.readexactly(HEAD.size))
            body = await worker.stdout.readexactly(length)
            if kind != DATA:
                break
            await stream.send_data(FrameType.DATA_OUT, body)
    except asyncio.IncompleteReadError:
        raise DriverFailed(
            "the process that captures packets ended", reason="workerDied", hint="capture again"
        ) from None
    end: dict[str, Any] = msgspec.json.decode(body)
    if departures and end["ended"] in ("asked", "gone"):
        end["ended"] = "migrated" if departures[0].place or departures[0].refusal else "gone"
    await stream.send_data(FrameType.STDERR, msgspec.json.encode(end))
    if departures and departures[0].refusal is not None:
        raise departures[0].refusal
    if end["ended"] == "migrated":
        raise Unavailable(
            f"{what} has migrated: the capture ended there", reason="guestMigrated", hint="start it again"
        )
    if end["ended"] == "gone":
        raise Unavailable(f"the NIC of {what} has gone from this node: the capture ended", reason="guestEnded")
    await stream.send(encode_exit(0))


async def _until_gone(stream: Stream, worker: asyncio.subprocess.Process) -> None:
    while (frame := await stream.receive()) is not None:
        if frame.type == FrameType.END_IN:
            _ask_to_end(worker)


def _ask_to_end(worker: asyncio.subprocess.Process) -> None:
    if worker.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            worker.send_signal(signal.SIGTERM)
