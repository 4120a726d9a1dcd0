"""The packets in a stream that is a file as tcpdump writes it: whole ones, and each as one line. All in them is hostile. Pure."""

from __future__ import annotations

import datetime
import ipaddress
import struct
from typing import NamedTuple

from weft.objects.errors import DriverFailed

HEAD_BYTES = 24
_MAGIC = 0xA1B23C4D  # little endian, nanoseconds
_MOST_PACKET = 1 << 20
_PACKET = struct.Struct("<IIII")
_ETHER_TYPES = {0x0806: "ARP", 0x8035: "RARP", 0x88CC: "LLDP", 0x8863: "PPPoE", 0x8864: "PPPoE"}
_PROTOCOLS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 47: "GRE", 50: "ESP", 58: "ICMP6", 89: "OSPF", 132: "SCTP"}
_ICMP = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}
_ICMP6 = {
    1: "unreachable",
    128: "echo request",
    129: "echo reply",
    133: "router solicitation",
    134: "router advertisement",
}
_ICMP6 |= {135: "neighbour solicitation", 136: "neighbour advertisement", 143: "multicast report"}
_FLAGS = "FSRP.UEC"  # of TCP, from the lowest bit
_TYPES = {1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 65: "HTTPS"}
_TEXT_PORTS = (80, 8000, 8080)
_MOST_TEXT = 60


class Packet(NamedTuple):
    seconds: int  # since 1970
    nanoseconds: int
    length: int  # on the wire
    data: bytes  # its first bytes


