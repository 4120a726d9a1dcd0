"""What the node's image cache takes in, and what it refuses."""

from __future__ import annotations

import io
import struct
import subprocess
import tarfile
from pathlib import Path

import msgspec
import pytest

from weft.agent.image.cache import unpack
from weft.objects.errors import DriverFailed
from weft.objects.image.bundle import BundleManifest
from weft.objects.image.qcow2 import HEADER_BYTES, read_qcow2_header

GOOD = BundleManifest("disk.raw", "raw", "vmlinuz", "initrd", "quiet", agent=True)


def bundle(*members: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def manifest(value: BundleManifest = GOOD) -> tuple[str, bytes]:
    return "image.json", msgspec.json.encode(value)


DISK, KERNEL, INITRD = ("disk.raw", b"d" * 512), ("vmlinuz", b"k"), ("initrd", b"i")


def take(tmp_path: Path, data: bytes) -> tuple[BundleManifest, Path]:
    folder = tmp_path / "work"
    folder.mkdir()
    blob = folder / ".blob"
    blob.write_bytes(data)
    return unpack(blob, folder, "tiny"), folder


def test_a_bundle_is_unpacked_whole(tmp_path: Path) -> None:
    found, folder = take(tmp_path, bundle(manifest(), DISK, KERNEL, INITRD))
    assert found == GOOD
    assert sorted(path.name for path in folder.iterdir()) == ["disk.raw", "image.json", "initrd", "vmlinuz"]
    assert (folder / "vmlinuz").read_bytes() == b"k"


def link(name: str, to: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, to
    return member


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([DISK, manifest()], "doesn't begin with"),
        ([manifest(), DISK, KERNEL], "'initrd', which isn't in it"),
        ([manifest(), DISK, KERNEL, INITRD, ("extra", b"x")], "doesn't name its member"),
        ([manifest(), DISK, KERNEL, INITRD, ("../../evil", b"x")], "not a plain file"),
        ([manifest(), DISK, KERNEL, (link("initrd", "/etc/shadow"), b"")], "not a plain file"),
        ([manifest(), DISK, KERNEL, INITRD, INITRD], "one too many"),
        ([("image.json", b"{"), DISK], "image.json"),
        ([("image.json", b'{"disk":"d"}')], "disk_format"),
        ([manifest(BundleManifest("../disk", "raw"))], "isn't in it"),
        ([manifest(BundleManifest("/etc/shadow", "raw"))], "isn't in it"),
        ([manifest(BundleManifest(".hidden", "raw")), (".hidden", b"x")], "not a plain file"),
        ([manifest(BundleManifest("disk.raw", "qcow2")), DISK], "not a qcow2 file"),
    ],
)
def test_a_bundle_that_is_not_as_it_says_is_refused(
    tmp_path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]], why: str
) -> None:
    with pytest.raises(DriverFailed, match=why) as caught:
        take(tmp_path, bundle(*members))
    assert caught.value.token == "notAnImage" and "tiny" in caught.value.message
    assert not (tmp_path / "work" / "image.json").exists()
    assert not (tmp_path / "evil").exists()


def make_qcow2(path: Path, *options: str) -> bytes:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "4M"], check=True)
    return path.read_bytes()


def test_a_plain_qcow2_or_raw_file_is_an_image_too(tmp_path: Path) -> None:
    found, folder = take(tmp_path, make_qcow2(tmp_path / "a.qcow2"))
    assert (found.disk, found.disk_format, found.kernel, found.agent) == ("disk", "qcow2", None, False)
    assert (folder / "disk").exists() and not (folder / ".blob").exists()
    other = tmp_path / "other"
    other.mkdir()
    assert take(other, b"raw" * 1000)[0].disk_format == "raw"


@pytest.mark.parametrize("options", [["-b", "/etc/passwd", "-F", "raw"], ["-o", "data_file=ext.raw"]])
def test_a_disk_that_would_read_the_nodes_own_files_is_refused(tmp_path: Path, options: list[str]) -> None:
    made = subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", *options, "a.qcow2", "4M"], cwd=tmp_path, capture_output=True
    )
    assert made.returncode == 0, made.stderr
    with pytest.raises(DriverFailed, match="another file"):
        take(tmp_path, (tmp_path / "a.qcow2").read_bytes())


def test_a_qcow2_header_is_read_and_anything_else_is_none(tmp_path: Path) -> None:
    data = make_qcow2(tmp_path / "a.qcow2")[:HEADER_BYTES]
    header = read_qcow2_header(data)
    assert header is not None and (header.version, header.virtual_size, header.has_backing) == (3, 4 << 20, False)
    assert read_qcow2_header(data[:10]) is None
    assert read_qcow2_header(b"QFI\xfb" + struct.pack(">I", 9) + bytes(100)) is None
    assert read_qcow2_header(b"") is None
