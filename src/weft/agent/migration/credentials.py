"""How two nodes authenticate: each presents its node's certificate, and accepts only the named peer's, signed by the CA of
that one's cluster."""

from __future__ import annotations

import ssl
from pathlib import Path

from weft.objects.errors import InvalidInput, NotAuthenticated
from weft.objects.identity import read_node_uid


class Credentials:
    """The node's key and certificate and the fabric's CA, in its state folder; read anew for each migration."""

    def __init__(self, state_dir: str) -> None:
        self._folder = Path(state_dir)

    def accept(self, peer_ca: str = "") -> ssl.SSLContext:
        """The context of a listener. Of another cluster's peer only ``peer_ca`` (PEM) is trusted; "": only this cluster's CA.
        Raises InvalidInput for unusable files, or an unusable ``peer_ca``."""
        return self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), peer_ca)

    def dial(self, peer_ca: str = "") -> ssl.SSLContext:
        """The context of a connection; the listener is identified by its node's uid, not by a host name. See ``accept``."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname = False
        return self._load(tls, peer_ca)

    def _load(self, tls: ssl.SSLContext, peer_ca: str) -> ssl.SSLContext:
        tls.verify_mode = ssl.CERT_REQUIRED
        tls.minimum_version = ssl.TLSVersion.TLSv1_3
        if peer_ca:
            _trust(tls, peer_ca)
        try:
            if not peer_ca:
                tls.load_verify_locations(self._folder / "ca.crt")
            tls.load_cert_chain(self._folder / "node.crt", self._folder / "node.key")
        except (OSError, ValueError) as problem:
            raise InvalidInput(f"can't use the node's certificate in {self._folder}: {problem}") from problem
        return tls


def _trust(tls: ssl.SSLContext, peer_ca: str) -> None:
    """Raises InvalidInput."""
    try:
        tls.load_verify_locations(cadata=peer_ca)
        if not tls.get_ca_certs(binary_form=True):
            raise ValueError("it isn't a CA's certificate")
    except (OSError, ValueError) as problem:
        raise InvalidInput(
            f"migration.peer_ca can't be used as the CA of the other end's cluster: {problem}",
            field="migration.peer_ca",
            hint="link the two clusters again: weft cluster delete NAME, then weft cluster link",
        ) from problem


def is_refusal(problem: Exception) -> bool:
    """Whether a connection failed because one end doesn't accept the other's identity."""
    if isinstance(problem, ssl.SSLCertVerificationError | NotAuthenticated):
        return True
    return isinstance(problem, ssl.SSLError) and "ALERT" in (problem.reason or "")


def check_peer(sock: ssl.SSLSocket, uid: str) -> None:
    """Raises NotAuthenticated unless the peer is node ``uid``."""
    shown = read_node_uid(sock.getpeercert())
    if shown != uid:
        raise NotAuthenticated(f"the peer is node {shown or '?'}, not {uid}", reason="wrongPeer")
