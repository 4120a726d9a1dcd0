"""Functions' code at the server, by its digest."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from weft.client.answer import raise_problem
from weft.objects.errors import NotFound

if TYPE_CHECKING:
    from weft.client import Client

UPLOAD_SECONDS = 120.0  # of silence, while the server checks the upload


def has_code(client: Client, sha256: str) -> bool:
    """Whether the server has it; then the server keeps it for at least an hour."""
    try:
        raise_problem(client.http.request("GET", _path(client, sha256)))
    except NotFound as problem:
        if problem.token != "codeNotFound":
            raise
        return False
    return True


def upload_code(client: Client, sha256: str, zipped: bytes) -> None:
    """Upload it. Raises InvalidInput for anything but code, TooLarge."""
    headers = {"Content-Type": "application/zip"}
    raise_problem(
        client.http.request("PUT", _path(client, sha256), zipped, headers=headers, timeout_seconds=UPLOAD_SECONDS)
    )


def _path(client: Client, sha256: str) -> str:
    return f"/v1/projects/{quote(client.project, safe='')}/code/{sha256}"
