"""Contents of images by digest, with ranges: for nodes, of the images in their allocations only."""

from __future__ import annotations

import asyncio
import re

from starlette.responses import FileResponse, Response

from weft.api.authorise import owns_image, require_enrolled
from weft.api.call import Call
from weft.api.doors import Doors
from weft.objects.errors import Forbidden, NotFound

_DIGEST = re.compile(r"[0-9a-f]{64}")


async def blob(doors: Doors, call: Call, digest: str) -> Response:
    """``GET /v1/blobs/{sha256}``."""
    call.query()
    if not _DIGEST.fullmatch(digest):
        raise NotFound(f"no image content {digest[:80]!r}", hint="its name is a SHA-256, 64 hex digits")
    if call.actor.kind == "node":
        await require_enrolled(doors, call.actor)
        if not await owns_image(doors, call.actor.id, digest):
            raise Forbidden("a node gets only the images of its own allocations")
    elif call.actor.kind != "person":
        raise Forbidden("a join token can only be used to join")
    path = doors.settings.blobs / digest
    if not await asyncio.to_thread(path.is_file):
        raise NotFound(f"image content {digest[:12]}… is not here (yet)", hint="weft image list shows how far it is")
    return FileResponse(path, media_type="application/octet-stream", headers={"ETag": f'"{digest}"'})
