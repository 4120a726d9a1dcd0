"""A function's code as a zip: what it may contain, and how to make one of a folder, with the same bytes each time. Pure but for
reading.

It comes from strangers and is unpacked on nodes: only files, folders and links that stay inside, under plain relative names, as
many and as large as its directory declares. Unpacking counts again.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import msgspec

from weft.objects.code_limits import MIB, MOST_BYTES, MOST_DIRECTORY_BYTES, MOST_MEMBERS, MOST_UNPACKED_BYTES
from weft.objects.errors import InvalidInput, TooLarge

LONGEST_NAME, LONGEST_PART, LONGEST_LINK = 1024, 255, 1024
LEFT_OUT = frozenset((".git", "__pycache__"))
_END = struct.Struct("<4s4H2LH")
_END_SIGN = b"PK\x05\x06"
_LONGEST_COMMENT = 65_535
_UNREADABLE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    struct.error,
)
_SAME_TIME = (1980, 1, 1, 0, 0, 0)


class ArchiveMember(msgspec.Struct, frozen=True):
    """One member of the archive. ``target``: where a link leads; folders and links have no bytes of their own."""

    name: str
    size: int = 0
    mode: int = 0o644
    folder: bool = False
    target: str = ""


def read_members(source: IO[bytes], size: int) -> list[ArchiveMember]:
    """The members of the zip in ``source`` (seekable, ``size`` bytes). Raises InvalidInput or TooLarge, naming the member, for
    a zip that no node would unpack."""
    if size > MOST_BYTES:
        raise too_large(size)
    _check_directory(source, size)
    try:
        with zipfile.ZipFile(source) as archive:
            return _read(archive)
    except _UNREADABLE as problem:
        raise _bad(f"the zip can't be read: {str(problem)[:120]}") from None


def too_large(size: int) -> TooLarge:
    return TooLarge(
        f"the code is {size / MIB:.1f} MiB zipped: at most {MOST_BYTES // MIB} MiB",
        field="spec.code",
        hint="leave out what the function doesn't need, or make the code an image: --image REGISTRY/NAME:TAG",
    )


def _check_directory(source: IO[bytes], size: int) -> None:
    """Raises if its directory is larger than one of so many members can be: the library would read all of it into memory."""
    tail_bytes = min(size, _END.size + _LONGEST_COMMENT)
    source.seek(size - tail_bytes)
    tail = source.read(tail_bytes)
    at = tail.rfind(_END_SIGN)
    if at < 0 or len(tail) - at < _END.size:
        raise _bad("it is not a zip, or it is cut short")
    _, _, _, _, members, directory, start, _ = _END.unpack_from(tail, at)
    if 0xFFFF in (members,) or 0xFFFFFFFF in (directory, start):
        raise _bad("the zip has more than 4 GiB or 65,534 members")
    if members > MOST_MEMBERS or directory > MOST_DIRECTORY_BYTES:
        raise _bad(f"the zip has {members} members: at most {MOST_MEMBERS}")


def _read(archive: zipfile.ZipFile) -> list[ArchiveMember]:
    members: list[ArchiveMember] = []
    seen: dict[str, bool] = {}
    total = 0
    if len(archive.infolist()) > MOST_MEMBERS:
        raise _bad(f"the zip has more than {MOST_MEMBERS} members")
    for info in archive.infolist():
        member = _read_member(archive, info)
        if member.name in seen and not (member.folder and seen[member.name]):
            raise _bad(f"{_shown(member.name)} is in the zip twice")
        seen[member.name] = member.folder
        total += member.size
        if total > MOST_UNPACKED_BYTES:
            raise TooLarge(
                f"the code is more than {MOST_UNPACKED_BYTES // MIB} MiB unpacked",
                field="spec.code",
                hint="leave out what the function doesn't need, or make the code an image: --image REGISTRY/NAME:TAG",
            )
        members.append(member)
    inside = {name for name, folder in seen.items() if not folder}
    for member in members:
        above = next((str(p) for p in PurePosixPath(member.name).parents if str(p) in inside), None)
        if above is not None:
            raise _bad(f"{_shown(member.name)} lies in {_shown(above)}, which is not a folder")
    if not inside:
        raise _bad("the zip holds no file")
    return members


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> ArchiveMember:
    name = info.filename
    check_member_name(name.rstrip("/"))
    if info.flag_bits & 0x1:
        raise _bad(f"{_shown(name)} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _bad(f"{_shown(name)} has an unsupported compression: members must be stored or deflated")
    mode = info.external_attr >> 16 if info.create_system == 3 else 0
    kind = stat.S_IFMT(mode)
    if info.is_dir() or kind == stat.S_IFDIR:
        return ArchiveMember(name.rstrip("/"), mode=0o755, folder=True)
    if kind == stat.S_IFLNK:
        if info.file_size > LONGEST_LINK:
            raise _bad(f"the link {_shown(name)} is too long")
        target = archive.read(info).decode("utf-8", "surrogateescape")
        check_link(name, target)
        return ArchiveMember(name, mode=0o777, target=target)
    if kind not in (0, stat.S_IFREG):
        raise _bad(f"{_shown(name)} is neither a file, a folder nor a link")
    return ArchiveMember(name, info.file_size, 0o755 if mode & 0o111 else 0o644)


def check_member_name(name: str) -> None:
    """Raises InvalidInput for a name that leads elsewhere, or that no file system accepts."""
    parts = name.split("/")
    if not name or name.startswith("/") or not all(parts) or {".", ".."} & set(parts):
        raise _bad(f"{_shown(name)} is not a plain relative name")
    if "\\" in name or "\0" in name or not name.isprintable():
        raise _bad(f"{_shown(name)} has characters that a name can't have")
    if len(name.encode("utf-8", "surrogateescape")) > LONGEST_NAME or any(
        len(part.encode("utf-8", "surrogateescape")) > LONGEST_PART for part in parts
    ):
        raise _bad(f"{_shown(name)} is too long")


def check_link(name: str, target: str) -> None:
    """Raises InvalidInput for a link that leads out of the code."""
    depth = name.count("/")
    if not target or target.startswith("/") or not target.isprintable():
        raise _bad(f"the link {_shown(name)} leads out of the code: {_shown(target)}")
    for part in target.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            raise _bad(f"the link {_shown(name)} leads out of the code: {_shown(target)}")


def write_archive(folder: Path, out: IO[bytes]) -> int:
    """Zip the content of ``folder`` into ``out``; how many files. Raises InvalidInput for a file that it can't contain, and
    TooLarge."""
    count, unpacked = 0, 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, path, status in _walk(folder, ""):
            info = zipfile.ZipInfo(name, _SAME_TIME)
            info.create_system = 3
            info.compress_type = zipfile.ZIP_DEFLATED
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(path)
                check_link(name, target)
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                data = target.encode("utf-8", "surrogateescape")
            elif stat.S_ISDIR(status.st_mode):
                info.filename, info.external_attr, data = f"{name}/", (stat.S_IFDIR | 0o755) << 16, b""
            else:
                info.external_attr = (stat.S_IFREG | (0o755 if status.st_mode & 0o111 else 0o644)) << 16
                data = _read_file(path, MOST_UNPACKED_BYTES - unpacked)
                unpacked += len(data)
                count += 1
            archive.writestr(info, data)
            if out.tell() > MOST_BYTES:
                raise too_large(out.tell())
    if not count:
        raise _bad(f"there is no file in {folder}")
    if out.tell() > MOST_BYTES:
        raise too_large(out.tell())
    return count


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Files, links and empty folders below ``folder``, by name."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as problem:
        raise _bad(f"{folder}: {(problem.strerror or str(problem)).lower()}") from None
    kept = [entry for entry in entries if entry.name not in LEFT_OUT]
    for entry in kept:
        name, path = f"{prefix}{entry.name}", Path(entry.path)
        check_member_name(name)
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            below = list(_walk(path, f"{name}/"))
            yield from below or [(name, path, status)]
        elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
            yield name, path, status
        else:
            raise _bad(f"{_shown(name)} is neither a file, a folder nor a link")


def _read_file(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as source:
            data = source.read(most + 1)
    except OSError as problem:
        raise _bad(f"{path}: {(problem.strerror or str(problem)).lower()}") from None
    if len(data) > most:
        raise TooLarge(
            f"the code is more than {MOST_UNPACKED_BYTES // MIB} MiB unpacked",
            field="spec.code",
            hint="leave out what the function doesn't need, or make the code an image: --image REGISTRY/NAME:TAG",
        )
    return data


def _shown(name: str) -> str:
    return repr(name[:80])


def _bad(fact: str) -> InvalidInput:
    return InvalidInput(
        f"the code can't be used: {fact}", reason="badCode", field="spec.code", hint="give a folder, or a zip of one"
    )
