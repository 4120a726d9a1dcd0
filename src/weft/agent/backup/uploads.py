"""The code and the models that a project's objects name, fetched from the server into a folder of this node, for its backup."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from weft.agent.server.client import Server
from weft.objects.code_limits import MOST_BYTES
from weft.objects.errors import DriverFailed, NotFound
from weft.objects.quantity import format_bytes

log = logging.getLogger("weft.agent")
MOST_UPLOAD_BYTES = 64 << 30  # of a project's together: more than a thousand of the largest
SPARE_BYTES = 1 << 30  # that they leave free, for what runs here
_MOST_NAMED = 5


class Uploads(msgspec.Struct, frozen=True):
    files: dict[str, str]  # their paths, by digest
    missing: list[str]  # digests that the server has lost


async def fetch_uploads(server: Server, tickets: Mapping[str, str], folder: Path) -> Uploads:
    """Those of ``tickets``, by digest. Raises DriverFailed (``noSpace``, ``tooLarge``), and as ``Server.fetch_blob``."""
    files, missing, total = dict[str, str](), list[str](), 0
    for sha256, ticket in tickets.items():
        _require_capacity(folder, total)
        path = folder / str(len(files))
        try:
            await asyncio.to_thread(_fetch, server, sha256, ticket, path)
        except NotFound:  # the server has lost it: what names it doesn't work now, either
            log.warning("the server does not have %s, which the backup needs", sha256[:12])
            path.unlink()
            missing.append(sha256)
            continue
        files[sha256] = str(path)
        total += path.stat().st_size
    return Uploads(files, missing)


def render_missing(objects: Sequence[Mapping[str, Any]], missing: Sequence[str]) -> str:
    """Render which of ``objects``, as in a ``BackedUpProject``, name what is missing; "" if nothing is. Pure."""
    if not missing:
        return ""
    named = [
        f"{one['kind']}/{one['name']}"
        for one in objects
        if any(sha256 in msgspec.json.encode(one["spec"]).decode() for sha256 in missing)
    ]
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    of = ", ".join(named[:_MOST_NAMED]) + more if named else f"{len(missing)} objects"
    return f"without the code or model of {of}, which the server does not have: upload it again, then back up again"


def _require_capacity(folder: Path, total: int) -> None:
    """Require capacity for the largest upload that may come."""
    if total + MOST_BYTES > MOST_UPLOAD_BYTES:
        raise DriverFailed(
            f"code and models of the project are more than {format_bytes(MOST_UPLOAD_BYTES)}",
            reason="tooLarge",
            hint="make some of its functions in another project",
        )
    free = shutil.disk_usage(folder).free
    if free < MOST_BYTES + SPARE_BYTES:
        raise DriverFailed(
            f"code and models of the project need more space than {folder.parent} has: {format_bytes(free)} are free",
            reason="noSpace",
            hint="free some space on the node's disk, then make the backup again",
        )


def _fetch(server: Server, sha256: str, ticket: str, path: Path) -> None:
    def require_size(length: int) -> None:
        if length > MOST_BYTES:
            raise DriverFailed(f"{sha256[:12]}… is more than {format_bytes(MOST_BYTES)}", reason="tooLarge")

    with path.open("wb") as out:
        server.fetch_blob(sha256, out, require_size, ticket)
