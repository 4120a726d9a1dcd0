"""Gets an image's file and finds out what it is. Blocking: meant for a thread. Writes only the file it is told to.

Nothing in a fetched file is trusted: a qcow2 that names other files is refused (a guest could read the server's through
it), a bundle may hold plain files only, and whatever is no disk, like a page that says "not found", is refused by name.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import msgspec

from weft.objects.bundle import MANIFEST_NAME, BundleManifest
from weft.objects.errors import DriverFailed
from weft.objects.qcow2 import HEADER_BYTES, read_qcow2_header
from weft.objects.quantity import format_bytes

MAX_BYTES = 256 * 1024**3
SILENCE_SECONDS = 30.0
INSPECT_SECONDS = 30.0
_CHUNK_BYTES = 1024 * 1024
_MOST_MEMBERS = 64
_MOST_REDIRECTS = 5
_MANIFEST_BYTES = 65536
_TAR_MAGIC_AT = 257
_EXT_MAGIC_AT = 1080
_BEGINNING_BYTES = 4096
_PACKED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"(\xb5/\xfd": "zstd", b"PK\x03\x04": "zip"}


class ImageFacts(msgspec.Struct, frozen=True):
    """What an image file is: ``format`` qcow2, raw or bundle; ``virtual_size`` the disk a guest sees, in bytes."""

    format: str
    virtual_size: int
    agent: bool


Progress = Callable[[int], None]  # is told how many bytes are here


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = _MOST_REDIRECTS
    max_repeats = 2


def fetch(url: str, target: Path, on_progress: Progress, stop: threading.Event) -> str:
    """Write what ``url`` gives to ``target``, durably, and return its SHA-256. Raises DriverFailed (``fetchFailed``)."""
    try:
        with _open(url) as source, target.open("wb") as out:
            digest = _copy(source, out, on_progress, stop)
            out.flush()
            os.fsync(out.fileno())
            return digest
    except urllib.error.HTTPError as problem:
        raise _failed(f"{url} answers {problem.code} {problem.reason}") from problem
    except (OSError, HTTPException, ValueError) as problem:
        said = getattr(problem, "reason", None) or getattr(problem, "strerror", None) or problem
        raise _failed(f"{url} can't be fetched: {said}") from problem


def inspect(path: Path) -> ImageFacts:
    """What the file is. Raises DriverFailed (``notAnImage``)."""
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING_BYTES)
        size = os.fstat(file.fileno()).st_size
        if beginning[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
            file.seek(0)
            return _inspect_bundle(file)
    facts = _inspect_disk(beginning, size, "the file")
    if facts.format == "qcow2":
        _check_qcow2(path)
    return facts


def _open(url: str) -> BinaryIO:
    parts = urlsplit(url)
    if parts.scheme == "file":
        descriptor = os.open(unquote(parts.path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _failed(f"{url} is not a plain file")
        return os.fdopen(descriptor, "rb")
    opener = urllib.request.build_opener(_Redirects())
    request = urllib.request.Request(url, headers={"User-Agent": "weft", "Accept-Encoding": "identity"})
    response: BinaryIO = opener.open(request, timeout=SILENCE_SECONDS)
    return response


def _copy(source: BinaryIO, out: BinaryIO, on_progress: Progress, stop: threading.Event) -> str:
    digest, fetched = hashlib.sha256(), 0
    announced = getattr(source, "length", None)
    while chunk := source.read(_CHUNK_BYTES):
        if stop.is_set():
            raise _failed("given up: the image was deleted or the server is ending")
        fetched += len(chunk)
        if fetched > MAX_BYTES:
            raise _failed(f"it is larger than {format_bytes(MAX_BYTES)}")
        digest.update(chunk)
        out.write(chunk)
        on_progress(fetched)
    if announced is not None and fetched < announced:
        raise _failed(f"the connection ended after {format_bytes(fetched)} of {format_bytes(announced)}")
    return digest.hexdigest()


def _inspect_disk(beginning: bytes, size: int, what: str) -> ImageFacts:
    header = read_qcow2_header(beginning[:HEADER_BYTES])
    if header is not None:
        if header.has_backing or header.has_external_data:
            raise _no_image(f"{what} is a qcow2 that needs another file", "qemu-img convert -O qcow2 makes it whole")
        return ImageFacts("qcow2", header.virtual_size, False)
    for magic, name in _PACKED.items():
        if beginning.startswith(magic):
            raise _no_image(f"{what} is packed ({name})", "unpack it first")
    boots = beginning[510:512] == b"\x55\xaa"
    is_ext = beginning[_EXT_MAGIC_AT : _EXT_MAGIC_AT + 2] == b"\x53\xef"
    if size % 512 == 0 and (boots or is_ext):
        return ImageFacts("raw", size, False)
    raise _no_image(f"{what} is neither qcow2, nor a raw disk, nor a bundle", "see what the URL really gives")


def _inspect_bundle(file: BinaryIO) -> ImageFacts:
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            members: dict[str, tarfile.TarInfo] = {}
            for member in archive:
                if len(members) >= _MOST_MEMBERS or not member.isreg() or "/" in member.name or member.name in members:
                    raise _no_image(f"the bundle's member {member.name[:60]!r} is not a plain file at its top")
                if not members and member.name != MANIFEST_NAME:
                    raise _no_image(f"the archive doesn't begin with {MANIFEST_NAME}")
                members[member.name] = member
            manifest = _read_manifest(archive, members)
            for name in (manifest.disk, manifest.kernel, manifest.initrd):
                if name is not None and name not in members:
                    raise _no_image(f"the bundle's {MANIFEST_NAME} names {name!r}, which isn't in it")
            disk = archive.extractfile(members[manifest.disk])
            if disk is None:
                raise _no_image(f"the bundle's {manifest.disk} is not a plain file")
            size = members[manifest.disk].size
            if manifest.disk_format == "raw":
                return ImageFacts("bundle", size, manifest.agent)
            facts = _inspect_disk(disk.read(_BEGINNING_BYTES), size, f"the bundle's {manifest.disk}")
            if facts.format != "qcow2":
                raise _no_image(f"the bundle's {manifest.disk} is not qcow2, as it says")
            return ImageFacts("bundle", facts.virtual_size, manifest.agent)
    except tarfile.TarError as problem:
        raise _no_image(f"the archive is damaged: {problem}") from problem


def _read_manifest(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> BundleManifest:
    member = members.get(MANIFEST_NAME)
    text = archive.extractfile(member) if member is not None and member.size <= _MANIFEST_BYTES else None
    if text is None:
        raise _no_image(f"the archive has no {MANIFEST_NAME}")
    try:
        manifest = msgspec.json.decode(text.read(), type=BundleManifest)
    except msgspec.DecodeError as problem:
        raise _no_image(f"the bundle's {MANIFEST_NAME}: {problem}") from problem
    if (manifest.kernel is None) != (manifest.initrd is None):
        raise _no_image(f"the bundle's {MANIFEST_NAME} has only one of kernel and initrd")
    return manifest


def _check_qcow2(path: Path) -> None:
    """Have qemu-img read the whole header, bounded in time and memory, where there is one."""
    bounds = ["prlimit", "--cpu=20", "--as=2147483648"]
    argv = [*bounds, "qemu-img", "info", "--output=json", "-f", "qcow2", str(path)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=INSPECT_SECONDS, check=False)
    except FileNotFoundError:
        return
    except subprocess.TimeoutExpired as problem:
        raise _no_image("qemu-img can't make sense of it in time") from problem
    if done.returncode == 127:  # prlimit found no qemu-img
        return
    if done.returncode != 0:
        raise _no_image(f"qemu-img refuses it: {done.stderr.strip()[-200:]}")
    try:
        info = msgspec.json.decode(done.stdout, type=dict[str, object])
    except msgspec.DecodeError as problem:
        raise _no_image("qemu-img can't make sense of it") from problem
    if "backing-filename" in info or "full-backing-filename" in info:
        raise _no_image("it is a qcow2 that needs another file", "qemu-img convert -O qcow2 makes it whole")


def _failed(message: str) -> DriverFailed:
    return DriverFailed(message, reason="fetchFailed", details={"step": "image"})


def _no_image(message: str, hint: str | None = None) -> DriverFailed:
    return DriverFailed(message, reason="notAnImage", hint=hint, details={"step": "image"})
