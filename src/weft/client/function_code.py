"""Functions' code and models' files at the server, by digest."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from weft.client.answer import raise_problem
from weft.objects.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from weft.client import Client

_DIGEST = re.compile(r"[0-9a-f]{64}")
UPLOAD_SECONDS = 120.0  # of silence, while the server checks the upload


def has_code(client: Client, sha256: str, sort: Literal["code", "onnx"] = "code", project: str = "") -> bool:
    """Whether the project, "" is the client's, has it; then the server keeps it for at least an hour."""
    try:
        raise_problem(client.http.request("GET", _path(client, sha256, sort, project)))
    except NotFound as problem:
        if problem.token not in ("codeNotFound", "modelNotFound"):
            raise
        return False
    return True


def upload_code(
    client: Client, sha256: str, data: bytes, sort: Literal["code", "onnx"] = "code", project: str = ""
) -> None:
    """Upload it: a zip, or an ONNX file. Raises InvalidInput for anything else, TooLarge."""
    headers = {"Content-Type": "application/zip" if sort == "code" else "application/octet-stream"}
    path = _path(client, sha256, sort, project)
    raise_problem(client.http.request("PUT", path, data, headers=headers, timeout_seconds=UPLOAD_SECONDS))


def _path(client: Client, sha256: str, sort: str, project: str) -> str:
    if not _DIGEST.fullmatch(sha256):  # it may come from a node, which reads it in a backup
        raise InvalidInput(
            f"{sha256[:80]!r} is not a digest", field="sha256", hint="a SHA-256 in 64 hexadecimal digits"
        )
    return f"/v1/projects/{quote(project or client.project, safe='')}/{sort}/{sha256}"
