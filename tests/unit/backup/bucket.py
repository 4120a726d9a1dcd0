"""A bucket as S3 serves it, with versions and Object Lock: enough for a repository, and as strict as radosgw about locks."""

from __future__ import annotations

import itertools
import ssl
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Version:
    def __init__(self, name: str, body: bytes | None, until: datetime | None) -> None:
        self.name, self.body, self.until = name, body, until  # without a body: a mark of deletion


class Bucket(ThreadingHTTPServer):
    """Keys are listed three at a time, so that listings have pages."""

    daemon_threads = True
    scheme = "http"

    def __init__(
        self, locks: bool, address: str = "127.0.0.1", handler: type[BaseHTTPRequestHandler] | None = None
    ) -> None:
        super().__init__((address, 0), handler or Handler)
        self.locks, self.keys, self.guard = locks, dict[str, list[Version]](), threading.Lock()
        self.numbers, self.refuse_retention = itertools.count(1), False
        self.refusal, self.refusals = "", 0  # a code, and how many of the next requests get it
        self.clock_ahead = 0.0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Clients that go, or don't trust it."""

    def serve_tls(self, certificate: Path, key: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket, self.scheme = context.wrap_socket(self.socket, server_side=True), "https"

    def close(self) -> None:
        """A thread that goes on with a closed socket never rests."""
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"s3://bucket?endpoint={self.scheme}://{self.server_address[0]}:{self.server_address[1]}&region=us-east-1&prefix=a/b"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two writes
    server: Bucket

    def log_message(self, format: str, *args: object) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.server.clock_ahead)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code></Error>".encode())

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        key = unquote(parts.path).removeprefix("/bucket").removeprefix("/")
        with self.server.guard:
            if self.server.refusals:
                self.server.refusals -= 1
                return self.fail(503 if self.server.refusal == "ServiceUnavailable" else 403, self.server.refusal)
            if key:
                self.serve_object(key, query, body)
            else:
                self.serve_bucket(query)

    do_GET = do_PUT = do_DELETE = do_HEAD = handle_any

    def serve_bucket(self, query: dict[str, str]) -> None:
        if self.command == "HEAD":
            return self.answer(200)
        if "object-lock" in query:
            if not self.server.locks:
                return self.fail(404, "ObjectLockConfigurationNotFoundError")
            state = "<ObjectLockEnabled>Enabled</ObjectLockEnabled>"
            return self.answer(200, f"<ObjectLockConfiguration>{state}</ObjectLockConfiguration>".encode())
        after = query.get("key-marker") or query.get("continuation-token") or ""
        keys = sorted(key for key in self.server.keys if key.startswith(query["prefix"]) and key > after)
        keys, rest = keys[:3], keys[3:]
        rows = []
        for key in keys:
            versions = list(reversed(self.server.keys[key]))
            if "versions" not in query:
                if versions[0].body is not None:
                    rows.append(f"<Contents><Key>{escape(key)}</Key><Size>{len(versions[0].body)}</Size></Contents>")
                continue
            for one in versions:
                tag = "DeleteMarker" if one.body is None else "Version"
                size = "" if one.body is None else f"<Size>{len(one.body)}</Size>"
                latest = f"<IsLatest>{str(one is versions[0]).lower()}</IsLatest>"
                rows.append(f"<{tag}><Key>{escape(key)}</Key><VersionId>{one.name}</VersionId>{latest}{size}</{tag}>")
        cut = f"<IsTruncated>{str(bool(rest)).lower()}</IsTruncated>"
        if rest:
            cut += f"<NextKeyMarker>{keys[-1]}</NextKeyMarker><NextVersionIdMarker>x</NextVersionIdMarker>"
            cut += f"<NextContinuationToken>{keys[-1]}</NextContinuationToken>"
        self.answer(200, f"<ListBucketResult>{cut}{''.join(rows)}</ListBucketResult>".encode())

    def serve_object(self, key: str, query: dict[str, str], body: bytes) -> None:
        versions = self.server.keys.get(key, [])
        wanted = query.get("versionId")
        one = next((v for v in reversed(versions) if wanted in (None, v.name)), None)
        if "retention" in query:
            self.serve_retention(one, body)
        elif self.command == "PUT":
            if self.headers.get("If-None-Match") and one and one.body is not None:
                return self.fail(412, "PreconditionFailed")
            until = self.headers.get("x-amz-object-lock-retain-until-date")
            fresh = Version(f"v{next(self.server.numbers)}", body, read_time(until) if until else None)
            self.server.keys[key] = [*versions, fresh] if self.server.locks else [fresh]
            self.answer(200, x_amz_version_id=fresh.name)
        elif self.command == "DELETE":
            if wanted is None and self.server.locks:
                self.server.keys[key] = [*versions, Version(f"v{next(self.server.numbers)}", None, None)]
            elif one and one.until and one.until > datetime.now(UTC):
                return self.fail(403, "AccessDenied")
            else:
                self.server.keys[key] = [v for v in versions if v is not one]
                if not self.server.keys[key]:
                    del self.server.keys[key]
            self.answer(204)
        elif one is None or one.body is None:
            self.fail(404, "NoSuchKey")
        elif ranged := self.headers.get("Range"):
            first, _, last = ranged.removeprefix("bytes=").partition("-")
            if int(first) >= len(one.body):
                return self.fail(416, "InvalidRange")
            self.answer(206, one.body[int(first) : int(last) + 1 if last else None])
        else:
            self.answer(200, one.body)

    def serve_retention(self, one: Version | None, body: bytes) -> None:
        if one is None:
            return self.fail(404, "NoSuchKey")
        if self.command == "PUT":
            until = read_time(body.decode().partition("<RetainUntilDate>")[2].partition("<")[0])
            if self.server.refuse_retention or (one.until and until < one.until):
                return self.fail(403, "AccessDenied")
            one.until = until
            return self.answer(200)
        if one.until is None:
            return self.fail(404, "NoSuchObjectLockConfiguration")
        ends = f"<Mode>COMPLIANCE</Mode><RetainUntilDate>{one.until.isoformat()}</RetainUntilDate>"
        self.answer(200, f"<Retention>{ends}</Retention>".encode())


def read_time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
