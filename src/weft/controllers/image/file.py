"""Gets an image's file and finds out what it is. Blocking: meant for a thread. Writes only to ``target``.

Nothing from outside is trusted. A process of its own (``download.py``), which has no rights and a time limit, speaks with
servers. A qcow2 that names other files is refused (a guest could read the server's through it), qemu-img reads the rest of its
header as nobody and within bounds, a bundle may hold plain files only, and a file that is no disk, like an error page, is
refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import select
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec

from weft.contracts.durable_file import measure_free
from weft.controllers.image.download import FULL, PIECE_BYTES
from weft.controllers.image.qcow2_check import WHOLE, check_qcow2
from weft.kinds.image import OCI_FORMAT
from weft.kinds.parts.image.work import MOST_IMAGE_BYTES
from weft.objects.errors import DriverFailed
from weft.objects.image.bundle import begins_bundle, is_bundle, not_an_image, read_bundle
from weft.objects.image.claimed_size import read_claimed_size
from weft.objects.image.oci_archive import read_archive
from weft.objects.image.qcow2 import HEADER_BYTES, read_qcow2_header
from weft.objects.quantity import format_bytes

_log = logging.getLogger(__name__)
MAX_BYTES = MOST_IMAGE_BYTES
MOST_VIRTUAL_BYTES = 16 * 1024**4
PATIENCE_SECONDS = 30.0  # for each PIECE_BYTES: the slowest server that is waited for
_CHUNK_BYTES = 1024 * 1024
_NOTICE_SECONDS = 0.5
_EXT_MAGIC_AT = 1080
_ISO_MAGIC_AT = 32769
_BEGINNING_BYTES = 36864
_PACKED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"(\xb5/\xfd": "zstd", b"PK\x03\x04": "zip"}
_FOR_DOWNLOADS = re.compile(r"\w+_proxy|SSL_CERT_\w+|PATH|LANG|LD_LIBRARY_PATH", re.IGNORECASE)  # what it may know
_AT = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC  # a place, not opened yet
_MOST_LINKS = 40
_AGAIN = "fetch it again, and compare its sha256"


class ImageFacts(msgspec.Struct, frozen=True):
    format: str  # qcow2, raw, iso, bundle or oci
    virtual_size: int  # of the disk a guest sees, in bytes
    agent: bool
    digest: str = ""  # of the container image that it holds, or was made from
    min_memory: int = 0  # bytes that a bundle's machine needs


Progress = Callable[[int], None]  # takes how many bytes have come


def fetch(url: str, target: Path, on_progress: Progress, stop: threading.Event, allowed: Sequence[str] = ()) -> str:
    """Write what ``url`` gives to ``target``, durably, and return its SHA-256. ``allowed``: from which addresses of this machine
    too (see ``contracts/confinement/public_address.py``), and folders whose files may be taken wherever they lie. Raises
    DriverFailed (``fetchFailed``, ``noSpace``); ``target`` is gone then."""
    try:
        with target.open("wb") as out:
            os.fchmod(out.fileno(), 0o644)  # for qemu-img, which runs as nobody; the folder is ours alone
            if urlsplit(url).scheme == "file":
                chunks = _read_file(url, [place for place in allowed if place.startswith("/")])
            else:
                places = [place for place in allowed if not place.startswith("/")]
                chunks = _download(url, _find_space(target, url), stop, places)
            digest = _copy(url, chunks, out, on_progress, stop)
            out.flush()
            os.fsync(out.fileno())
            return digest
    except BaseException as problem:
        target.unlink(missing_ok=True)
        if isinstance(problem, (OSError, ValueError)):
            raise _failed(
                f"{shown(url)} can't be fetched: {getattr(problem, 'strerror', None) or problem}"
            ) from problem
        raise


def inspect(path: Path, *, known: bool = False) -> ImageFacts:
    """Facts of the file; ``known``: it was checked before. Raises DriverFailed (``notAnImage``)."""
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING_BYTES)
        size = os.fstat(file.fileno()).st_size
        at, agent, name, digest, memory = 0, False, "the file", "", 0
        if is_bundle(beginning) and not begins_bundle(beginning):
            return ImageFacts(OCI_FORMAT, 0, False, read_archive(file, size))
        if packed := is_bundle(beginning):
            bundle = read_bundle(file, size)
            digest, memory = bundle.manifest.digest, bundle.manifest.min_memory_bytes
            disk, agent = bundle.members[bundle.manifest.disk], bundle.manifest.agent or bundle.manifest.qemu_agent
            at, size, name = disk.offset, disk.size, f"the bundle's {disk.name}"
            file.seek(at)
            beginning = file.read(min(_BEGINNING_BYTES, size))
            if bundle.manifest.disk_format in ("raw", "tar"):
                return ImageFacts("bundle", size, agent, min_memory=memory)
        facts = _inspect_disk(beginning, size, name)
        if packed and facts.format != "qcow2":
            raise not_an_image(f"{name} is not qcow2, although the bundle says so")
        if facts.format == "qcow2" and not known:
            check_qcow2(file, at, size, name)
    return ImageFacts("bundle", facts.virtual_size, agent, digest, memory) if packed else facts


def shown(url: str) -> str:
    """``url`` without its user and query, which may hold a key."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "…" if parts.query else "", ""))


