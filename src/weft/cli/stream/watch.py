"""A stream of documents, a line of JSON each, that goes on wherever the workload is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from weft.cli.command.target import Target
from weft.cli.session import Session
from weft.cli.stream.client import Stream, open_stream
from weft.cli.wait.again import read_again

AGAIN_SECONDS = 1.0


def watch_documents(
    session: Session, target: Target, verb: str, asked: dict[str, Any], show: Callable[[dict[str, Any]], None]
) -> int:
    """Give ``show`` each document as it comes; after a migration from the next node. Raises WeftError."""
    rest = bytearray()

    def take(descriptor: int, data: bytes) -> None:
        rest.extend(data)
        while b"\n" in rest:
            line, _, after = bytes(rest).partition(b"\n")
            rest[:] = after
            show(json.loads(line))

    def follow() -> None:
        rest.clear()
        with open_stream(session.client, target.kind.name, target.name, verb, {**asked, "watch": True}) as sock:
            Stream(sock, forward_end=False, write=take).run(None)

    while True:
        read_again(session, follow)
        session.rests(AGAIN_SECONDS)
