"""When a certificate ends, read without a library: agents and controllers load none for it."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0x17, 0x18
_MOST_BYTES = 65_536


def read_ends(files: Mapping[str, Path]) -> dict[str, float]:
    """When the first certificate in each file ends (unix seconds); without those that can't be read."""
    found = {}
    for name, path in files.items():
        try:
            with path.open("rb") as file:
                found[name] = read_end(file.read(_MOST_BYTES).decode("ascii"))
        except (OSError, ValueError, IndexError):
            continue
    return found


def read_end(pem: str) -> float:
    """When the first certificate in ``pem`` ends (unix seconds). Raises ValueError, IndexError if there is none."""
    start = pem.index(_BEGIN)
    der = ssl.PEM_cert_to_DER_cert(pem[start : pem.index(_END, start) + len(_END)])
    (_, certificate), *_ = _parts(der)
    (_, signed), *_ = _parts(certificate)
    # version, serial, algorithm, issuer, validity: the only one of these that holds two times
    for tag, content in _parts(signed):
        times = list(_parts(content)) if tag == _SEQUENCE else []
        if len(times) == 2 and all(kind in (_UTC_TIME, _GENERALIZED_TIME) for kind, _ in times):
            kind, text = times[1]
            century = ("20" if text[:2] < b"50" else "19") if kind == _UTC_TIME else ""
            date = century + text.decode("ascii")
            moment = datetime.datetime.fromisoformat(f"{date[:8]}T{date[8:]}")  # strptime loads what nothing else needs
            return moment.replace(tzinfo=datetime.UTC).timestamp()
    raise ValueError("no validity")


def _parts(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element, one after the other."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length >= 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        yield tag, der[at : at + length]
        at += length
