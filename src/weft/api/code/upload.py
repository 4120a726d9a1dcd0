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
from typing import BinaryIO, Literal

from weft.api.admission.uploads import Sort, code_path, find_missing, find_upload, has_upload, note_upload, upload_path
from weft.api.auth.authorise import require_permission
from weft.api.context import ApiContext
from weft.api.request.call import Call, json_answer
from weft.api.route import Route, Topic
from weft.client.answer import raise_problem
from weft.client.connection import FileBody
from weft.client.server.files import SILENCE_SECONDS, choose_homes
from weft.contracts.durable_file import keep_file
from weft.kinds.parts.packages import MOST_PACKAGE_BYTES
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
DEBIAN = b"!<arch>\ndebian-binary"  # how a package begins (deb(5))
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORDS: dict[str, str] = {"code": "code", "onnx": "model", "package": "package"}


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


async def package(context: ApiContext, call: Call, sha256: str) -> Answer:
    """``PUT`` and ``GET`` of ``/v1/packages/{sha256}``: a package for an upgrade of all machines, as ``code`` does."""
    if call.actor.kind != "server":
        require_permission(call.actor, "upgrade:create", None, "upload packages of an upgrade")
    call.query()
    _require_digest(sha256, "package")
    path = code_path(context.settings.blobs, sha256)
    if await asyncio.to_thread(path.is_file):
        await asyncio.to_thread(os.utime, path)  # it isn't removed before an upgrade names it
        return json_answer({"sha256": sha256, "size": path.stat().st_size})
    if call.method == "GET":
        raise NotFound(
            f"package {sha256[:12]}… is not on the server", hint="weft fabric upgrade --to FOLDER uploads it"
        )
    size = await _store(context, call, path, sha256, "package", f"/v1/packages/{sha256}")
    return json_answer({"sha256": sha256, "size": size}, 201)


async def _take(context: ApiContext, call: Call, project: str, sha256: str, sort: Sort) -> Answer:
    word = _WORDS[sort]
    call.query()
    _require_digest(sha256, word)
    entry = await context.store.get(object_key(PROJECT.name, None, project))
    if entry is None:
        raise NotFound(f'project "{project[:80]}" not found', hint="weft project list")
    owner, path = decode_envelope(entry.value), code_path(context.settings.blobs, sha256)
    find = has_upload if call.actor.kind == "server" else find_upload
    if await find(context, owner, sha256, sort):
        return json_answer({"sha256": sha256, "size": path.stat().st_size})
    if call.method == "GET":
        raise find_missing(sha256, project, sort)
    size = await _store(context, call, path, sha256, sort, upload_path(project, sha256, sort))
    try:
        await asyncio.to_thread(note_upload, context.settings.blobs, sha256, owner, sort)
    except OSError as problem:
        raise _refuse_disk(word, problem) from None
    return json_answer({"sha256": sha256, "size": size}, 201)


async def _store(
    context: ApiContext, call: Call, path: Path, sha256: str, sort: Sort | Literal["package"], place: str
) -> int:
    """Receive the body, here and at another server, where its path is ``place``; its size."""
    if context.uploads >= AT_ONCE and call.actor.kind != "server":  # whose own bound it is
        raise Unavailable("too many uploads are under way", hint="try again", retry_after_seconds=1)
    context.uploads += 1
    try:
        size = await _receive(call, path, sha256, sort)
        if call.actor.kind != "server":
            await _copy_to_another(context, path, place, _WORDS[sort])
    except OSError as problem:
        raise _refuse_disk(_WORDS[sort], problem) from None
    finally:
        context.uploads -= 1
    return size


def _refuse_disk(word: str, problem: OSError) -> Unavailable:
    return Unavailable(
        f"the server can't store the {word}: {(problem.strerror or str(problem)).lower()}", hint="try again later"
    )


def _require_digest(sha256: str, word: str) -> None:
    if not _DIGEST.fullmatch(sha256):
        raise NotFound(f"no {word} {sha256[:80]!r}", hint=f"name the {word} by its SHA-256, 64 hex digits")


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


async def _receive(call: Call, path: Path, sha256: str, sort: Sort | Literal["package"]) -> int:
    """Write the body, piece by piece, into a file that gets its name after the check; its size."""
    await asyncio.to_thread(path.parent.mkdir, mode=0o700, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
    work = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as out:
            digest, size = hashlib.sha256(), 0
            async for piece in call.read_pieces(MOST_PACKAGE_BYTES if sort == "package" else MOST_BYTES):
                digest.update(piece)
                size += len(piece)
                await asyncio.to_thread(out.write, piece)
            if digest.hexdigest() != sha256:
                raise InvalidInput(
                    f"the uploaded {_WORDS[sort]} doesn't match the digest in the path: its SHA-256 is {digest.hexdigest()}",
                    reason=f"bad{_WORDS[sort].capitalize()}",
                    hint="send it again",
                )
            await asyncio.to_thread(_check, out, size, sort)
        await asyncio.to_thread(keep_file, work, path)
    finally:
        await asyncio.to_thread(work.unlink, missing_ok=True)
    return size


def _check(out: BinaryIO, size: int, sort: Sort | Literal["package"]) -> None:
    out.flush()
    if sort == "code":
        read_members(out, size)
    elif sort == "package":
        out.seek(0)
        if out.read(len(DEBIAN)) != DEBIAN:
            raise InvalidInput(
                "the upload isn't a Debian package", reason="badPackage", hint="upload what make deb built"
            )
    else:
        out.seek(0)
        check_onnx(out.read(MOST_BYTES + 1))


ROUTES = (
    Route(
        "GET",
        "/v1/packages/{sha256}",
        package,
        "Whether a package for an upgrade is there",
        permission="upgrade:create",
        where="all",
        topic=Topic("refused", "upload", "upgrade"),
    ),
    Route(
        "PUT",
        "/v1/packages/{sha256}",
        package,
        "Upload a package for an upgrade",
        permission="upgrade:create",
        where="all",
        topic=Topic("always", "upload", "upgrade"),
    ),
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
