"""Small ONNX models, written field by field (onnx.proto3): what the product reads comes from no package that it uses itself."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

FLOAT, INT64, STRING = 1, 7, 8


def number(field: int, value: int) -> bytes:
    return _write(field << 3) + _write(value)


def data(field: int, value: bytes | str) -> bytes:
    body = value.encode() if isinstance(value, str) else value
    return _write(field << 3 | 2) + _write(len(body)) + body


def _write(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tensor(name: str, shape: Sequence[int], values: Sequence[float], more: bytes = b"") -> bytes:
    """A TensorProto of floats."""
    dims = b"".join(number(1, size) for size in shape)
    return dims + number(2, FLOAT) + data(8, name) + data(9, struct.pack(f"<{len(values)}f", *values)) + more


def external(name: str, shape: Sequence[int], place: str) -> bytes:
    """A TensorProto whose values lie in another file."""
    entry = data(1, "location") + data(2, place)
    return (
        b"".join(number(1, size) for size in shape) + number(2, FLOAT) + data(8, name) + data(13, entry) + number(14, 1)
    )


def value(name: str, shape: Sequence[int | str], of: int = FLOAT) -> bytes:
    """A ValueInfoProto; a text in its shape is a size that may be any."""
    dims = b"".join(data(1, number(1, one) if isinstance(one, int) else data(2, one)) for one in shape)
    return data(1, name) + data(2, data(1, number(1, of) + data(2, dims)))


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], more: bytes = b"") -> bytes:
    return (
        b"".join(data(1, one) for one in inputs) + b"".join(data(2, one) for one in outputs) + data(4, operator) + more
    )


def model(nodes: Sequence[bytes], tensors: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes]) -> bytes:
    graph = (
        b"".join(data(1, one) for one in nodes)
        + data(2, "graph")
        + b"".join(data(5, one) for one in tensors)
        + b"".join(data(11, one) for one in inputs)
        + b"".join(data(12, one) for one in outputs)
    )
    return number(1, 8) + data(7, graph) + data(8, data(1, "") + number(2, 17))


def linear(weights: Sequence[float], bias: float = 0.0, *, rows: int | str = "rows", sigmoid: bool = False) -> bytes:
    """``inputs · weights + bias``, by its sigmoid if asked: one row of as many inputs as there are weights gives one number."""
    count = len(weights)
    nodes = [node("Gemm", ["x", "w", "b"], ["sum" if sigmoid else "y"])]
    if sigmoid:
        nodes.append(node("Sigmoid", ["sum"], ["y"]))
    tensors = [tensor("w", [count, 1], weights), tensor("b", [1], [bias])]
    return model(nodes, tensors, [value("x", [rows, count])], [value("y", [rows, 1])])


def logarithm() -> bytes:
    """The logarithm of its one input: no number for a negative one."""
    return model([node("Log", ["x"], ["y"])], [], [value("x", [1, 1])], [value("y", [1, 1])])


def endless() -> bytes:
    """A loop that goes on while its input is positive: 2⁶² times; else it answers 0."""
    body = (
        data(1, node("Identity", ["going"], ["goes"]))
        + data(1, node("Identity", ["had"], ["has"]))
        + data(2, "body")
        + data(11, value("turn", [], INT64))
        + data(11, value("going", [], 9))
        + data(11, value("had", [1, 1]))
        + data(12, value("goes", [], 9))
        + data(12, value("has", [1, 1]))
    )
    loop = node("Loop", ["most", "positive", "x"], ["y"], data(5, data(1, "body") + data(6, body) + number(20, 5)))
    most = number(2, INT64) + data(8, "most") + data(9, struct.pack("<q", 1 << 62))
    nodes = [
        node("ReduceMax", ["x"], ["highest"], data(5, data(1, "keepdims") + number(3, 0) + number(20, 2))),
        node("Greater", ["highest", "zero"], ["positive"]),
        loop,
    ]
    return model(nodes, [most, tensor("zero", [], [0.0])], [value("x", [1, 1])], [value("y", [1, 1])])


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
