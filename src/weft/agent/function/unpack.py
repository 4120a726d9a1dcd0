"""Unpacks archives into folders for instances: a function's zip, and the tar with a managed runtime's root.

Archives come from strangers: a member outside the folder, or one that isn't a folder, a plain file or a link within it, is refused,
and so is an archive beyond its limits. Nothing is written through a link: links are made last, or nothing follows below them.
"""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from weft.objects.errors import DriverFailed
from weft.objects.quantity import format_bytes

MOST_CODE_BYTES = 250 * 1024 * 1024
MOST_ROOT_BYTES = 1 << 30
MOST_MEMBERS = 50_000
MOST_LINK_BYTES = 4096


def lay_out_code(archive: Path, folder: Path) -> None:
    """Unpack the zip into the empty ``folder``, readable for all users. Raises DriverFailed (``Function.BadCode``)."""
    links: list[tuple[Path, str]] = []
    left = MOST_CODE_BYTES
    try:
        with zipfile.ZipFile(archive) as packed:
            members = packed.infolist()
            if len(members) > MOST_MEMBERS:
                raise bad_code(f"it has {len(members)} members; the limit is {MOST_MEMBERS}")
            for member in members:
                place = folder / safe_path(member.filename)
                mode = member.external_attr >> 16
                kind = stat.S_IFMT(mode)
                if member.is_dir():
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
                    raise bad_code(f"{member.filename[:80]!r} is neither a file nor a folder")
                place.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(member) as content:
                    if kind == stat.S_IFLNK:
                        links.append((place, _read_link(content, member.filename)))
                        continue
                    left = _copy(content, place, left, member.filename)
                place.chmod(0o755 if mode & 0o111 else 0o644)
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError) as problem:
        raise bad_code(f"it can't be unpacked: {problem}") from problem
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as problem:
        raise bad_code(f"two of its members have one path: {problem.filename}") from problem
    _make_links(folder, links)
    _open_folders(folder)


def lay_out_root(archive: BinaryIO, folder: Path) -> None:
    """Unpack the tar into the empty ``folder``: modes are kept except setuid and setgid, the caller owns the files. Raises
    DriverFailed (``notAnImage``)."""
    left, count = MOST_ROOT_BYTES, 0
    folders = {folder}
    try:
        with tarfile.open(fileobj=archive, mode="r:") as packed:
            for member in packed:
                count += 1
                if count > MOST_MEMBERS:
                    raise _bad_root(f"it has more than {MOST_MEMBERS} members")
                place = folder / safe_path(member.name)
                if place != folder and place.parent not in folders:
                    raise _bad_root(f"{member.name[:80]!r} comes before its folder, or without one")
                if member.isdir():
                    place.mkdir(exist_ok=True)
                    place.chmod(member.mode & 0o1777)
                    folders.add(place)
                elif member.issym():
                    place.symlink_to(member.linkname[:MOST_LINK_BYTES])
                elif member.isreg() and (content := packed.extractfile(member)) is not None:
                    left = _copy(content, place, left, member.name)
                    place.chmod(member.mode & 0o777)
                else:
                    raise _bad_root(f"{member.name[:80]!r} is not a folder, file or link")
    except (tarfile.TarError, EOFError, FileExistsError, IsADirectoryError) as problem:
        raise _bad_root(f"it can't be unpacked: {problem}") from problem


def safe_path(name: str) -> PurePosixPath:
    """``name`` as a path that stays below a folder. Raises DriverFailed (``Function.BadCode``)."""
    path = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or path.is_absolute() or ".." in path.parts or len(name) > 1024:
        raise bad_code(f"the name {name[:80]!r} leads out of its folder")
    return path


def stays_within(place: PurePosixPath, aim: str) -> bool:
    """Pure. Whether a link at ``place`` (relative to the folder) to ``aim`` stays in the folder, even if other members are
    links."""
    depth = len(place.parts) - 1
    if aim.startswith("/") or not aim or "\0" in aim:
        return False
    for part in PurePosixPath(aim).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return True


def bad_code(what: str) -> DriverFailed:
    return DriverFailed(f"the function's code: {what}", reason="Function.BadCode", details={"step": "code"})


def _bad_root(what: str) -> DriverFailed:
    return DriverFailed(f"the runtime's root: {what}", reason="notAnImage", details={"step": "base"})


def _copy(content: IO[bytes], place: Path, left: int, name: str) -> int:
    """Write it; the number of bytes that may still follow."""
    with place.open("xb") as out:
        while piece := content.read(1 << 20):
            left -= len(piece)
            if left < 0:
                raise bad_code(f"it unpacks to more than {format_bytes(MOST_CODE_BYTES)}, at {name[:80]!r}")
            out.write(piece)
    return left


def _read_link(content: IO[bytes], name: str) -> str:
    aim = content.read(MOST_LINK_BYTES)
    try:
        return aim.decode()
    except UnicodeDecodeError:
        raise bad_code(f"the link {name[:80]!r} leads nowhere") from None


def _make_links(folder: Path, links: Iterable[tuple[Path, str]]) -> None:
    for place, aim in links:
        if not stays_within(PurePosixPath(place.relative_to(folder)), aim):
            raise bad_code(f"the link {place.name!r} leads out of its folder")
        try:
            os.symlink(aim, place)
        except FileExistsError:
            raise bad_code(f"two of its members have one path: {place.name!r}") from None


def _open_folders(folder: Path) -> None:
    for path, _, _ in os.walk(folder):
        os.chmod(path, 0o755)  # noqa: S103 (code, read by an instance of another user)
