"""Addresses to which a process may connect that fetches what others name: not its own machine, and nothing that answers on the
machine's own links (metadata services do), unless that was allowed.

Judged is the address that a socket is about to connect to: a name that means another address the next time, or a redirect,
changes nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import socket
import sys
from collections.abc import Collection, Sequence
from typing import Any
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Ranges whose last 32 bits are the IPv4 address: NAT64 (RFC 6052), IPv4-translated (RFC 2765), IPv4-compatible (RFC 4291).
_EMBEDDING = [ipaddress.IPv6Network(text) for text in ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96")]
# Of IPv6 only this part was ever given to anybody: what else there is, and will be, is for special purposes.
_ASSIGNED = ipaddress.IPv6Network("2000::/3")
# What IANA's registries of special-purpose addresses have and ``ipaddress`` doesn't: IETF protocols but for two anycast services,
# relays of 6to4 and 6to4 itself, documentation (RFC 9637).
_SPECIAL = [ipaddress.ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "2002::/16", "3fff::/20")]
_ANYCAST = [ipaddress.IPv4Address(text) for text in ("192.0.0.9", "192.0.0.10")]

CLOSED = "!"  # what a closed address begins with, among allowed ones
PUBLIC_ONLY = "public-only"  # among allowed addresses: private ones are closed, too
_THIS_HOST = ipaddress.IPv4Network("0.0.0.0/8")


class NotAllowed(OSError):
    """The message names the address, what it is, and how to allow it."""


def guard_connections(allowed: Sequence[str]) -> None:
    """Connect, from now on, nowhere else than strangers' addresses and those of ``allowed``: networks (``127.0.0.0/8``), addresses,
    or host names, which are looked up now. ``!ADDRESS`` is a node of the fabric, which is closed, and ``public-only`` closes
    private addresses. Proxies that the environment names are allowed. Connecting elsewhere raises NotAllowed."""
    networks, places = [], set[tuple[Address, int]]()
    nodes = {text.removeprefix(CLOSED) for text in allowed if text.startswith(CLOSED)}
    for text in allowed:
        if text.startswith(CLOSED) or text == PUBLIC_ONLY:
            continue
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            networks += [ipaddress.ip_network(found) for found in _resolve(text)]
    for proxy in importlib.import_module("urllib.request").getproxies().values():  # loads what devices never need
        over = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        places |= {(found, over.port or 80) for found in _resolve(over.hostname or "")}

    def refuse_near(event: str, args: tuple[Any, ...]) -> None:
        if event != "socket.connect" or not isinstance(args[1], tuple):
            return
        address = ipaddress.ip_address(str(args[1][0]).partition("%")[0])
        if (address, args[1][1]) in places or any(address in network for network in networks):
            return
        if what := describe_near(address) or _describe_closed(address, nodes, public_only=PUBLIC_ONLY in allowed):
            raise NotAllowed(
                f"{address} is {what}: to fetch images from there, start the server with --allow-fetch {address}"
            )

    sys.addaudithook(refuse_near)


def describe_near(address: Address) -> str:
    """Describe what is at an address that belongs to this machine or its links, as a person calls it; "" for any other."""
    inner = find_embedded(address)
    if inner is not None:
        return describe_near(inner)
    if address.is_loopback or address.is_unspecified or address in _THIS_HOST:
        return "this machine itself"
    if is_link_local(address):
        return "link-local"
    if address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        return "a multicast or broadcast address"
    return "an address of this machine" if _is_own(address) else ""


def find_embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if any(address in network for network in _EMBEDDING) and int(address) > 1:  # :: and ::1 are addresses of their own
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def is_link_local(address: Address) -> bool:
    """Whether it is on the machine's own links, also in the range for sites that RFC 3879 ended."""
    return address.is_link_local or (isinstance(address, ipaddress.IPv6Address) and address.is_site_local)


def is_public(address: Address) -> bool:
    """Whether it is anybody's on the internet, as far as the address says. One that leads to another (``find_embedded``) isn't."""
    if address.is_multicast or not address.is_global:
        return False
    if address.version == 6 and address not in _ASSIGNED:
        return False
    return address in _ANYCAST or not any(address in network for network in _SPECIAL)


def _describe_closed(address: Address, nodes: Collection[str], *, public_only: bool) -> str:
    inner = find_embedded(address) or address
    if str(inner) in nodes:
        return "a node of this fabric"
    return "a private address" if public_only and not is_public(inner) else ""


def _is_own(address: Address) -> bool:
    """The kernel lets a socket have an address only where that is the machine's."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((str(address), 0))
        return True
    return False


def _resolve(host: str) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [ipaddress.ip_address(str(place[0]).partition("%")[0]) for *_, place in found]
