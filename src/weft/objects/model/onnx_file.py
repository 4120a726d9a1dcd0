"""A model's ONNX file: whether it is one, and whether it is whole by itself. Pure.

It comes from strangers. Only the frame of its protocol buffers is read here: what refers to other files (external data) is refused,
and so are more parts than a model for devices has. The process that runs it reads all the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from weft.objects.code_limits import MIB, MOST_BYTES
from weft.objects.errors import InvalidInput, TooLarge

MOST_FIELDS = 300_000
MOST_DEPTH = 32
_GRAPH, _OPSETS, _IR_VERSION = 7, 8, 1  # of a ModelProto
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a TensorProto
# The parts that lead to tensors, by message: number of the field, and what is in it (onnx.proto3 of ONNX 1.17).
_Parts: TypeAlias = Mapping[int, str]
_PARTS: Mapping[str, _Parts] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}


def too_large_model(size: int) -> TooLarge:
    return TooLarge(
        f"the model is {size / MIB:.1f} MiB: at most {MOST_BYTES // MIB} MiB",
        field="spec.file",
        hint="quantise it, or make it smaller: it decides within milliseconds",
    )


def check_onnx(data: bytes) -> None:
    """Raises InvalidInput or TooLarge for anything but a model that is whole by itself."""
    if len(data) > MOST_BYTES:
        raise too_large_model(len(data))
    left = [MOST_FIELDS]
    try:
        found = {number for number, _ in _read_fields(memoryview(data), left)}
        if not {_GRAPH, _OPSETS, _IR_VERSION} <= found:
            raise ValueError
        _walk("model", memoryview(data), left, 0)
    except ValueError:
        raise InvalidInput(
            "the file is not an ONNX model",
            reason="badModel",
            field="spec.file",
            hint="give a file as onnx.save writes it",
        ) from None


def _walk(what: str, data: memoryview, left: list[int], depth: int) -> None:
    if depth > MOST_DEPTH:
        raise _refuse(f"it is nested more than {MOST_DEPTH} deep", "make it flat")
    parts = _PARTS[what]
    for number, value in _read_fields(data, left):
        if what == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
            raise _refuse(
                "its data lie in another file", "save it whole: onnx.save(model, FILE, save_as_external_data=False)"
            )
        if number in parts:
            if not isinstance(value, memoryview):
                raise ValueError
            _walk(parts[number], value, left, depth + 1)


def _read_fields(data: memoryview, left: list[int]) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a message: number, and bytes or number. Raises ValueError where it isn't one."""
    at, end = 0, len(data)
    while at < end:
        left[0] -= 1
        if left[0] < 0:
            raise _refuse(f"it has more than {MOST_FIELDS} parts", "make it smaller")
        key, at = _read_number(data, at)
        if key >= 1 << 32:  # other readers take only these 32 bits of a key, and so another field
            raise ValueError
        number, form = key >> 3, key & 7
        value: memoryview | int = 0
        if form == 0:
            value, at = _read_number(data, at)
        elif form == 1:
            at += 8
        elif form == 2:
            size, at = _read_number(data, at)
            value, at = data[at : at + size], at + size
        elif form == 5:
            at += 4
        else:
            raise ValueError
        if at > end or not number:
            raise ValueError
        yield number, value


def _read_number(data: memoryview, at: int) -> tuple[int, int]:
    result = shift = 0
    while shift < 70:
        if at >= len(data):
            raise ValueError
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
    raise ValueError


def _refuse(why: str, hint: str) -> InvalidInput:
    return InvalidInput(f"the model is refused: {why}", reason="badModel", field="spec.file", hint=hint)
