"""The stream over which a gateway asks for invocations: messages in, messages out, nothing waited for in between."""

from __future__ import annotations

import asyncio
import logging

from weft.agent.function.invocations import Functions
from weft.agent.stream.connection import Stream
from weft.objects.errors import InvalidInput
from weft.protocol.invocations import FromAgent, Printed, decode_to_agent, encode, receive

log = logging.getLogger("weft.agent")
MOST_WAITING_BYTES = 16 * 1024 * 1024  # of what a slow gateway hasn't taken: output beyond that is dropped


async def serve_invocations(stream: Stream, functions: Functions) -> None:
    """Until the gateway has gone. What is under way then goes on, and its answers are kept."""
    reader, writer = stream.reader, stream.writer

    def send(message: FromAgent) -> None:
        transport = writer.transport
        if transport.is_closing():
            return
        if isinstance(message, Printed) and transport.get_write_buffer_size() > MOST_WAITING_BYTES:
            return
        writer.write(encode(message))

    functions.connect(send)
    log.info("functions: the gateway is there")
    try:
        while (body := await receive(reader)) is not None:
            try:
                functions.take(decode_to_agent(body))
            except InvalidInput as problem:
                log.warning("functions: %s", problem.message)  # a newer gateway's word
    except (InvalidInput, asyncio.IncompleteReadError) as problem:
        log.warning("functions: %s", problem)
    finally:
        functions.disconnect(send)
