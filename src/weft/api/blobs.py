"""Contents of images and of functions' code by digest, with ranges: for nodes, of the images in their allocations, and what they
have a ticket for."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from starlette.responses import FileResponse, Response

from weft.api.authorise import owns_image, require_enrolled
from weft.api.call import Call
from weft.api.doors import Doors
from weft.api.uploads import code_path
from weft.objects.errors import Forbidden, NotFound
from weft.trust.tickets import check_blob_ticket

_DIGEST = re.compile(r"[0-9a-f]{64}")


async def blob(doors: Doors, call: Call, digest: str) -> Response:
    """``GET /v1/blobs/{sha256}``."""
    ticket = call.query("ticket").get("ticket")
    if not _DIGEST.fullmatch(digest):
        raise NotFound(f"no image content {digest[:80]!r}", hint="its name is a SHA-256, 64 hex digits")
    if call.actor.kind == "node":
        await require_enrolled(doors, call.actor)
        if ticket is not None:
            check_blob_ticket(doors.settings.ticket_key, ticket, digest, call.actor.id, doors.clock.now())
        elif not await owns_image(doors, call.actor.id, digest):
            raise Forbidden("a node gets only the images of its own allocations")
    elif call.actor.kind != "person":
        raise Forbidden("a join token can only be used to join")
    path = await asyncio.to_thread(_find, doors.settings.blobs, digest)
    if path is None:
        raise NotFound(f"image content {digest[:12]}… is not here (yet)", hint="weft image list shows how far it is")
    return FileResponse(path, media_type="application/octet-stream", headers={"ETag": f'"{digest}"'})


def _find(blobs: Path, digest: str) -> Path | None:
    return next((path for path in (blobs / digest, code_path(blobs, digest)) if path.is_file()), None)
