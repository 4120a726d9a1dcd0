"""Folders that a layer has only because of what lies in them: which owner, mode, times and attributes they keep.

A tar of single files has no entries for their folders, so the layer alone can't tell (``unpack/entries.py`` makes them root's,
0755), and overlayfs shows a folder as its uppermost layer has it. An image with such folders gets one layer of folders on top, in
which each is as the nearest lower layer with an entry for it has it. Layers stay what they are, since images share them.
Where a lower layer has a link of that name, the folder takes its place, as a folder with an entry would ("changeset over existing
files" of the specification): containerd, too, applies a layer to overlayfs's upper folder alone, where no lower link is seen.
Source of the behaviour: images are unpacked one layer over the other by Docker and containerd, and folders stay as they are there.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from weft.drivers.image.oci.layer_files import is_opaque

_KEPT_ATTRIBUTES = "user."


class Folder(msgspec.Struct, frozen=True):
    """``path`` below the root; ``modified`` in nanoseconds."""

    path: str
    mode: int
    uid: int
    gid: int
    modified: int
    attributes: dict[str, bytes]


def find_folders(layers: Sequence[Path], implied: Sequence[Iterable[str]]) -> list[Folder]:
    """The folders that a layer on top of ``layers``, roots with the uppermost first, has to have, parents first; none: no layer is
    needed. ``implied``: of each layer the folders that it has no entry for. No link is followed: a path is only entered once each
    of its parents was seen to be a folder of that layer."""
    own = [frozenset(names) for names in implied]
    wanted = _plant(path for names in own for path in names)
    found, mended = dict[str, str](), set[str]()
    left: list[tuple[str, Mapping[str, Any], list[int]]] = [("", wanted, list(range(len(layers))))]
    while left:
        parent, names, within = left.pop()
        for name, below in names.items():
            path = f"{parent}/{name}" if parent else name
            visible = _list_visible(layers, within, path)
            if not visible:
                continue
            told = next((number for number in visible if path not in own[number]), visible[0])
            found[path] = f"{layers[told]}/{path}"
            if told != visible[0]:
                mended.add(path)
            left.append((path, below, visible))
    needed = set[str]()
    for path in mended:
        while path and path not in needed:  # its parents are there, too, once it is
            needed.add(path)
            path = path.rpartition("/")[0]
    return [_read(path, found[path]) for path in sorted(needed)]


def name_folders(folders: Sequence[Folder]) -> str:
    """A digest that stands where a layer's diff id does."""
    return f"sha256:{hashlib.sha256(b'weft folders' + msgspec.msgpack.encode(folders)).hexdigest()}"


def make_folders(root: Path, folders: Sequence[Folder]) -> None:
    """Make them in the empty folder ``root``. Raises OSError."""
    for one in folders:
        place = f"{root}/{one.path}"  # text: a Path would take each apart, and some are hundreds of folders deep
        os.mkdir(place, 0o700)
        os.chown(place, one.uid, one.gid)
        os.chmod(place, one.mode)
        for name, value in one.attributes.items():
            os.setxattr(place, name, value)
    for one in reversed(folders):
        os.utime(f"{root}/{one.path}", ns=(one.modified, one.modified))


def _plant(paths: Iterable[str]) -> dict[str, Any]:
    """A tree of names."""
    tree: dict[str, Any] = {}
    for path in paths:
        node = tree
        for name in path.split("/"):
            node = node.setdefault(name, {})
    return tree


def _list_visible(layers: Sequence[Path], within: Sequence[int], path: str) -> list[int]:
    """The layers whose folder ``path`` is part of what overlayfs shows there, the uppermost first."""
    visible = []
    for number in within:
        place = f"{layers[number]}/{path}"
        try:
            facts = os.lstat(place)
        except OSError:  # also a name that is too long here: then nothing is mended there
            continue
        if not stat.S_ISDIR(facts.st_mode):  # a deletion, or something else: it hides what lies below
            break
        visible.append(number)
        if is_opaque(place):
            break
    return visible


def _read(path: str, place: str) -> Folder:
    facts = os.lstat(place)
    names = [name for name in os.listxattr(place, follow_symlinks=False) if name.startswith(_KEPT_ATTRIBUTES)]
    attributes = {name: os.getxattr(place, name, follow_symlinks=False) for name in sorted(names)}
    return Folder(path, stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid, facts.st_mtime_ns, attributes)
