"""Which key a peer has is found in the bytes of its certificate, whatever kind of key it is."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from weft.client.context import Context
from weft.client.tls import make_tls
from weft.contracts.clock import SystemClock
from weft.objects.identity import SERVER_NAME, ServerIdentity
from weft.serving.server import make_server_tls
from weft.trust.ca import Authority, digest_of_key
from weft.trust.peer import Peer, read_peer

KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
}


def read_shown(tls: ssl.SSLContext, context: Context) -> Peer | None:
    """Who a server of ``tls`` sees when someone with ``context`` connects."""
    ours, theirs = socket.socketpair()

    def connect() -> None:
        with make_tls(context).wrap_socket(theirs, server_hostname=SERVER_NAME) as secure:
            secure.recv(1)

    client = threading.Thread(target=connect)
    client.start()
    with tls.wrap_socket(ours, server_side=True) as secure:
        secure.send(b".")
        client.join(10)
        return read_peer(secure)


@pytest.mark.parametrize("kind", KEYS)
def test_a_peer_is_known_by_the_key_of_its_signing_request(tmp_path: Path, kind: str) -> None:
    authority = Authority(tmp_path, SystemClock())
    tls = make_server_tls(*authority.renew_server([]), authority.ca_path)
    key = KEYS[kind]()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(key, None if kind == "Ed25519" else hashes.SHA256())
    (tmp_path / "node.crt").write_text(authority.sign_node(csr, "u1", begins := authority.begin()))
    (tmp_path / "node.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = Context(
        server="", ca=authority.ca, certificate=str(tmp_path / "node.crt"), key=str(tmp_path / "node.key")
    )
    peer = read_shown(tls, context)
    assert peer is not None
    assert (peer.node_uid, peer.begins, peer.key_sha256) == ("u1", begins, digest_of_key(csr))
    assert read_shown(tls, Context(server="", ca=authority.ca)) is None


def test_another_server_is_known_by_its_name_and_nobody_passes_for_one(tmp_path: Path) -> None:
    authority, own = Authority(tmp_path, SystemClock()), ServerIdentity("s2", "u2")
    tls = make_server_tls(*authority.renew_server([]), authority.ca_path)
    path = authority.renew_own(own)
    peer = read_shown(tls, Context(server="", ca=authority.ca, certificate=str(path)))
    assert peer is not None and (peer.server, peer.node_uid) == (own, None)
    before = path.read_bytes()
    assert authority.renew_own(own).read_bytes() == before
    assert authority.renew_own(ServerIdentity("s3", "u2")).read_bytes() != before
    assert path.stat().st_mode & 0o777 == 0o600
    key = KEYS["P-256"]()  # a node that asks for the name of a server
    names = [x509.NameAttribute(x509.NameOID.COMMON_NAME, "server:u2")]
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names)).sign(key, hashes.SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    path.write_text(pem + authority.sign_node(csr, "u2"))
    peer = read_shown(tls, Context(server="", ca=authority.ca, certificate=str(path)))
    assert peer is not None and (peer.server, peer.node_uid) == (None, "u2")


def test_without_tls_nobody_is_shown() -> None:
    assert read_peer(None) is None
