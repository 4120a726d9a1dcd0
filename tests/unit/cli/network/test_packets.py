"""Packets as lines, and records that come in pieces. What is in them is hostile."""

from __future__ import annotations

import random
import struct

import pytest
from tests.unit.drivers.network.test_capture_filter import ALL, ARP, BACK, DNS, FRAMES, MACS, PING, REST, WEB6, ip

from weft.cli.network.packets import Packet, Splitter, describe
from weft.objects.errors import DriverFailed

HEAD = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1)


def record(data: bytes, length: int = 0) -> bytes:
    return struct.pack("<IIII", 1_800_000_000, 123_456_789, len(data), length or len(data)) + data


def line(data: bytes) -> str:
    return describe(Packet(1_800_000_000, 123_456_789, len(data), data))


def dns(name: bytes, flags: int = 0x0100, answers: int = 0) -> bytes:
    body = struct.pack("!HHHHHH", 7, flags, 1, answers, 0, 0) + name + struct.pack("!HH", 1, 1)
    return ip("10.0.0.2", "10.0.0.1", 17, struct.pack("!HHHH", 5353, 53, 8 + len(body), 0) + body)


def test_each_kind_of_packet_has_its_line() -> None:
    http = struct.pack("!HHIIBBHHH", 5000, 80, 1, 2, 0x50, 0x18, 0, 0, 0) + b"GET /a HTTP/1.1\r\nHost: b\r\n\r\n"
    assert line(ip("10.0.0.2", "10.0.0.3", 6, http)) == (
        "08:00:00.123456 IP 10.0.0.2:5000 > 10.0.0.3:80: TCP [P.] seq 1 ack 2 data 28 GET /a HTTP/1.1, 82 bytes"
    )
    assert "IP 10.0.0.3:80 > 10.0.0.2:5000: TCP [none] seq 0 data 0" in line(BACK)
    assert "DNS 7 A a.example?" in line(dns(b"\1a\7example\0"))
    assert "DNS 7 A .: no such name" in line(dns(b"\0", 0x8183))
    assert "DNS 7 A .: 2 answers" in line(dns(b"\0", 0x8180, 2))
    assert "ARP who has 10.0.0.1? asks 10.0.0.2" in line(
        MACS + b"\x08\x06" + struct.pack("!HHBBH", 1, 2048, 6, 4, 1) + ARP[22:]
    )
    assert "IP 192.168.7.9 > 10.0.0.2: ICMP echo reply" in line(PING)
    assert "IP6 fd00::2.5000 > fd00::3.443: TCP" in line(WEB6)
    assert "a later fragment of TCP" in line(REST)
    assert "VLAN 5 type 0x9999 02:" in line(MACS + b"\x81\0\0\5\x99\x99")
    assert "802.3" in line(MACS + b"\0\x20")


def test_nothing_in_a_packet_reaches_the_terminal_as_it_is() -> None:
    chance = random.Random(5)
    hostile = b"\x1b]0;owned\x07\x1b[2J\r\n\xe2\x80\xae"
    frames = [
        dns(bytes([len(hostile)]) + hostile + b"\0"),
        dns(b"\xc0\x0c"),  # a name that points to itself
        dns((b"\x3f" + b"a" * 63) * 60 + b"\0"),
        ip("1.1.1.1", "2.2.2.2", 6, struct.pack("!HHIIBBHHH", 1, 80, 0, 0, 0x50, 255, 0, 0, 0) + b"GET " + hostile),
        *(frame[:size] for frame in FRAMES.values() for size in range(len(frame))),
        *(bytes(chance.randbytes(80)) for _ in range(500)),
        *(ALL[:12] + b"\x08\0" + chance.randbytes(60) for _ in range(500)),
        *(DNS[:42] + chance.randbytes(90) for _ in range(500)),
        MACS + b"\x81\0\0\1" * 3,
    ]
    for frame in frames:
        shown = line(frame)
        assert shown.isascii() or "…" in shown, frame
        assert shown.replace("…", "").isprintable() and len(shown) < 4000, frame
    assert r"\x1b]0;owned\x07" in line(frames[0])


def test_what_is_written_is_whole_however_it_comes() -> None:
    data = HEAD + b"".join(record(frame) for frame in FRAMES.values())
    for step in (1, 7, 100, len(data)):
        splitter, whole, packets = Splitter(), b"", list[Packet]()
        for at in range(0, len(data) - 3, step):
            piece, found = splitter.feed(data[: len(data) - 3][at : at + step])
            whole += piece
            packets += found
        assert whole == data[: -len(record(ALL))]
        assert [packet.data for packet in packets] == list(FRAMES.values())[:-1]
        assert splitter.packets == len(FRAMES) - 1


def test_a_node_that_sends_something_else_is_refused() -> None:
    with pytest.raises(DriverFailed):
        Splitter().feed(b"\x7fELF" + bytes(40))
    splitter = Splitter()
    splitter.feed(HEAD)
    with pytest.raises(DriverFailed):
        splitter.feed(struct.pack("<IIII", 0, 0, 0xFFFFFFFF, 0))
