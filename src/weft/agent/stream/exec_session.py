"""Serves an exec session that its guest keeps: between the guest and the gateway, which counts the bytes that arrive.

An end that loses the other detaches from the session, so that it can be resumed: the gateway decides when it is over.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from weft.agent.stream.connection import Stream
from weft.agent.stream.wait import run_until_first_ends, within
from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import DETACHED, CanResize, ExecSession, KeptSession
from weft.objects.errors import Unavailable, WeftError
from weft.protocol.frames import FrameType, encode_error, encode_exit, encode_json

GOODBYE_SECONDS = 5.0


class ResumableExec(ExecSession, KeptSession, Protocol):
    """An exec session that its guest keeps."""


class _Over(Exception):
    """The gateway has ended the session."""


async def serve_kept(stream: Stream, session: ResumableExec, clock: Clock) -> None:
    """Serve it to its end, or until the gateway is lost. Raises Unavailable when the guest is lost."""
    await stream.send(encode_json(FrameType.SESSION, msgspec.to_builtins(session.standing)))
    listening = asyncio.ensure_future(_listen(stream, session))
    try:
        await run_until_first_ends(_send_output(stream, session), _wait(listening))
        await within(clock, _wait(listening), GOODBYE_SECONDS, "the gateway's goodbye")
    except _Over:
        await session.close()
        await stream.close()
    except Unavailable as problem:
        if problem.token != DETACHED:
            await stream.send(encode_error(problem))
            await session.close()
            return
        raise
    except (OSError, EOFError, WeftError):
        await session.let_go()
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await session.let_go()  # has no effect after a close


async def _wait(listening: asyncio.Future[None]) -> None:
    await asyncio.shield(listening)


async def _send_output(stream: Stream, session: ResumableExec) -> None:
    async for chunk in session.output():
        if chunk.channel == "taken":
            await stream.send(encode_json(FrameType.ACK, {"stdin": chunk.taken}))
        elif chunk.channel == "exit":
            await stream.send(encode_exit(chunk.code, chunk.signal))
        else:
            await stream.send_output(chunk.channel, chunk.data)


async def _listen(stream: Stream, session: ResumableExec) -> None:
    while (frame := await stream.receive()) is not None:
        if frame.type == FrameType.DATA_IN:
            await session.write(frame.payload)
        elif frame.type == FrameType.END_IN:
            await session.close_stdin()
        elif frame.type == FrameType.ACK:
            acknowledged = frame.json()
            session.acknowledge(int(acknowledged.get("stdout", 0)), int(acknowledged.get("stderr", 0)))
        elif frame.type == FrameType.RESIZE and isinstance(session, CanResize):
            size = frame.json()
            await session.resize(int(size.get("rows", 24)), int(size.get("columns", 80)))
        elif frame.type == FrameType.HANG_UP:
            raise _Over
    raise EOFError("the gateway has gone")
