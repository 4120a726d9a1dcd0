"""A browser as the API server sees it: keeps cookie and page key of a session, names its origin, reads server-sent events."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlencode

from tests.scenario.api_lab import ApiLab

COOKIE = "__Host-weft"
PASSWORD = "correct horse battery"


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


class Browser:
    """``origin`` is that of the page that sends the requests."""

    def __init__(self, lab: ApiLab) -> None:
        self.host = f"127.0.0.1:{lab.port}"
        self.origin = f"https://{self.host}"
        self.cookie = self.page_key = ""
        self._tls = ssl.create_default_context(cafile=str(lab.authority.ca_path))
        self._tls.check_hostname = False
        self._open: list[http.client.HTTPSConnection] = []

    def login(self, name: str, password: str = PASSWORD) -> Browser:
        reply = self.send("POST", "/v1/session", {"user": name, "password": password})
        assert reply.status == 201, reply.body
        return self

    def send(self, method: str, path: str, body: Any = None, **headers: str | None) -> Reply:
        """``headers``, with _ for -, replace those that a browser sends; None leaves one out."""
        connection = self._connect()
        try:
            self._request(connection, method, path, body, headers)
            answer = connection.getresponse()
            reply = Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()
        self._take_cookie(reply.headers.get("set-cookie", ""))
        if reply.status == 201 and path == "/v1/session":
            self.page_key = reply.json()["page_key"]
        return reply

    def get(self, path: str, **query: Any) -> Any:
        reply = self.send("GET", path + (f"?{urlencode(query)}" if query else ""))
        assert reply.status == 200, reply.body
        return reply.json()

    def stream(self, **show: Any) -> Events:
        connection = self._connect()
        self._open.append(connection)
        self._request(connection, "GET", f"/v1/dashboard/stream?{urlencode({'show': json.dumps(show)})}", None, {})
        return Events(connection, connection.getresponse())

    def close(self) -> None:
        for connection in self._open:
            connection.close()

    def _connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self.host, context=self._tls, timeout=20)

    def _request(
        self, connection: http.client.HTTPSConnection, method: str, path: str, body: Any, headers: dict[str, str | None]
    ) -> None:
        given: dict[str, str | None] = {"sec-fetch-site": "same-origin", "x-weft-csrf": self.page_key or None}
        if method != "GET":
            given |= {"origin": self.origin, "content-type": "application/json"}
        if self.cookie:
            given["cookie"] = f"theme=dark; {COOKIE}={self.cookie}"
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {name: value for name, value in given.items() if value is not None})

    def _take_cookie(self, header: str) -> None:
        if header.startswith(f"{COOKIE}="):
            self.cookie = header.partition("=")[2].partition(";")[0]


class Events:
    """The events of a stream as they come."""

    def __init__(self, connection: http.client.HTTPSConnection, answer: http.client.HTTPResponse) -> None:
        self.status, self._connection, self._answer = answer.status, connection, answer

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        name = data = ""
        while line := self._answer.readline().decode():
            line = line.rstrip("\n")
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data = line[6:]
            elif not line and name:
                yield name, json.loads(data)
                name = data = ""

    def next(self, wanted: str) -> Any:
        """The next event with that name."""
        for name, data in self:
            if name == wanted:
                return data
        raise EOFError(f"the stream ended without {wanted}")

    def close(self) -> None:
        self._connection.close()


def add_user(lab: ApiLab, name: str, role: str, project: str | None) -> str:
    """A user with a password, and a role in one project (None: in all)."""
    lab.client.create({"kind": "user", "name": name, "spec": {}})
    reply = lab.client.http.request("POST", f"/v1/users/{name}:passwd", {"password": PASSWORD})
    assert reply.status == 200
    if role:
        spec = {"role": role, "users": [name], **({"project": project} if project else {})}
        lab.client.create({"kind": "rolebinding", "name": f"{name}-{role}", "spec": spec})
    return name