def _read_file(url: str, folders: Sequence[str]) -> Iterator[bytes]:
    """The pieces of a plain file of this machine that everybody may read: keys and shadow files are no images. ``folders``
    themselves need not be public. All that may not be read gets one answer, which doesn't say what there is on this machine; the
    log does."""
    path, base = unquote(urlsplit(url).path), "/"
    try:
        for way in (path, os.path.realpath(path)):
            for folder in folders:
                if way.startswith(f"{folder.rstrip('/')}/"):
                    path, base = way, folder
        descriptor = _open_public(base, path[len(base) :])
    except (OSError, ValueError, DriverFailed) as problem:
        _log.warning("%s can't be fetched: %s", shown(url), problem)
        raise _failed(
            f"{shown(url)} is missing, is not a regular file, or is not readable for everybody on the server's machine",
            "the server's log says which; chmod o+r FILE and o+x FOLDER make it readable, or allow its folder with "
            "weft server --allow-fetch",
        ) from None
    with open(descriptor, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _open_public(base: str, path: str) -> int:
    """A descriptor of the plain file at ``path`` below ``base`` that everybody could open from there: each folder on the way is
    opened in the one before it and then checked, so that nobody can replace one in between."""
    left, links, walked = path.split("/")[::-1], 0, os.open(base, _AT & ~os.O_NOFOLLOW)
    begin = os.fstat(walked)
    try:
        while left:
            name = left.pop()
            if name in ("", "."):
                continue
            if not os.path.samestat(os.fstat(walked), begin):
                _require(walked, stat.S_IXOTH, "x")
            found = os.open(name, _AT, dir_fd=walked)
            mode = os.fstat(found).st_mode
            if stat.S_ISLNK(mode):
                target = os.readlink("", dir_fd=found)
                os.close(found)
                links += 1
                if links > _MOST_LINKS:
                    raise _failed(f"it leads through more than {_MOST_LINKS} symbolic links")
                left += target.split("/")[::-1]
                found = os.open("/" if target.startswith("/") else ".", _AT, dir_fd=walked)
            os.close(walked)
            walked = found
        if not stat.S_ISREG(os.fstat(walked).st_mode):  # a device may do things when it is opened
            raise _failed("it is not a regular file")
        _require(walked, stat.S_IROTH, "r")
        return os.open(f"/proc/self/fd/{walked}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(walked)


def _require(walked: int, bit: int, letter: str) -> None:
    if not os.fstat(walked).st_mode & bit:
        where = os.readlink(f"/proc/self/fd/{walked}")
        raise _failed(f"{where} denies access (o+{letter})")


def _download(url: str, space: int, stop: threading.Event, allowed: Sequence[str]) -> Iterator[bytes]:
    """The pieces as they come from the server; the process that gets them ends with the iterator."""
    bounds = [str(MAX_BYTES), str(space), str(PATIENCE_SECONDS)]
    argv = [sys.executable, "-I", "-m", "weft.controllers.image.download", str(os.getpid()), url, *bounds, *allowed]
    pipe = subprocess.PIPE
    known = {name: value for name, value in os.environ.items() if _FOR_DOWNLOADS.fullmatch(name)}
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, bufsize=0, env=known) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            while not stop.is_set():
                if select.select([process.stdout], [], [], _NOTICE_SECONDS)[0]:
                    chunk = os.read(process.stdout.fileno(), _CHUNK_BYTES)
                    if not chunk:
                        break
                    yield chunk
            else:
                raise _given_up()
            reason = process.stderr.read(4096).decode(errors="replace").strip()
            if process.wait() == -signal.SIGALRM:
                reason = f"the server sent less than {format_bytes(PIECE_BYTES)} in {PATIENCE_SECONDS:g} s"
            if process.returncode == FULL:
                raise _no_space(url)
            if process.returncode != 0:
                raise _failed(
                    f"{shown(url)} can't be fetched: {reason.splitlines()[-1] if reason else 'no reason given'}"
                )
        finally:
            process.kill()


def _copy(url: str, chunks: Iterator[bytes], out: BinaryIO, on_progress: Progress, stop: threading.Event) -> str:
    digest, fetched = hashlib.sha256(), 0
    for chunk in chunks:
        if stop.is_set():
            raise _given_up()
        fetched += len(chunk)
        if fetched > MAX_BYTES:
            raise _failed(f"{shown(url)} is larger than {format_bytes(MAX_BYTES)}")
        if measure_free(out.fileno()) < len(chunk):
            raise _no_space(url)
        digest.update(chunk)
        out.write(chunk)
        on_progress(fetched)
    return digest.hexdigest()


def _find_space(target: Path, url: str) -> int:
    """Bytes that an image may have. Raises DriverFailed (``noSpace``) if none."""
    space = measure_free(target)
    if space <= 0:
        raise _no_space(url)
    return space


def _inspect_disk(beginning: bytes, size: int, what: str) -> ImageFacts:
    header = read_qcow2_header(beginning[:HEADER_BYTES])
    if header is not None:
        if header.has_backing or header.has_external_data:
            raise not_an_image(f"{what} is a qcow2 that depends on another file", WHOLE)
        if not 0 < header.virtual_size <= MOST_VIRTUAL_BYTES:
            raise not_an_image(
                f"{what} claims a disk of {header.virtual_size} bytes",
                f"the disk of an image must be larger than 0 and at most {MOST_VIRTUAL_BYTES // 1024**4} TiB",
            )
        return ImageFacts("qcow2", header.virtual_size, False)
    for magic, name in _PACKED.items():
        if beginning.startswith(magic):
            raise not_an_image(f"{what} is compressed ({name})", "decompress it first")
    boots = beginning[510:512] == b"\x55\xaa"
    is_ext = beginning[_EXT_MAGIC_AT : _EXT_MAGIC_AT + 2] == b"\x53\xef"
    is_iso = beginning[_ISO_MAGIC_AT : _ISO_MAGIC_AT + 5] == b"CD001"
    if boots or is_ext or is_iso:
        if size % 512:
            raise not_an_image(
                f"{what} has {size} bytes, not a whole number of sectors of 512: it may have been cut", _AGAIN
            )
        if size < (claimed := read_claimed_size(beginning)):
            raise not_an_image(
                f"{what} has {size} bytes, and its disk {claimed}: the file ends before its data", _AGAIN
            )
        return ImageFacts("iso" if is_iso else "raw", size, False)
    raise not_an_image(f"{what} is neither qcow2, nor a raw disk, nor a bundle", "check what the URL returns")


def _failed(message: str, hint: str | None = None) -> DriverFailed:
    return DriverFailed(message, reason="fetchFailed", hint=hint, details={"step": "image"})


def _given_up() -> DriverFailed:
    return _failed("aborted: the image was deleted, or the server is stopping")


def _no_space(url: str) -> DriverFailed:
    return DriverFailed(
        f"{shown(url)} doesn't fit on the server's disk",
        reason="noSpace",
        hint="free space there, or delete images; weft tries again",
        details={"step": "image"},
    )
