"""Lines that a gateway carries: each once, though the node that sends them dies between a line and its number."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from weft.contracts.clock import SystemClock
from weft.gateway.stream import logs_and_console
from weft.gateway.stream.connection import StreamConnection
from weft.gateway.stream.logs_and_console import OutputStream
from weft.gateway.stream.reconnect import WorkloadLocation
from weft.protocol.frames import Frame, FrameType, encode_exit, encode_frame, encode_json

HERE = WorkloadLocation("node-1", "alloc-1", "guest-1")


def frame(encoded: bytes) -> Frame:
    return Frame(FrameType(encoded[0]), encoded[5:])


def line(text: str) -> Frame:
    return frame(encode_frame(FrameType.DATA_OUT, text.encode() + b"\n"))


def reached(number: int) -> Frame:
    return frame(encode_json(FrameType.SESSION, {"printed": number}))


class Peer:
    """Sends ``frames``, and is lost after them; ``stays``: it is silent then."""

    def __init__(self, frames: Sequence[Frame], *, stays: bool = False) -> None:
        self.frames, self.stays = list(frames), stays
        self.got: list[Frame] = []
        self.writer = cast(Any, self)

    async def receive(self) -> Frame | None:
        if self.frames:
            return self.frames.pop(0)
        if self.stays:
            await asyncio.Event().wait()
        return None

    async def send(self, encoded: bytes) -> bool:
        self.got.append(frame(encoded))
        return True

    def close(self) -> None: ...

    @property
    def lines(self) -> list[str]:
        return [one.payload.decode().rstrip() for one in self.got if one.type == FrameType.DATA_OUT]


async def follow(*agents: Peer) -> tuple[Peer, list[int]]:
    """What the client got of a stream that these serve in turn, and from which line each was asked to go on."""
    client, left, asked = Peer([], stays=True), list(agents), []

    async def open_stream(place: WorkloadLocation, claims: dict[str, Any]) -> StreamConnection:
        asked.append(claims["printed"])
        return cast(StreamConnection, left.pop(0))

    async def find_place(claims: dict[str, Any]) -> WorkloadLocation:
        return HERE

    claims = {"verb": "logs", "input": {"aggregate": True, "follow": True}}
    stream = OutputStream(cast(StreamConnection, client), claims, open_stream, find_place, SystemClock())
    await asyncio.wait_for(stream.carry(HERE), 60)
    return client, asked


async def test_a_line_whose_number_was_lost_with_its_node_comes_once() -> None:
    dies = Peer([line("old"), reached(10), line("ten"), reached(11), line("eleven")])
    goes_on = Peer([reached(11), line("eleven"), reached(12), line("twelve"), frame(encode_exit(0))])
    client, asked = await follow(dies, goes_on)
    assert asked == [-1, 11] and client.lines == ["old", "ten", "eleven", "twelve"]
    assert client.got[-1].type == FrameType.EXIT


async def test_what_a_node_never_numbers_is_passed_on_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_and_console, "_MOST_HELD_BYTES", 100)
    many = [line(f"line {number}") for number in range(100)]
    client, asked = await follow(Peer([reached(0), *many]), Peer([reached(0), frame(encode_exit(0))]))
    assert asked == [-1, 0] and len(client.lines) >= 90
