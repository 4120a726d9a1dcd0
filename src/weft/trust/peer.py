"""Who is at the other end of a TLS connection: what the certificate says that it has shown, and which key it has.

The standard library tells no key, so that is looked up in the certificate's bytes, which TLS has read and verified before.
"""

from __future__ import annotations

import hashlib
import ssl

import msgspec

from weft.objects.identity import read_node_uid

_VERSION = 0xA0  # the tag of a certificate's first field, which may be missing
_BEFORE_KEY = 5  # fields between the version and the key: serial, algorithm, issuer, time, subject


class Peer(msgspec.Struct, frozen=True):
    """``node_uid`` is None where the certificate is no node's. It is good from ``begins`` up to ``ends`` (unix seconds);
    ``key_sha256`` is the digest of its public key, as ``digest_of_key`` makes it of a signing request."""

    node_uid: str | None
    begins: float
    ends: float
    key_sha256: str


def read_peer(connection: ssl.SSLObject | ssl.SSLSocket | None) -> Peer | None:
    """Of the certificate that TLS has verified; None if the other side has shown none, or there is no TLS."""
    whole = connection.getpeercert(binary_form=True) if connection is not None else None
    said = connection.getpeercert() if connection is not None else None
    if not whole or not said:
        return None
    begins, ends = (ssl.cert_time_to_seconds(str(said[when])) for when in ("notBefore", "notAfter"))
    return Peer(read_node_uid(said), begins, ends, hashlib.sha256(_find_key(whole)).hexdigest())


def _find_key(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo (RFC 5280) of a certificate in DER."""
    _, at, _ = _read_head(certificate, 0)  # the certificate
    _, at, _ = _read_head(certificate, at)  # its part that is signed
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
