"""Functions' code and models' files: uploaded once in a project by digest, checked, and stored durably while an object names it; on
two servers before the upload is acknowledged, where there are as many."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO

from weft.api.admission.uploads import Sort, code_path, find_missing, find_upload, has_upload, note_upload, upload_path
from weft.api.auth.authorise import require_permission
from weft.api.context import ApiContext
from weft.api.request.call import Call, json_answer
from weft.api.route import Route, Topic
from weft.client.answer import raise_problem
from weft.client.connection import FileBody
from weft.client.server.files import SILENCE_SECONDS, choose_homes
from weft.contracts.durable_file import keep_file
from weft.kinds.project import PROJECT
from weft.objects.code_archive import read_members
from weft.objects.code_limits import MOST_BYTES
from weft.objects.envelope import decode_envelope
from weft.objects.errors import InvalidInput, NotFound, Unavailable, WeftError
from weft.objects.identity import object_key
from weft.objects.model.onnx_file import check_onnx
from weft.serving.answer import Answer

COPY_SECONDS = 60.0  # for which an upload may take to get to another server
AT_ONCE = 4  # uploads: each may hold a file and a thread
PARTIAL = ".upload-"  # a file's name begins so until the file is complete
_DIGEST = re.compile(r"[0-9a-f]{64}")


async def code(context: ApiContext, call: Call, project: str, sha256: str) -> Answer:
    """``PUT``, with the zip as the body, and ``GET`` (has the project it?) of ``/v1/projects/{project}/code/{sha256}``. What the
    project has is not checked again; what only another one has is taken as if it were new."""
    if call.actor.kind != "server":
        require_permission(call.actor, "function:upload", project, "upload code of a function")
    return await _take(context, call, project, sha256, "code")


async def onnx(context: ApiContext, call: Call, project: str, sha256: str) -> Answer:
    """Upload a model's ONNX file, as ``code`` does."""
    if call.actor.kind != "server":
        require_permission(call.actor, "model:upload", project, "upload the file of a model")
    return await _take(context, call, project, sha256, "onnx")


async def _take(context: ApiContext, call: Call, project: str, sha256: str, sort: Sort) -> Answer:
    word = "code" if sort == "code" else "model"
    call.query()
    if not _DIGEST.fullmatch(sha256):
        raise NotFound(f"no {word} {sha256[:80]!r}", hint=f"name the {word} by its SHA-256, 64 hex digits")
    entry = await context.store.get(object_key(PROJECT.name, None, project))
    if entry is None:
        raise NotFound(f'project "{project[:80]}" not found', hint="weft project list")
    owner, path = decode_envelope(entry.value), code_path(context.settings.blobs, sha256)
    find = has_upload if call.actor.kind == "server" else find_upload
    if await find(context, owner, sha256, sort):
        return json_answer({"sha256": sha256, "size": path.stat().st_size})
    if call.method == "GET":
        raise find_missing(sha256, project, sort)
    if context.uploads >= AT_ONCE and call.actor.kind != "server":  # whose own bound it is
        raise Unavailable("too many uploads are under way", hint="try again", retry_after_seconds=1)
    context.uploads += 1
    try:
        size = await _receive(call, path, sha256, sort)
        if call.actor.kind != "server":
            await _copy_to_another(context, path, upload_path(project, sha256, sort), word)
        await asyncio.to_thread(note_upload, context.settings.blobs, sha256, owner, sort)
    except OSError as problem:
        raise Unavailable(
            f"the server can't store the {word}: {(problem.strerror or str(problem)).lower()}", hint="try again later"
        ) from None
    finally:
        context.uploads -= 1
    return json_answer({"sha256": sha256, "size": size}, 201)


async def _copy_to_another(context: ApiContext, path: Path, place: str, word: str) -> None:
    """Let another server have it, too, if one serves. Raises Unavailable if none takes it."""
    serving = context.others.list_serving()
    problems = []
    for name in choose_homes(path.name, serving):
        try:
            body = FileBody(path, threading.Event())
            raise_problem(
                await context.others.ask(name, "PUT", place, body, seconds=COPY_SECONDS, silence=SILENCE_SECONDS)
            )
        except WeftError as problem:
            problems.append(problem.message)
        else:
            return
    if serving:
        raise Unavailable(
            f"the {word} is on one server only, and no other takes it: {'; '.join(problems)}",
            reason="oneCopy",
            hint="try again",
            retry_after_seconds=2,
        )


async def _receive(call: Call, path: Path, sha256: str, sort: Sort) -> int:
    """Write the body, piece by piece, into a file that gets its name after the check; its size."""
    await asyncio.to_thread(path.parent.mkdir, mode=0o700, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
    work = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as out:
            digest, size = hashlib.sha256(), 0
            async for piece in call.read_pieces(MOST_BYTES):
                digest.update(piece)
                size += len(piece)
                await asyncio.to_thread(out.write, piece)
            if digest.hexdigest() != sha256:
                raise InvalidInput(
                    f"the uploaded {'code' if sort == 'code' else 'model'} doesn't match the digest in the path: its SHA-256 is "
                    f"{digest.hexdigest()}",
                    reason="badCode" if sort == "code" else "badModel",
                    hint="send it again",
                )
            await asyncio.to_thread(_check, out, size, sort)
        await asyncio.to_thread(keep_file, work, path)
    finally:
        await asyncio.to_thread(work.unlink, missing_ok=True)
    return size


def _check(out: BinaryIO, size: int, sort: Sort) -> None:
    out.flush()
    if sort == "code":
        read_members(out, size)
    else:
        out.seek(0)
        check_onnx(out.read(MOST_BYTES + 1))


ROUTES = (
    Route(
        "GET",
        "/v1/projects/{project}/code/{sha256}",
        code,
        "Whether a function's code is there",
        permission="function:upload",
        where="project",
        topic=Topic("refused", "upload", "function", "{project}"),
    ),
    Route(
        "PUT",
        "/v1/projects/{project}/code/{sha256}",
        code,
        "Upload a function's code: a zip",
        permission="function:upload",
        where="project",
        topic=Topic("always", "upload", "function", "{project}"),
    ),
    Route(
        "GET",
        "/v1/projects/{project}/onnx/{sha256}",
        onnx,
        "Whether a model's file is there",
        permission="model:upload",
        where="project",
        topic=Topic("refused", "upload", "model", "{project}"),
    ),
    Route(
        "PUT",
        "/v1/projects/{project}/onnx/{sha256}",
        onnx,
        "Upload a model's file: ONNX",
        permission="model:upload",
        where="project",
        topic=Topic("always", "upload", "model", "{project}"),
    ),
)
