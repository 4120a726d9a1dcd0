"""What becomes of a guest's output before it is kept: whole lines, bounded, and UTF-8."""

from __future__ import annotations

import pytest

from weft.agent.logs.assemble import Assembled, Chunk, assemble, end_rests
from weft.telemetry.logs.clean import LONGEST_LINE
from weft.telemetry.logs.journal import Cursor


def lines(*assembled: Assembled) -> list[str]:
    for one in assembled:
        assert len(one.times) == one.text.count(b"\n")
    return b"".join(one.text for one in assembled).decode().splitlines()


def test_a_line_in_pieces_is_one_line_with_the_time_of_its_end() -> None:
    first = assemble(Cursor(), [Chunk(1, "", b"one\ntw")], "6")
    assert (lines(first), list(first.times), first.cursor) == (["one"], [1], Cursor("6", {"": b"tw"}))
    second = assemble(first.cursor, [Chunk(2, "", b"o\r\nthree\n")], "15")
    assert (lines(second), list(second.times), second.cursor) == (["two", "three"], [2, 2], Cursor("15"))


def test_streams_of_a_container_don_t_mix_in_one_line() -> None:
    chunks = [Chunk(1, "stdout", b"half"), Chunk(2, "stderr", b"err\n"), Chunk(3, "stdout", b" whole\n")]
    assert lines(assemble(Cursor(), chunks, "p")) == ["err", "half whole"]


def test_a_line_that_waits_for_its_end_counts_as_one_after_a_while() -> None:
    begun = assemble(Cursor(), [Chunk(1, "", b"login: ")], "7")
    ended = end_rests(begun.cursor, 5)
    assert (lines(ended), list(ended.times), ended.cursor) == (["login: "], [5], Cursor("7"))


@pytest.mark.parametrize("piece", [1000, 100_000, 10_000_000])
def test_ten_megabytes_without_an_end_are_cut_and_marked_and_the_next_line_is_whole(piece: int) -> None:
    data = b"x" * 10_000_000 + b"\nnext\n"
    cursor, found = Cursor(), []
    for at in range(0, len(data), piece):
        one = assemble(cursor, [Chunk(1, "", data[at : at + piece])], str(at))
        assert sum(map(len, one.cursor.rests.values())) <= LONGEST_LINE
        cursor = one.cursor
        found.append(one)
    cut, following = lines(*found)
    assert following == "next"
    assert cut.startswith("xxx")
    assert cut.partition("… ")[2] in (
        "[cut: this line has more than 16384 bytes]",
        "[cut: this line has 10000000 bytes]",
    )
    assert len(cut) <= LONGEST_LINE


def test_binary_is_written_in_hex_and_stays_one_line() -> None:
    found = assemble(Cursor(), [Chunk(1, "", bytes(range(256)) + b"\nafter\n")], "p")
    assert found.text.decode().split("\n")[1].startswith("\x0b\x0c") and "\\xff" in found.text.decode()
    assert found.text.decode().split("\n")[-2] == "after"
    assert found.text.count(b"\n") == len(found.times) == 3
