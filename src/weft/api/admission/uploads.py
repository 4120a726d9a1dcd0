"""Uploads that objects refer to: functions' code and models' ONNX files, by digest, in a folder of the blobs.

A file is there once for all projects. A project has it if an object of the project names it, or if it was uploaded there: an
empty file beside it, named by the digest and the project's uid, says so. It has it as code, or as a model: each is checked in
its way. A digest alone gives nothing. ``code`` writes both; the controller of the same name removes what no object has named,
and nobody has touched, for a while.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Literal

import msgspec

from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.contracts.durable_file import sync_folder
from weft.contracts.store import Store
from weft.kinds.parts.function_code import CODE_FOLDER
from weft.kinds.project import PROJECT
from weft.kinds.record import Kind
from weft.kinds.registry import KINDS
from weft.objects.envelope import Envelope
from weft.objects.errors import NotFound
from weft.objects.identity import kind_prefix

Sort = Literal["code", "onnx"]
_NAMING = [kind for kind in KINDS if kind.admission.uploads is not None]


class _Named(msgspec.Struct):
    code: str = ""
    file: str = ""


class _Served(msgspec.Struct):
    serving: _Named | None = None


class _Naming(msgspec.Struct):
    """The parts of a function, a version or a model that name an upload."""

    spec: _Named
    status: _Served


_decode = msgspec.json.Decoder(_Naming).decode


def code_path(blobs: Path, sha256: str) -> Path:
    """The path of the upload with this digest, whether it is there or not."""
    return blobs / CODE_FOLDER / sha256


def note_upload(blobs: Path, sha256: str, project: Envelope, sort: Sort = "code") -> None:
    """Record durably that the file, which is there, was uploaded in ``project``."""
    mark = _mark_path(blobs, sha256, project, sort)
    mark.touch(0o600)
    sync_folder(mark.parent)


def upload_path(project: str, sha256: str, sort: Sort) -> str:
    """The path at which the API takes the upload, and says whether it is there."""
    return f"/v1/projects/{project}/{sort}/{sha256}"


async def find_upload(context: ApiContext, project: Envelope, sha256: str, sort: Sort = "code") -> bool:
    """Whether ``project`` has the file, here or on another server: then it is brought here. Raises Unavailable, DriverFailed."""
    if await has_upload(context, project, sha256, sort):
        return True
    asked = await context.others.ask_all("GET", upload_path(project.name, sha256, sort))
    is_there = any(answer.status == 200 for answer in asked.found.values())
    if not is_there and not await _is_named(context.store, project.name, sha256, sort):
        return False
    if await context.files.bring(sha256, code_path(context.settings.blobs, sha256)) is None:
        return False
    await asyncio.to_thread(note_upload, context.settings.blobs, sha256, project, sort)
    return await has_upload(context, project, sha256, sort)


async def has_upload(context: ApiContext, project: Envelope, sha256: str, sort: Sort = "code") -> bool:
    """Whether the file is on this server and ``project`` has it. The check keeps it for a while longer."""
    blobs = context.settings.blobs
    was_uploaded = await asyncio.to_thread(touch, _mark_path(blobs, sha256, project, sort))
    if not was_uploaded and not await _is_named(context.store, project.name, sha256, sort):
        return False
    return await asyncio.to_thread(touch, code_path(blobs, sha256))


async def require_uploads(
    context: ApiContext, view: View, kind: Kind, project_name: str | None, old: Any, new: Any
) -> None:
    """Raises NotFound if the project hasn't the upload that ``new`` names."""
    if kind.admission.uploads is None or project_name is None:
        return
    before = set() if old is None else set(kind.admission.uploads(old))
    for sha256 in kind.admission.uploads(new):
        if sha256 in before:
            continue
        project = await view.get(PROJECT, None, project_name)
        sort = kind.admission.upload_sort
        if project is not None and not await find_upload(
            context, project, sha256, sort
        ):  # a missing project is refused elsewhere
            raise find_missing(sha256, project_name, sort)


def find_missing(sha256: str, project: str, sort: Sort) -> NotFound:
    """The error for an upload that the project hasn't."""
    if sort == "onnx":
        return NotFound(
            f"spec.file: no model with the digest {sha256[:12]}… has been uploaded in project {project}",
            reason="modelNotFound",
            field="spec.file",
            hint="weft model create NAME --file FILE.onnx uploads it",
        )
    return NotFound(
        f"spec.code: no code with the digest {sha256[:12]}… has been uploaded in project {project}",
        reason="codeNotFound",
        field="spec.code",
        hint="weft function create NAME --code FOLDER uploads it",
    )


async def _is_named(store: Store, project: str, sha256: str, sort: Sort) -> bool:
    """Whether a function of the project, what it serves, or a version names the code; or a model the file."""
    for kind in _NAMING:
        if kind.admission.upload_sort != sort:
            continue
        for entry in (await store.list(kind_prefix(kind.name, project))).entries:
            found = _decode(entry.value)
            serving = found.status.serving.code if found.status.serving is not None else ""
            if sha256 in (found.spec.code, found.spec.file, serving):
                return True
    return False


def _mark_path(blobs: Path, sha256: str, project: Envelope, sort: Sort) -> Path:
    return blobs / CODE_FOLDER / (f"{sha256}.{project.uid}" + ("" if sort == "code" else f".{sort}"))


def touch(path: Path) -> bool:
    """Reset its age; whether it is there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
