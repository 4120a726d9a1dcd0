"""The frames that travel through the gateway: what is written is read again, however the bytes are cut."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.objects.errors import InvalidInput, NotFound, Unavailable
from weft.protocol.frames import (
    MAX_PAYLOAD_BYTES,
    Frame,
    FrameDecoder,
    FrameType,
    encode_data,
    encode_error,
    encode_exit,
    encode_frame,
    encode_hello,
    receive_frame,
)

frames = st.lists(st.builds(Frame, st.integers(0, 255), st.binary(max_size=200)), max_size=8)


def receive_all(data: bytes, count: int) -> list[Frame | None]:
    """The first ``count`` frames of a stream that holds ``data``."""

    async def receive() -> list[Frame | None]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return [await receive_frame(reader) for _ in range(count)]

    return asyncio.run(receive())


@given(frames, st.lists(st.integers(1, 50), max_size=20))
def test_frames_are_put_together_again_however_they_are_cut(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(encode_frame(frame.type, frame.payload) for frame in sent)
    decoder, got = FrameDecoder(), []
    for cut in cuts:
        got += decoder.feed(data[:cut])
        data = data[cut:]
    got += decoder.feed(data)
    assert got == sent


@given(frames)
def test_a_stream_gives_the_frames_that_were_sent_and_then_its_end(sent: list[Frame]) -> None:
    data = b"".join(encode_frame(frame.type, frame.payload) for frame in sent)
    assert receive_all(data, len(sent) + 1) == [*sent, None]


@pytest.mark.parametrize("length", [0, 1, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1, 3 * MAX_PAYLOAD_BYTES + 7])
def test_data_of_any_length_goes_in_frames_of_the_right_size(length: int) -> None:
    data = bytes(i % 251 for i in range(length))
    got = FrameDecoder().feed(b"".join(encode_data(FrameType.DATA_OUT, data)))
    assert b"".join(frame.payload for frame in got) == data
    assert all(0 < len(frame.payload) <= MAX_PAYLOAD_BYTES for frame in got)


def test_a_frame_that_is_too_large_is_refused_by_its_header() -> None:
    header = b"\x01\x00\x01\x00\x01"
    with pytest.raises(InvalidInput):
        FrameDecoder().feed(header)
    with pytest.raises(InvalidInput):
        receive_all(header, 1)
    with pytest.raises(InvalidInput):
        encode_frame(1, bytes(MAX_PAYLOAD_BYTES + 1))


@pytest.mark.parametrize("cut", [1, 4, 5, 8])
def test_a_stream_cut_inside_a_frame_is_no_end(cut: int) -> None:
    with pytest.raises(Unavailable):
        receive_all(encode_frame(2, b"data")[:cut], 1)


def test_an_error_arrives_as_itself_and_a_huge_one_still_arrives() -> None:
    (frame,) = FrameDecoder().feed(encode_error(NotFound("no such guest", hint="look again")))
    error = frame.error()
    assert isinstance(error, NotFound) and (error.message, error.hint) == ("no such guest", "look again")
    (frame,) = FrameDecoder().feed(encode_error(NotFound("x" * 1_000_000)))
    assert frame.error().message == "x" * 8000


def test_an_exit_tells_code_or_signal() -> None:
    (code, killed) = FrameDecoder().feed(encode_exit(3) + encode_exit(signal=9))
    assert (code.json(), killed.json()) == ({"code": 3}, {"signal": 9})


def test_a_frame_without_json_says_so() -> None:
    with pytest.raises(InvalidInput):
        Frame(FrameType.HELLO, b"\xff").json()
    with pytest.raises(InvalidInput):
        Frame(FrameType.HELLO, b"[1]").json()
    assert FrameDecoder().feed(encode_hello(role="client"))[0].json() == {"role": "client"}
