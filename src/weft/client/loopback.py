"""The address to which a browser comes back after a login at an OIDC provider (RFC 8252): a port of this machine's loopback, for
one answer."""

from __future__ import annotations

import hmac
import http.server
from typing import Any
from urllib.parse import parse_qs, urlsplit

from weft.objects.errors import NotAuthenticated, TimedOut

PATH = "/callback"
_DONE = b"<!doctype html><title>weft</title><p>You are logged in. You can close this page.\n"


class Loopback:
    """Listens at ``port`` of 127.0.0.1, 0 for any. Raises OSError if it can't."""

    def __init__(self, port: int = 0) -> None:
        self._answers: list[dict[str, str]] = []
        answers = self._answers

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = 5.0

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                good = parts.path == PATH
                if good:
                    answers.append({name: values[0] for name, values in parse_qs(parts.query).items()})
                self.send_response(200 if good else 404)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(_DONE if good else b"")

            def log_message(self, *_: Any) -> None:
                """The address has the code in it."""

        self._server = http.server.HTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}{PATH}"

    def wait(self, state: str, seconds: float, elapsed: Any) -> str:
        """The code with which the browser comes back. Raises NotAuthenticated if the provider refused, TimedOut."""
        end = elapsed() + seconds
        while elapsed() < end:
            self._server.timeout = min(1.0, max(0.0, end - elapsed()))
            self._server.handle_request()
            for answer in self._answers:
                if hmac.compare_digest(answer.get("state", "").encode(), state.encode()):
                    if "code" in answer:
                        return answer["code"]
                    why = answer.get("error_description") or answer.get("error", "no code came back")
                    raise NotAuthenticated(
                        f"the OIDC provider refused the login: {why[:200]}", reason="loginRefused", hint="log in again"
                    )
            self._answers.clear()  # somebody else's
        raise TimedOut("nobody has logged in", hint="weft login --oidc --device asks for no browser on this machine")

    def close(self) -> None:
        self._server.server_close()
