"""A filter for packets, in tcpdump's language, as a tree of tests. Pure.

Of pcap-filter(7): hosts, networks, ports, protocols, lengths, broadcasts, ``and``, ``or`` (of the same rank, from the left, as
there), ``not``, parentheses. Bytes at places (``tcp[13] & 2``) and names of hosts are no part of it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable

import msgspec

from weft.objects.errors import InvalidInput

MOST_CHARACTERS, MOST_TESTS, MOST_DEPTH = 1000, 64, 32

# Loads and jumps of classic BPF.
LD_W, LD_H, LD_B = 0x20, 0x28, 0x30
LD_LENGTH, LDX_IP_HEADER, LD_H_X = 0x80, 0xB1, 0x48
AND = 0x54
JEQ, JGT, JGE, JSET = 0x15, 0x25, 0x35, 0x45

_WORD = re.compile(r"\s*(&&|\|\||[()!]|[^\s()!&|]+)")
_ETHER_TYPES = {"ip": 0x0800, "arp": 0x0806, "rarp": 0x8035, "ip6": 0x86DD}
_IN_IP = {"icmp": 1, "tcp": 6, "udp": 17, "sctp": 132}
_IN_IP6 = {"icmp6": 58, "tcp": 6, "udp": 17, "sctp": 132}
_WITH_PORTS = ("tcp", "udp", "sctp")
_PROTOCOLS = ("ether", *_ETHER_TYPES, *_IN_IP, "icmp6")
_TYPES = ("host", "net", "port", "portrange", "proto")
_SERVICES = {"ssh": 22, "smtp": 25, "domain": 53, "dns": 53, "bootps": 67, "http": 80, "ntp": 123, "https": 443}
_PLACES = {
    "ip": {"src": 26, "dst": 30},
    "arp": {"src": 28, "dst": 38},
    "rarp": {"src": 28, "dst": 38},
}  # of IPv4 addresses
_MAC = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}")
_HINT = "like: tcp port 80 and host 10.0.0.2, or: not arp; filter the file by tcpdump or Wireshark for more"


class Test(msgspec.Struct, frozen=True):
    """Loads, then one comparison of what the last of them loaded."""

    loads: tuple[tuple[int, int], ...]  # code, operand
    jump: int
    value: int


class Both(msgspec.Struct, frozen=True):
    first: Tree
    second: Tree


class Either(msgspec.Struct, frozen=True):
    first: Tree
    second: Tree


class Not(msgspec.Struct, frozen=True):
    tree: Tree


Tree = Test | Both | Either | Not


class _Qualifiers(msgspec.Struct, frozen=True):
    protocol: str = ""
    way: str = ""  # src, dst, both; "": either
    type: str = ""


def parse_filter(text: str) -> Tree | None:
    """None: every packet. Raises InvalidInput."""
    if len(text) > MOST_CHARACTERS:
        raise InvalidInput(f"filter has more than {MOST_CHARACTERS} characters", field="filter")
    words, at = [], 0
    while text[at:].strip():
        found = _WORD.match(text, at)
        if found is None:
            raise _refuse(f"{text[at:].strip()[:20]!r} is not a word of a filter")
        words.append(found[1])
        at = found.end()
    if not words:
        return None
    parser = _Parser(words)
    tree = parser.read_all(0)
    if parser.word:
        raise _refuse(f"{parser.word[:40]!r} is not expected there: and, or, or the end is")
    return tree


def _refuse(why: str) -> InvalidInput:
    return InvalidInput(f"filter: {why}", field="filter", hint=_HINT)


class _Parser:
    def __init__(self, words: list[str]) -> None:
        self._words, self._at = words, 0
        self._last: _Qualifiers | None = None
        self._tests = 0

    @property
    def word(self) -> str:
        """The next one, "" at the end."""
        return self._words[self._at] if self._at < len(self._words) else ""

    def _take(self, *words: str) -> str:
        """The next word if it is one of these (none: any), else ""."""
        word = self.word
        if words and word not in words:
            return ""
        self._at += 1
        return word

    def read_all(self, depth: int) -> Tree:
        tree = self._read_one(depth)
        while word := self._take("and", "&&", "or", "||"):
            right = self._read_one(depth)
            tree = Both(tree, right) if word in ("and", "&&") else Either(tree, right)
        return tree

    def _read_one(self, depth: int) -> Tree:
        if depth > MOST_DEPTH:
            raise _refuse(f"more than {MOST_DEPTH} parentheses and nots lie in each other")
        if self._take("not", "!"):
            return Not(self._read_one(depth + 1))
        if self._take("("):
            tree = self.read_all(depth + 1)
            if not self._take(")"):
                raise _refuse("a parenthesis is not closed")
            return tree
        self._tests += 1
        if self._tests > MOST_TESTS:
            raise _refuse(f"it has more than {MOST_TESTS} tests")
        return self._read_test()

    def _read_test(self) -> Tree:
        if word := self._take("less", "greater"):
            size = self._read_number(0xFFFF)
            greater = _test((LD_LENGTH, 0), jump=JGT if word == "less" else JGE, value=size)
            return Not(greater) if word == "less" else greater
        protocol = self._take(*_PROTOCOLS)
        if word := self._take("broadcast", "multicast"):
            if protocol not in ("", "ether"):
                raise _refuse(f"{protocol} {word} is not a test: leave {protocol} out")
            if word == "multicast":
                return _test((LD_B, 0), jump=JSET, value=1)
            return _mac("ff:ff:ff:ff:ff:ff", 0)
        way, type_ = self._read_way(), self._take(*_TYPES)
        given = _Qualifiers(protocol, way, type_)
        if protocol and not way and not type_ and not self._has_value():
            self._last = None
            return _is_protocol(protocol)
        if given == _Qualifiers() and self._last is not None and _is_of(self._last, self.word):
            given = self._last  # as in: port 80 or 443
        elif not type_:
            if self._has_value() and not {".", ":"} & set(self.word):
                raise _refuse(f"{self.word[:40]!r} is not a word of a filter, or port is missing before it")
            given = _Qualifiers(protocol, way, "net" if "/" in self.word else "host")
        self._last = given
        return self._read_value(given)

    def _has_value(self) -> bool:
        return self.word not in ("", ")", "and", "or", "&&", "||")

    def _read_way(self) -> str:
        way = self._take("src", "dst")
        if way and self.word in ("or", "and") and self._words[self._at + 1 : self._at + 2] in (["src"], ["dst"]):
            way = "both" if self._take() == "and" else ""
            self._take()
        return way

    def _read_number(self, most: int) -> int:
        word = self._take()
        if not word.isdecimal() or not word.isascii() or int(word) > most:
            raise _refuse(f"{word[:40]!r} is not a number up to {most}" if word else "a number is missing at the end")
        return int(word)

    def _read_value(self, given: _Qualifiers) -> Tree:
        protocol, word = given.protocol, self._take() if self._has_value() else ""
        if not word:
            raise _refuse(f"what follows {given.type} is missing")
        if given.type in ("port", "portrange"):
            if protocol not in ("", *_WITH_PORTS):
                raise _refuse(f"{protocol} has no ports")
            first, last = _read_ports(word, several=given.type == "portrange")
            return _port((protocol,) if protocol else _WITH_PORTS, given.way, first, last)
        if given.type == "proto":
            number = _IN_IP.get(word) or (int(word) if word.isdecimal() and int(word) < 256 else -1)
            if number < 0 or protocol not in ("", "ip", "ip6"):
                raise _refuse(f"{word[:40]!r} is not a protocol of {protocol or 'ip'}")
            return _any(_in_ip(number, name) for name in ("ip", "ip6") if protocol in ("", name))
        if _MAC.fullmatch(word) and given.type == "host":
            if protocol != "ether":
                raise _refuse(f"{word} is a MAC address: write ether host {word}")
            return _ways(given.way, lambda way: _mac(word, 6 if way == "src" else 0))
        if protocol not in ("", *_ETHER_TYPES):
            raise _refuse(f"{protocol} {given.type} is not a test: write {protocol} and {given.type} {word[:40]}")
        return _net(protocol, given.way, _read_net(word, given.type))


def _is_of(last: _Qualifiers, word: str) -> bool:
    """Whether a value without qualifiers can be of the last ones."""
    if last.protocol == "ether":
        return _MAC.fullmatch(word) is not None
    return bool({".", ":"} & set(word)) == (last.type in ("host", "net"))


def _test(*loads: tuple[int, int], jump: int = JEQ, value: int) -> Test:
    return Test(loads, jump, value)


def _ways(way: str, make: Callable[[str], Tree]) -> Tree:
    if way in ("src", "dst"):
        return make(way)
    return (Both if way == "both" else Either)(make("src"), make("dst"))


def _any(trees: Iterable[Tree]) -> Tree:
    """One of them, of which there is at least one."""
    first, *rest = trees
    for tree in rest:
        first = Either(first, tree)
    return first


def _ether(name: str) -> Tree:
    return _test((LD_H, 12), value=_ETHER_TYPES[name])


def _in_ip(number: int, name: str) -> Tree:
    return Both(_ether(name), _test((LD_B, 23 if name == "ip" else 20), value=number))


def _is_protocol(name: str) -> Tree:
    if name == "ether":
        raise _refuse("ether alone is every packet: leave it out")
    if name in _ETHER_TYPES:
        return _ether(name)
    found = [_in_ip(table[name], ip) for ip, table in (("ip", _IN_IP), ("ip6", _IN_IP6)) if name in table]
    return _any(found)


def _mac(text: str, at: int) -> Tree:
    octets = bytes(int(word, 16) for word in text.split(":"))
    low = _test((LD_W, at + 2), value=int.from_bytes(octets[2:], "big"))
    return Both(low, _test((LD_H, at), value=int.from_bytes(octets[:2], "big")))


def _read_ports(word: str, *, several: bool) -> tuple[int, int]:
    first, dash, last = word.partition("-") if several else (word, "", word)
    low, high = (_SERVICES.get(one, int(one) if one.isdecimal() else -1) for one in (first, last))
    if not (0 <= low <= high <= 0xFFFF) or (several and not dash):
        raise _refuse(f"{word[:40]!r} is not a {'range of ports, like 8000-8100' if several else 'port'}")
    return low, high


def _port(protocols: tuple[str, ...], way: str, first: int, last: int) -> Tree:
    def compare(*loads: tuple[int, int]) -> Tree:
        if first == last:
            return _test(*loads, value=first)
        return Both(_test(*loads, jump=JGE, value=first), Not(_test(*loads, jump=JGT, value=last)))

    def among(at: int) -> Tree:
        return _any(_test((LD_B, at), value=_IN_IP[name]) for name in protocols)

    begins = Not(_test((LD_H, 20), jump=JSET, value=0x1FFF))  # a later fragment has no ports
    header = (LDX_IP_HEADER, 14)
    ip = _ways(way, lambda one: compare(header, (LD_H_X, 14 if one == "src" else 16)))
    ip6 = _ways(way, lambda one: compare((LD_H, 54 if one == "src" else 56)))
    return Either(
        Both(_ether("ip"), Both(among(23), Both(begins, ip))),
        Both(_ether("ip6"), Both(among(20), ip6)),
    )


_Net = ipaddress.IPv4Network | ipaddress.IPv6Network


def _read_net(word: str, type_: str) -> _Net:
    try:
        if type_ == "host" and "/" in word:
            raise ValueError("a network")
        return ipaddress.ip_network(word)
    except ValueError:
        kind = "an address" if type_ == "host" else "a network, like 10.0.0.0/8"
        raise _refuse(f"{word[:40]!r} is not {kind}") from None


def _net(protocol: str, way: str, net: _Net) -> Tree:
    if net.version == 6:
        if protocol not in ("", "ip6"):
            raise _refuse(f"{net} is not an address of {protocol}")
        return Both(_ether("ip6"), _ways(way, lambda one: _inside(net, 22 if one == "src" else 38)))
    if protocol == "ip6":
        raise _refuse(f"{net} is not an address of ip6")
    return _any(
        Both(_ether(name), _ways(way, lambda one, places=places: _inside(net, places[one])))  # type: ignore[misc]
        for name, places in _PLACES.items()
        if protocol in ("", name)
    )


def _inside(net: _Net, at: int) -> Tree:
    """Whether the address that lies there is one of these: word by word."""
    wanted, mask = net.network_address.packed, net.netmask.packed
    found: list[Tree] = []
    for start in range(0, len(wanted), 4):
        value, part = (int.from_bytes(octets[start : start + 4], "big") for octets in (wanted, mask))
        if part == 0xFFFFFFFF:
            found.append(_test((LD_W, at + start), value=value))
        elif part:
            found.append(_test((LD_W, at + start), (AND, part), value=value))
    if not found:
        return _test((LD_LENGTH, 0), jump=JGE, value=0)
    tree = found[0]
    for one in found[1:]:
        tree = Both(tree, one)
    return tree
