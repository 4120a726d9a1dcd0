"""Images that nodes make of VMs: what a node sends is written beside the contents of images, until the images controller has
checked it and keeps it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
from pathlib import Path

from weft.api.context import ApiContext
from weft.api.node.join import require_own
from weft.api.request.call import Call, json_answer
from weft.api.route import Route, Topic
from weft.contracts.durable_file import keep_file, measure_free
from weft.kinds.orders import MAKE_IMAGE
from weft.kinds.parts.image.work import FETCHING, MOST_IMAGE_BYTES, ImageOrder, name_sent
from weft.objects.envelope import decode_envelope
from weft.objects.errors import DriverFailed, InvalidInput, NotFound, Unavailable
from weft.objects.identity import object_key
from weft.serving.answer import Answer

AT_ONCE = 4  # files that nodes send: each holds a thread now and then
_DIGEST = re.compile(r"[0-9a-f]{64}")


async def made_image(context: ApiContext, call: Call, name: str, uid: str, sha256: str) -> Answer:
    """``PUT /v1/nodes/{name}/images/{uid}/{sha256}``, by the node that has the order to make it. Repeated is fine."""
    await require_own(context, call, name)
    call.query()
    orders = context.orders.find_all(MAKE_IMAGE, call.actor.id)
    order = next((one for one in orders if one.uid == uid), None)
    if order is None or not _DIGEST.fullmatch(sha256):
        raise NotFound(f"node {name} has no image {uid[:80]} to make")
    if context.made_images >= AT_ONCE:
        raise Unavailable("too many images are being sent", hint="try again", retry_after_seconds=5)
    context.made_images += 1
    try:
        size = await _receive(context, call, order, sha256)
    finally:
        context.made_images -= 1
    return json_answer({"sha256": sha256, "size": size}, 201)


async def _receive(context: ApiContext, call: Call, order: ImageOrder, sha256: str) -> int:
    """Write the body, piece by piece, into a file that gets its name once it is whole; its size."""
    folder = context.settings.blobs
    target = name_sent(folder, order.uid, sha256)
    descriptor, name = tempfile.mkstemp(prefix=f"{FETCHING}{order.uid}.", dir=folder)
    work = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as out:
            os.fchmod(descriptor, 0o644)  # for qemu-img, which runs as nobody; the folder is the server's alone
            digest, size = hashlib.sha256(), 0
            async for piece in call.read_pieces(MOST_IMAGE_BYTES):
                _require_space(out.fileno(), len(piece), order)
                await asyncio.to_thread(digest.update, piece)
                await asyncio.to_thread(out.write, piece)
                size += len(piece)
        if digest.hexdigest() != sha256:
            raise InvalidInput(f"what came has the SHA-256 {digest.hexdigest()}", hint="send it again")
        await asyncio.to_thread(keep_file, work, target)
    except OSError as problem:
        raise Unavailable(f"the server can't store the image: {problem.strerror or problem}") from None
    finally:
        await asyncio.to_thread(work.unlink, missing_ok=True)
    if not await _is_there(context, order):  # deleted meanwhile, before or after it got its name
        await asyncio.to_thread(target.unlink, missing_ok=True)
        raise NotFound(f"image {order.name} was deleted")
    return size


async def _is_there(context: ApiContext, order: ImageOrder) -> bool:
    entry = await context.store.get(object_key("image", *order.name.split("/", 1)))
    envelope = decode_envelope(entry.value) if entry is not None else None
    return envelope is not None and envelope.uid == order.uid and envelope.deleting_since is None


def _require_space(place: int, size: int, order: ImageOrder) -> None:
    if measure_free(place) < size:
        raise DriverFailed(
            f"image {order.name} doesn't fit on the server's disk",
            reason="noSpace",
            hint="free space there, or delete images; then create it again",
        )


ROUTES = (
    Route(
        "PUT",
        "/v1/nodes/{name}/images/{uid}/{sha256}",
        made_image,
        "Take an image that a node has made of a VM",
        where="nodes",
        topic=Topic("refused", "upload", "image", name="{uid}"),
    ),
)
