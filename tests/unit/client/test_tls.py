"""A machine whose clock is wrong accepts its CA's certificates of any time, and nobody else's."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from weft.client.context import Context
from weft.client.tls import make_tls, set_time_check

NEXT_YEAR = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=365)


def make_server(folder: Path) -> tuple[ssl.SSLContext, str]:
    """A server whose certificate, its own CA's, begins next year, and that certificate."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=weft")
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(NEXT_YEAR)
        .not_valid_after(NEXT_YEAR + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("weft")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(pem + private)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "server.pem")
    return tls, pem.decode()


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname="weft")
    there = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (here, there):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    here.do_handshake()


def test_the_time_of_certificates_is_checked_unless_the_clock_is_wrong(tmp_path: Path) -> None:
    server, ca = make_server(tmp_path)
    client = make_tls(Context(server="https://weft", ca=ca))
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        shake_hands(server, client)
    set_time_check(client, False)
    shake_hands(server, client)
    set_time_check(client, True)
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        shake_hands(server, client)
    (tmp_path / "other").mkdir()
    stranger, _ = make_server(tmp_path / "other")
    set_time_check(client, False)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(stranger, client)
