"""Spans that guests send: in both forms, bounded, and of the guest that sent them whatever they say."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import time
from http.client import HTTPConnection
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.agent.logs.inbox import Inbox
from weft.agent.network.guest_services import GuestServices
from weft.agent.trace.allowance import Allowance
from weft.agent.trace.guest_spans import MOST_BYTES, MOST_SPANS, decode_body, read_request
from weft.contracts.clock import SystemClock
from weft.contracts.driver.network import Segment
from weft.contracts.trace.span import MOST_TEXT, Span, Tracer
from weft.objects.errors import InvalidInput

TRACE, ID, PARENT = "ab" * 16, "cd" * 8, "ef" * 8
NOW = time.time_ns()
SEGMENT = Segment("seg", "net", 1, "10.0.0.0/24", "10.0.0.1", 1450, "weft", True, [])


def make_json(**more: Any) -> dict[str, Any]:
    span = {
        "traceId": TRACE,
        "spanId": ID,
        "parentSpanId": PARENT,
        "name": "checkout",
        "kind": 2,
        "startTimeUnixNano": str(NOW),
        "endTimeUnixNano": str(NOW + 5),
        "attributes": [{"key": "n", "value": {"intValue": "-3"}}, {"key": "ok", "value": {"boolValue": True}}],
        "status": {"code": 2, "message": "no stock"},
        **more,
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop\x1b[2J"}}]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def part(number: int, value: bytes | int | float) -> bytes:
    """A field, as protobuf writes it: a float stands for fixed64."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<Q", int(value))
    return varint(number << 3) + varint(value & (1 << 64) - 1)


def fixed(number: int, value: int) -> bytes:
    return varint(number << 3 | 1) + struct.pack("<Q", value)


def pair(key: str, value: bytes) -> bytes:
    return part(1, key.encode()) + part(2, value)


def make_protobuf() -> bytes:
    span = b"".join(
        [
            part(1, bytes.fromhex(TRACE)),
            part(2, bytes.fromhex(ID)),
            part(3, b"state"),
            part(4, bytes.fromhex(PARENT)),
            part(5, b"checkout"),
            part(6, 2),
            fixed(7, NOW),
            fixed(8, NOW + 5),
            part(9, pair("n", part(3, -3))),
            part(9, pair("ok", part(2, 1))),
            part(15, part(2, b"no stock") + part(3, 2)),
        ]
    )
    resource = part(1, part(1, pair("service.name", part(1, b"shop\x1b[2J"))))
    return part(1, resource + part(2, part(1, b"scope") + part(2, span)))


EXPECTED = Span(
    TRACE, ID, PARENT, "checkout", NOW, NOW + 5, "guest/shop??2J", "vm/lab/web", "no stock", {"n": -3, "ok": True}, 2
)


@pytest.mark.parametrize(
    ("body", "type_", "encoding"),
    [
        (json.dumps(make_json()).encode(), "application/json", ""),
        (make_protobuf(), "application/x-protobuf", ""),
        (gzip.compress(make_protobuf()), "application/x-protobuf", "gzip"),
    ],
)
def test_both_forms_are_read(body: bytes, type_: str, encoding: str) -> None:
    assert read_request(decode_body(body, encoding), type_, "vm/lab/web") == [EXPECTED]


@given(st.binary(max_size=200), st.integers(0, 300))
def test_bytes_of_any_kind_are_spans_or_refused(junk: bytes, at: int) -> None:
    body = make_protobuf()
    for sent in (junk, body[:at] + junk, body[:at] + junk + body[at + len(junk) :]):
        for type_ in ("application/json", "application/x-protobuf"):
            try:
                found = read_request(sent, type_, "vm/lab/web")
            except InvalidInput:
                continue
            assert all(one.about == "vm/lab/web" and one.process.startswith("guest/") for one in found)


@pytest.mark.parametrize(
    "more",
    [
        {"traceId": "x"},
        {"traceId": "0" * 32},
        {"spanId": ""},
        {"parentSpanId": "../.."},
        {"endTimeUnixNano": "1"},
        {"startTimeUnixNano": str(1 << 63)},
    ],
)
def test_a_span_that_is_none_is_left_out(more: dict[str, Any]) -> None:
    assert read_request(json.dumps(make_json(**more)).encode(), "application/json", "vm/lab/web") == []


def test_what_a_guest_says_has_bounds() -> None:
    many = make_json()
    scope = many["resourceSpans"][0]["scopeSpans"][0]
    scope["spans"] = [{**scope["spans"][0], "name": "x" * 5000}] * (MOST_SPANS + 5)
    scope["spans"][0] = dict(scope["spans"][0])
    scope["spans"][0]["attributes"] = [{"key": f"k{n}", "value": {"stringValue": "y" * 5000}} for n in range(100)]
    found = read_request(json.dumps(many).encode(), "application/json", "vm/lab/web")
    assert len(found) == MOST_SPANS and all(len(one.name) == MOST_TEXT for one in found)
    assert len(found[0].attributes) == 32 and all(
        len(str(value)) == MOST_TEXT for value in found[0].attributes.values()
    )
    for bomb, encoding in ((gzip.compress(b"\0" * (MOST_BYTES + 1)), "gzip"), (b"x", "gzip"), (b"x", "br")):
        with pytest.raises(InvalidInput):
            decode_body(bomb, encoding)
    with pytest.raises(InvalidInput):
        read_request(b"[" * 100_000, "application/json", "vm/lab/web")


