"""Where properties are in a Modbus device, what registers mean, and how few requests read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.drivers.device.modbus.driver import read_address
from weft.drivers.device.modbus.points import Block, Point, decode, encode, plan_reads, read_href
from weft.objects.errors import InvalidInput


def test_an_href_says_table_address_type_and_scale() -> None:
    assert read_href("holding/7?type=int16&scale=0.1", "t") == Point("holding", 7, "int16", 1, 0.1)
    assert read_href("input/65534?type=float32&words=little", "t") == Point("input", 65534, "float32", 2, swapped=True)
    assert read_href("coil/3", "fan") == Point("coil", 3, "bool")
    assert read_href("holding/1?type=text&registers=64", "name").size == 64


@pytest.mark.parametrize(
    "href",
    " | holding | holding/x | holding/65536 | shelf/1 | coil/1?type=int16 | holding/1?type=int24 | holding/1?scale=0"
    " | holding/1?scale=nan | holding/1?type=text | holding/1?type=text&registers=65 | holding/1?size=3"
    " | input/65535?type=int32 | holding/1?words=middle"
    " | holding/1?type=int16&type=int16 | holding/1?type=text&registers=2&scale=2 | holding/1?type | Holding/1".split(
        " | "
    ),
)
def test_an_href_that_means_nothing_is_refused_by_its_property(href: str) -> None:
    with pytest.raises(InvalidInput, match=r"properties\.t\.href"):
        read_href(href, "t")


def test_registers_are_the_numbers_that_manuals_mean() -> None:
    assert decode(Point("holding", 0, "int16", 1, 0.1), [0xFF83]) == -12.5
    assert decode(Point("holding", 0, "uint32", 2), [1, 2]) == 65538
    assert decode(Point("holding", 0, "uint32", 2, swapped=True), [2, 1]) == 65538
    assert decode(Point("holding", 0, "float32", 2), [0x4090, 0]) == 4.5
    assert decode(Point("holding", 0, "text", 2), [0x6F6B, 0]) == "ok"
    assert decode(Point("holding", 0, "float32", 2), encode(Point("holding", 0, "float32", 2), 21.7, "t")) == 21.7
    assert decode(Point("holding", 0, "float32", 2), [0x7FC0, 0]) is None
    assert decode(Point("holding", 0, "float64", 4, 1e300), [0x7FE0, 0, 0, 0]) is None
    assert decode(Point("holding", 0, "text", 1), [0xFF00]) is None


@given(st.sampled_from(["int16", "uint16", "int32", "uint32", "int64", "uint64"]), st.booleans(), st.data())
def test_what_is_written_is_what_is_read(type_: str, swapped: bool, data: st.DataObject) -> None:
    bits = int(type_.removeprefix("u").removeprefix("int"))
    least, most = (0, 2**bits - 1) if type_.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    value = data.draw(st.integers(least, most))
    point = Point("holding", 0, type_, bits // 16, swapped=swapped)
    words = encode(point, value, "t")
    assert decode(point, words) == value
    assert all(0 <= word <= 0xFFFF for word in words)
    for beyond in (least - 1, most + 1):
        with pytest.raises(InvalidInput):
            encode(point, beyond, "t")


@given(st.lists(st.integers(0, 0xFFFF), min_size=4, max_size=4), st.sampled_from(["float64", "int64", "text"]))
def test_no_registers_break_the_reader(words: list[int], type_: str) -> None:
    value = decode(Point("holding", 0, type_, 4, 1.0 if type_ == "text" else 0.5), words)
    assert value is None or isinstance(value, str) or math.isfinite(value)


def test_points_near_each_other_are_read_together_within_the_protocols_bound() -> None:
    points = {
        "a": Point("holding", 0), "b": Point("holding", 5, "float32", 2), "c": Point("holding", 100), "d": Point("input", 1),
        "e": Point("coil", 0, "bool"), "f": Point("coil", 4, "bool"),
    }  # fmt: skip
    assert plan_reads(points) == [
        Block("coil", 0, 5, ("e", "f")),
        Block("holding", 0, 7, ("a", "b")),
        Block("holding", 100, 1, ("c",)),
        Block("input", 1, 1, ("d",)),
    ]
    assert len(plan_reads(points, single=True)) == 6
    row = {f"p{at}": Point("holding", at * 2, "int32", 2) for at in range(100)}
    assert [block.size for block in plan_reads(row)] == [124, 76]


def test_an_address_is_host_port_and_unit() -> None:
    assert read_address("10.0.0.7") == ("10.0.0.7", 502, 1)
    assert read_address("plc.lan:1502/17") == ("plc.lan", 1502, 17)
    assert read_address("[fd00::7]:1502/0") == ("fd00::7", 1502, 0)
    for wrong in (
        "",
        "/1",
        "a b",
        "10.0.0.7:",
        "10.0.0.7:0",
        "10.0.0.7:65536",
        "10.0.0.7/248",
        "10.0.0.7/",
        "x" * 250,
        "[::1",
        "a/1/2",
        "[x]:1",
    ):
        with pytest.raises(InvalidInput, match="address"):
            read_address(wrong)
