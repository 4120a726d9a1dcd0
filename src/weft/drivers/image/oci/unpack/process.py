"""The parent's side of ``worker.py``: starts it, ends one that makes no progress, and explains its end."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from weft.drivers.image.oci.documents import Packing
from weft.objects.errors import DriverFailed, InvalidInput, TooLarge, WeftError

_MOST_OUTPUT_BYTES = 64 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TRICKS = (  # what names and links in a layer can bring about
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EFBIG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EMLINK,
)


class Limits(msgspec.Struct, frozen=True):
    """Limits of one layer: ``entries``, bytes when unpacked, their ratio to the packed size (beyond 64 MiB), and how long the
    process that unpacks may make no progress."""

    entries: int = 1_000_000
    bytes: int = 64 << 30
    ratio: int = 300
    idle_seconds: float = 120.0


class Unpacked(msgspec.Struct, frozen=True):
    """``diff_id``: digest of the layer's tar; ``bytes`` of its files, ``dropped`` device nodes; ``opaque`` folders, which hide what
    lower layers have in them, and those ``implied`` by what lies in them."""

    diff_id: str
    bytes: int
    entries: int
    dropped: int
    opaque: list[str]
    implied: list[str]


async def unpack(blob: Path, packing: Packing, folder: Path, limits: Limits, free_bytes: int) -> Unpacked:
    """Unpack ``blob`` into the empty ``folder``, at most ``free_bytes`` of it. Raises InvalidInput, TooLarge, DriverFailed; what is
    in the folder then is the caller's to remove."""
    bounds = {"entries": limits.entries, "bytes": min(limits.bytes, free_bytes), "ratio": limits.ratio}
    with blob.open("rb") as source:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-m",
            "weft.drivers.image.oci.unpack.worker",
            str(os.getpid()),
            str(folder),
            packing,
            json.dumps(bounds),
            stdin=source,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
            cwd="/",
        )
    try:
        output = await _read_output(process, limits.idle_seconds)
    except BaseException:
        if process.returncode is None:
            process.kill()
        raise
    finally:
        await process.wait()
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError:
        raise _failed(f"unpacking ended with status {process.returncode} without a result") from None
    if "diff_id" in result:
        unpacked = msgspec.convert(result, Unpacked)
        await asyncio.to_thread(_mark_opaque, folder, unpacked.opaque)
        return unpacked
    raise _explain(result, full=free_bytes < limits.bytes)


async def _read_output(process: asyncio.subprocess.Process, idle_seconds: float) -> bytes:
    assert process.stdout is not None
    output = bytearray()
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                chunk = await process.stdout.read(1 << 16)
        except TimeoutError:
            raise InvalidInput(
                f"unpacking a layer made no progress for {idle_seconds:g} s",
                reason="hostileLayer",
                hint="check where the image comes from",
            ) from None
        if not chunk:
            return bytes(output)
        output += chunk.lstrip(b".") if not output else chunk
        if len(output) > _MOST_OUTPUT_BYTES:
            raise _failed("unpacking printed more than it may")


def _explain(result: dict[str, Any], *, full: bool) -> WeftError:
    message, reason = f"a layer can't be unpacked: {result['message']}", str(result.get("refused", ""))
    if reason == "layerTooLarge" and full and "more than" in message and "times" not in message:
        return _no_room()
    if reason == "layerTooLarge":
        return TooLarge(message, reason="layerTooLarge", hint="if that is intended, raise the node's limits for layers")
    if reason == "noZstd":
        return _failed(message, "apt-get install zstd")
    if reason == "hostileLayer":
        return InvalidInput(
            message, reason="hostileLayer", field="spec.image", hint="don't use the image; check where it comes from"
        )
    if reason == "badLayer":
        return InvalidInput(message, reason="badLayer", field="spec.image", hint="build and push the image again")
    if result.get("errno") in _FULL:
        return _no_room()
    if result.get("errno") in _TRICKS:
        return InvalidInput(
            message, reason="hostileLayer", field="spec.image", hint="don't use the image; check where it comes from"
        )
    return _failed(message)


def _mark_opaque(root: Path, folders: list[str]) -> None:
    """The process that unpacks may not set it. No link is followed."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    for folder in folders:
        at = os.open(root, flags)
        try:
            for part in folder.split("/") if folder else []:
                below = os.open(part, flags, dir_fd=at)
                os.close(at)
                at = below
            os.setxattr(at, "trusted.overlay.opaque", b"y")
        except OSError as problem:
            raise _failed(f"a layer's deletions can't be stored: {problem.strerror}") from problem
        finally:
            os.close(at)


def _no_room() -> DriverFailed:
    return DriverFailed(
        "the node has no space for the image",
        reason="noSpace",
        hint="free some space on the node's disk",
        details={"step": "image"},
    )


def _failed(message: str, hint: str | None = None) -> DriverFailed:
    return DriverFailed(message, hint=hint, details={"step": "image"})
