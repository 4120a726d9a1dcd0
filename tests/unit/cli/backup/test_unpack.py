"""What a stranger put into an archive lands in the new folder, or nowhere."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import click
import pytest

from weft.cli.backup import unpack as unpacking
from weft.cli.backup.unpack import unpack, unpacked
from weft.objects.errors import DriverFailed


def entry(name: str, type_: bytes = tarfile.REGTYPE, content: bytes = b"", target: str = "", **more: Any) -> bytes:
    head = tarfile.TarInfo(name)
    head.type, head.linkname, head.size = type_, target, len(content)
    for field, value in more.items():
        setattr(head, field, value)
    return head.tobuf(tarfile.PAX_FORMAT) + content.ljust(-(-len(content) // 512) * 512, b"\0")


END = bytes(1024)
OUT = entry("out", tarfile.SYMTYPE, target="..")
HOSTILE = {
    "a path upwards": entry("../escaped", content=b"x"),
    "a path upwards behind a folder": entry("a", tarfile.DIRTYPE) + entry("a/../../escaped", content=b"x"),
    "an absolute path": entry("/escaped", content=b"x"),
    "a file behind a link": OUT + entry("out/escaped", content=b"x"),
    "a folder behind a link": OUT + entry("out/escaped", tarfile.DIRTYPE),
    "a link in a link's place": OUT + entry("out", content=b"x"),
    "a hard link behind a link": entry("file", content=b"x")
    + OUT
    + entry("out/escaped", tarfile.LNKTYPE, target="file"),
    "a hard link to the outside": entry("taken", tarfile.LNKTYPE, target="../secret"),
    "a hard link through a link": OUT + entry("taken", tarfile.LNKTYPE, target="out/secret"),
    "a device": entry("disk", tarfile.BLKTYPE),
    "a pipe": entry("pipe", tarfile.FIFOTYPE),
    "an empty name": entry("", content=b"x"),
    "a file that comes twice": entry("file", content=b"x") + entry("file", content=b"y"),
    "a size below zero": entry("file", size=-5),
    "a head that is too long": entry("file", pax_headers={"comment": "x" * 70_000}),
    "a head that isn't one": b"\xff" * 512,
    "a record that lies": entry("x", tarfile.XHDTYPE, content=b"99 path=x\n"),
    "a path that is too deep": entry("/".join(["d"] * 400), content=b"x"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_hostile_gets_out_of_the_folder(tmp_path: Path, what: str) -> None:
    (tmp_path / "secret").write_text("s")
    with pytest.raises(DriverFailed, match="the folder can't be unpacked"), unpacked(tmp_path / "new") as take:
        take(HOSTILE[what] + END)
    assert os.listdir(tmp_path) == ["secret"] and (tmp_path / "secret").stat().st_nlink == 1


def test_an_archive_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    whole = entry("folder", tarfile.DIRTYPE) + entry("folder/file", content=b"x" * 5000) + END
    for length in (0, 100, 700, 1600, len(whole) - 1024):
        with pytest.raises(DriverFailed, match="ends early"), unpacked(tmp_path / "new") as take:
            take(whole[:length])
        assert os.listdir(tmp_path) == []
    with pytest.raises(KeyError), unpacked(tmp_path / "new") as take:
        take(whole[:700])
        raise KeyError("the connection was lost")
    assert os.listdir(tmp_path) == []
    with unpacked(tmp_path / "new") as take:
        for at in range(0, len(whole), 300):
            take(whole[at : at + 300])
    assert (tmp_path / "new" / "folder" / "file").read_bytes() == b"x" * 5000


def test_more_entries_than_the_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MOST_ENTRIES", 3)
    tmp_path.joinpath("new").mkdir()
    with pytest.raises(DriverFailed, match="more than 3 entries"):
        unpack(io.BytesIO(b"".join(entry(f"f{number}") for number in range(4)) + END), tmp_path / "new")


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(click.UsageError, match="is there already"), unpacked(tmp_path / "old"):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(click.UsageError, match="is there already"), unpacked(tmp_path / "link"):
        pass
