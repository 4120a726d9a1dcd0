"""Checks that the server is the right one: by the context's CA, or by that CA's digest."""

from __future__ import annotations

import datetime
import hashlib
import re
import socket
import ssl
from urllib.parse import urlsplit

from weft.client.context import Context
from weft.objects.errors import InvalidInput, NotAuthenticated, Unavailable, describe_failure

_NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME
_OUT_OF_TIME = {9: "is not valid yet", 10: "has expired"}  # OpenSSL's numbers


def split_server(server: str) -> tuple[str, int]:
    """Host and port of ``https://HOST[:PORT]``. Raises InvalidInput for anything else."""
    try:
        parts = urlsplit(server)
        whole, host, port = parts._replace(path=parts.path.rstrip("/")), parts.hostname, parts.port
    except ValueError:  # brackets that don't match, a port that isn't one
        host = None
    if (
        not host
        or not host.isprintable()
        or " " in server
        or whole != ("https", parts.netloc, "", "", "")
        or "@" in parts.netloc
    ):
        raise InvalidInput(
            f"server {server[:80]!r} is not an https URL", field="server", hint="write it like https://10.0.0.1:8443"
        )
    return host, port or 443


def make_tls(context: Context) -> ssl.SSLContext:
    """Make the TLS context that a connection to the context's server must satisfy. Raises InvalidInput for
    unreadable certificates."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if context.ca:
            tls.load_verify_locations(cadata=context.ca)
        else:
            tls.load_default_certs()
        if context.certificate:
            tls.load_cert_chain(context.certificate, context.key or None)
    except (OSError, ValueError) as problem:
        raise InvalidInput(
            f"the context's certificates can't be used: {describe_failure(problem)}",
            field="ca",
            hint="weft login --server URL --user NAME makes the context again",
        ) from problem
    return tls


def set_time_check(tls: ssl.SSLContext, checks: bool) -> None:
    """Whether new connections need a certificate that is valid now. A machine whose clock is known to be wrong would accept none;
    it still accepts its CA's alone."""
    flags = tls.verify_flags & ~_NO_CHECK_TIME
    tls.verify_flags = ssl.VerifyFlags(flags if checks else flags | _NO_CHECK_TIME)


def explain_distrust(server: str, problem: ssl.SSLCertVerificationError, now: float) -> NotAuthenticated:
    """Why the certificate that ``server`` showed is not accepted at ``now`` (unix seconds), and what to do."""
    if problem.verify_code not in _OUT_OF_TIME:
        return NotAuthenticated(
            f"the server at {server} is not the one this context trusts: {problem.verify_message}",
            hint=f"check the context's ca and server; weft login --server {server} --user NAME shows the CA to compare",
        )
    here = datetime.datetime.fromtimestamp(now, datetime.UTC)
    return NotAuthenticated(
        f"the certificate of the server at {server} {_OUT_OF_TIME[problem.verify_code]}; "
        f"this machine's clock says {here:%Y-%m-%d %H:%M} UTC",
        reason="certificateExpired",
        hint="set this machine's clock (timedatectl set-ntp true); if it is right, restart weft server: it renews it",
    )


def fetch_ca(server: str, sha256: str, *, timeout_seconds: float = 10.0) -> str:
    """The CA certificate (PEM) that the server at ``server`` shows and whose SHA-256 is ``sha256``.

    The first contact of a machine that knows nothing else yet: nothing is sent. Raises NotAuthenticated if the server
    shows no such certificate, Unavailable if it can't be reached."""
    check_digest(sha256)
    for certificate in _fetch_shown(server, timeout_seconds):
        if hashlib.sha256(certificate).hexdigest() == sha256.lower().replace(":", ""):
            return ssl.DER_cert_to_PEM_cert(certificate)
    raise NotAuthenticated(
        f"the server at {server} does not belong to the CA with SHA-256 {sha256[:16]}…",
        field="ca_sha256",
        hint="copy the whole command that weft token create or weft user invite printed",
    )


def check_digest(sha256: str) -> None:
    """Raises InvalidInput for what is no SHA-256 digest."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256.lower().replace(":", "")):
        raise InvalidInput(
            f"--ca-sha256: {sha256[:80]!r} is not a SHA-256 digest",
            field="ca_sha256",
            hint="copy its 64 hex digits whole, as weft token create or weft user invite printed them",
        )


def find_unknown_ca(server: str, *, timeout_seconds: float = 10.0) -> str:
    """The CA certificate (PEM) that the server at ``server`` shows, for somebody to compare; "" if this machine trusts the server
    already. Nothing is sent. Raises as ``fetch_ca`` does."""
    shown = _fetch_shown(server, timeout_seconds)
    host, port = split_server(server)
    try:
        with (
            socket.create_connection((host, port), timeout_seconds) as plain,
            ssl.create_default_context().wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except OSError:
        return ssl.DER_cert_to_PEM_cert(shown[-1])


def _fetch_shown(server: str, timeout_seconds: float) -> list[bytes]:
    """The certificates (DER) that a server shows, its own first."""
    place = split_server(server)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection(place, timeout_seconds) as plain,
            tls.wrap_socket(plain) as sock,
        ):
            return _shown_certificates(sock)
    except (OSError, ValueError) as problem:
        raise Unavailable(f"no weft server answers at {server}: {describe_failure(problem)}") from problem


def _shown_certificates(sock: ssl.SSLSocket) -> list[bytes]:
    ask = getattr(sock, "get_unverified_chain", None)  # public from Python 3.13 on
    if ask is not None:
        return [bytes(certificate) for certificate in ask()]
    chain = sock._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain or ()]
