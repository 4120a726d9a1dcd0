"""Uploads that objects refer to: functions' code, by digest, in a folder of the blobs.

A file is there once for all projects. A project has it if an object of the project names it, or if it was uploaded there: an empty
file beside it, named by the digest and the project's uid, says so. A digest alone gives nothing. ``code`` writes both;
the controller of the same name removes what no object has named, and nobody has touched, for a while.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

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

_NAMING = [kind for kind in KINDS if kind.admission.uploads is not None]


class _Named(msgspec.Struct):
    code: str = ""


class _Served(msgspec.Struct):
    serving: _Named | None = None


class _Naming(msgspec.Struct):
    """The parts of a function, or a version, that name code."""

    spec: _Named
    status: _Served


_decode = msgspec.json.Decoder(_Naming).decode


def code_path(blobs: Path, sha256: str) -> Path:
    """The path of the code with this digest, whether it is there or not."""
    return blobs / CODE_FOLDER / sha256


def note_upload(blobs: Path, sha256: str, project: Envelope) -> None:
    """Record durably that the code, which is there, was uploaded in ``project``."""
    mark = _mark_path(blobs, sha256, project)
    mark.touch(0o600)
    sync_folder(mark.parent)


async def has_code(context: ApiContext, project: Envelope, sha256: str) -> bool:
    """Whether the code is there and ``project`` has it. The check keeps it for a while longer."""
    blobs = context.settings.blobs
    was_uploaded = await asyncio.to_thread(touch, _mark_path(blobs, sha256, project))
    if not was_uploaded and not await _is_named(context.store, project.name, sha256):
        return False
    return await asyncio.to_thread(touch, code_path(blobs, sha256))


async def require_uploads(
    context: ApiContext, view: View, kind: Kind, project_name: str | None, old: Any, new: Any
) -> None:
    """Raises NotFound if the project hasn't the code that ``new`` names."""
    if kind.admission.uploads is None or project_name is None:
        return
    before = set() if old is None else set(kind.admission.uploads(old))
    for sha256 in kind.admission.uploads(new):
        if sha256 in before:
            continue
        project = await view.get(PROJECT, None, project_name)
        if project is not None and not await has_code(
            context, project, sha256
        ):  # a missing project is refused elsewhere
            raise NotFound(
                f"spec.code: no code with the digest {sha256[:12]}… has been uploaded in project {project_name}",
                reason="codeNotFound",
                field="spec.code",
                hint="weft function create NAME --code FOLDER uploads it",
            )


async def _is_named(store: Store, project: str, sha256: str) -> bool:
    """Whether a function of the project, what it serves, or a version names the code."""
    for kind in _NAMING:
        for entry in (await store.list(kind_prefix(kind.name, project))).entries:
            found = _decode(entry.value)
            if sha256 in (found.spec.code, found.status.serving.code if found.status.serving is not None else ""):
                return True
    return False


def _mark_path(blobs: Path, sha256: str, project: Envelope) -> Path:
    return blobs / CODE_FOLDER / f"{sha256}.{project.uid}"


def touch(path: Path) -> bool:
    """Reset its age; whether it is there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
