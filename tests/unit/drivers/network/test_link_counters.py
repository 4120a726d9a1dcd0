"""Counts of NICs: weft/drivers/network/bridge/netlink/link_counters.py."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from weft.contracts.driver.network import NicCounts
from weft.drivers.network.bridge.netlink.link_counters import LinkCounters, has_ended, read_counts


def test_bytes_that_passed_the_loopback_are_counted() -> None:
    counters = LinkCounters({"a": "lo", "b": "absent0"}.get)  # type: ignore[arg-type]
    before = counters.read(["a", "b"])["a"]
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as line:
        taker, _ = server.accept()
        line.sendall(bytes(100_000))
        left = 100_000
        while left:
            left -= len(taker.recv(left))
        taker.close()
    after = counters.read(["a", "b"])
    assert set(after) == {"a"} and counters.read([]) == {}
    assert after["a"].received_bytes - before.received_bytes >= 100_000
    assert after["a"].sent_bytes - before.sent_bytes >= 100_000 and after["a"].sent_packets > before.sent_packets
    counters.close()


def message(number: int, *counts: int, kind: int = 92, attribute: int = 1) -> bytes:
    body = struct.pack("=4xIIHH", number, 1, 4 + 8 * len(counts), attribute) + struct.pack(f"={len(counts)}Q", *counts)
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body


DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)


def test_a_guest_received_what_the_node_sent_and_others_links_are_left_out() -> None:
    counts = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    data = message(4, *counts) + message(5, *counts) + message(6, *counts, attribute=2) + DONE
    assert dict(read_counts([data], {4: "web", 6: "other"})) == {"web": NicCounts(4, 2, 8, 3, 1, 7)}
    assert has_ended(data) and not has_ended(message(4, *counts))


@pytest.mark.parametrize("data", [b"", b"\0" * 15, b"\0" * 200, message(4, 1, 2), message(4, *range(9))[:-70]])
def test_messages_that_are_cut_off_are_no_counts(data: bytes) -> None:
    assert dict(read_counts([data], {4: "web"})) == {}


def test_a_refusal_of_the_kernel_is_an_error() -> None:
    with pytest.raises(OSError, match="not permitted") as refused:
        has_ended(struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -errno.EPERM))
    assert refused.value.errno == errno.EPERM
