"""Checks a certificate with its key, as people give them. Nothing that it says contains any of them. Pure."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization


def find_fault(chain: str, key: str, now: float) -> str:
    """Fault in the PEM of a certificate with its chain, and with its key, at ``now`` (unix seconds); "" for none."""
    try:
        certificates = x509.load_pem_x509_certificates(chain.encode())
    except ValueError:
        return "tls.crt is not a certificate in PEM"
    try:
        private = serialization.load_pem_private_key(key.encode(), None)
    except TypeError:
        return "tls.key is encrypted: it must have no passphrase"
    except (ValueError, UnsupportedAlgorithm):
        return "tls.key is not a private key in PEM"
    if private.public_key() != certificates[0].public_key():
        return "tls.key does not belong to the first certificate in tls.crt"
    begins, ends = certificates[0].not_valid_before_utc, certificates[0].not_valid_after_utc
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if moment >= ends:
        return f"the certificate in tls.crt ended on {ends:%Y-%m-%d}"
    if moment < begins:
        return f"the certificate in tls.crt begins on {begins:%Y-%m-%d} only"
    return ""
