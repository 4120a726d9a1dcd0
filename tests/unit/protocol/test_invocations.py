"""What gateway and agents say of invocations comes through as it was said, and nothing else does."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.contracts.driver.function import Blob, Recipe
from weft.objects.errors import InvalidInput
from weft.protocol.invocations import (
    LENGTH,
    MAX_MESSAGE_BYTES,
    Count,
    Define,
    InstanceState,
    InstanceStateChange,
    InvocationAnswer,
    Invoke,
    apply_change,
    decode_from_agent,
    decode_to_agent,
    diff_state,
    encode,
    receive,
)

RECIPE = Recipe(
    digest="d1", function="u1", project="default", name="thumb", code=Blob("ab" * 32, 12), handler="app.handler"
)


async def test_messages_arrive_as_they_were_sent_and_in_order() -> None:
    sent = [Define(RECIPE), Invoke("r1", "d1", b'{"n":1}', 2.5, tail=True)]
    reader = asyncio.StreamReader()
    for message in sent:
        reader.feed_data(encode(message))
    reader.feed_eof()
    got = []
    while (body := await receive(reader)) is not None:
        got.append(decode_to_agent(body))
    assert got == sent


def test_what_an_agent_says_is_read_back() -> None:
    for message in (
        InvocationAnswer("r1", b"{}", "Unhandled", "Function.TimedOut"),
        InstanceState({"d1": Count(1, 2, 3)}, 1.5, 7),
    ):
        assert decode_from_agent(encode(message)[LENGTH.size :]) == message


async def test_a_message_cut_in_the_middle_is_the_end() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(encode(Define(RECIPE))[:-3])
    reader.feed_eof()
    assert await receive(reader) is None


async def test_what_is_too_long_or_no_message_is_refused() -> None:
    with pytest.raises(InvalidInput):
        encode(InvocationAnswer("r1", bytes(MAX_MESSAGE_BYTES)))
    reader = asyncio.StreamReader()
    reader.feed_data(LENGTH.pack(MAX_MESSAGE_BYTES + 1))
    with pytest.raises(InvalidInput):
        await receive(reader)
    with pytest.raises(InvalidInput):
        decode_to_agent(encode(InvocationAnswer("r1", b""))[LENGTH.size :])


COUNTS = st.builds(Count, *[st.integers(0, 2)] * 3).filter(lambda count: count != Count())
NAMES = st.sampled_from(["d1", "d2", "d3", "d4"])
STANDINGS = st.builds(
    InstanceState,
    counts=st.dictionaries(NAMES, COUNTS),
    free_cpu=st.integers(0, 3).map(float),
    free_memory=st.integers(0, 3),
    isolations=st.fixed_dictionaries({"process": st.sampled_from(["", "no bubblewrap"]), "vm": st.just("")}),
    recipes=st.sets(NAMES).map(sorted),
    ready_memory=st.integers(0, 3),
)


@given(st.lists(STANDINGS, min_size=1, max_size=5))
def test_who_hears_each_change_knows_what_is(standings: list[InstanceState]) -> None:
    known = standings[0]
    for before, now in itertools.pairwise(standings):
        said = decode_from_agent(encode(diff_state(before, now))[LENGTH.size :])
        assert isinstance(said, InstanceStateChange)
        known = apply_change(known, said)
        assert known == now


def test_a_change_of_one_function_is_as_long_with_a_thousand_others_as_alone() -> None:
    def stand(functions: int, busy: int) -> InstanceState:
        digests = [f"{number:064x}" for number in range(functions)]
        counts = {digest: Count(idle=1) for digest in digests}
        return InstanceState(counts | {digests[0]: Count(busy, 1)}, 1.5, 1 << 30, {"process": ""}, digests)

    alone, among = (encode(diff_state(stand(count, 0), stand(count, 1))) for count in (1, 1000))
    assert len(alone) == len(among) < 200 < len(encode(stand(1000, 1)))
