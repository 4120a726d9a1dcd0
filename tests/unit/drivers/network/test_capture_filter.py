"""Filters for packets, as the kernel carries them out: the programs are attached to real sockets."""

from __future__ import annotations

import ipaddress
import itertools
import random
import socket
import struct

import pytest

from weft.drivers.network.bridge.capture.expression import MOST_CHARACTERS
from weft.drivers.network.bridge.capture.program import compile_filter
from weft.drivers.network.bridge.capture.tap import attach
from weft.objects.errors import InvalidInput

MACS = bytes.fromhex("020000000001020000000002")


def ip(source: str, target: str, protocol: int, body: bytes, fragment: int = 0, options: int = 0) -> bytes:
    ends = [ipaddress.IPv4Address(one).packed for one in (source, target)]
    size = 20 + 4 * options
    head = struct.pack("!BBHHHBBH4s4s", 0x40 | size // 4, 0, size + len(body), 1, fragment, 64, protocol, 0, *ends)
    return MACS + b"\x08\0" + head + bytes(4 * options) + body


def ip6(source: str, target: str, protocol: int, body: bytes) -> bytes:
    ends = [ipaddress.IPv6Address(one).packed for one in (source, target)]
    return MACS + b"\x86\xdd" + struct.pack("!IHBB16s16s", 6 << 28, len(body), protocol, 64, *ends) + body


def ports(source: int, target: int) -> bytes:
    return struct.pack("!HH", source, target) + bytes(16)


WEB = ip("10.0.0.2", "10.0.0.3", 6, ports(5000, 80))
BACK = ip("10.0.0.3", "10.0.0.2", 6, ports(80, 5000), options=3)
DNS = ip("10.0.0.2", "10.0.0.1", 17, ports(5353, 53))
REST = ip("10.0.0.2", "10.0.0.3", 6, ports(5000, 80), fragment=100)
PING = ip("192.168.7.9", "10.0.0.2", 1, bytes(16))
WEB6 = ip6("fd00::2", "fd00::3", 6, ports(5000, 443))
ARP = MACS + b"\x08\x06" + bytes(14) + socket.inet_aton("10.0.0.2") + bytes(6) + socket.inet_aton("10.0.0.1")
ALL = b"\xff" * 6 + MACS[6:] + b"\x08\x06" + ARP[14:]
FRAMES = {
    "web": WEB, "back": BACK, "dns": DNS, "rest": REST, "ping": PING, "web6": WEB6, "arp": ARP, "all": ALL
}  # fmt: skip

CASES = {
    "": "web back dns rest ping web6 arp all",
    "tcp": "web back rest web6",
    "tcp port 80": "web back",
    "udp port domain": "dns",
    "port http or 443": "web back web6",
    "src port 80": "back",
    "dst port 80": "web",
    "src and dst portrange 1-6000": "web back dns web6",
    "portrange 50-60": "dns",
    "host 10.0.0.2": "web back dns rest ping arp all",
    "10.0.0.3": "web back rest",
    "src host 10.0.0.3 or 192.168.7.9": "back ping",
    "src or dst host 10.0.0.3": "web back rest",
    "net 10.0.0.0/8 and icmp": "ping",
    "dst net 10.0.0.0/31": "dns arp all",
    "arp host 10.0.0.1": "arp all",
    "ip host 10.0.0.1": "dns",
    "ip6": "web6",
    "host fd00::3": "web6",
    "net fd00::/16": "web6",
    "ip6 net ::/0": "web6",
    "not ip": "web6 arp all",
    "!(tcp || arp)": "dns ping",
    "icmp": "ping",
    "ip proto 17": "dns",
    "proto tcp": "web back rest web6",
    "broadcast": "all",
    "ether multicast": "all",
    "ether src host 02:00:00:00:00:02": "web back dns rest ping web6 arp all",
    "ether dst 02:0:0:0:0:2": "",
    "less 42": "arp all",
    "greater 65": "back web6",
    "udp or tcp and port 443": "web6",  # of one rank, from the left
}


def take(text: str, frame: bytes, most_bytes: int = 65535) -> int:
    """How many bytes of the frame the kernel takes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with ours, theirs:
        attach(theirs, compile_filter(text, most_bytes))
        ours.send(frame)
        try:
            return len(theirs.recv(65535))
        except BlockingIOError:
            return 0


@pytest.mark.parametrize("text", CASES)
def test_the_kernel_takes_what_a_filter_describes(text: str) -> None:
    assert [name for name, frame in FRAMES.items() if take(text, frame)] == CASES[text].split()


def test_words_between_tests_mean_what_they_mean_for_each_frame() -> None:
    chance = random.Random(7)
    tests = [text for text in CASES if text and " or " not in text and " and " not in text]
    for _ in range(60):
        words, meant = list[str](), "False"
        for number in range(chance.randrange(1, 7)):
            text, negative = chance.choice(tests), chance.random() < 0.3
            join = chance.choice(("and", "or")) if number else "or"
            words += [join] * bool(number) + ["not"] * negative + [f"({text})"]
            meant = f"({meant}) {join} {'not ' * negative}('{text}' in found)"
        for frame in FRAMES.values():
            found = {text for text in tests if take(text, frame)}
            assert bool(take(" ".join(words), frame)) == eval(meant, {"found": found}), " ".join(words)


def test_a_long_filter_reaches_its_end_over_jumps_of_its_own() -> None:
    text = "host " + " or ".join(f"10.9.0.{number}" for number in range(60))
    assert take(f"{text} or tcp port 80", WEB) and not take(text, WEB)


def test_only_the_first_bytes_are_taken() -> None:
    assert take("tcp", WEB, 40) == 40
    assert take("", WEB[:9], 40) == 9


def test_a_filter_that_cannot_be_used_is_refused_with_what_is_wrong() -> None:
    for text, why in {
        "tcp prot 80": "'prot'",
        "port": "missing",
        "port 99999": "'99999' is not a port",
        "portrange 80": "range of ports",
        "(tcp": "parenthesis",
        "tcp)": "')'",
        "host web.example": "'web.example' is not an address",
        "host 10.0.0.0/8": "not an address",
        "net 10.0.0.1/8": "not a network",
        "tcp host 1.2.3.4": "write tcp and host 1.2.3.4",
        "arp port 80": "arp has no ports",
        "ip6 host 10.0.0.1": "not an address of ip6",
        "ether": "every packet",
        "tcp[13] & 2 != 0": "is not a word of a filter",
        "less x": "'x' is not a number",
        "not": "missing",
        "tcp port 80 81": "'81' is not expected",
        "a" * (MOST_CHARACTERS + 1): "characters",
        "(" * 60 + "tcp" + ")" * 60: "parentheses",
        " or ".join(["arp"] * 65): "more than 64",
        " or ".join(f"port {n}" for n in range(1, 65)): "too long",
        "port \N{ARABIC-INDIC DIGIT FIVE}\x1b[2J": "filter",
    }.items():
        with pytest.raises(InvalidInput) as refused:
            compile_filter(text, 100)
        assert why in str(refused.value.message) and refused.value.field == "filter", text


def test_any_text_makes_a_program_that_the_kernel_takes_or_is_refused() -> None:
    words = ["tcp", "udp", "ip", "ip6", "arp", "ether", "src", "dst", "host", "net", "port", "portrange", "proto"]
    words += [
        "and",
        "or",
        "not",
        "(",
        ")",
        "80",
        "1-9",
        "10.0.0.1",
        "10.0.0.0/8",
        "fd00::/8",
        "less",
        "broadcast",
        "&&",
    ]
    chance, made = random.Random(3), 0
    for _, size in itertools.product(range(400), range(1, 6)):
        text = " ".join(chance.choice(words) for _ in range(size))
        try:
            compile_filter(text, 100)
        except InvalidInput:
            continue
        made += 1
        take(text, WEB)
    assert made > 100
