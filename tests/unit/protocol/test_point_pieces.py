"""The pieces of a point: what comes in order is read however it is cut up, and everything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.objects.errors import InvalidInput
from weft.protocol.points import DATA, HEAD, PIECE_BYTES, SECTOR, ZERO, Piece, PieceReader, encode_head

SIZES = (8 * SECTOR, 100 * SECTOR + 7)


def read(reader: PieceReader, stream: bytes, step: int) -> list[Piece]:
    pieces: list[Piece] = []
    for at in range(0, len(stream), step):
        pieces += reader.feed(stream[at : at + step])
    return pieces


@given(step=st.integers(1, 2000))
@settings(max_examples=examples(50), deadline=None)
def test_pieces_are_read_however_the_stream_is_cut_up(step: int) -> None:
    stream = (
        encode_head(DATA, 0, SECTOR, SECTOR)
        + b"a" * SECTOR
        + encode_head(ZERO, 0, 2 * SECTOR, 6 * SECTOR)
        + encode_head(DATA, 1, 100 * SECTOR, 7)
        + b"b" * 7
    )
    reader = PieceReader(SIZES)
    assert read(reader, stream, step) == [
        Piece(0, SECTOR, SECTOR, b"a" * SECTOR),
        Piece(0, 2 * SECTOR, 6 * SECTOR),
        Piece(1, 100 * SECTOR, 7, b"b" * 7),
    ]
    reader.end()
    assert reader.bytes == SECTOR + 7


@pytest.mark.parametrize(
    ("piece", "why"),
    [
        ((3, 0, 0, SECTOR), "of kind 3"),
        ((DATA, 2, 0, SECTOR), "disk 2"),
        ((DATA, 0, 0, 0), "of 0 bytes"),
        ((DATA, 1, 0, PIECE_BYTES + SECTOR), "bytes"),
        ((DATA, 0, 8 * SECTOR, SECTOR), "beyond the end"),
        ((ZERO, 0, 0, 9 * SECTOR), "beyond the end"),
        ((ZERO, 0, 1 << 63, (1 << 63) - 1), "beyond the end"),
        ((DATA, 0, 5, SECTOR), "at a sector"),
        ((DATA, 0, 0, 5), "at a sector"),
    ],
)
def test_a_piece_that_may_not_be_is_refused(piece: tuple[int, int, int, int], why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as caught:
        list(PieceReader(SIZES).feed(HEAD.pack(*piece)))
    assert caught.value.token == "badPiece"


@pytest.mark.parametrize(
    "second", [(ZERO, 1, 2 * SECTOR, SECTOR), (ZERO, 1, SECTOR, 4 * SECTOR), (ZERO, 0, 7 * SECTOR, SECTOR)]
)
def test_pieces_that_overlap_or_go_back_are_refused(second: tuple[int, int, int, int]) -> None:
    reader = PieceReader(SIZES)
    assert len(list(reader.feed(encode_head(ZERO, 1, 2 * SECTOR, 2 * SECTOR)))) == 1
    with pytest.raises(InvalidInput):
        list(reader.feed(HEAD.pack(*second)))


def test_a_stream_that_ends_in_the_middle_of_a_piece_is_refused() -> None:
    reader = PieceReader(SIZES)
    assert list(reader.feed(encode_head(DATA, 0, 0, SECTOR) + b"a")) == []
    with pytest.raises(InvalidInput, match="middle of a piece"):
        reader.end()
