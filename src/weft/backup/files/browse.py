"""Questions about a disk: a folder's list, a file's content, all of a folder, or what in its system is one machine's own. Pure, but
for what ``read`` and ``send`` do."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from weft.backup.files.ext4 import FileSystem, Inode, damaged
from weft.backup.files.identity import find_system, find_traces
from weft.backup.files.partitions import Partition, Read, find_parts
from weft.backup.files.tree import send_tree
from weft.backup.files.walk import show, walk
from weft.objects.errors import InvalidInput, NotFound
from weft.objects.quantity import format_bytes

SYSTEM = "system"  # said of a file system with the root of one
_KINDS = {stat.S_IFDIR: "folder", stat.S_IFREG: "file", stat.S_IFLNK: "link"}


class DiskQuestion(msgspec.Struct, frozen=True, kw_only=True):
    # parts: those with a system, and swap; identity: what in one of them is this machine's own; journal: where its journal lies.
    act: Literal["list", "read", "tree", "parts", "identity", "journal"]
    path: str = "/"  # in UTF-8; bytes that are none as surrogates, as Python's os.fsdecode has them
    partition: int = -1  # number of the one; -1: the only one, or the largest
    size: int  # of the disk
    hostname: str = ""  # identity: the machine's name


class FileEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a list."""

    name: str
    kind: str  # folder, file, link or other
    size: int = 0
    mode: int = 0
    modified: int = 0  # seconds since 1970
    target: str = ""  # of a link


def answer(question: DiskQuestion, read: Read, send: Callable[[bytes], None]) -> str:
    """Send the answer: a line of JSON for each entry, the content, or a tar archive. Returns what people should know of it.
    Raises WeftError."""
    parts = find_parts(read, question.size)
    if question.act == "parts":
        find_system(parts)
        send(msgspec.json.encode(parts))
        return ""
    part = _choose(parts, question.partition)

    def read_part(offset: int, length: int) -> bytes:
        return read(part.start + offset, length)

    files = FileSystem(read_part, part.size)
    if question.act == "identity":
        traces = find_traces(files, question.hostname)
        for trace in traces or ():
            send(msgspec.json.encode(trace) + b"\n")
        return SYSTEM if traces is not None else ""
    if question.act == "journal":
        send(msgspec.json.encode(files.list_journal()))
        return ""
    inode, said = walk(files, question.path), list[str]()
    if question.act == "list":
        for entry in _list(files, inode, question.path):
            send(msgspec.json.encode(entry) + b"\n")
    elif question.act == "tree":
        said.append(send_tree(files, inode, _name_top(question.path), part.size, send))
    else:
        _send_content(files, inode, question.path, part.size, send)
    others = [str(one.number) for one in parts if one.holds == "ext4" and one is not part]
    said += [f"of partition {part.number}; others: {', '.join(others)}"] if others else []
    return "; ".join(filter(None, said))


def _choose(parts: list[Partition], number: int) -> Partition:
    """Raises NotFound, InvalidInput."""
    held = "; ".join(f"{one.number}: {one.holds or 'unknown'}, {format_bytes(one.size)}" for one in parts)
    if number >= 0:
        found = next((one for one in parts if one.number == number), None)
        if found is None:
            raise NotFound(f"the disk has no partition {number}", field="partition", hint=f"it has {held}")
        if found.holds != "ext4":
            raise _unread(f"partition {number} has {found.holds or 'no file system that is known'}")
        return found
    readable = [one for one in parts if one.holds == "ext4"]
    if not readable:
        whole = parts[0].holds or "no file system that is known" if parts[0].number == 0 else f"partitions {held}"
        raise _unread(f"the disk has {whole}")
    return max(readable, key=lambda one: one.size)


def _unread(what: str) -> InvalidInput:
    return InvalidInput(
        f"{what}; single files are read from ext2, ext3 and ext4 only",
        hint="restore the backup under a new name, and copy the files from there: weft backup restore BACKUP --new-name NAME",
    )


def _name_top(path: str) -> str:
    """The path with which the entries of a folder's archive begin."""
    names = [name for name in path.split("/") if name not in ("", ".")]
    return names[-1] if names and names[-1] != ".." else ""


def _list(files: FileSystem, inode: Inode, path: str) -> Iterator[FileEntry]:
    if not inode.is_directory:
        yield _describe(files, path.rpartition("/")[2], inode)
        return
    for name, number in sorted(files.list_directory(inode)):
        yield _describe(files, name.decode(errors="surrogateescape"), files.inode(number))


def _describe(files: FileSystem, name: str, inode: Inode) -> FileEntry:
    target = files.read_link(inode).decode(errors="replace") if inode.is_link else ""
    shown = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    kind = _KINDS.get(stat.S_IFMT(inode.mode), "other")
    return FileEntry(shown, kind, inode.size if kind == "file" else 0, stat.S_IMODE(inode.mode), inode.modified, target)


def _send_content(files: FileSystem, inode: Inode, path: str, most: int, send: Callable[[bytes], None]) -> None:
    if inode.is_directory:
        raise InvalidInput(
            f"{show(path)} is a folder",
            field="path",
            hint="for all that is in it: weft backup get BACKUP PATH -r -o FOLDER",
        )
    if not stat.S_ISREG(inode.mode):
        raise InvalidInput(f"{show(path)} is neither a file nor a folder", field="path")
    if inode.size > most:
        raise InvalidInput(
            f"{show(path)} has {format_bytes(inode.size)} with its holes, more than its disk",
            field="path",
            hint="restore the backup under a new name, and copy it from there: weft backup restore BACKUP --new-name NAME",
        )
    left = inode.size
    for piece in files.read_file(inode):
        send(piece[:left])
        left -= len(piece[:left])
    if left:
        raise damaged(f"{show(path)} ends early")
