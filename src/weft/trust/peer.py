"""The peer of a TLS connection, from the certificate that it has presented, and that certificate's public key.

The standard library doesn't expose the key, so it is read from the certificate's bytes, which TLS has verified before.
"""

from __future__ import annotations

import hashlib
import ssl

import msgspec

from weft.objects.identity import ServerIdentity, read_node_uid, read_server_identity

_VERSION = 0xA0  # the tag of a certificate's first field, which may be missing
_BEFORE_KEY = 5  # fields between the version and the key: serial, algorithm, issuer, time, subject


class Peer(msgspec.Struct, frozen=True):
    node_uid: str | None  # None: the certificate isn't a node's
    begins: float  # valid from here up to ``ends``, in unix seconds
    ends: float
    key_sha256: str  # digest of its public key, as ``digest_of_key`` makes it from a signing request
    server: ServerIdentity | None = None  # None: the certificate isn't a server's


def read_peer(connection: ssl.SSLObject | ssl.SSLSocket | None) -> Peer | None:
    """The peer of a verified TLS connection; None without TLS, or without a certificate."""
    whole = connection.getpeercert(binary_form=True) if connection is not None else None
    fields = connection.getpeercert() if connection is not None else None
    if not whole or not fields:
        return None
    begins, ends = (ssl.cert_time_to_seconds(str(fields[name])) for name in ("notBefore", "notAfter"))
    key = hashlib.sha256(_find_key(whole)).hexdigest()
    return Peer(read_node_uid(fields), begins, ends, key, read_server_identity(fields))


def _find_key(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo (RFC 5280) of a certificate in DER."""
    _, at, _ = _read_head(certificate, 0)  # the certificate
    _, at, _ = _read_head(certificate, at)  # its signed part
    tag, _, end = _read_head(certificate, at)
    if tag == _VERSION:
        at = end
    for _ in range(_BEFORE_KEY):
        at = _read_head(certificate, at)[2]
    return certificate[at : _read_head(certificate, at)[2]]


def _read_head(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag of the value at ``at``, where its content begins, and where it ends."""
    tag, length, at = der[at], der[at + 1], at + 2
    if length >= 0x80:
        more = length & 0x7F
        length, at = int.from_bytes(der[at : at + more], "big"), at + more
    return tag, at, at + length
