"""What a layer's entries make, and how often the file system is asked for it."""

import os
import tarfile
from pathlib import Path

import pytest

from weft.drivers.image.oci.unpack.entries import Tree


def test_folders_without_entries_are_looked_at_once_however_deep_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked, tree = list[object](), Tree(lambda _: None)
    for name, plain in (("lstat", os.lstat), ("stat", os.stat)):
        monkeypatch.setattr(os, name, lambda *a, plain=plain, **k: asked.append(a[0]) or plain(*a, **k))
    for number in range(50):
        entry = tarfile.TarInfo("deep/" * 100 + f"d{number}/link")
        entry.type, entry.linkname, entry.uid, entry.gid = tarfile.SYMTYPE, "x", os.getuid(), os.getgid()
        tree.add(entry, None)
    assert len(tree.implied) == 150 and len(asked) <= 2 * 150
