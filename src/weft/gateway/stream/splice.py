"""Carries frames both ways between a client and an agent's stream, at the pace of the slower, until either has gone.

Half-close is a frame (END_IN), so it passes like any other. Decides only what to send when one of them is lost.
"""

from __future__ import annotations

import asyncio

import msgspec

from weft.gateway.stream.connection import StreamConnection
from weft.objects.errors import InvalidInput, Unavailable, WeftError
from weft.protocol.frames import FrameType, encode_error, encode_frame

END = (FrameType.EXIT, FrameType.ERROR)
FROM_CLIENT = (FrameType.DATA_IN, FrameType.END_IN, FrameType.RESIZE, FrameType.PING)


class Carried(msgspec.Struct):
    """The result of one stream."""

    bytes_in: int = 0
    bytes_out: int = 0
    result: str = "cut"


async def splice(client: StreamConnection, agent: StreamConnection) -> Carried:
    """Carry until the stream's end; the client always gets a last frame: the agent's EXIT or ERROR, or ours."""
    carried = Carried()
    inward = asyncio.ensure_future(_carry_in(client, agent, carried))
    outward = asyncio.ensure_future(_carry_out(agent, client, carried))
    try:
        await asyncio.wait((inward, outward), return_when=asyncio.FIRST_COMPLETED)
        if inward.done() and not outward.done():
            inward.result()
            carried.result = "client gone"
        else:
            ended = outward.result()
            if not ended:
                lost = Unavailable("the connection to its node was lost; the workload goes on", reason="streamLost")
                await client.send(encode_error(lost))
    except WeftError as problem:
        carried.result = problem.token
        await client.send(encode_error(problem))
    finally:
        inward.cancel()
        outward.cancel()
        await asyncio.gather(inward, outward, return_exceptions=True)
    return carried


async def _carry_in(client: StreamConnection, agent: StreamConnection, carried: Carried) -> None:
    while (frame := await client.receive()) is not None:
        if frame.type not in FROM_CLIENT:
            raise InvalidInput(f"a client may not send frames of type {frame.type}")
        carried.bytes_in += len(frame.payload)
        if not await agent.send(encode_frame(frame.type, frame.payload)):
            await asyncio.Event().wait()  # the agent reports what happened; that ends this task


async def _carry_out(agent: StreamConnection, client: StreamConnection, carried: Carried) -> bool:
    """Whether the agent ended the stream properly (or the client has gone)."""
    while (frame := await agent.receive()) is not None:
        carried.bytes_out += len(frame.payload)
        if not await client.send(encode_frame(frame.type, frame.payload)):
            carried.result = "client gone"
            return True
        if frame.type in END:
            carried.result = "done" if frame.type == FrameType.EXIT else frame.error().token
            return True
    return False
