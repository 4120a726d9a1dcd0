"""A question over a stream: bytes there, bytes back, and how it ended; nothing of it is shown on the way."""

from __future__ import annotations

import contextlib
from typing import Any

from weft.cli.session import Session
from weft.cli.stream.client import dial
from weft.objects.errors import Unavailable
from weft.protocol.frames import MAX_PAYLOAD_BYTES, FrameDecoder, FrameType, encode_data, encode_frame


def exchange(
    session: Session, kind: str, name: str, verb: str, asked: dict[str, Any], payload: bytes = b""
) -> tuple[bytes, dict[str, Any]]:
    """What came back, and what the EXIT said. Raises the error that the other side sent, Unavailable for a stream that was cut."""
    ticket = session.client.verb(kind, name, verb, asked)
    with dial(session.client.context, ticket) as sock:
        with contextlib.suppress(OSError):  # who refuses it early has said why
            for piece in encode_data(FrameType.DATA_IN, payload):
                sock.sendall(piece)
            sock.sendall(encode_frame(FrameType.END_IN))
        sock.settimeout(None)
        answer, decoder = bytearray(), FrameDecoder()
        while True:
            try:
                data = sock.recv(MAX_PAYLOAD_BYTES)
            except OSError as problem:
                raise Unavailable(f"the connection was lost: {problem.strerror or problem}") from None
            if not data:
                raise Unavailable("the connection was lost before the end", hint="the invocation may have run")
            for frame in decoder.feed(data):
                if frame.type == FrameType.DATA_OUT:
                    answer += frame.payload
                elif frame.type == FrameType.ERROR:
                    raise frame.error()
                elif frame.type == FrameType.EXIT:
                    return bytes(answer), frame.json()
