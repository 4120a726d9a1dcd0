"""Makes files of a tar that a guest sends, as its bytes come: names, contents, rights to read, write and execute, times.

The guest is not trusted, and the copying user may be root. Owners, setuid, setgid and sticky bits are dropped; devices and
pipes are left out. No name leads out of the folder, and no link is followed, also none that was there before.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from weft.cli.stream.sparse import end_sparse, write_sparse
from weft.objects.errors import DriverFailed
from weft.objects.image.tar import (
    BLOCK,
    DEVICES,
    FILE,
    FOLDER,
    HARD_LINK,
    LINK,
    LONG_LINK,
    LONG_NAME,
    WORDS,
    WORDS_OF_ALL,
    Header,
    decode_header,
    decode_words,
)

MOST_WORDS_BYTES = 64 << 10  # of a name, or what else stands before a member
MOST_BEFORE = 8  # of such, before one member
MOST_AFTER_BYTES = 1 << 20  # behind the archive's end: tars fill up their last record
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LATEST = 1 << 33


class Unpacker:
    """An unpacker into ``folder``, which is there. ``feed`` it the bytes; ``finish`` once there are no more. ``left_out``: how many
    devices and pipes there were. To be closed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._parent: tuple[tuple[bytes, ...], int] | None = None  # of the last member, and its descriptor
        self._bytes = bytearray()
        self._left = self._padding = 0  # of the member that is coming
        self._file = -1
        self._mtime = 0
        self._kept: bytearray | None = None  # of a member that describes the next
        self._kind = b""
        self._before: dict[str, bytes] = {}
        self._befores = 0
        self._after: int | None = None  # bytes behind the end
        self.left_out = 0

    def __enter__(self) -> Unpacker:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._file, self._parent[1] if self._parent is not None else -1, self._top):
            if descriptor >= 0:
                os.close(descriptor)
        self._file, self._parent, self._top = -1, None, -1

    def feed(self, data: bytes) -> None:
        """Raises DriverFailed for data that is no such archive, and for files that can't be written here."""
        self._bytes += data
        try:
            while self._step():
                pass
        except (ValueError, RecursionError):
            raise DriverFailed(f"{self._folder}: the guest sent no tar archive") from None
        except OSError as problem:
            raise DriverFailed(f"{self._folder}: {problem.strerror or problem}") from None

    def finish(self) -> None:
        """Raises DriverFailed for an archive that was cut."""
        if self._after is None:
            raise DriverFailed(f"{self._folder}: the archive was cut short: what came before it was written")

    def _step(self) -> bool:
        """False: more bytes are needed."""
        if self._after is not None:
            self._after += len(self._bytes)
            self._bytes.clear()
            if self._after > MOST_AFTER_BYTES:
                raise ValueError("data after the end")
            return False
        if self._left:
            return self._take_content()
        if len(self._bytes) < self._padding + BLOCK:
            return False
        del self._bytes[: self._padding]
        self._padding = 0
        block = bytes(self._bytes[:BLOCK])
        del self._bytes[:BLOCK]
        header = decode_header(block)
        if header is None:
            self._after = 0
        else:
            self._begin(header)
        return True

    def _take_content(self) -> bool:
        if not self._bytes:
            return False
        piece = memoryview(self._bytes)[: self._left]
        size = len(piece)
        if self._kept is not None:
            self._kept += piece
        if self._file >= 0:
            write_sparse(self._file, piece)
        piece.release()
        del self._bytes[:size]
        self._left -= size
        if not self._left:
            self._end()
        return True

    def _begin(self, header: Header) -> None:
        self._kind, size = header.type, header.size
        if header.type in (LONG_NAME, LONG_LINK, WORDS, WORDS_OF_ALL):
            self._befores += 1
            if size > MOST_WORDS_BYTES or self._befores > MOST_BEFORE:
                raise ValueError("too much before a member")
            self._kept = bytearray()
        else:
            size = self._make(header)
        self._left, self._padding = size, -size % BLOCK
        if not self._left:
            self._end()

    def _end(self) -> None:
        """All of a member is there."""
        if self._file >= 0:
            end_sparse(self._file)
            os.utime(self._file, (self._mtime, self._mtime))
            os.close(self._file)
            self._file = -1
        if self._kept is None:
            return
        content, self._kept = bytes(self._kept), None
        if self._kind == WORDS:
            header = decode_words(content)
            known = {b"path": "name", b"linkpath": "link", b"size": "size"}
            self._before |= {known[word]: value for word, value in header.items() if word in known}
        elif self._kind != WORDS_OF_ALL:
            self._before["name" if self._kind == LONG_NAME else "link"] = content.partition(b"\0")[0]

    def _make(self, header: Header) -> int:
        """How many bytes of content follow."""
        before, self._before, self._befores = self._before, {}, 0
        size = int(before["size"]) if "size" in before else header.size
        if size < 0:
            raise ValueError("less than nothing")
        where = self._split(before.get("name", header.name))
        link = before.get("link", header.link)
        self._mtime = header.mtime if 0 <= header.mtime < _LATEST else 0
        if header.type in DEVICES:
            self.left_out += 1
        elif where and header.type == FOLDER:
            os.close(_enter(self._open_parent(where), where[-1], header.mode & 0o777 | 0o700, replace=True))
        elif where and header.type in (FILE, LINK, HARD_LINK):
            parent = self._open_parent(where)
            if header.type == HARD_LINK:
                self._link_hard(self._split(link), parent, where[-1])
            else:
                _clear(parent, where[-1])
                if header.type == LINK:
                    os.symlink(link, where[-1], dir_fd=parent)
                else:
                    self._file = os.open(where[-1], _FILE_FLAGS, header.mode & 0o777, dir_fd=parent)
        elif header.type not in (FILE, FOLDER):
            raise ValueError("a member of another type")
        return size if header.type == FILE else 0

    def _split(self, name: bytes) -> tuple[bytes, ...]:
        """Raises DriverFailed for a name that leads out."""
        words = tuple(word for word in name.split(b"/") if word not in (b"", b"."))
        if b".." in words:
            header = name[:80].decode(errors="replace")
            raise DriverFailed(
                f"{self._folder}: the guest's archive has {header!r}, which leads out of the folder: copying stopped"
            )
        return words

    def _open_parent(self, where: Sequence[bytes]) -> int:
        """Open the folder in which a member lies, made if need be; open until the next member is in another."""
        folders = tuple(where[:-1])
        if self._parent is None or self._parent[0] != folders:
            if self._parent is not None:
                os.close(self._parent[1])
                self._parent = None
            at = os.dup(self._top)
            for name in folders:
                try:
                    inner = _enter(at, name, 0o755)
                finally:
                    os.close(at)
                at = inner
            self._parent = (folders, at)
        return self._parent[1]

    def _link_hard(self, target: tuple[bytes, ...], parent: int, name: bytes) -> None:
        if not target:
            raise ValueError("a link to nothing")
        at = os.dup(self._top)
        try:
            for word in target[:-1]:
                inner = os.open(word, _FOLDER_FLAGS, dir_fd=at)
                os.close(at)
                at = inner
            if not _is_same(at, target[-1], parent, name):
                _clear(parent, name)
                os.link(target[-1], name, src_dir_fd=at, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(at)


def _enter(parent: int, name: bytes, mode: int, *, replace: bool = False) -> int:
    """A descriptor of the folder ``name``, made if it isn't there. A link isn't followed; ``replace``: a folder takes its place.
    Raises OSError."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=parent)
    try:
        return os.open(name, _FOLDER_FLAGS, dir_fd=parent)
    except OSError as problem:
        if not replace or problem.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
    os.unlink(name, dir_fd=parent)
    os.mkdir(name, mode, dir_fd=parent)
    return os.open(name, _FOLDER_FLAGS, dir_fd=parent)


def _clear(parent: int, name: bytes) -> None:
    """Removes what has the name already, except a folder."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)


def _is_same(at: int, name: bytes, other_at: int, other: bytes) -> bool:
    with contextlib.suppress(FileNotFoundError):
        one, two = os.lstat(name, dir_fd=at), os.lstat(other, dir_fd=other_at)
        return (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)
    return False
