"""Files come out of real ext2 and ext4 file systems as they went in, and nothing that such a disk says does harm."""

from __future__ import annotations

import io
import os
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.long import mark_long

from weft.backup.files.browse import DiskQuestion, answer
from weft.backup.files.confined import Confined
from weft.backup.files.partitions import find_parts
from weft.cli.backup.unpack import unpack
from weft.objects.errors import DriverFailed, InvalidInput, NotFound, WeftError

MIB = 1 << 20
pytestmark = pytest.mark.skipif(not shutil.which("mke2fs"), reason="needs mke2fs of e2fsprogs")
FORMS = {
    "ext2": ("-t", "ext2", "-b", "1024"),
    "ext3": ("-t", "ext3", "-b", "1024"),
    "ext4": ("-t", "ext4", "-b", "4096"),
    "ext4-inline": ("-t", "ext4", "-O", "inline_data,64bit,metadata_csum,^resize_inode"),
    "ext4-meta": ("-t", "ext4", "-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"),
}


def make_tree(folder: Path) -> Path:
    tree = folder / "tree"
    (tree / "etc" / "many").mkdir(parents=True)
    (tree / "etc" / "hostname").write_text("shop\n")
    (tree / "etc" / "empty").write_bytes(b"")
    (tree / "etc" / "inline").write_bytes(b"x" * 100)
    (tree / "big").write_bytes(random.Random(1).randbytes(5 * MIB + 123))
    with (tree / "sparse").open("wb") as sparse:
        sparse.write(b"begin")
        sparse.seek(3 * MIB)
        sparse.write(b"end")
    for number in range(500):
        (tree / "etc" / "many" / f"file-{number:04}").write_text(str(number))
    (tree / "name").symlink_to("etc/hostname")
    (tree / "deep").symlink_to("/etc/../../name")
    (tree / "loop").symlink_to("loop")
    (tree / ("l" * 80)).symlink_to("/etc/" + "./" * 60 + "hostname")
    return tree


def make_disk(folder: Path, form: str = "ext4", size: int = 24 * MIB) -> Path:
    path = folder / f"{form}.img"
    tree = folder / "tree" if (folder / "tree").exists() else make_tree(folder)
    with path.open("wb") as out:
        out.truncate(size)
    subprocess.run(["mke2fs", "-q", "-F", *FORMS[form], "-d", tree, path], check=True)
    return path


def reader(data: bytes) -> Callable[[int, int], bytes]:
    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset and offset + length <= len(data)
        return data[offset : offset + length]

    return read


def ask(data: bytes, act: Any, path: str, partition: int = -1) -> tuple[bytes, str]:
    pieces = list[bytes]()
    question = DiskQuestion(act=act, path=path, partition=partition, size=len(data))
    note = answer(question, reader(data), pieces.append)
    return b"".join(pieces), note


def names(data: bytes, path: str = "/") -> dict[str, dict[str, Any]]:
    lines = ask(data, "list", path)[0].splitlines()
    return {one["name"]: one for one in map(msgspec.json.decode, lines)}


@pytest.mark.parametrize("form", FORMS)
def test_what_went_in_comes_out(tmp_path: Path, form: str) -> None:
    data = make_disk(tmp_path, form).read_bytes()
    tree = tmp_path / "tree"
    listed = names(data)
    assert listed.keys() - {"lost+found"} == {path.name for path in tree.iterdir()}
    assert (listed["big"]["kind"], listed["big"]["size"]) == ("file", 5 * MIB + 123)
    assert (listed["name"]["kind"], listed["name"]["target"]) == ("link", "etc/hostname")
    assert listed["etc"]["kind"] == "folder" and abs(listed["big"]["modified"] - os.stat(tree / "big").st_mtime) < 2
    assert list(names(data, "etc/many")) == [f"file-{number:04}" for number in range(500)]
    for path in ("big", "sparse", "etc/empty", "etc/hostname", "etc/inline", "etc/many/file-0499"):
        assert ask(data, "read", path)[0] == (tree / path).read_bytes(), path
    for link in ("/name", "deep", "l" * 80, "etc/./../name"):
        assert ask(data, "read", link)[0] == b"shop\n", link
    assert names(data, "/etc/hostname")["hostname"]["size"] == 5


def unpack_tree(data: bytes, path: str, folder: Path) -> str:
    content, note = ask(data, "tree", path)
    folder.mkdir()
    unpack(io.BytesIO(content), folder)
    return note


@pytest.mark.parametrize("form", ["ext2", "ext4", "ext4-inline"])
def test_a_whole_folder_comes_out_with_links_times_and_modes(tmp_path: Path, form: str) -> None:
    tree = make_tree(tmp_path)
    long = tree / ("long-" + "n" * 200) / ("ü" * 100)
    long.mkdir(parents=True)
    (long / os.fsdecode(b"not-utf-8-\xff")).write_bytes(b"x")
    os.link(tree / "big", tree / "etc" / "big-too")
    os.mkfifo(tree / "pipe")
    (tree / "etc" / "hostname").chmod(0o4751)
    data, out = make_disk(tmp_path, form).read_bytes(), tmp_path / "out"
    assert unpack_tree(data, "/", out) == "left out 1 device, socket or pipe"
    (tree / "pipe").unlink()
    for above, folders, files in os.walk(tree):
        there = out / Path(above).relative_to(tree)
        assert set(os.listdir(there)) - {"lost+found"} == {*folders, *files}
        for name in files:
            mine, its = Path(above) / name, there / name
            if mine.is_symlink():
                assert os.readlink(its) == os.readlink(mine)
            else:
                assert its.read_bytes() == mine.read_bytes() and abs(its.stat().st_mtime - mine.stat().st_mtime) < 2
    assert (out / "etc" / "hostname").stat().st_mode & 0o7777 == 0o751
    assert (out / "big").stat().st_ino == (out / "etc" / "big-too").stat().st_ino
    unpack_tree(data, "/etc/many/..", tmp_path / "etc")
    assert (tmp_path / "etc" / "hostname").read_bytes() == b"shop\n"
    unpack_tree(data, "/etc/many", tmp_path / "some")
    assert len(os.listdir(tmp_path / "some" / "many")) == 500
    unpack_tree(data, "/etc/empty", tmp_path / "one")
    assert os.listdir(tmp_path / "one") == ["empty"]


def test_a_folder_that_lies_within_itself_or_lies_about_its_size_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    path = make_disk(tmp_path)
    script = tmp_path / "script"
    script.write_text("link /etc /etc/many/loop\n")
    subprocess.run(["debugfs", "-w", "-f", script, path], check=True, capture_output=True)
    with pytest.raises(DriverFailed, match="a folder lies within itself"):
        ask(path.read_bytes(), "tree", "/etc")
    script.write_text("unlink /etc/many/loop\nset_inode_field /sparse size 25000000\n")
    subprocess.run(["debugfs", "-w", "-f", script, path], check=True, capture_output=True)
    with pytest.raises(InvalidInput, match="more bytes together than its disk"):
        ask(path.read_bytes(), "tree", "/")
    assert ask(path.read_bytes(), "tree", "/etc")[1] == ""
    monkeypatch.setattr("weft.backup.files.tree.MOST_ENTRIES", 100)
    with pytest.raises(InvalidInput, match="more than 100 files"):
        ask(path.read_bytes(), "tree", "/etc/many")
    monkeypatch.setattr("weft.backup.files.tree.MOST_DEPTH", 1)
    with pytest.raises(DriverFailed, match="deeper than 1"):
        ask(path.read_bytes(), "tree", "/")


def test_a_file_with_holes_that_is_larger_than_its_disk_is_left_out_by_name(tmp_path: Path) -> None:
    path, script = make_disk(tmp_path), tmp_path / "script"
    script.write_text(f"set_inode_field /sparse size {30 * MIB}\n")
    subprocess.run(["debugfs", "-w", "-f", script, path], check=True, capture_output=True)
    note = unpack_tree(path.read_bytes(), "/", tmp_path / "out")
    assert note == "left out sparse: larger than the disk, with holes; restore the backup to copy that"
    assert (tmp_path / "out" / "big").read_bytes() == (tmp_path / "tree" / "big").read_bytes()
    assert not (tmp_path / "out" / "sparse").exists()
    with pytest.raises(InvalidInput, match="sparse has 30 MiB with its holes, more than its disk"):
        ask(path.read_bytes(), "read", "/sparse")


