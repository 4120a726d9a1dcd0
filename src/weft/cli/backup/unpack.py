"""Unpacks a tar archive into a new folder, whatever is in it: nothing is written anywhere else.

Each name is opened from the folder above it, and links are never followed; so a link that leads out of the folder is a link there,
and no more. Owners aren't set, nor setuid bits. The folder has its name once all of it is there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from weft.cli.command.target import usage
from weft.objects.errors import DriverFailed

MOST_ENTRIES, MOST_DEPTH = 1_000_000, 300
_PIECE, _BLOCK = 1 << 20, 512
_MOST_HEAD = 64 << 10
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that takes the archive's bytes. ``path`` isn't there before, and is the whole folder after. Raises
    UsageError, OSError, DriverFailed."""
    if path.exists() or path.is_symlink():
        raise usage(f"-o: {path} is there already", "give the name of a new folder, or of a file that ends in .tar")
    work = path.with_name(f".{secrets.token_hex(8)}.weft-part")
    try:
        work.mkdir(0o700)
    except OSError as problem:
        raise OSError(problem.errno, problem.strerror, str(path)) from None  # not the name of our own folder
    source, sink = os.pipe()
    failures = list[BaseException]()

    def run() -> None:
        with os.fdopen(source, "rb") as archive:
            try:
                unpack(archive, work)
                while archive.read(_PIECE):
                    pass
            except BaseException as problem:  # raised again by the thread that brings the bytes
                failures.append(problem)

    reader = threading.Thread(target=run, name="unpack", daemon=True)
    reader.start()

    def take(data: bytes) -> None:
        rest = memoryview(data)
        with contextlib.suppress(BrokenPipeError):  # it has failed, and says why at the end
            while rest and not failures:
                rest = rest[os.write(sink, rest) :]
        if failures:
            raise failures[0]

    try:
        try:
            yield take
        finally:
            os.close(sink)
            reader.join()
        if failures:
            raise failures[0]
        work.rename(path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def unpack(archive: BinaryIO, folder: Path) -> None:
    """Raises DriverFailed for an archive that can't be read or wants out of ``folder``, OSError."""
    folders: list[tuple[tuple[str, ...], int, float]] = []
    top = os.open(folder, _FOLDER)
    try:
        for count, member in enumerate(_read_heads(archive), 1):
            if count > MOST_ENTRIES:
                raise _refused(f"it has more than {MOST_ENTRIES} entries")
            parts = _split(member.name)
            with _opened(top, parts[:-1]) as above:
                _make(archive, member, parts[-1], above, top)
            if member.isdir():
                folders.append((parts, member.mode & 0o777, member.mtime))
        for parts, mode, modified in reversed(folders):  # the innermost first: writing into one changes its time
            with _opened(top, parts) as descriptor:
                os.fchmod(descriptor, mode)
                os.utime(descriptor, (modified, modified))
    except (tarfile.TarError, OverflowError, ValueError) as problem:
        raise _refused(f"the archive is damaged: {problem}") from problem
    finally:
        os.close(top)


def _read_heads(archive: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Each entry; who takes one reads its content before the next. Raises DriverFailed, ValueError, TarError."""
    more: dict[str, str] = {}
    while True:
        block = _read(archive, _BLOCK)
        if block == bytes(_BLOCK):
            return
        head = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if head.type == tarfile.XHDTYPE:
            if not 0 <= head.size <= _MOST_HEAD:
                raise ValueError("a head that is too long")
            more = _read_more(_read(archive, head.size + -head.size % _BLOCK)[: head.size])
            continue
        head.name = more.get("path", head.name).rstrip("/")
        head.linkname = more.get("linkpath", head.linkname)
        head.size = int(more.get("size", head.size))
        head.mtime = float(more.get("mtime", head.mtime))
        more = {}
        if head.size < 0:
            raise ValueError("a size below zero")
        yield head


def _read_more(raw: bytes) -> dict[str, str]:
    """The records of a pax head: LENGTH KEY=VALUE, each ended by a line feed."""
    found, at = {}, 0
    while at < len(raw):
        length = int(raw[at : raw.index(b" ", at)])
        record = raw[at : at + length]
        if length < 5 or len(record) != length or not record.endswith(b"\n"):
            raise ValueError("a record of a head")
        key, _, value = record.partition(b" ")[2][:-1].partition(b"=")
        found[key.decode()] = value.decode(errors="surrogateescape")
        at += length
    return found


def _read(archive: BinaryIO, length: int) -> bytes:
    data = archive.read(length)
    if len(data) != length:
        raise _refused("it ends early")
    return data


def _make(archive: BinaryIO, member: tarfile.TarInfo, name: str, above: int, top: int) -> None:
    try:
        if member.isdir():
            os.mkdir(name, 0o700, dir_fd=above)
        elif member.issym():
            os.symlink(member.linkname, name, dir_fd=above)
        elif member.islnk():
            parts = _split(member.linkname)
            with _opened(top, parts[:-1]) as there:
                os.link(parts[-1], name, src_dir_fd=there, dst_dir_fd=above, follow_symlinks=False)
        elif member.isreg():
            _write(archive, member, name, above)
        else:
            raise _refused(f"{_show(name)} is neither a file, a folder nor a link")
    except FileExistsError:
        raise _refused(f"{_show(name)} comes twice") from None


def _write(archive: BinaryIO, member: tarfile.TarInfo, name: str, above: int) -> None:
    descriptor = os.open(name, _FILE, 0o600, dir_fd=above)
    try:
        for at in range(0, member.size, _PIECE):
            rest = memoryview(_read(archive, min(_PIECE, member.size - at)))
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        _read(archive, -member.size % _BLOCK)
        os.fchmod(descriptor, member.mode & 0o777)
        os.utime(descriptor, (member.mtime, member.mtime))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened(top: int, parts: tuple[str, ...]) -> Iterator[int]:
    """A descriptor of the folder ``parts`` in ``top``, with no link on the way."""
    descriptor = os.dup(top)
    try:
        for part in parts:
            try:
                below = os.open(part, _FOLDER, dir_fd=descriptor)
            except (NotADirectoryError, FileNotFoundError) as problem:
                raise _refused(f"{_show(part)} is not a folder in it") from problem
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _split(name: str) -> tuple[str, ...]:
    parts = tuple(name.split("/"))
    if len(parts) > MOST_DEPTH:  # a head is short enough
        raise _refused("a path in it is too long")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise _refused(f"{_show(name)} leads out of the folder")
    return parts


def _refused(what: str) -> DriverFailed:
    return DriverFailed(
        f"the folder can't be unpacked: {what}",
        hint="write the archive into a file, and look at it: weft backup get BACKUP PATH -r -o FILE.tar",
    )


def _show(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:200])
