"""One entry of a layer after the other, made in the current root (see ``confinement.py``); deletions become overlayfs's.

Source: OCI image specification 1.1, "image layer filesystem changeset"; the kernel's overlayfs documentation.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from typing import IO

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_PIECE_BYTES = 1 << 20
_MOST_ID = (1 << 32) - 2
_LATEST = 1 << 34  # a time that file systems can keep
_XATTR = "SCHILY.xattr."
_MOST_XATTR_BYTES = 1 << 16
_HOLE = bytes(4096)


class LayerRefused(Exception):
    """The layer can't be taken; ``reason`` is hostileLayer, badLayer or layerTooLarge."""

    def __init__(self, message: str, reason: str = "hostileLayer") -> None:
        super().__init__(message)
        self.reason = reason


class Tree:
    """The tree that was unpacked so far. ``beat`` is called while it goes on."""

    def __init__(self, beat: Callable[[int], None]) -> None:
        self._beat = beat
        self._folders: dict[str, str] = {"": ""}  # the own path of each name that was entered: some lead through links
        self._times: dict[str, float] = {"": 0.0}
        self.opaque: set[str] = set()
        self.implied: set[str] = set()  # folders without an entry of their own
        self.dropped = 0  # device nodes: a container's runtime makes those it may have

    def add(self, entry: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        path = _clean(entry.name)
        if not (0 <= entry.uid <= _MOST_ID and 0 <= entry.gid <= _MOST_ID):
            raise LayerRefused(
                f"{_shown(path)} belongs to {entry.uid}:{entry.gid}, which are not user and group ids", "badLayer"
            )
        folder, _, name = path.rpartition("/")
        if path == "":
            if not entry.isdir():
                raise LayerRefused("its root is not a directory")
            self._finish(path, entry)
            return
        if name.startswith(_WHITEOUT):
            self._hide(folder, name)
            return
        if entry.ischr() or entry.isblk():
            self.dropped += 1
            return
        own = _join(self._enter(folder), name)
        if entry.isdir():
            self._make_folder(path, own)
            self._finish(path, entry)
            return
        self._clear(path)
        if entry.islnk():
            self._link(path, entry)
            return
        if entry.issym():
            if not 0 < len(os.fsencode(entry.linkname)) < 4096 or "\0" in entry.linkname:
                raise LayerRefused(f"{_shown(path)} links to an invalid name", "badLayer")
            os.symlink(entry.linkname, path)
        elif entry.isfifo():
            os.mkfifo(path, 0o600)
        elif entry.isreg():
            assert content is not None
            self._write(path, entry, content)
        else:
            raise LayerRefused(f"{_shown(path)} has an unknown type ({entry.type!r})", "badLayer")
        self._finish(path, entry)

    def close(self) -> None:
        """Directories' own times, last: making things in them changes those."""
        for path, at in self._times.items():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # replaced by a later entry
                os.utime(path or ".", (at, at), follow_symlinks=False)

    def _hide(self, folder: str, name: str) -> None:
        """A whiteout: what lower layers have of that name, or in that folder, is gone."""
        if name == _OPAQUE:
            self.opaque.add(self._enter(folder))
            return
        hidden = name.removeprefix(_WHITEOUT)
        if hidden.startswith(_WHITEOUT):
            return  # aufs's own books
        if hidden in ("", ".", ".."):
            raise LayerRefused(f"{_shown(folder + '/' + name)} deletes an invalid name")
        own, path = _join(self._enter(folder), hidden), _join(folder, hidden)
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
        else:  # this layer has the name itself: only what lies below it goes
            if stat.S_ISDIR(found.st_mode):
                self.opaque.add(own)

    def _enter(self, folder: str) -> str:
        """Make ``folder`` a directory if it isn't one; returns its own path, of which no link is part. Parents that the layer
        leaves out are owned by root (see ``folders.py`` for what an image shows of them)."""
        known = self._folders.get(folder)
        if known is not None:
            return known
        above, _, name = folder.rpartition("/")
        own = _join(self._enter(above), name)
        try:
            mode = os.lstat(folder).st_mode
        except FileNotFoundError:
            os.mkdir(folder, 0o755)
            self.implied.add(own)
        else:
            if stat.S_ISLNK(mode):
                own, mode = self._follow(folder)
            elif _is_whiteout(folder):
                os.unlink(folder)
                os.mkdir(folder, 0o755)
                mode = stat.S_IFDIR
                self.opaque.add(own)
            if not stat.S_ISDIR(mode):
                raise LayerRefused(f"{_shown(folder)} is not a directory, but has entries")
        self._folders[folder] = own
        return own

    def _follow(self, link: str) -> tuple[str, int]:
        """The path that a link leads to, within this root, and the mode of what is there."""
        try:
            return os.path.realpath(f"/{link}").strip("/"), os.stat(link).st_mode
        except FileNotFoundError:
            raise LayerRefused(f"{_shown(link)} is a dangling link, but has entries") from None

    def _make_folder(self, path: str, own: str) -> None:
        self.implied.discard(own)
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            os.mkdir(path, 0o700)
        else:
            if not stat.S_ISDIR(found.st_mode):
                was_whiteout = _is_whiteout(path)
                self._clear(path)
                os.mkdir(path, 0o700)
                if was_whiteout:
                    self.opaque.add(own)
        self._folders[path] = own

    def _clear(self, path: str) -> None:
        """Remove the earlier of two entries with one name: the later counts."""
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path)
            self.opaque = {one for one in self.opaque if one != path and not one.startswith(f"{path}/")}
        else:
            os.unlink(path)
        if stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode):
            self._folders = {"": ""}  # names that led through it may lead elsewhere now

    def _link(self, path: str, entry: tarfile.TarInfo) -> None:
        target = _clean(entry.linkname)
        try:
            if target == "" or _is_whiteout(target):
                raise FileNotFoundError
            os.link(target, path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            raise LayerRefused(
                f"{_shown(path)} is a hard link to {_shown(target)}, which this layer doesn't have"
            ) from None
        except PermissionError:
            raise LayerRefused(f"{_shown(path)} is a hard link to {_shown(target)}, which is not a file") from None

    def _write(self, path: str, entry: tarfile.TarInfo, content: IO[bytes]) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb", buffering=0) as out:
            written = 0
            while chunk := content.read(_PIECE_BYTES):
                if entry.issparse() and not chunk.strip(b"\0"):
                    out.seek(len(chunk), os.SEEK_CUR)
                else:
                    left = memoryview(chunk)
                    while left:
                        left = left[out.write(left) :]
                written += len(chunk)
                self._beat(len(chunk))
            if written != entry.size:
                raise LayerRefused(f"{_shown(path)} is cut off", "badLayer")
            if entry.issparse():
                os.ftruncate(descriptor, written)

    def _finish(self, path: str, entry: tarfile.TarInfo) -> None:
        """Owner, then mode and attributes, which a new owner would take away, then the time."""
        where = path or "."
        os.chown(where, entry.uid, entry.gid, follow_symlinks=False)
        if not entry.issym():
            os.chmod(where, entry.mode & 0o7777)
        for key, text in entry.pax_headers.items():
            if key.startswith(_XATTR):
                _set_attribute(where, path, key.removeprefix(_XATTR), text)
        at = float(entry.mtime)
        at = min(max(at, 0.0), float(_LATEST)) if at == at else 0.0
        if entry.isdir():
            self._times[path] = at
        else:
            os.utime(where, (at, at), follow_symlinks=False)


def _set_attribute(where: str, path: str, name: str, text: str) -> None:
    """Keep security.capability and users' own attributes, refuse those that steer overlayfs, and leave out the rest, which is
    the node's choice."""
    if name.startswith(("trusted.", "user.overlay.", "user.fuseoverlayfs.")):
        raise LayerRefused(f"{_shown(path)} has the attribute {_shown(name)}, which no layer may set")
    if name != "security.capability" and not name.startswith("user."):
        return
    value = text.encode("utf-8", "surrogateescape")
    if len(value) > _MOST_XATTR_BYTES:
        raise LayerRefused(f"{_shown(path)} has an attribute of {len(value)} bytes")
    try:
        os.setxattr(where, name, value, follow_symlinks=False)
    except OSError as problem:
        if name == "security.capability" and problem.errno == errno.EINVAL:
            raise LayerRefused(f"{_shown(path)} has capabilities that can't be read", "badLayer") from None
        if name == "security.capability" or problem.errno not in (
            errno.EOPNOTSUPP,
            errno.EPERM,
            errno.ENOSPC,
            errno.E2BIG,
        ):
            raise


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_whiteout(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _clean(name: str) -> str:
    """The name below the root: "" is the root itself. An absolute one is below it, too. Raises LayerRefused."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise LayerRefused(f"{_shown(name)} leads out of the layer")
    path = "/".join(parts)
    if "\0" in path or len(os.fsencode(path)) > 4000:
        raise LayerRefused(f"{_shown(path)} is not a valid name", "badLayer")
    return path


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:117]}…").encode("ascii", "backslashreplace").decode()
