"""What CoAP devices say of values and of themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.drivers.device.coap.datagrams import is_for_client
from weft.drivers.device.coap.words import (
    JSON,
    TEXT,
    is_unknown,
    read_birth,
    read_href,
    read_links,
    read_value,
    write_value,
)
from weft.objects.errors import InvalidInput


@pytest.mark.parametrize(
    ("payload", "content_format", "value"),
    [
        (b"4.5", TEXT, 4.5), (b" 7 ", None, 7), (b"true", TEXT, True), (b"open", TEXT, "open"), (b'"open"', JSON, "open"),
        (b"-1e3", TEXT, -1000.0), (b"{}", JSON, None), (b"[1]", JSON, None), (b"null", JSON, None), (b"1e999", TEXT, None),
        (b"1e999", JSON, None), (b"\xff", TEXT, None), (b"a\nb", TEXT, None), (b"x" * 1025, TEXT, None), (b"[" * 1000, JSON, None),
    ],
)  # fmt: skip
def test_a_value_is_json_or_a_text(payload: bytes, content_format: int | None, value: object) -> None:
    found = read_value(payload, content_format)
    assert (found, type(found)) == (value, type(value))


@given(st.one_of(st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False)))
def test_what_is_written_is_what_is_read(value: bool | int | float) -> None:
    for content_format in (TEXT, JSON):
        assert read_value(write_value(value, content_format), content_format) == value


@given(st.binary(max_size=300), st.sampled_from([None, TEXT, JSON, 60]))
def test_no_payload_breaks_the_reader(payload: bytes, content_format: int | None) -> None:
    read_value(payload, content_format)
    read_birth("10.0.0.7", payload)


def test_a_device_says_what_it_is_by_its_links() -> None:
    text = (
        b'</>;title="Cold room 7",</t>;rt="temperature";obs,</fan>;rt="switch light";if="a,b",</.well-known/core>;ct=40'
    )
    found = read_birth("10.0.0.7", text)
    assert found is not None
    assert (found.protocol, found.address, found.name) == ("coap", "10.0.0.7", "Cold room 7")
    assert found.facts == {"resources": "/ /t /fan", "observable": "/t", "types": "light switch temperature"}
    assert read_birth("10.0.0.7", b"</t>").name == "coap 10.0.0.7"  # type: ignore[union-attr]
    assert read_links(b"no links") == [] and read_links(b"</t>" + b";a" * 40_000) == []


def test_an_href_is_a_path() -> None:
    assert read_href("/sensors/t?unit=c", "t") == "/sensors/t?unit=c"
    for wrong in ("", "t", "coap://10.0.0.7/t", "/a b", "/\x00", "/é", "/" + "x" * 300, "/t#x"):
        with pytest.raises(InvalidInput, match=r"properties\.t\.href"):
            read_href(wrong, "t")


def test_an_integer_of_hundreds_of_digits_is_no_value() -> None:
    assert read_value(b"1" * 400, JSON) is None
    assert read_value(b"-" + b"9" * 1000, JSON) is None


def test_a_path_whose_percent_signs_make_no_text_is_refused() -> None:
    assert read_href("/caf%C3%A9", "t") == "/caf%C3%A9"
    for wrong in ("/%ff", "/a?b=%C3"):
        with pytest.raises(InvalidInput, match=r"properties\.t\.href"):
            read_href(wrong, "t")


@pytest.mark.parametrize(
    ("datagram", "is_taken"),
    [
        ("60450001", True),  # 2.05, an acknowledgement
        ("62450001abcd", True),  # with a token
        ("62450001abcdc0ff34", True),  # a format, and a payload
        ("62450001abcd6101ff34", True),
        ("60000001", True),
        ("70000001", True),
        ("40010001", False),  # a request
        ("40e10001", False),  # of a class that isn't there
        ("604500", False),
        ("", False),
        ("60450001e0fff3", False),  # an option beyond 65535
        ("60450001e0fef2", True),
        ("60450001e0fef210", False),
        ("60450001f0", False),
        ("60450001e0ff", False),  # cut off
        ("6045000163aa", False),
        ("60450001c3aabbcc", False),  # a format of three bytes
    ],
)
def test_of_a_device_s_datagrams_only_answers_reach_the_package(datagram: str, is_taken: bool) -> None:
    assert is_for_client(bytes.fromhex(datagram)) is is_taken


@given(st.binary(max_size=100))
def test_no_datagram_breaks_the_reader(data: bytes) -> None:
    assert is_for_client(data) in (True, False)


def test_null_says_that_the_device_does_not_know_the_value_now() -> None:
    assert is_unknown(b" null ", JSON)
    assert not is_unknown(b"null", TEXT) and not is_unknown(b"[null]", JSON) and not is_unknown(b"", JSON)
