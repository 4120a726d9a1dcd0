"""The way to a file by its path, on a stranger's file system. Pure, but for what ``read`` does."""

from __future__ import annotations

from weft.backup.files.ext4 import ROOT_INODE, FileSystem, Inode
from weft.objects.errors import InvalidInput, NotFound

MOST_LINKS = 20
MOST_PATH_BYTES = 4096


def walk(files: FileSystem, path: str) -> Inode:
    """The inode at ``path``; links are followed, and never lead out of this file system."""
    wanted = path.encode(errors="surrogateescape")
    if len(wanted) > MOST_PATH_BYTES:
        raise InvalidInput(f"the path is longer than {MOST_PATH_BYTES} bytes", field="path")
    stack, names, links = [files.inode(ROOT_INODE)], wanted.split(b"/")[::-1], 0
    while names:
        name = names.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            stack = stack[:-1] or stack
            continue
        if not stack[-1].is_directory:
            raise NotFound(f"{show(path)} is not there: a file stands where a folder would be", field="path")
        inode = files.find(stack[-1], name)
        if inode is None:
            missing = f": {show(name.decode(errors='replace'))} does not exist" if names else ""
            raise NotFound(f"{show(path)} is not there{missing}", field="path")
        if inode.is_link:
            links += 1
            target = files.read_link(inode)
            if links > MOST_LINKS or len(target) + sum(map(len, names)) > 2 * MOST_PATH_BYTES:
                raise NotFound(f"{show(path)} leads through more than {MOST_LINKS} links", field="path")
            stack = stack[:1] if target.startswith(b"/") else stack
            names += target.split(b"/")[::-1]
            continue
        stack.append(inode)
    return stack[-1]


def show(text: str) -> str:
    """Show the text to people: without what a terminal would act on, and not too long."""
    return "".join(char if char.isprintable() else "?" for char in text[:200])
