"""Spans that a guest sends by OTLP over HTTP (opentelemetry-proto 1.x, ``ExportTraceServiceRequest``), in protobuf or JSON. Pure.

A guest says what it likes: each field has a bound, and whose the spans are is said by who takes them."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from weft.contracts.trace.context import is_trace_id
from weft.contracts.trace.span import MOST_ATTRIBUTES, MOST_TEXT, Span, Value
from weft.objects.errors import InvalidInput

MOST_SPANS = 500  # of one request
MOST_BYTES = 1 << 20  # of one request, also decompressed
GUEST = "guest/"  # of a span's process
ERROR = 2
_SPAN_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_UNSEEN = re.compile(r"[^\w.:/ -]")
_MOST_NANOSECONDS = 1 << 62
Fields = list[tuple[int, int | bytes]]


def decode_body(body: bytes, encoding: str) -> bytes:
    """Decode the content encoding of a body. Raises InvalidInput."""
    if encoding == "gzip":
        return _decompress(body)
    if encoding in ("", "identity"):
        return body
    raise InvalidInput(f"content-encoding {encoding[:40]!r} is not known: send gzip, or none")


def read_request(body: bytes, media_type: str, about: str) -> list[Span]:
    """The valid spans of a request, as spans of the workload ``about`` (KIND/PROJECT/NAME). Raises InvalidInput for what is no
    request."""
    found: list[Span] = []
    try:
        for service, given in _read_json(body) if media_type.startswith("application/json") else _read_protobuf(body):
            if len(found) >= MOST_SPANS:
                break
            if (one := _make_span(service, given, about)) is not None:
                found.append(one)
    except (msgspec.MsgspecError, struct.error, ValueError, TypeError, RecursionError, IndexError):
        raise InvalidInput("this is not an OTLP request with spans") from None
    return found


def _decompress(body: bytes) -> bytes:
    try:
        unpacking = zlib.decompressobj(31)
        data = unpacking.decompress(body, MOST_BYTES + 1)
    except zlib.error:
        raise InvalidInput("the body is not gzip") from None
    if len(data) > MOST_BYTES:
        raise InvalidInput(f"the request has more than {MOST_BYTES} bytes")
    if not unpacking.eof:
        raise InvalidInput("the body's gzip is incomplete")
    return data


def _make_span(service: str, given: dict[str, Any], about: str) -> Span | None:
    trace, id, parent = given["trace"].lower(), given["id"].lower(), given["parent"].lower()
    begin, end = int(given["begin"]), int(given["end"])
    if not is_trace_id(trace) or not _SPAN_ID.fullmatch(id) or (parent and not _SPAN_ID.fullmatch(parent)):
        return None
    if not 0 < begin <= end < _MOST_NANOSECONDS:
        return None
    attributes: dict[str, Value] = {}
    for key, value in given["attributes"]:
        if len(attributes) < MOST_ATTRIBUTES and isinstance(value, str | int | float):
            if isinstance(value, int) and abs(value) >= 1 << 63:
                continue
            attributes[str(key)[:100]] = value[:MOST_TEXT] if isinstance(value, str) else value
    kind = int(given["kind"])
    return Span(
        trace,
        id,
        parent,
        str(given["name"])[:MOST_TEXT] or "-",
        begin,
        end,
        GUEST + _UNSEEN.sub("?", service)[:100],
        about,
        (str(given["message"])[:MOST_TEXT] or "error") if given["code"] == ERROR else "",
        attributes,
        kind if 1 <= kind <= 5 else 1,
    )


# --- JSON ---------------------------------------------------------------------------------------------------------------


class _Attribute(msgspec.Struct):
    key: str = ""
    value: dict[str, Any] = {}


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


class _Given(msgspec.Struct, rename="camel"):
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    name: str = ""
    kind: int = 1
    start_time_unix_nano: str | int = 0
    end_time_unix_nano: str | int = 0
    attributes: list[_Attribute] = []
    status: _Status = msgspec.field(default_factory=_Status)


class _Scope(msgspec.Struct):
    spans: list[_Given] = []


class _Process(msgspec.Struct):
    attributes: list[_Attribute] = []


class _Resource(msgspec.Struct, rename="camel"):
    resource: _Process = msgspec.field(default_factory=_Process)
    scope_spans: list[_Scope] = []


class _Document(msgspec.Struct, rename="camel"):
    resource_spans: list[_Resource] = []


_decoder = msgspec.json.Decoder(_Document)


def _read_json(body: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    for resource in _decoder.decode(body).resource_spans:
        service = str(dict(_read_attributes(resource.resource.attributes)).get("service.name") or "")
        for span in (one for scope in resource.scope_spans for one in scope.spans):
            yield (
                service,
                {
                    "trace": span.trace_id,
                    "id": span.span_id,
                    "parent": span.parent_span_id,
                    "name": span.name,
                    "kind": span.kind,
                    "begin": span.start_time_unix_nano,
                    "end": span.end_time_unix_nano,
                    "attributes": _read_attributes(span.attributes),
                    "code": span.status.code,
                    "message": span.status.message,
                },
            )


def _read_attributes(given: list[_Attribute]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for one in given:
        form, value = next(iter(one.value.items()), ("", ""))
        found.append((one.key, int(value) if form == "intValue" else value))
    return found


# --- protobuf -----------------------------------------------------------------------------------------------------------


def _read_protobuf(body: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    for resource in _list(_fields(body), 1):
        own = list(_fields(resource))
        attributes = dict(_pair(one) for part in _list(own, 1) for one in _list(_fields(part), 1))
        service = str(attributes.get("service.name") or "")
        for scope in _list(own, 2):
            for span in _list(_fields(scope), 2):
                yield service, _read_span(span)


def _read_span(data: bytes) -> dict[str, Any]:
    found = list(_fields(data))
    status = list(_fields(_bytes(found, 15)))
    return {
        "trace": _bytes(found, 1).hex(),
        "id": _bytes(found, 2).hex(),
        "parent": _bytes(found, 4).hex(),
        "name": _bytes(found, 5).decode("utf-8", "replace"),
        "kind": _number(found, 6),
        "begin": _number(found, 7),
        "end": _number(found, 8),
        "attributes": [_pair(one) for one in _list(found, 9)[:MOST_ATTRIBUTES]],
        "code": _number(status, 3),
        "message": _bytes(status, 2).decode("utf-8", "replace"),
    }


def _pair(data: bytes) -> tuple[str, Any]:
    """Decode a KeyValue."""
    found = list(_fields(data))
    value = next(iter(_fields(_bytes(found, 2))), (0, None))
    key = _bytes(found, 1).decode("utf-8", "replace")
    match value:
        case (1, bytes() as text):
            return key, text.decode("utf-8", "replace")
        case (2, int() as number):
            return key, bool(number)
        case (3, int() as number):
            return key, number - (1 << 64) if number >= 1 << 63 else number
        case (4, int() as number):
            return key, struct.unpack("<d", struct.pack("<Q", number))[0]
    return key, None


def _bytes(fields: Fields, number: int) -> bytes:
    return next((value for which, value in fields if which == number and isinstance(value, bytes)), b"")


def _number(fields: Fields, number: int) -> int:
    return next((value for which, value in fields if which == number and isinstance(value, int)), 0)


def _list(fields: Iterable[tuple[int, int | bytes]], number: int) -> list[bytes]:
    return [value for which, value in fields if which == number and isinstance(value, bytes)]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a message: integers, or bytes. Raises ValueError, IndexError."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
                yield tag >> 3, value
            case 1:
                yield tag >> 3, struct.unpack_from("<Q", data, at)[0]
                at += 8
            case 2:
                length, at = _varint(data, at)
                if at + length > len(data):
                    raise ValueError
                yield tag >> 3, data[at : at + length]
                at += length
            case 5:
                yield tag >> 3, struct.unpack_from("<I", data, at)[0]
                at += 4
            case _:
                raise ValueError


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError
