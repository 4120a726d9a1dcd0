"""A tar that a guest sends, whatever is in it, makes files below one folder, and nothing else."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.cli.stream.untar import MOST_AFTER_BYTES, Unpacker
from weft.objects.errors import DriverFailed


@pytest.fixture
def into(tmp_path: Path) -> Iterator[Path]:
    mask = os.umask(0o022)
    (tmp_path / "into").mkdir()
    yield tmp_path / "into"
    os.umask(mask)


def unpack(into: Path, data: bytes, piece: int = 1 << 16) -> Unpacker:
    with Unpacker(into) as unpacker:
        for at in range(0, len(data), piece):
            unpacker.feed(data[at : at + piece])
        unpacker.finish()
    return unpacker


def pack(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def member(name: str, type_: bytes = tarfile.REGTYPE, mode: int = 0o644, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.mode, made.linkname, made.mtime = type_, mode, link, 1_700_000_000
    return made


@pytest.mark.parametrize("piece", [1, 511, 70_000])
def test_a_folder_comes_as_it_was(tmp_path: Path, into: Path, piece: int) -> None:
    """As this machine's own tar packs it: long names, many blocks, empty files, links, times and rights."""
    there = tmp_path / "there"
    deep = there / ("d" * 120) / ("e" * 130)
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_bytes(b"deep")
    (there / "big").write_bytes(os.urandom(200_001 if piece > 1 else 1025))
    (there / "empty").touch()
    (there / "run").write_bytes(b"#!/bin/sh\n")
    (there / "run").chmod(0o755)
    (there / "to-run").symlink_to("run")
    (there / "out").symlink_to("/etc/hostname")
    (there / ("l" * 100)).symlink_to("x" * 180)
    os.link(there / "big", there / "same")
    os.utime(there / "run", (1_500_000_000, 1_500_000_000))
    data = subprocess.run(["tar", "-c", "-C", str(there), "."], capture_output=True, check=True).stdout
    unpack(into, data, piece)
    same = subprocess.run(["diff", "-r", "--no-dereference", str(there), str(into)], capture_output=True, check=False)
    assert same.returncode == 0, same.stdout.decode()
    assert (into / "run").stat().st_mode & 0o7777 == 0o755 and (into / "run").stat().st_mtime == 1_500_000_000
    assert (into / "big").stat().st_ino == (into / "same").stat().st_ino
    assert os.readlink(into / "out") == "/etc/hostname"


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_names_of_every_form_are_read(into: Path, form: int) -> None:
    name = "./" + "a" * 90 + "/" + "b" * (90 if form == tarfile.USTAR_FORMAT else 200)
    unpack(into, pack((member(name), b"x"), (member("ü" * 20), b"y"), form=form))
    assert (into / name).read_bytes() == b"x" and (into / ("ü" * 20)).read_bytes() == b"y"