class Driver:
    """Listens on loopback."""

    def __init__(self) -> None:
        self.sockets: dict[tuple[str, int, str], socket.socket] = {}
        self.gateways = self

    async def listen(self, segment_id: str, address: str, port: int, protocol: str) -> socket.socket:
        assert address == SEGMENT.gateway
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
        made.bind(("127.0.0.1", 0))
        made.setblocking(False)
        self.sockets[segment_id, port, protocol] = made
        return made


def make_table(project: str, address: str = "127.0.0.1") -> list[Any]:
    workload = SimpleNamespace(kind="vm", project=project, name="web", uid="u1")
    spec = SimpleNamespace(
        nics=[SimpleNamespace(network_uid="net-uid", address=address)], role="active", workload=workload
    )
    return [SimpleNamespace(local=SimpleNamespace(spec=spec, what=f"vm/{project}/web"))]


def post(port: int, body: bytes, type_: str, path: str = "/v1/traces") -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, body, {"Content-Type": type_})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_guest_s_flood_of_spans_leaves_the_others_their_share() -> None:
    now = [0.0]
    allowance = Allowance(100.0, 2_000.0, 600.0, SimpleNamespace(elapsed=lambda: now[0]))
    assert allowance.take("noisy", 1_500) and allowance.take("quiet", 10)
    taken = {"noisy": 0, "quiet": 0}
    for _ in range(600):
        now[0] += 0.1
        for uid, count in (("noisy", 1), ("noisy", 500), ("noisy", 30), ("quiet", 4)):
            taken[uid] += count if allowance.take(uid, count) else 0
    assert taken["quiet"] == 2_400 and taken["noisy"] < 60 * 50 + 600
    now[0] += 61.0
    assert allowance.take("another", 2_000) and not allowance.take("another", 1)


async def test_what_is_read_counts_also_where_it_has_no_spans() -> None:
    clock, table, driver = SystemClock(), make_table("lab"), Driver()
    services = GuestServices(driver, table, Inbox(clock), Tracer("node/n1", clock, lambda *spans: None), clock)  # type: ignore[arg-type]
    services._allowance = Allowance(0.0, 600.0, 600.0, clock)
    await services.follow({"net-uid": (SEGMENT, frozenset({"traces"}))})
    port = driver.sockets["seg", 4318, "tcp"].getsockname()[1]
    bomb = b"\x0a\x00" * (MOST_BYTES // 2)
    assert [(await asyncio.to_thread(post, port, bomb, "application/x-protobuf"))[0] for _ in range(2)] == [200, 429]
    await services.follow({})


async def test_a_network_that_opens_it_takes_spans_of_its_guests_only() -> None:
    clock, put, table, driver = SystemClock(), list[Span](), make_table("lab"), Driver()
    tracer = Tracer("node/n1", clock, lambda *spans: put.extend(spans))
    services = GuestServices(driver, table, Inbox(clock), tracer, clock)  # type: ignore[arg-type]
    await services.follow({"net-uid": (SEGMENT, frozenset({"traces", "syslog"}))})
    port = driver.sockets["seg", 4318, "tcp"].getsockname()[1]
    body = json.dumps(make_json()).encode()
    assert await asyncio.to_thread(post, port, body, "application/json") == (200, b"{}")
    assert await asyncio.to_thread(post, port, make_protobuf(), "application/x-protobuf") == (200, b"")
    assert put == [EXPECTED, EXPECTED]
    assert (await asyncio.to_thread(post, port, b"{", "application/json"))[0] == 400
    assert (await asyncio.to_thread(post, port, body, "application/json", "/v1/logs"))[0] == 404
    assert (await asyncio.to_thread(post, port, b" " * (MOST_BYTES + 1), "application/json"))[0] == 413
    services._allowance = Allowance(0.0, 0.0, 0.0, clock)
    assert (await asyncio.to_thread(post, port, body, "application/json"))[0] == 429
    table[0].local.spec.nics[0].address = "10.0.0.7"  # the asker's address is no guest's any more
    await services.follow({"net-uid": (SEGMENT, frozenset({"traces", "syslog"}))})
    assert (await asyncio.to_thread(post, port, body, "application/json"))[0] == 403
    assert len(put) == 2
    await services.follow({})
    with pytest.raises(OSError):
        await asyncio.to_thread(post, port, body, "application/json")
