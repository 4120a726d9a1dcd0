"""The stream that carries a gateway's invocations: messages in, messages out, without waiting in between."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from weft.agent.stream.connection import Stream
from weft.objects.errors import InvalidInput
from weft.protocol.invocations import FromAgent, Printed, decode_to_agent, encode, receive

if TYPE_CHECKING:  # an agent without functions loads none of this
    from weft.agent.function.invocations import Functions

log = logging.getLogger("weft.agent")
MOST_WAITING_BYTES = 16 * 1024 * 1024  # for a slow gateway: output beyond that is dropped


async def serve_invocations(stream: Stream, functions: Functions) -> None:
    """Serve until the gateway has gone. Pending invocations then continue, and their answers are kept."""
    reader, writer = stream.reader, stream.writer

    def send(message: FromAgent) -> None:
        transport = writer.transport
        if transport.is_closing():
            return
        if isinstance(message, Printed) and transport.get_write_buffer_size() > MOST_WAITING_BYTES:
            return
        writer.write(encode(message))

    functions.connect(send, stream.gateway)
    log.info("functions: the gateway at %s is connected", stream.gateway)
    try:
        while (body := await receive(reader)) is not None:
            try:
                functions.take(decode_to_agent(body), stream.gateway)
            except InvalidInput as problem:
                log.warning("functions: %s", problem.message)  # perhaps a newer gateway's message
    except (InvalidInput, asyncio.IncompleteReadError) as problem:
        log.warning("functions: %s", problem)
    finally:
        functions.disconnect(send)
