"""A folder of a disk as a tar archive, with names, sizes, modes, owners, times and links. Pure, but for what ``send`` does.

Source: POSIX.1-2001, pax interchange format. Extended attributes, devices, sockets and named pipes are left out. What a stranger's
file system says is bounded: entries, depth, and bytes by the size of its disk; a folder that lies within itself is refused. A file
that is larger than its disk, since it has holes, is left out by name.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Callable, Iterator

from weft.backup.files.ext4 import FileSystem, Inode, damaged
from weft.backup.files.walk import show
from weft.objects.errors import InvalidInput

MOST_ENTRIES = 1_000_000
MOST_DEPTH = 256
_MOST_NAMED = 3
_BUFFER = 256 << 10
_BLOCK = 512
_Entries = Iterator[tuple[bytes, int]]


def send_tree(files: FileSystem, top: Inode, name: str, most: int, send: Callable[[bytes], None]) -> str:
    """Send the archive of ``top``, whose entries begin with ``name`` ("": with what is in it); its files have at most ``most``
    bytes together. Returns what was left out, for people. Raises DriverFailed, InvalidInput."""
    archive = _Archive(files, most, send)
    archive.add(name.encode(errors="surrogateescape"), top)
    return archive.end()


class _Archive:
    def __init__(self, files: FileSystem, most: int, send: Callable[[bytes], None]) -> None:
        self._files, self._most, self._left, self._send = files, most, most, send
        self._buffer = bytearray()
        self._entries, self._left_out = 0, 0
        self._larger: list[bytes] = []  # files than their disk
        self._folders = set[int]()  # that were entered
        self._linked: dict[int, bytes] = {}  # files with several names: the first one

    def add(self, path: bytes, top: Inode) -> None:
        stack: list[tuple[bytes, _Entries]] = []
        if top.is_directory:
            stack.append(self._enter(path, top))
        else:
            self._add_one(path, top)
        while stack:
            folder, entries = stack[-1]
            found = next(entries, None)
            if found is None:
                stack.pop()
                continue
            name, number = found
            if b"/" in name or b"\0" in name:
                raise damaged("the name of a file contains a slash or a zero")
            inode, path = self._files.inode(number), b"/".join((folder, name)) if folder else name
            if not inode.is_directory:
                self._add_one(path, inode)
                continue
            if len(stack) > MOST_DEPTH:
                raise damaged(f"its folders lie deeper than {MOST_DEPTH} in each other")
            stack.append(self._enter(path, inode))

    def end(self) -> str:
        self._write(bytes(2 * _BLOCK))
        self._flush()
        those = "device, socket or pipe" if self._left_out == 1 else "devices, sockets or pipes"
        said = [f"left out {self._left_out} {those}"] if self._left_out else []
        if self._larger:
            named = [show(one.decode(errors="replace")) for one in self._larger[:_MOST_NAMED]]
            more = len(self._larger) - len(named)
            of = ", ".join(named) + (f" and {more} more" if more else "")
            said.append(f"left out {of}: larger than the disk, with holes; restore the backup to copy that")
        return "; ".join(said)

    def _enter(self, path: bytes, inode: Inode) -> tuple[bytes, _Entries]:
        if inode.number in self._folders:
            raise damaged("a folder lies within itself")
        self._folders.add(inode.number)
        if path:
            self._write_head(path, inode, tarfile.DIRTYPE)
        entries = []
        for entry in self._files.list_directory(inode):
            entries.append(entry)
            self._entries += 1
            if self._entries > MOST_ENTRIES:
                raise InvalidInput(
                    f"the folder holds more than {MOST_ENTRIES} files", field="path", hint="name a smaller one"
                )
        return path, iter(sorted(entries))

    def _add_one(self, path: bytes, inode: Inode) -> None:
        if inode.is_link:
            self._write_head(path, inode, tarfile.SYMTYPE, self._files.read_link(inode))
        elif not stat.S_ISREG(inode.mode):
            self._left_out += 1
        elif inode.number in self._linked:
            self._write_head(path, inode, tarfile.LNKTYPE, self._linked[inode.number])
        elif inode.size > self._most:
            self._larger.append(path)
        else:
            if inode.links > 1:
                self._linked[inode.number] = path
            self._add_content(path, inode)

    def _add_content(self, path: bytes, inode: Inode) -> None:
        if inode.size > self._left:
            raise InvalidInput(
                "the files of the folder have more bytes together than its disk: some have large holes",
                field="path",
                hint="name a smaller folder, or copy such files singly",
            )
        self._left -= inode.size
        self._write_head(path, inode, tarfile.REGTYPE)
        left = inode.size
        for piece in self._files.read_file(inode):
            self._write(piece[:left])
            left -= len(piece[:left])
        if left:
            raise damaged("a file ends early")
        self._write(bytes(-inode.size % _BLOCK))

    def _write_head(self, path: bytes, inode: Inode, type_: bytes, target: bytes = b"") -> None:
        head = tarfile.TarInfo(path.decode(errors="surrogateescape"))
        head.type, head.mode, head.mtime = type_, stat.S_IMODE(inode.mode), inode.modified
        head.uid, head.gid = inode.owner, inode.group
        head.linkname = target.decode(errors="surrogateescape")
        head.size = inode.size if type_ == tarfile.REGTYPE else 0
        self._write(head.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _write(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        for at in range(0, len(self._buffer), 4 * _BUFFER):
            self._send(bytes(self._buffer[at : at + 4 * _BUFFER]))
        self._buffer.clear()
