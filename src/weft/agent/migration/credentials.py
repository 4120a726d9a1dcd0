"""How two nodes authenticate: each presents its node's certificate, and accepts only the named peer's."""

from __future__ import annotations

import ssl
from pathlib import Path

from weft.objects.errors import InvalidInput, NotAuthenticated
from weft.objects.identity import read_node_uid


class Credentials:
    """The node's key and certificate and the fabric's CA, in its state folder; read anew for each migration."""

    def __init__(self, state_dir: str) -> None:
        self._folder = Path(state_dir)

    def accept(self) -> ssl.SSLContext:
        """For a listener. Raises InvalidInput for unusable files."""
        return self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def dial(self) -> ssl.SSLContext:
        """For a connection; the listener is identified by its node's uid, not by a host name."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname = False
        return self._load(tls)

    def _load(self, tls: ssl.SSLContext) -> ssl.SSLContext:
        tls.verify_mode = ssl.CERT_REQUIRED
        tls.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            tls.load_verify_locations(self._folder / "ca.crt")
            tls.load_cert_chain(self._folder / "node.crt", self._folder / "node.key")
        except (OSError, ValueError) as problem:
            raise InvalidInput(f"can't use the node's certificate in {self._folder}: {problem}") from problem
        return tls


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
