"""Uploads that objects refer to: functions' code, by digest, in a folder of the blobs.

``code`` writes them; the controller of the same name removes those that no object has named for a while.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from weft.api.context import ApiContext
from weft.kinds.parts.function_code import CODE_FOLDER
from weft.kinds.record import Kind
from weft.objects.errors import NotFound


def code_path(blobs: Path, sha256: str) -> Path:
    """The path of the code with this digest, whether it is there or not."""
    return blobs / CODE_FOLDER / sha256


async def require_uploads(context: ApiContext, kind: Kind, old: Any, new: Any) -> None:
    """Raises NotFound if the code that ``new`` names isn't there. The check keeps code for a while longer."""
    if kind.uploads is None:
        return
    before = set() if old is None else set(kind.uploads(old))
    for sha256 in kind.uploads(new):
        if sha256 not in before and not await asyncio.to_thread(touch, code_path(context.settings.blobs, sha256)):
            raise NotFound(
                f"spec.code: no code with the digest {sha256[:12]}… has been uploaded",
                reason="codeNotFound",
                field="spec.code",
                hint="weft function create NAME --code FOLDER uploads it",
            )


def touch(path: Path) -> bool:
    """Reset its age; whether it is there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
