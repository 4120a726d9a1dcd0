"""A function's code: what a zip may hold, and that a folder is the same bytes each time."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from weft.objects import code_archive
from weft.objects.code_archive import ArchiveMember, check_link, read_members, write_archive
from weft.objects.errors import InvalidInput, TooLarge, WeftError


def zipped(*members: tuple[str, bytes, int], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data, mode in members:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr, info.compress_type = 3, mode << 16, compression
            archive.writestr(info, data)
    return out.getvalue()


def read(data: bytes) -> list[ArchiveMember]:
    return read_members(io.BytesIO(data), len(data))


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    (folder / "shop").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "app.py").write_text("def handler(event, context): return event\n")
    (folder / "shop" / "tool.sh").write_text("#!/bin/sh\n")
    (folder / "shop" / "tool.sh").chmod(0o755)
    (folder / "shop" / "link").symlink_to("../app.py")
    for left in (".git", "__pycache__"):
        (folder / left).mkdir()
        (folder / left / "x").write_text("x")
    return folder


def test_a_folder_is_the_same_bytes_each_time_and_keeps_what_matters(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    first, second = io.BytesIO(), io.BytesIO()
    assert write_archive(folder, first) == 2
    os.utime(folder / "app.py", (1, 1))
    (folder / "app.py").chmod(0o600)
    write_archive(folder, second)
    assert first.getvalue() == second.getvalue()
    assert read(first.getvalue()) == [
        ArchiveMember("app.py", 42),
        ArchiveMember("empty", mode=0o755, folder=True),
        ArchiveMember("shop/link", mode=0o777, target="../app.py"),
        ArchiveMember("shop/tool.sh", 10, 0o755),
    ]


def test_a_zip_of_another_system_has_no_modes() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("app.py")
        info.create_system, info.external_attr = 0, 0x20
        archive.writestr(info, b"x")
    assert read(out.getvalue()) == [ArchiveMember("app.py", 1)]


FILE, LINK = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777


@pytest.mark.parametrize(
    "members",
    [
        [("/etc/passwd", b"x", FILE)],
        [("../x", b"x", FILE)],
        [("a/../../x", b"x", FILE)],
        [("a//b", b"x", FILE)],
        [("./a", b"x", FILE)],
        [("a\\b", b"x", FILE)],
        [("a\nb", b"x", FILE)],
        [("x" * 300, b"x", FILE)],
        [("/".join(["x" * 200] * 6), b"x", FILE)],
        [("a", b"/etc/passwd", LINK)],
        [("a", b"../x", LINK)],
        [("d/a", b"../../x", LINK)],
        [("d/a", b"e/../../../x", LINK)],
        [("a", b"", LINK)],
        [("a", b"x" * 2000, LINK)],
        [("dev", b"", stat.S_IFCHR | 0o666)],
        [("fifo", b"", stat.S_IFIFO | 0o666)],
        [("a", b"x", FILE), ("a", b"y", FILE)],
        [("a", b"d", LINK), ("a/b", b"y", FILE)],
        [("a", b"x", FILE), ("a/b", b"y", FILE)],
        [("d/", b"", stat.S_IFDIR | 0o755)],
        [],
    ],
)
def test_what_no_node_would_unpack_is_refused(members: list[tuple[str, bytes, int]]) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(zipped(*members))
    assert caught.value.token == "badCode"


def test_compressions_that_are_not_read_are_refused() -> None:
    with pytest.raises(InvalidInput):
        read(zipped(("a", b"x" * 100, FILE), compression=zipfile.ZIP_LZMA))


def test_a_bomb_is_refused_by_what_it_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zipped(("a", bytes(2_000_000), FILE))
    assert len(bomb) < 4000
    monkeypatch.setattr(code_archive, "MOST_UNPACKED_BYTES", 1_000_000)
    with pytest.raises(TooLarge):
        read(bomb)


def test_a_directory_of_millions_is_never_read() -> None:
    good = zipped(("a", b"x", FILE))
    end = good.rindex(b"PK\x05\x06")
    many = good[:end] + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 60_000, 60_000, 46, 0, 0)
    large = good[:end] + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 40 * 2**20, 0, 0)
    huge = good[:end] + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    for data in (many, large, huge, good[:-5], b"", b"PK\x05\x06", b"not a zip" * 100):
        with pytest.raises(InvalidInput):
            read(data)


def test_a_directory_may_be_as_large_as_the_limit_and_no_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    good = zipped(("a", b"x", FILE))
    directory = good.rindex(b"PK\x05\x06") - good.index(b"PK\x01\x02")
    monkeypatch.setattr(code_archive, "MOST_DIRECTORY_BYTES", directory)
    assert [member.name for member in read(good)] == ["a"]
    monkeypatch.setattr(code_archive, "MOST_DIRECTORY_BYTES", directory - 1)
    with pytest.raises(InvalidInput):
        read(good)


def test_damaged_zips_are_refused_and_never_end_otherwise() -> None:
    good = bytearray(zipped(("app.py", b"x" * 500, FILE), ("d/l", b"../app.py", LINK)))
    for at in range(len(good)):
        broken = bytearray(good)
        broken[at] ^= 0x55
        with contextlib.suppress(WeftError):
            read(bytes(broken))


@pytest.mark.parametrize("target", ["../app.py", "a/../b", "./x", "../d/x"])
def test_links_that_stay_inside_are_fine(target: str) -> None:
    check_link("d/link", target)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "out").symlink_to("/etc/passwd"),
        lambda folder: (folder / "out").symlink_to("../../x"),
        lambda folder: os.mkfifo(folder / "pipe"),
        lambda folder: (folder / "a\nb").write_text("x"),
    ],
)
def test_what_cannot_go_along_is_named(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    folder = folder_of(tmp_path)
    spoil(folder)
    with pytest.raises(InvalidInput) as caught:
        write_archive(folder, io.BytesIO())
    assert any(word in caught.value.message for word in ("out", "pipe", "a\\nb"))


def test_an_empty_folder_is_no_code_and_a_large_one_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput):
        write_archive(tmp_path / "empty", io.BytesIO())
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "a").write_bytes(os.urandom(200_000))
    monkeypatch.setattr(code_archive, "MOST_BYTES", 100_000)
    with pytest.raises(TooLarge):
        write_archive(tmp_path / "noise", io.BytesIO())
    monkeypatch.setattr(code_archive, "MOST_UNPACKED_BYTES", 100_000)
    with pytest.raises(TooLarge):
        write_archive(tmp_path / "noise", io.BytesIO())
