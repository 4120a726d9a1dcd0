"""What OPC UA's values, addresses and node ids are to weft."""

from __future__ import annotations

import datetime

import pytest

from weft.drivers.device.opcua.words import check_href, read_address, read_value, write_value
from weft.objects.errors import InvalidInput


def test_values_of_plain_types_are_read_and_others_are_none() -> None:
    plain = [("Boolean", True), ("Int16", -3), ("UInt64", 2**64 - 1), ("Float", 4.5), ("Double", 1), ("String", "open")]
    assert [read_value(type_, value) for type_, value in plain] == [value for _, value in plain]
    strange = [
        ("Double", float("nan")), ("Double", float("inf")), ("Double", "4"), ("String", "x" * 1025), ("String", "a\x00b"),
        ("DateTime", datetime.datetime(2026, 1, 1)), ("Boolean", 1), ("Int16", True), ("Int16", [1]), ("ByteString", b"x"),
        ("ExtensionObject", object()),
    ]  # fmt: skip
    assert [read_value(type_, value) for type_, value in strange] == [None] * len(strange)


def test_a_value_is_written_as_the_type_that_is_there_or_refused() -> None:
    assert (write_value("Int16", 7.0, "a"), type(write_value("Int16", 7.0, "a"))) == (7, int)
    assert type(write_value("Double", 7, "a")) is float
    for type_, value in (
        ("Int16", 7.5),
        ("Int16", 32768),
        ("Byte", -1),
        ("Byte", True),
        ("Float", 1e39),
        ("String", 1),
        ("Boolean", 1),
        ("Guid", "x"),
    ):
        with pytest.raises(InvalidInput, match="level"):
            write_value(type_, value, "level")
    with pytest.raises(InvalidInput, match="it is a Int16 there; the nearest it can hold is 22"):
        write_value("Int16", 21.7, "level")
    assert read_value("Float", 21.700000762939453) == 21.7 and read_value("Double", 0.1 + 0.2) == 0.1 + 0.2


def test_addresses_and_node_ids() -> None:
    assert read_address("plc.lan") == ("plc.lan", 4840, "")
    assert read_address("[fd00::7]:4841/server/a") == ("fd00::7", 4841, "/server/a")
    for wrong in ("", "a/b c", "a/?x", "opc.tcp://a"):
        with pytest.raises(InvalidInput, match="address"):
            read_address(wrong)
    for href in ("i=85", "ns=2;i=7", "ns=2;s=Oven.Temperature", 'ns=3;s="DB 1"."x"'):
        assert check_href(href, "t") == href
    for wrong in ("", "85", "ns=70000;i=1", "ns=2;i=4294967296", "ns=2;x=1", "ns=2;s=", "ns=2;s=a\nb"):
        with pytest.raises(InvalidInput, match=r"properties\.t\.href"):
            check_href(wrong, "t")
