"""The gateway's function API, for weft's own clients: its address, and the dead letters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from weft.client.answer import raise_problem
from weft.client.api import Client
from weft.client.context import hash_ca
from weft.client.http import Http
from weft.contracts.durable_file import write_durably
from weft.objects.errors import NotFound


class Endpoint(msgspec.Struct, frozen=True):
    """``url`` is where functions are invoked by HTTP and by the Lambda API; ``region`` is part of signatures."""

    url: str
    region: str


def find_endpoint(client: Client) -> Endpoint:
    """Endpoint for invoking functions, as seen from here. Raises NotFound if the server has no function API."""
    answer = client.http.request("GET", "/v1/gateway")
    raise_problem(answer)
    report = answer.json()
    if not report.get("functions"):
        raise NotFound("this server serves no functions", hint="weft server --functions ADDRESS:PORT")
    return Endpoint(report["functions"], report["region"])


def keep_ca(ca: str, environ: Mapping[str, str]) -> Path:
    """The file with the fabric's CA in the user's cache, made if it isn't there."""
    folder = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or "/root") / ".cache") / "weft"
    path = folder / f"ca-{hash_ca(ca)[:16]}.pem"
    if not path.exists() or path.read_text() != ca:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, ca.encode(), 0o644)
    return path


def list_dead_letters(client: Client, function: str) -> list[dict[str, Any]]:
    """All dead letters of a function, newest first."""
    found: list[dict[str, Any]] = []
    http = _dial(client)
    try:
        while True:
            after = f"?after={quote(found[-1]['id'])}" if found else ""
            answer = http.request("GET", _path(client, function) + after)
            raise_problem(answer)
            page = answer.json()["items"]
            found += page
            if not page:
                return found
    finally:
        http.close()


def act_on_dead_letters(client: Client, function: str, verb: str) -> int:
    """``redrive`` or ``purge`` all dead letters of a function; how many."""
    http = _dial(client)
    try:
        answer = http.request("POST", f"{_path(client, function)}:{verb}", b"")
        raise_problem(answer)
        return int(answer.json()["count"])
    finally:
        http.close()


def _dial(client: Client) -> Http:
    http = Http(msgspec.structs.replace(client.context, server=find_endpoint(client).url))
    http.on_away = client.http.on_away
    return http


def _path(client: Client, function: str) -> str:
    return f"/v1/projects/{quote(client.project, safe='')}/functions/{quote(function, safe='')}/dead-letters"
