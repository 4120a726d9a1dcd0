"""What gateway and agents say of invocations comes through as it was said, and nothing else does."""

from __future__ import annotations

import asyncio

import pytest

from weft.client.invocations import (
    LENGTH,
    MAX_MESSAGE_BYTES,
    Answer,
    Count,
    Invoke,
    Standing,
    Tell,
    decode_from_agent,
    decode_to_agent,
    encode,
    receive,
)
from weft.contracts.function import Blob, Recipe
from weft.objects.errors import InvalidInput

RECIPE = Recipe(
    digest="d1", function="u1", project="default", name="thumb", code=Blob("ab" * 32, 12), handler="app.handler"
)


async def test_messages_arrive_as_they_were_sent_and_in_order() -> None:
    sent = [Tell(RECIPE), Invoke("r1", "d1", b'{"n":1}', 2.5, tail=True)]
    reader = asyncio.StreamReader()
    for message in sent:
        reader.feed_data(encode(message))
    reader.feed_eof()
    got = []
    while (body := await receive(reader)) is not None:
        got.append(decode_to_agent(body))
    assert got == sent


def test_what_an_agent_says_is_read_back() -> None:
    for message in (Answer("r1", b"{}", "Unhandled", "Function.TimedOut"), Standing({"d1": Count(1, 2, 3)}, 1.5, 7)):
        assert decode_from_agent(encode(message)[LENGTH.size :]) == message


async def test_a_message_cut_in_the_middle_is_the_end() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(encode(Tell(RECIPE))[:-3])
    reader.feed_eof()
    assert await receive(reader) is None


async def test_what_is_too_long_or_no_message_is_refused() -> None:
    with pytest.raises(InvalidInput):
        encode(Answer("r1", bytes(MAX_MESSAGE_BYTES)))
    reader = asyncio.StreamReader()
    reader.feed_data(LENGTH.pack(MAX_MESSAGE_BYTES + 1))
    with pytest.raises(InvalidInput):
        await receive(reader)
    with pytest.raises(InvalidInput):
        decode_to_agent(encode(Answer("r1", b""))[LENGTH.size :])
