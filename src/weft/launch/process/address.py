"""Where the server's processes listen and reach each other, and whose pages may speak to them. Pure."""

from __future__ import annotations

import argparse
import ipaddress
import re

from weft.gateway.stream.origins import read_origin
from weft.objects.errors import InvalidInput

# "Every address", as a person may write it, and the one to reach it by from here.
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 (compared, not bound)


def split_address(text: str) -> tuple[str, int]:
    """``10.0.0.1:8444`` or ``[::1]:8444`` as host and port."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def url_at(host: str, port: int) -> str:
    """The URL by which a process of this machine reaches the listener at ``host`` and ``port``."""
    host = ANY.get(host, host)
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def take_address(text: str) -> str:
    """ADDRESS:PORT from a command line; port 0 is any that is free. Raises ArgumentTypeError for anything else."""
    _, _, port = text.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} is not an address and a port of at most 65535; write it like 127.0.0.1:8443"
        )
    return text


def take_origin(text: str) -> str:
    """An origin of pages from a command line. Raises ArgumentTypeError for anything else."""
    try:
        read_origin(text)
    except InvalidInput as problem:
        raise argparse.ArgumentTypeError(f"{problem.message}; {problem.hint}") from None
    return text


def take_source(text: str) -> str:
    """An address, a network in CIDR form or a folder from a command line. Raises ArgumentTypeError for anything else."""
    if text.startswith("/"):
        return text.rstrip("/") or "/"
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} is not an address, network or folder; write it like 127.0.0.0/8 or /srv/images"
        ) from None


def take_networks(text: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Networks in CIDR form or addresses, with commas between them, from a command line. Raises ArgumentTypeError."""
    try:
        return [ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} is not a list of networks; write it like 10.0.0.0/8,127.0.0.1"
        ) from None
