"""Addresses where the server's processes listen and reach each other, and whose pages may speak to them. Pure."""

from __future__ import annotations

import argparse
import ipaddress
import re
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from weft.client.tls import split_server
from weft.objects.errors import InvalidInput

# "Every address", as a person may write it, and the one to reach it by from here.
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 (compared, not bound)


_HOST = re.compile(r"[A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?\]|[0-9A-Fa-f:.]+")


def split_address(text: str) -> tuple[str, int]:
    """``10.0.0.1:8444`` or ``[::1]:8444`` as host and port."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def url_at(host: str, port: int) -> str:
    """The URL by which a process of this machine reaches the listener at ``host`` and ``port``."""
    host = ANY.get(host, host)
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def find_shown(listeners: Sequence[tuple[str, int]], own: Sequence[str]) -> str:
    """The URL by which other machines reach one of ``listeners``, if one is for them, or else this machine's processes. ``own``:
    addresses of this machine that others reach."""
    for host, port in listeners:
        if host in ANY and own:
            return url_at(own[0], port)
        if host not in ANY and not _is_loopback(host):
            return url_at(host, port)
    return url_at(*listeners[0])


def find_shown_place(places: Sequence[str], own: Sequence[str]) -> str:
    """The same of listeners that are written as HOST:PORT, and so written; "" of none."""
    return find_shown([split_address(place) for place in places], own).removeprefix("https://") if places else ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def take_address(text: str) -> str:
    """ADDRESS:PORT from a command line. Raises ArgumentTypeError for anything else."""
    host, _, port = text.rpartition(":")
    if not _HOST.fullmatch(host) or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} is not an address and a port of at most 65535; write it like 127.0.0.1:8443"
        )
    if not int(port):
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} has port 0, at which nobody reaches it; write it like 127.0.0.1:8443"
        )
    return text


def take_host(text: str) -> str:
    """An address of this machine from a command line. Raises ArgumentTypeError for anything else."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not an IP address; write it like 192.0.2.1") from None
    return text


def take_registry(text: str) -> str:
    """HOST[:PORT] from a command line. Raises ArgumentTypeError for anything else."""
    host, _, port = text.rpartition(":") if re.search(r":[0-9]*$", text) and text[:1] != ":" else (text, "", "443")
    if not host or not _HOST.fullmatch(host):
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a host; write it like registry.example:5000")
    take_address(f"{host}:{port}")
    return text


def take_server(text: str) -> str:
    """The URL of a weft server from a command line. Raises ArgumentTypeError for anything else."""
    return take_by(split_server, text)


def take_issuer(text: str) -> str:
    """The URL of an OIDC provider from a command line. Raises ArgumentTypeError for anything else."""
    parts = urlsplit(text)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.query or parts.fragment or " " in text:
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} is not the URL of an OIDC provider; write it like https://login.example/realms/lab"
        )
    return text


def take_by(read: Callable[[str], object], text: str) -> str:
    """``text`` from a command line if ``read`` takes it. Raises ArgumentTypeError with its words otherwise."""
    try:
        read(text)
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