def test_busybox_s_tar_is_read(tmp_path: Path, into: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / ("n" * 150)).write_bytes(b"long")
    try:
        done = subprocess.run(
            ["busybox", "tar", "-c", "-C", str(tmp_path / "there"), "."], capture_output=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("needs busybox")
    unpack(into, done.stdout)
    assert (into / ("n" * 150)).read_bytes() == b"long"


def test_of_rights_only_those_to_read_write_and_execute_are_taken(into: Path) -> None:
    unpack(into, pack((member("suid", mode=0o6777), b"x"), (member("dir", tarfile.DIRTYPE, 0o7777), b"")))
    assert stat.S_IMODE((into / "suid").stat().st_mode) == 0o755  # our umask holds
    assert stat.S_IMODE((into / "dir").stat().st_mode) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could take over owners and make devices")
def test_root_takes_over_no_owner_and_makes_no_device_and_no_pipe(into: Path) -> None:
    owned = member("owned")
    owned.uid = owned.gid = 4321
    disk = member("disk", tarfile.BLKTYPE, 0o666)
    disk.devmajor, disk.devminor = 254, 0
    data = pack(
        (owned, b"x"), (disk, b""), (member("tty", tarfile.CHRTYPE), b""), (member("pipe", tarfile.FIFOTYPE), b"")
    )
    assert unpack(into, data).left_out == 3
    assert [path.name for path in into.iterdir()] == ["owned"]
    assert ((into / "owned").stat().st_uid, (into / "owned").stat().st_gid) == (os.geteuid(), os.getegid())


@pytest.mark.parametrize("name", ["../out", "a/../../out", "..", "/../out"])
def test_a_name_that_leads_out_ends_it(into: Path, name: str) -> None:
    with pytest.raises(DriverFailed, match="leads out"):
        unpack(into, pack((member(name), b"x")))
    assert not (into.parent / "out").exists()


def test_a_name_from_the_root_stays_inside(into: Path) -> None:
    unpack(into, pack((member("/etc/weft-test"), b"x")))
    assert (into / "etc/weft-test").read_bytes() == b"x" and not Path("/etc/weft-test").exists()


def test_no_link_is_followed_neither_its_own_nor_one_that_was_there(tmp_path: Path, into: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    link = member("way", tarfile.SYMTYPE, link=str(outside))
    with pytest.raises(DriverFailed):
        unpack(into, pack((link, b""), (member("way/planted"), b"x")))
    hard = member("copy", tarfile.LNKTYPE, link="way/kept")
    with pytest.raises(DriverFailed):
        unpack(into, pack((link, b""), (hard, b"")))
    (into / "file").symlink_to(outside / "kept")
    (into / "folder").symlink_to(outside)
    folder = member("folder", tarfile.DIRTYPE, 0o755)
    unpack(into, pack((member("file"), b"new"), (folder, b""), (member("folder/inside"), b"x")))
    assert (outside / "kept").read_bytes() == b"kept" and [path.name for path in outside.iterdir()] == ["kept"]
    assert (into / "file").read_bytes() == b"new" and not (into / "folder").is_symlink()


def test_a_hard_link_to_itself_or_to_nothing_does_no_harm(into: Path) -> None:
    itself = member("a", tarfile.LNKTYPE, link="./a")
    unpack(into, pack((member("a"), b"x"), (itself, b"")))
    assert (into / "a").read_bytes() == b"x"
    with pytest.raises(DriverFailed):
        unpack(into, pack((member("b", tarfile.LNKTYPE, link="none"), b"")))


def test_what_was_there_is_replaced_but_for_a_folder(into: Path) -> None:
    (into / "a").write_bytes(b"old")
    (into / "b").mkdir()
    unpack(into, pack((member("a"), b"new")))
    assert (into / "a").read_bytes() == b"new"
    with pytest.raises(DriverFailed):
        unpack(into, pack((member("b"), b"x")))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"x" * 2000, id="no tar"),
        pytest.param(bytes(512) + b"x" * (MOST_AFTER_BYTES + 1), id="on and on behind its end"),
        pytest.param(pack((member("a"), b"x" * 2000))[:1500], id="cut"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_is_no_whole_archive_is_told_so(into: Path, data: bytes) -> None:
    with pytest.raises(DriverFailed, match=r"no tar archive|was cut"):
        unpack(into, data)


def test_a_name_of_gigabytes_is_not_listened_to(into: Path) -> None:
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    with Unpacker(into) as unpacker, pytest.raises(DriverFailed, match="no tar archive"):
        unpacker.feed(long_name.tobuf(tarfile.GNU_FORMAT))


def test_words_before_no_member_end(into: Path) -> None:
    words = tarfile.TarInfo.create_pax_global_header({"comment": "x"})
    with Unpacker(into) as unpacker, pytest.raises(DriverFailed, match="no tar archive"):
        for _ in range(100):
            unpacker.feed(words)


@settings(max_examples=examples(200))
@given(st.data())
def test_an_archive_with_any_bytes_changed_makes_nothing_outside(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    top = tmp_path_factory.mktemp("any")
    (top / "into").mkdir()
    good = bytearray(
        pack(
            (member("dir", tarfile.DIRTYPE, 0o755), b""), (member("dir/a" + "b" * 120), b"x" * 700),
            (member("link", tarfile.SYMTYPE, link=".."), b""), (member("hard", tarfile.LNKTYPE, link="dir"), b""),
        )
    )  # fmt: skip
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at] = data.draw(st.integers(0, 255))
        head = at // 512 * 512  # a header that was changed has the right sum again, so that the change is read
        block = good[head : head + 512]
        if bytes(block[257:262]) == b"ustar":
            block[148:156] = b"        "
            good[head + 148 : head + 156] = b"%06o\0 " % sum(block)
    with contextlib.suppress(DriverFailed):
        unpack(top / "into", bytes(good), data.draw(st.sampled_from([100, 512, 100_000])))
    assert [path.name for path in top.iterdir()] == ["into"]
    for path in (top / "into").rglob("*"):
        assert not path.lstat().st_mode & 0o7000


@pytest.mark.parametrize("piece", [100, 5000, 1 << 16])
def test_zeros_take_no_disk_and_come_as_they_were(into: Path, piece: int) -> None:
    """A guest's holes come as zeros, any number of them."""
    content = b"start" + bytes(3 << 20) + b"middle" + bytes(5000) + b"more" + bytes(1 << 20)
    unpack(into, pack((member("holes"), content), (member("zeros"), bytes(2 << 20)), (member("after"), b"x")), piece)
    assert (into / "holes").read_bytes() == content and (into / "zeros").read_bytes() == bytes(2 << 20)
    assert (into / "after").read_bytes() == b"x"
    assert (into / "holes").stat().st_blocks * 512 < 1 << 20 and (into / "zeros").stat().st_blocks == 0
