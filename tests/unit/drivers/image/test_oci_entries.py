"""What a layer's entries make, and how often the file system is asked for it."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from weft.drivers.image.oci.folders import find_folders
from weft.drivers.image.oci.unpack.entries import Tree


def test_folders_without_entries_are_looked_at_once_however_deep_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[object] = []
    for name in ("lstat", "stat"):
        plain = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, plain=plain, **k: asked.append(a[0]) or plain(*a, **k))
    tree, above = Tree(lambda _: None), "/".join(["deep"] * 100)
    for number in range(50):
        entry = tarfile.TarInfo(f"{above}/d{number}/link")
        entry.type, entry.linkname, entry.uid, entry.gid = tarfile.SYMTYPE, "x", os.getuid(), os.getgid()
        tree.add(entry, None)
    assert len(tree.implied) == 150
    assert len(asked) <= 2 * 150
    monkeypatch.undo()
    assert len(find_folders([tmp_path], [tree.implied])) == 0
