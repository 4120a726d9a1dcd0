"""Frames: whatever way the bytes arrive cut, and whatever noise comes first, the frames are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.drivers.runtime.qemu.guest_agent.frames import (
    MAGIC,
    NONCE_BYTES,
    PAYLOAD_BYTES,
    Frame,
    FrameReader,
    OutOfStep,
    encode_frame,
    encode_hello,
    encode_request,
)

NONCE = bytes(range(1, NONCE_BYTES + 1))
HELLO = encode_frame("H", payload=MAGIC + NONCE + b"\x01boot-id\0host\0")
frames = st.builds(
    Frame,
    st.sampled_from("DCWQB"),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.one_of(st.binary(max_size=300), st.just(b"x" * PAYLOAD_BYTES)),
)


def encoded(frame: Frame) -> bytes:
    return encode_frame(frame.kind, channel=frame.channel, session=frame.session, payload=frame.payload)


def feed(reader: FrameReader, data: bytes, cuts: list[int]) -> list[Frame]:
    got, begin = [], 0
    for end in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        got += reader.feed(data[begin:end])
        begin = end
    return got


@given(st.lists(frames, max_size=6), st.binary(max_size=200), st.lists(st.integers(0, 100_000), max_size=8))
def test_frames_come_out_as_they_went_in(sent: list[Frame], noise: bytes, cuts: list[int]) -> None:
    reader = FrameReader(NONCE)
    data = noise + HELLO + b"".join(bytes(index) + encoded(frame) for index, frame in enumerate(sent))
    assert feed(reader, data, cuts) == sent
    assert reader.hello is not None
    assert (reader.hello.version, reader.hello.boot_id, reader.hello.hostname) == (1, "boot-id", "host")


@given(st.lists(frames, max_size=4), st.lists(st.integers(0, 100_000), max_size=8))
def test_nothing_comes_out_before_the_answer_to_our_nonce(sent: list[Frame], cuts: list[int]) -> None:
    reader = FrameReader(NONCE)
    other = encode_frame("H", payload=MAGIC + bytes(NONCE_BYTES) + b"\x01old\0host\0")
    assert feed(reader, other + b"".join(map(encoded, sent)), cuts) == []
    assert reader.hello is None


@given(frames, st.data())
def test_a_frame_that_was_cut_is_never_taken_for_a_whole_one(frame: Frame, data: st.DataObject) -> None:
    whole = encoded(frame)
    cut = whole[: data.draw(st.integers(1, len(whole) - 1))]
    reader = FrameReader(NONCE)
    reader.feed(HELLO)
    try:
        assert reader.feed(cut + encode_hello(NONCE)) == []
    except OutOfStep:
        return
    assert len(cut) < 4  # so little that the zeros made it an empty frame of no session


def test_a_length_that_no_frame_has_is_out_of_step() -> None:
    reader = FrameReader(NONCE)
    reader.feed(HELLO)
    with pytest.raises(OutOfStep):
        reader.feed(b"D\x01\xff\xff" + bytes(4))


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_a_request_carries_its_words(argv: list[str]) -> None:
    reader = FrameReader(NONCE)
    reader.feed(HELLO)
    *parts, start = reader.feed(b"".join(encode_request(7, argv, {"A": "b"}, "/tmp", tty=True)))
    words = b"".join(part.payload for part in parts).decode().split("\0")
    assert words == ["/tmp", str(len(argv)), *argv, "A=b", ""]
    assert (start.kind, start.channel, start.session) == ("X", 1, 7)
