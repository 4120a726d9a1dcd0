"""The address that a gateway calls for a device: ``HOST``, ``HOST:PORT`` or ``[IPV6]:PORT``; and the places that are refused.

Authors of Devices would otherwise reach, through the gateway, what listens on its machine for nobody else, and what a cloud
tells its machines only. A name is resolved here, and what is connected to is the address that was checked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from concurrent.futures import ThreadPoolExecutor

from weft.contracts.confinement.public_address import Address, find_embedded, is_link_local
from weft.objects.errors import InvalidInput, Unavailable

LOOKUP_SECONDS = 5.0
MOST_CHARACTERS = 200
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")
# What clouds answer their machines at, beyond the link-local 169.254.169.254: AWS over IPv6, Alibaba, Azure, Oracle.
_METADATA = {ipaddress.ip_address(one) for one in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")}
# Threads of their own: names whose servers don't answer would otherwise take those that save twins and send reports.
_lookups = ThreadPoolExecutor(4, thread_name_prefix="weft-lookup")


def split_place(text: str, port: int, example: str) -> tuple[str, int]:
    """Host and port of ``text``; ``port`` where it has none. Raises InvalidInput; ``example`` is how to write it."""
    host, given = text, ""
    if text.startswith("["):
        host, _, given = text[1:].partition("]")
        if "]" not in text or (given and not given.startswith(":")) or given == ":":
            host = ""
        given = given.removeprefix(":")
        valid = _is_ipv6(host)
    elif text.count(":") > 1:
        valid = _is_ipv6(text)
    else:
        host, colon, given = text.partition(":")
        valid = _NAME.fullmatch(host) is not None and not (colon and not given)
    if len(text) > MOST_CHARACTERS or not valid:
        raise InvalidInput(f"address: {text[:60]!r} is not a host", field="spec.address", hint=f"write like {example}")
    if not given:
        return host, port
    if not re.fullmatch(r"[0-9]{1,5}", given) or not 0 < int(given) < 65536:
        raise InvalidInput(
            f"address: {given[:20]!r} is not a port", field="spec.address", hint=f"give 1 up to 65535, like {example}"
        )
    return host, int(given)


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6 and "%" not in text
    except ValueError:
        return False


def find_refusal(address: Address) -> str:
    """Why a device can't be at ``address`` unless the gateway's settings allow it; "" when it can."""
    inner = find_embedded(address)
    if inner is not None:
        return find_refusal(inner)
    if address.is_loopback or address.is_unspecified:
        return "it is this machine's own address"
    if address in _METADATA:
        return "it is an address of a cloud's metadata"
    if is_link_local(address):
        return "it is a link-local address, where clouds keep their metadata"
    if address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        return "it is an address of many"
    if isinstance(address, ipaddress.IPv4Address) and address in ipaddress.IPv4Network("0.0.0.0/8"):
        return "it is this machine's own address"
    return ""


def is_own(address: Address) -> bool:
    """Whether ``address`` is one of this machine's interfaces: the kernel then speaks to it from itself. Nothing is sent."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return ipaddress.ip_address(probe.getsockname()[0]) == address
    except OSError:
        return False  # there is no way to it: the connection will say so


async def find_address(host: str, port: int, *, local: bool) -> str:
    """The IP address of ``host``. ``local``: the gateway's settings allow what ``find_refusal`` refuses. Raises Unavailable: it
    isn't found, or it is refused."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = await _resolve(host, port)
    why = "" if local else find_refusal(address) or ("it is this machine's own address" if is_own(address) else "")
    if why:
        raise Unavailable(
            f"{host[:80]} is refused: {why}", hint="local_devices: true in the gateway's settings allows it"
        )
    return str(address)


async def _resolve(host: str, port: int) -> Address:
    try:
        async with asyncio.timeout(LOOKUP_SECONDS):
            rows = await asyncio.get_running_loop().run_in_executor(
                _lookups, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
    except (OSError, TimeoutError, UnicodeError):
        raise Unavailable(f"no address of {host[:80]!r} is found") from None
    return ipaddress.ip_address(str(rows[0][4][0]).partition("%")[0])
