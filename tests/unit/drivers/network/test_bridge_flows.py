"""What the kernel says of connections, and nft of refused ones, as flows."""

from __future__ import annotations

import json
import struct

from weft.drivers.network.bridge.flow.reader import parse_refused
from weft.drivers.network.bridge.netlink.ctnetlink import parse_tracked


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def tracked(zone: int) -> bytes:
    ends = attribute(1, bytes([10, 0, 0, 2])) + attribute(2, bytes([10, 0, 0, 3]))
    ports = attribute(1, b"\6") + attribute(2, b"\x9c\x40") + attribute(3, b"\x01\xbb")
    counted = [attribute(1, struct.pack("!Q", n)) + attribute(2, struct.pack("!Q", 100 * n)) for n in (3, 2)]
    return b"".join([
        attribute(0x8001, attribute(0x8001, ends) + attribute(0x8002, ports)),
        attribute(0x8009, counted[0]),
        attribute(0x800A, counted[1]),
        attribute(12, struct.pack("!I", 77)),
        attribute(18, struct.pack("!H", zone)),
        attribute(0x8014, attribute(1, struct.pack("!Q", 5_000_000_000))),
    ])  # fmt: skip


def test_a_tracked_connection_is_read_as_it_was_opened() -> None:
    data = tracked(9)
    found = parse_tracked(data, 0, len(data), lambda zone, source, destination: zone == 9)
    assert found is not None
    assert (found.source, found.destination, found.source_port, found.destination_port) == (
        b"\x0a\0\0\2",
        b"\x0a\0\0\3",
        40000,
        443,
    )
    assert (found.sent_packets, found.sent_bytes, found.received_packets, found.received_bytes) == (3, 300, 2, 200)
    assert (found.id, found.protocol, found.started) == (77, 6, 5.0)
    assert parse_tracked(data, 0, len(data), lambda zone, source, destination: zone == 8) is None
    assert parse_tracked(attribute(12, b"1234"), 0, 8, lambda *_: True) is None  # in no zone: the node's own


def test_refused_flows_are_those_of_the_sets_that_were_asked_for() -> None:
    ends, counter = ["10.0.0.2", "10.0.0.3"], {"packets": 2, "bytes": 120}
    sets = [
        {
            "set": {
                "name": "refused_a",
                "elem": [{"elem": {"val": {"concat": [*ends, 6, 40000, 22]}, "counter": counter}}],
            }
        },
        {"set": {"name": "refused_other_a", "elem": [{"elem": {"val": {"concat": [*ends, 1]}, "counter": counter}}]}},
        {"set": {"name": "published", "elem": [8088, 8089]}},  # nft lists those of all tables
        {"set": {"name": "refused_b", "elem": [{"elem": {"val": {"concat": [*ends, 17, 1, 53]}, "counter": counter}}]}},
    ]
    asked = {"refused_a": ("a", "seg"), "refused_other_a": ("a", "seg")}
    tcp, ping = parse_refused(json.dumps({"nftables": sets}), asked)
    assert (tcp.protocol, tcp.source_port, tcp.destination_port, tcp.refused_by) == ("tcp", 40000, 22, "a")
    assert (ping.protocol, ping.destination_port, ping.sent_packets, ping.sent_bytes) == ("icmp", 0, 2, 148)
    assert list(parse_refused("no JSON", asked)) == []
