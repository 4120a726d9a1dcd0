"""Contents of images, of functions' code and of models by digest, with ranges; what isn't here comes from another server first.

A node gets the images of its allocations, the models of its devices, and what it has a ticket for; an admin and another server of
the fabric get all; a viewer reads objects, not contents."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from pathlib import Path

from weft.api.admission.uploads import code_path
from weft.api.auth.authorise import owns_image, require_enrolled, require_permission
from weft.api.auth.served_devices import serves_file
from weft.api.context import ApiContext
from weft.api.request.call import Call, read_flag
from weft.api.route import Route, Topic
from weft.client.server.files import FOLDER
from weft.kinds.orders import UPGRADE
from weft.kinds.parts.image.work import SENT
from weft.objects.errors import Forbidden, NotFound, Unavailable
from weft.serving.answer import Answer
from weft.serving.protocol import PIECE_BYTES
from weft.trust.tickets import check_blob_ticket

BRING_SECONDS = 20.0  # that a request waits for a file of another server
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_DIGEST = re.compile(r"[0-9a-f]{64}")


async def blob(context: ApiContext, call: Call, digest: str) -> Answer:
    """``GET /v1/blobs/{sha256}``."""
    if call.actor.kind == "node":
        await require_enrolled(context, call.actor)
    elif call.actor.kind != "server":
        require_permission(call.actor, "blob:get", None, "take the contents of images and code")
    query = call.query("ticket", "sent")
    ticket = query.get("ticket")
    if not _DIGEST.fullmatch(digest):
        raise NotFound(f"no image content {digest[:80]!r}", hint="name the content by its SHA-256, 64 hex digits")
    if call.actor.kind == "node":
        if ticket is not None:
            check_blob_ticket(context.settings.ticket_key, ticket, digest, call.actor.id, context.clock.now())
        elif not (
            await owns_image(context, call.actor.id, digest)
            or digest in {order.image.sha256 for order in context.orders.list_warm()}
            or digest
            in {one.sha256 for order in context.orders.find_all(UPGRADE, call.actor.id) for one in order.packages}
            or await serves_file(context, call.actor.id, digest)
        ):
            raise Forbidden("a node gets only the images of its own allocations, and the models of its own devices")
    from_server = call.actor.kind == "server"
    sent = from_server and read_flag(query, "sent")
    path = await asyncio.to_thread(_find, context.settings.blobs, digest, sent=sent)
    if path is None and not from_server:
        path = await _bring(context, digest)
    if path is None:
        raise NotFound(
            f"image content {digest[:12]}… is not on the server (yet)", hint="weft image list shows its progress"
        )
    tag = f'"{digest}"'
    if any(one.strip().removeprefix("W/") in (tag, "*") for one in call.request.header(b"if-none-match").split(",")):
        return Answer(304, headers=(("etag", tag),))
    return _send(call, path, tag, ((FOLDER, path.parent.name),) if from_server else ())


async def _bring(context: ApiContext, digest: str) -> Path | None:
    """Get the file from another server of the fabric; None: no server has it. Raises Unavailable, DriverFailed."""
    try:
        async with asyncio.timeout(BRING_SECONDS):
            return await context.files.bring(digest)
    except TimeoutError:
        raise Unavailable(
            f"content {digest[:12]}… is being copied here from another server",
            hint="try again",
            retry_after_seconds=2,
        ) from None


def _send(call: Call, path: Path, tag: str, more: tuple[tuple[str, str], ...]) -> Answer:
    """The file, or one range of it (RFC 9110); all of it if the request names several ranges, or another version."""
    size = path.stat().st_size
    headers = (("content-type", "application/octet-stream"), ("etag", tag), ("accept-ranges", "bytes"), *more)
    found = _RANGE.fullmatch(call.request.header(b"range"))
    if found is None or not any(found.groups()) or call.request.header(b"if-range") not in ("", tag):
        return Answer(200, headers=headers, pieces=_read(path, 0, size), length=size)
    first, last = (int(text) if text else None for text in found.groups())
    if first is None:
        first, last = max(0, size - (last or 0)), None
    end = size if last is None else min(last + 1, size)
    if first >= end:
        return Answer(416, headers=(("content-range", f"bytes */{size}"),))
    content_range = ("content-range", f"bytes {first}-{end - 1}/{size}")
    return Answer(206, headers=(*headers, content_range), pieces=_read(path, first, end), length=end - first)


async def _read(path: Path, start: int, end: int) -> AsyncGenerator[bytes, None]:
    with await asyncio.to_thread(path.open, "rb") as file:
        file.seek(start)
        while start < end and (piece := await asyncio.to_thread(file.read, min(PIECE_BYTES, end - start))):
            start += len(piece)
            yield piece


def _find(blobs: Path, digest: str, *, sent: bool) -> Path | None:
    """The file; with ``sent`` also one that a node has sent to this server, and the images controller hasn't checked yet."""
    found = next((path for path in (blobs / digest, code_path(blobs, digest)) if path.is_file()), None)
    return next(blobs.glob(f"{SENT}*.{digest}"), None) if found is None and sent else found


ROUTES = (
    Route(
        "GET",
        "/v1/blobs/{sha256}",
        blob,
        "Content of an image, or of code",
        permission="blob:get",
        where="all",
        topic=Topic("by people", "read", "image"),
        query=("ticket", "sent"),
        answers={},
    ),
)
