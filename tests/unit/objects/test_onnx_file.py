"""Which files are taken as models: whole by themselves, and of bounded parts. They come from strangers."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import onnx_files
from tests.long import examples
from tests.onnx_files import data, endless, linear, logarithm, number, tensor, value

from weft.objects.code_limits import MOST_BYTES
from weft.objects.errors import InvalidInput, TooLarge
from weft.objects.model.onnx_file import MOST_DEPTH, MOST_FIELDS, check_onnx


def test_models_are_taken() -> None:
    for one in (linear([1.0, 2.0], sigmoid=True), logarithm(), endless()):
        check_onnx(one)


def within_an_attribute() -> bytes:
    attribute = data(1, "value") + data(5, onnx_files.external("w", [1], "/etc/shadow"))
    constant = onnx_files.node("Constant", [], ["w"], data(5, attribute))
    return onnx_files.model([constant], [], [value("x", [1, 1])], [value("y", [1, 1])])


def within_a_loop() -> bytes:
    body = data(2, "body") + data(5, onnx_files.external("w", [1], "/etc/shadow"))
    loop = onnx_files.node("Loop", [], ["y"], data(5, data(6, body)))
    return onnx_files.model([loop], [], [value("x", [1, 1])], [value("y", [1, 1])])


def said_only() -> bytes:
    return onnx_files.model([], [tensor("w", [1], [1.0], number(14, 1))], [value("x", [1])], [value("y", [1])])


@pytest.mark.parametrize("make", [within_an_attribute, within_a_loop, said_only])
def test_data_in_other_files_are_refused_wherever_they_are_named(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidInput, match="another file"):
        check_onnx(make())


def with_a_long_key() -> bytes:
    """Its field 13 has a key of more than 32 bits, which onnxruntime cuts to 32."""
    spoilt = tensor("w", [1], [1.0], data(13 | 1 << 29, data(1, "location") + data(2, "/etc/shadow")))
    return onnx_files.model([], [spoilt], [value("x", [1])], [value("y", [1])])


def test_too_much_is_refused_before_it_is_read() -> None:
    with pytest.raises(TooLarge, match="at most 50 MiB"):
        check_onnx(bytes(MOST_BYTES + 1))
    whole = linear([1.0])
    with pytest.raises(InvalidInput, match="parts"):
        check_onnx(whole + number(5, 1) * (MOST_FIELDS + 1))
    deep = b""
    for _ in range(MOST_DEPTH):
        deep = data(1, data(5, data(6, deep)))
    with pytest.raises(InvalidInput, match="deep"):
        check_onnx(whole + data(7, deep))


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"\xff" * 100, linear([1.0])[:-1], number(1, 8) + data(7, b""), with_a_long_key()],
)
def test_anything_else_is_no_model(content: bytes) -> None:
    with pytest.raises(InvalidInput, match="not an ONNX model"):
        check_onnx(content)


@given(st.integers(0, 200), st.binary(max_size=8))
@settings(max_examples=examples(300), deadline=None)
def test_whatever_is_put_in_place_of_some_bytes_only_refusals_come_out(at: int, other: bytes) -> None:
    whole = linear([1.0, 2.0], sigmoid=True)
    with contextlib.suppress(InvalidInput, TooLarge):
        check_onnx(whole[:at] + other + whole[at + len(other) :])