def test_what_is_not_there_is_told_and_a_link_leads_nowhere_else(tmp_path: Path) -> None:
    data = make_disk(tmp_path).read_bytes()
    with pytest.raises(NotFound, match=r"^etc/nobody is not there$"):
        ask(data, "read", "etc/nobody")
    with pytest.raises(NotFound, match=r"^etc/nobody/x is not there: nobody does not exist$"):
        ask(data, "read", "etc/nobody/x")
    with pytest.raises(NotFound, match="more than 20 links"):
        ask(data, "read", "/loop")
    with pytest.raises(NotFound, match="a file stands where a folder"):
        ask(data, "list", "/big/x")
    with pytest.raises(InvalidInput, match="is a folder"):
        ask(data, "read", "/etc")
    with pytest.raises(InvalidInput, match="longer than 4096"):
        ask(data, "read", "x" * 5000)
    with pytest.raises(InvalidInput, match="single files are read from ext2, ext3 and ext4 only"):
        ask(b"XFSB" + bytes(MIB), "list", "/")
    with pytest.raises(InvalidInput, match="the disk has no file system that is known; single files"):
        ask(bytes(MIB), "list", "/")


def test_what_only_the_journal_has_yet_is_there(tmp_path: Path) -> None:
    path = make_disk(tmp_path)
    new = tmp_path / "new"
    block = int(_debugfs(path, "blocks /etc/hostname").split()[0])
    new.write_bytes(b"news!" + bytes(4091))
    magic = tmp_path / "magic"
    magic.write_bytes(bytes.fromhex("c03b3998") + bytes(4092))
    inline = int(_debugfs(path, "blocks /etc/inline").split()[0])
    script = tmp_path / "script"
    script.write_text(f"jo\njw -b {block} {new}\njw -b {inline} {magic}\njc\n")
    subprocess.run(["debugfs", "-w", "-f", script, path], check=True, capture_output=True)
    assert path.read_bytes()[block * 4096 :][:5] == b"shop\n"  # it isn't in its place yet
    data = path.read_bytes()
    assert ask(data, "read", "/etc/hostname")[0] == b"news!"
    assert ask(data, "read", "/etc/inline")[0] == bytes.fromhex("c03b3998") + bytes(96)
    # As e2fsck has it.
    subprocess.run(["e2fsck", "-fy", path], check=False, capture_output=True)
    assert path.read_bytes()[block * 4096 :][:5] == b"news!"


def test_a_partition_is_found_and_chosen(tmp_path: Path) -> None:
    if not shutil.which("sfdisk"):
        pytest.skip("needs sfdisk of util-linux")
    small = make_disk(tmp_path, "ext2", 12 * MIB).read_bytes()
    large = make_disk(tmp_path, "ext4", 24 * MIB).read_bytes()
    for label in ("gpt", "dos"):
        disk = tmp_path / label
        with disk.open("wb") as out:
            out.truncate(48 * MIB)
        table = f"label: {label}\n2048,{len(small) // 512}\n{2048 + len(small) // 512},{len(large) // 512}\n"
        subprocess.run(["sfdisk", "-q", disk], input=table.encode(), check=True)
        data = bytearray(disk.read_bytes())
        data[MIB : MIB + len(small)] = small
        data[MIB + len(small) : MIB + len(small) + len(large)] = large
        found = find_parts(reader(bytes(data)), len(data))
        assert [(one.number, one.holds) for one in found] == [(1, "ext4"), (2, "ext4")], label
        content, note = ask(bytes(data), "read", "/etc/hostname")
        assert (content, note) == (b"shop\n", "of partition 2; others: 1")
        assert ask(bytes(data), "read", "/etc/hostname", 1)[0] == b"shop\n"
        with pytest.raises(NotFound, match="no partition 7"):
            ask(bytes(data), "list", "/", 7)