class Splitter:
    """Cuts what comes into whole records, so that what is written is always a file that can be read."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self.began = False  # something has come
        self.packets = 0

    def feed(self, data: bytes) -> tuple[bytes, list[Packet]]:
        """The bytes of all that is whole now, and its packets. Raises DriverFailed for what is no such file."""
        self._rest += data
        at, found = 0, list[Packet]()
        if not self.began:
            if len(self._rest) < HEAD_BYTES:
                return b"", []
            if int.from_bytes(self._rest[:4], "little") != _MAGIC:
                raise DriverFailed("the node sent no packets, but something else")
            at, self.began = HEAD_BYTES, True
        while len(self._rest) - at >= _PACKET.size:
            seconds, nanoseconds, captured, length = _PACKET.unpack_from(self._rest, at)
            if captured > _MOST_PACKET:
                raise DriverFailed("the node sent no packets, but something else")
            end = at + _PACKET.size + captured
            if end > len(self._rest):
                break
            found.append(Packet(seconds, nanoseconds, length, bytes(self._rest[at + _PACKET.size : end])))
            at = end
        whole = bytes(self._rest[:at])
        del self._rest[:at]
        self.packets += len(found)
        return whole, found


def describe(packet: Packet) -> str:
    """One line: the time (UTC), who sent what to whom, and the length."""
    day = datetime.datetime.fromtimestamp(packet.seconds, datetime.UTC)
    try:
        text = _describe_frame(packet.data)
    except (struct.error, IndexError, ValueError):
        text = "cut off or malformed"
    return f"{day:%H:%M:%S}.{packet.nanoseconds // 1000 % 1_000_000:06d} {text}, {packet.length} bytes"


def _describe_frame(data: bytes) -> str:
    kind, at = struct.unpack_from("!H", data, 12)[0], 14
    tag = ""
    while kind in (0x8100, 0x88A8) and at < 30:
        tag += f"VLAN {struct.unpack_from('!H', data, at)[0] & 0xFFF} "
        kind, at = struct.unpack_from("!H", data, at + 2)[0], at + 4
    if kind == 0x0800:
        return tag + _describe_ip(data[at:])
    if kind == 0x86DD:
        return tag + _describe_ip6(data[at:])
    if kind == 0x0806:
        return tag + _describe_arp(data[at:])
    name = _ETHER_TYPES.get(kind) or (f"type 0x{kind:04x}" if kind >= 0x600 else "802.3")
    return f"{tag}{name} {data[6:12].hex(':')} > {data[0:6].hex(':')}"


def _describe_arp(body: bytes) -> str:
    what = struct.unpack_from("!H", body, 6)[0]
    sender, target = (ipaddress.IPv4Address(body[at : at + 4]) for at in (14, 24))
    if what == 1:
        return f"ARP who has {target}? asks {sender}"
    return f"ARP {sender} is at {body[8:14].hex(':')}" if what == 2 else f"ARP operation {what}"


def _describe_ip(body: bytes) -> str:
    size, offset = (body[0] & 15) * 4, struct.unpack_from("!H", body, 6)[0]
    total = struct.unpack_from("!H", body, 2)[0]
    source, target = (str(ipaddress.IPv4Address(body[at : at + 4])) for at in (12, 16))
    if size < 20:
        raise ValueError("a header that is too short")
    if offset & 0x1FFF:
        return f"IP {source} > {target}: a later fragment of {_PROTOCOLS.get(body[9], str(body[9]))}"
    return _describe_inner("IP", source, target, body[9], body[size : total or None])


def _describe_ip6(body: bytes) -> str:
    source, target = (str(ipaddress.IPv6Address(body[at : at + 16])) for at in (8, 24))
    return _describe_inner("IP6", source, target, body[6], body[40:])


def _describe_inner(ip: str, source: str, target: str, protocol: int, body: bytes) -> str:
    name = _PROTOCOLS.get(protocol, f"protocol {protocol}")
    if name in ("TCP", "UDP", "SCTP"):
        first, second = struct.unpack_from("!HH", body)
        ends = (
            f"{ip} {source}{'.' if ip == 'IP6' else ':'}{first} > {target}{'.' if ip == 'IP6' else ':'}{second}: {name}"
        )
        if name == "TCP":
            return f"{ends} {_describe_tcp(body, first, second)}"
        if name == "UDP" and 53 in (first, second):
            return f"{ends} {_describe_dns(body[8:])}"
        return ends
    if name in ("ICMP", "ICMP6"):
        name += f" {(_ICMP if name == 'ICMP' else _ICMP6).get(body[0], f'type {body[0]}')}"
    return f"{ip} {source} > {target}: {name}"


def _describe_tcp(body: bytes, first: int, second: int) -> str:
    number, answer, size, flags = struct.unpack_from("!IIBB", body, 4)
    names = "".join(name for bit, name in enumerate(_FLAGS) if flags >> bit & 1) or "none"
    size = (size >> 4) * 4
    payload = body[size:] if size >= 20 else b""
    text = f"[{names}] seq {number}" + (f" ack {answer}" if flags & 16 else "") + f" data {len(payload)}"
    if payload and (first in _TEXT_PORTS or second in _TEXT_PORTS):
        line = payload.split(b"\n", 1)[0].rstrip(b"\r")
        if line.startswith((b"HTTP/", b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"PATCH ", b"OPTIONS ")):
            text += f" {escape(line)}"
    return text


def _describe_dns(body: bytes) -> str:
    number, flags, questions = struct.unpack_from("!HHH", body)
    answers = struct.unpack_from("!H", body, 6)[0]
    what = f"DNS {number}"
    if questions:
        name, at = _read_name(body, 12)
        kind = struct.unpack_from("!H", body, at)[0]
        what += f" {_TYPES.get(kind, kind)} {name}"
    if not flags & 0x8000:
        return f"{what}?"
    code = flags & 15
    if code:
        return f"{what}: no such name" if code == 3 else f"{what}: error {code}"
    return f"{what}: {answers} answer{'s' * (answers != 1)}"


def _read_name(body: bytes, at: int) -> tuple[str, int]:
    """A name in a question, and where it ends. A pointer has no place there."""
    labels = list[str]()
    while (size := body[at]) != 0:
        if size > 63 or len(labels) > 40:
            raise ValueError("no name")
        labels.append(escape(body[at + 1 : at + 1 + size]))
        at += 1 + size
    return ".".join(labels) or ".", at + 1


def escape(data: bytes) -> str:
    """The first bytes, readable: whatever isn't printable ASCII as ``\\x1b``."""
    shown = "".join(chr(byte) if 32 <= byte < 127 and byte != 92 else f"\\x{byte:02x}" for byte in data[:_MOST_TEXT])
    return shown + ("…" if len(data) > _MOST_TEXT else "")
