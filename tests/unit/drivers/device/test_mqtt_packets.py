"""MQTT packets: read from a stream that is cut anywhere, and never longer than they may be."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.drivers.device.mqtt.births import MOST_CHARACTERS, read_birth
from weft.drivers.device.mqtt.packets import (
    MOST_BYTES,
    PING,
    Broken,
    Publish,
    Reader,
    read_publish,
    write_publish,
    write_subscribe,
)


@given(st.binary(max_size=400), st.integers(0, 65535), st.booleans(), st.lists(st.integers(1, 50), max_size=30))
def test_a_message_is_read_as_it_was_written_wherever_the_stream_is_cut(
    payload: bytes, id: int, retain: bool, cuts: list[int]
) -> None:
    stream = PING + write_publish("weft/p/d/reported", payload, id=id, retain=retain, expiry_seconds=7) + PING
    reader, packets = Reader(), []
    for cut in cuts:
        packets += reader.feed(stream[:cut])
        stream = stream[cut:]
    packets += reader.feed(stream)
    assert [kind for kind, _, _ in packets] == [12, 3, 12]
    assert read_publish(packets[1][1], packets[1][2]) == Publish(b"weft/p/d/reported", payload, id, retain)


def test_a_packet_that_is_too_long_breaks_the_stream_before_it_is_held() -> None:
    with pytest.raises(Broken):
        Reader().feed(b"\x30\xff\xff\xff\x7f")
    with pytest.raises(Broken):
        Reader().feed(b"\x30\xff\xff\xff\xff\x01")
    assert Reader().feed(write_publish("t", b"x" * (MOST_BYTES - 100)))


@given(st.binary(max_size=60), st.integers(0, 15))
def test_no_bytes_are_more_than_broken(body: bytes, flags: int) -> None:
    with contextlib.suppress(Broken):
        read_publish(flags, body)


def test_a_subscription_names_its_topics() -> None:
    assert write_subscribe(5, ["a/+", "b"]) == b"\x82\x0d\x00\x05\x00\x00\x03a/+\x01\x00\x01b\x01"


def test_a_birth_is_read_with_its_facts_within_bounds() -> None:
    payload = b'{"name":"T","unique_id":"u1","state_topic":"a/b","device":{"identifiers":["id-9"],"name":"Cold %s",' % (
        b"x" * 500
    )
    found = read_birth("homeassistant/sensor/node/t/config", payload + b'"manufacturer":"Acme\\u0007","model":7}}')
    assert found is not None
    assert (found.address, found.manufacturer, found.model) == ("id-9", "Acme", "7")
    assert found.facts == {"state_topic": "a/b", "component": "sensor"}
    assert len(found.name) == MOST_CHARACTERS


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("homeassistant/sensor/t/config", b""),
        ("homeassistant/sensor/t/config", b"[1]"),
        ("homeassistant/sensor/t/config", b"\xff"),
        ("homeassistant/sensor/t/config", b"[" * 10_000),
        ("homeassistant/sensor/t/config", b'{"name":"' + b"x" * 20_000 + b'"}'),
        ("homeassistant/config", b"{}"),
        ("other/sensor/t/config", b"{}"),
        ("homeassistant//t/config", b"{}"),
    ],
)
def test_what_is_no_birth_is_none(topic: str, payload: bytes) -> None:
    assert read_birth(topic, payload) is None


def test_a_sparkplug_birth_is_known_by_its_topic() -> None:
    found = read_birth("spBv1.0/plant/DBIRTH/edge-1/pump-2", b"\x08\x01")
    assert found is not None
    assert (found.address, found.name, found.facts) == ("plant/edge-1/pump-2", "pump-2", {"sparkplug_group": "plant"})
