"""Sends a guest's log, and follows it until the guest has gone: then it sends where to. A container's log is followed until the
container has ended. Called by the streams."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from weft.agent.stream.connection import Stream
from weft.agent.stream.guest_location import Departed, GuestLocator
from weft.agent.stream.wait import run_until_first_ends
from weft.agent.workload.console_log import PrintedLog
from weft.contracts.clock import Clock
from weft.contracts.driver.container import HasLog
from weft.kinds.parts.stream_verbs import LogsInput
from weft.objects.errors import NotFound
from weft.protocol.frames import FrameType, encode_exit, encode_json

CHECK_SECONDS = 0.2


async def follow_log(
    stream: Stream, log: PrintedLog, given: LogsInput, came_to: int | None, where: GuestLocator, clock: Clock
) -> None:
    """Send the last ``given.tail`` lines, without those from before ``given.since`` seconds ago, then, if ``given.follow``, new
    output until the client or the guest goes. ``came_to``: the position of a gateway that can continue on another node (-1: it
    begins; None: it can't)."""
    watching = asyncio.ensure_future(_until_gone(stream))
    resumes = came_to is not None and came_to >= 0
    oldest = clock.now() - given.since if given.since else None
    position = (
        came_to if resumes and came_to is not None else await asyncio.to_thread(_find_begin, log, given.tail, oldest)
    )
    announced, gone, beyond = came_to is None, None, 0
    try:
        while True:
            printed = await asyncio.to_thread(log.read, position)
            if not announced:
                await stream.send(encode_json(FrameType.SESSION, {"printed": printed.start}))
                announced = True
            position = printed.start + len(printed.data)
            end = log.end
            beyond = 0 if printed.data or end is None or position <= end else beyond + 1
            if beyond > 1:  # twice: it isn't just being shortened
                position = log.start  # a new log
            elif printed.data:
                await stream.send_data(FrameType.DATA_OUT, printed.data)
            elif not given.follow:
                await stream.send(encode_exit(0))
                return
            elif gone is not None:
                await send_gone(stream, gone, position, came_to)
                return
            elif watching.done():
                return
            elif (gone := await where.inspect()) is None:
                await clock.sleep(CHECK_SECONDS)
    finally:
        watching.cancel()


def _find_begin(log: PrintedLog, tail: int, oldest: float | None) -> int:
    position = log.find_tail(tail)
    return position if oldest is None else max(position, log.find_since(oldest))


async def send_gone(stream: Stream, gone: Departed, position: int | None, came_to: int | None) -> None:
    """Send that the guest has gone: to a gateway that can continue with where it is, and from what position (None: the
    gateway's). Raises IllegalTransition for one that another cluster has."""
    if gone.refusal is not None:
        raise gone.refusal
    if gone.place is None or came_to is None:
        await stream.send(encode_exit(0))
    else:
        await stream.send(encode_json(FrameType.DETACHED, {**gone.place, "printed": position}))


async def follow_lines(
    stream: Stream, runtime: HasLog, guest_id: str, given: LogsInput, where: GuestLocator, clock: Clock
) -> None:
    """Follow a container's log like ``follow_log``: two streams, line by line, and with ``given.follow`` until it has ended. The
    log can be read while it doesn't run."""
    await run_until_first_ends(_send_lines(stream, runtime, guest_id, given, where, clock), _until_gone(stream))


async def _send_lines(
    stream: Stream, runtime: HasLog, guest_id: str, given: LogsInput, where: GuestLocator, clock: Clock
) -> None:
    oldest = clock.now() - given.since if given.since else 0.0
    while True:
        had_ended = where.has_ended()
        try:
            async with aclosing(runtime.read_log(guest_id, tail=given.tail, follow=given.follow)) as lines:
                async for line in lines:
                    if line.at >= oldest:
                        await stream.send_output(line.channel, line.data)
            break
        except NotFound:  # it hasn't started yet, or has ended without ever starting
            if not given.follow or had_ended or await where.inspect() is not None:
                break
            await clock.sleep(CHECK_SECONDS)
    await stream.send(encode_exit(0))


async def _until_gone(stream: Stream) -> None:
    while await stream.receive() is not None:
        pass