def test_partitions_are_those_that_linux_has() -> None:
    """One that is longer than the disk ends with it, a GPT counts only where the MBR says so, and 255 have a number."""
    data = bytearray(8 * MIB)
    data[510:512] = b"\x55\xaa"
    data[512:520] = b"EFI PART"
    data[512 + 72 : 512 + 88] = struct.pack("<QII", 2, 1 << 20, 128)
    for number in range(200):
        first = 2048 + 8 * number
        data[1024 + 128 * number : 1024 + 128 * number + 48] = struct.pack("<32sQQ", b"x" * 32, first, first + 7)
    for kind, count in ((0x83, 1), (0xEE, 200)):
        data[446:462] = struct.pack("<B3xB3xII", 0, kind, 2048, 1 << 20)
        found = find_parts(reader(bytes(data)), len(data))
        assert len(found) == count, hex(kind)
        assert found[0].start == MIB and found[0].size == (7 * MIB if count == 1 else 4096)


@pytest.mark.parametrize("form", mark_long(("ext2", "ext4", "ext4-inline"), "ext2", "ext4"))
def test_a_disk_with_nonsense_in_it_ends_in_an_error_or_an_answer(tmp_path: Path, form: str) -> None:
    good = make_disk(tmp_path, form).read_bytes()
    chance = random.Random(7)
    used = [at for at in range(0, len(good), 1024) if any(good[at : at + 1024])][:400]
    for _ in range(60):
        data = bytearray(good)
        for _ in range(chance.choice((1, 3, 30))):
            at = chance.choice(used) + chance.randrange(1024)
            data[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), chance.randbytes(4)))
        for act, path in (("list", "/"), ("read", "/deep"), ("tree", "/etc")):
            try:
                ask(bytes(data), act, path)
            except (WeftError, ValueError, LookupError, struct.error, OverflowError):
                continue  # the confined process makes one error of all of them


def test_a_process_without_rights_gives_the_answer(tmp_path: Path) -> None:
    data, pieces, confined = make_disk(tmp_path).read_bytes(), list[bytes](), Confined()
    process = Path(f"/proc/{confined.pid}")

    def read(offset: int, length: int) -> bytes:
        said = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        assert said["NoNewPrivs"].strip() == "1"
        assert said["Uid"].split()[0] == ("65534" if os.geteuid() == 0 else str(os.geteuid()))
        assert [one.name for one in (process / "fd").iterdir()] == ["0"]
        limits = (process / "limits").read_text().splitlines()
        assert next(line for line in limits if line.startswith("Max open files")).split()[3:5] == ["0", "0"]
        assert said["Seccomp"].strip() == "2"
        if os.geteuid() == 0:
            assert not said["Groups"].strip() and not any(
                int(said[what], 16) for what in ("CapPrm", "CapEff", "CapInh")
            )
            assert (process / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()
        return data[offset : offset + length]

    try:
        question = DiskQuestion(act="read", path="/etc/hostname", size=len(data))
        assert confined.run(question, read, pieces.append) == "" and pieces == [b"shop\n"]
    finally:
        confined.end()


def test_it_ends_with_the_process_that_started_it_even_while_somebody_keeps_its_connection_open() -> None:
    mine, its = socket.socketpair()
    starter = os.fork()
    if not starter:
        try:
            made = Confined()
            socket.send_fds(its, [str(made.pid).encode()], [made._socket.fileno()])
            signal.pause()
        finally:
            os._exit(1)
    its.close()
    pid, kept, _, _ = socket.recv_fds(mine, 64, 1)
    with mine, socket.socket(fileno=kept[0]), os.fdopen(os.pidfd_open(int(pid))) as process:
        os.kill(starter, signal.SIGKILL)
        os.waitpid(starter, 0)
        assert select.select([process], [], [], 10)[0]


def test_its_error_is_told_as_it_is(tmp_path: Path) -> None:
    data, confined = make_disk(tmp_path).read_bytes(), Confined()
    try:
        with pytest.raises(NotFound, match="nobody is not there"):
            confined.run(DiskQuestion(act="read", path="/nobody", size=len(data)), reader(data), print)
    finally:
        confined.end()


def _debugfs(path: Path, command: str) -> str:
    return subprocess.run(
        ["debugfs", "-R", command, path], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout
