"""The servers' TLS: a client gets no session to resume, since its tickets would cost each connection a third of the handshake."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from weft.contracts.clock import SystemClock
from weft.serving.server import make_server_tls
from weft.trust.ca import Authority


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_a_client_gets_no_ticket(tmp_path: Path, version: str) -> None:
    authority = Authority(tmp_path, SystemClock())
    server_tls = make_server_tls(*authority.renew_server(["127.0.0.1"]), authority.ca_path)
    client_tls = ssl.create_default_context(cadata=authority.ca)
    client_tls.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_tls.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    server = server_tls.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    server.write(b"x")
    assert client.read(1) == b"x" and client.version() == version
    assert client.session is None or not client.session.has_ticket
