"""A certificate and its key, as files in PEM form."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

CERTIFICATE, KEY = "certificate.pem", "key.pem"
_MOST_PEM_BYTES = 1 << 20


def read_pems(certificate: str, key: str) -> dict[str, bytes]:
    """Raises OSError, ValueError."""
    return {CERTIFICATE: _read_pem(certificate), KEY: _read_pem(key)}


def require_usable(pair: Mapping[str, bytes], certificate: str, key: str) -> None:
    """Raises OSError, ValueError unless ``pair``, which was read from these paths, belongs together."""
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=bytes)
    if read_pems(certificate, key) != pair:
        raise ValueError("they are being replaced just now")


def _read_pem(path: str) -> bytes:
    """Raises OSError, ValueError."""
    with open(path, "rb") as file:
        data = file.read(_MOST_PEM_BYTES + 1)
    if len(data) > _MOST_PEM_BYTES:
        raise ValueError(f"{path} is larger than {_MOST_PEM_BYTES >> 20} MiB")
    return data
