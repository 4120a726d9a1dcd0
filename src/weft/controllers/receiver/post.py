"""Posts JSON to an http(s) URL: follows no redirect, knows no proxy, and reads a bounded answer. Blocks."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from weft.controllers.receiver.line import Bounded, Line, make_context
from weft.controllers.receiver.outcome import MOST_ANSWER, Outcome, clean, judge

_BODY_SECONDS = 1.0  # that are waited for an answer's body


def post(line: Line, url: str, body: bytes, headers: Mapping[str, str], ca: str) -> Outcome:
    """Raises OSError, http.client.HTTPException."""
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    sock = line.connect(host, port)
    try:
        if secure:
            sock = make_context(ca).wrap_socket(sock, server_hostname=host)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(host, port)
        connection.sock = sock
        fixed = {"Content-Type": "application/json", "User-Agent": "weft", "Connection": "close"}
        connection.request("POST", path, body, {**fixed, **headers})
        answer = http.client.HTTPResponse(cast(Any, Bounded(sock)), method="POST")
        answer.begin()
        return judge(answer.status, _read_answer(answer, sock) if line.is_open_place else "")
    finally:
        sock.close()


def _read_answer(answer: http.client.HTTPResponse, sock: socket.socket) -> str:
    """The beginning of its body, if that comes at once: the status is what counts."""
    sock.settimeout(_BODY_SECONDS)
    body = b""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        body = answer.read1(4 * MOST_ANSWER)
    return clean(body.decode(errors="replace"))
