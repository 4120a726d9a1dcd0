"""Images as they come from the world: fetched whole or not at all, and refused by name when they are none."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import struct
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from weft.controllers.image.file import ImageFacts, fetch, inspect
from weft.objects.errors import DriverFailed
from weft.objects.image.bundle import BundleManifest

RAW = bytes(510) + b"\x55\xaa" + bytes(1536)


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/image":
            self._answer(200, RAW * 1000)
        elif self.path == "/moved":
            self._answer(302, b"", location="/image")
        elif self.path == "/ring":
            self._answer(302, b"", location="/ring")
        elif self.path == "/to-file":
            self._answer(302, b"", location="file:///etc/hostname")
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)
            self.close_connection = True
        else:
            self._answer(404, b"no such page")

    def _answer(self, status: int, body: bytes, location: str = "") -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def get(url: str, target: Path) -> str:
    return fetch(url, target, lambda _: None, threading.Event(), ["127.0.0.0/8", str(target.parent)])


def refused(url: str, target: Path) -> str:
    with pytest.raises(DriverFailed) as caught:
        get(url, target)
    assert caught.value.token == "fetchFailed"
    return caught.value.message


def test_http_is_fetched_whole_with_its_digest(site: str, tmp_path: Path) -> None:
    seen: list[int] = []
    digest = fetch(f"{site}/moved", tmp_path / "x", seen.append, threading.Event(), ["127.0.0.1"])
    assert (tmp_path / "x").read_bytes() == RAW * 1000 and digest == hashlib.sha256(RAW * 1000).hexdigest()
    assert seen == sorted(seen) and seen[-1] == len(RAW) * 1000


def test_what_cannot_be_had_is_told_with_the_reason(site: str, tmp_path: Path) -> None:
    assert "404" in refused(f"{site}/none", tmp_path / "x")
    assert "ended after" in refused(f"{site}/cut", tmp_path / "x")
    refused(f"{site}/ring", tmp_path / "x")
    assert "127.0.0.1:1/" in refused("http://127.0.0.1:1/x", tmp_path / "x")
    assert "is missing" in refused(f"file://{tmp_path}/none", tmp_path / "x")
    assert "regular file" in refused("file:///dev/zero", tmp_path / "x")
    assert "regular file" in refused(f"file://{tmp_path}/", tmp_path / "x")


def test_a_site_cannot_send_the_server_to_its_own_files(site: str, tmp_path: Path) -> None:
    refused(f"{site}/to-file", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_file_with_a_blank_in_its_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "my image").write_bytes(RAW)
    assert get(f"file://{tmp_path}/my%20image", tmp_path / "x") == hashlib.sha256(RAW).hexdigest()


def test_a_fetch_ends_when_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(RAW)
    stop = threading.Event()
    stop.set()
    with pytest.raises(DriverFailed, match="the image was deleted"):
        fetch(f"file://{tmp_path}/image", tmp_path / "x", lambda _: None, stop, [str(tmp_path)])


def no_image(path: Path) -> str:
    with pytest.raises(DriverFailed) as caught:
        inspect(path)
    assert caught.value.token == "notAnImage"
    return f"{caught.value.message} {caught.value.hint}"


def test_a_raw_disk_is_known_by_its_boot_mark(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(RAW)
    assert inspect(tmp_path / "x") == ImageFacts("raw", len(RAW), False)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"<html>not found</html>", "neither qcow2"),
        (b"", "neither qcow2"),
        (b"\x1f\x8b" + bytes(1000), "gzip"),
        (b"\xfd7zXZ" + bytes(1000), "xz"),
        (RAW + b"cut", "2051 bytes, not a whole number of sectors of 512: it may have been cut"),
    ],
)
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "x").write_bytes(content)
    assert word in no_image(tmp_path / "x")


needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def make_qcow2(path: Path, *options: str, size: str = "8M") -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), size], check=True)


@needs_qemu_img
def test_a_qcow2_tells_the_disk_a_guest_sees(tmp_path: Path) -> None:
    make_qcow2(tmp_path / "x")
    assert inspect(tmp_path / "x") == ImageFacts("qcow2", 8 * 1024**2, False)


def make_disk(path: Path) -> None:
    """A disk of 8 MiB with a GPT, and something in each of its mebibytes."""
    with path.open("wb") as file:
        for number in range(8):
            file.seek(number << 20)
            file.write(random.Random(number).randbytes(65536))
        header = struct.pack("<8s24xQ52x", b"EFI PART", (8 << 20) // 512 - 1)
        file.seek(0)
        file.write(bytes(510) + b"\x55\xaa" + header)
        file.truncate(8 << 20)


@needs_qemu_img
@pytest.mark.parametrize("form", ["qcow2", "compressed"])
def test_a_qcow2_whose_end_is_missing_is_refused(tmp_path: Path, form: str) -> None:
    make_disk(tmp_path / "raw")
    words = ["-c"] if form == "compressed" else []
    subprocess.run(["qemu-img", "convert", *words, "-O", "qcow2", tmp_path / "raw", tmp_path / "x"], check=True)
    assert inspect(tmp_path / "x") == ImageFacts("qcow2", 8 << 20, False)
    whole = (tmp_path / "x").read_bytes()
    pack(tmp_path / "bundle", manifest(disk_format="qcow2"), ("disk", whole))
    assert inspect(tmp_path / "bundle").virtual_size == 8 << 20
    cut = whole[: (len(whole) // 65536 - 2) * 65536]
    (tmp_path / "x").write_bytes(cut)
    assert "the file ends before its data" in no_image(tmp_path / "x")
    pack(tmp_path / "bundle", manifest(disk_format="qcow2"), ("disk", cut))
    assert "the bundle's disk is a damaged qcow2: the file ends before its data" in no_image(tmp_path / "bundle")


@needs_qemu_img
def test_a_qcow2_that_is_marked_as_corrupt_is_refused(tmp_path: Path) -> None:
    make_qcow2(tmp_path / "x")
    with (tmp_path / "x").open("r+b") as file:
        file.seek(79)  # the last byte of the incompatible features
        file.write(b"\x02")
    assert "marked as corrupt" in no_image(tmp_path / "x")


def test_a_raw_disk_whose_end_is_missing_is_refused(tmp_path: Path) -> None:
    make_disk(tmp_path / "x")
    assert inspect(tmp_path / "x") == ImageFacts("raw", 8 << 20, False)
    with (tmp_path / "x").open("r+b") as file:
        file.truncate((8 << 20) - 512)
    assert "its disk 8388608: the file ends before its data" in no_image(tmp_path / "x")


@pytest.mark.parametrize(("inode_bytes", "options"), [(256, []), (128, ["-O", "^64bit", "-b", "1024"])])
def test_a_file_system_whose_end_is_missing_is_refused(tmp_path: Path, inode_bytes: int, options: list[str]) -> None:
    path = tmp_path / "x"
    path.touch()
    subprocess.run(["mkfs.ext4", "-q", "-I", str(inode_bytes), *options, path, "8M"], check=True)
    assert inspect(path) == ImageFacts("raw", 8 << 20, False)
    with path.open("r+b") as file:
        file.truncate(4 << 20)
    assert "the file ends before its data" in no_image(path)


def test_an_iso_image_whose_end_is_missing_is_refused(tmp_path: Path) -> None:
    descriptor = bytes(32768) + b"\x01CD001" + bytes(74) + struct.pack("<I", 20) + bytes(44) + struct.pack("<H", 2048)
    (tmp_path / "x").write_bytes(descriptor.ljust(20 * 2048, b"\0"))
    assert inspect(tmp_path / "x") == ImageFacts("iso", 20 * 2048, False)
    (tmp_path / "x").write_bytes(descriptor.ljust(19 * 2048, b"\0"))
    assert "the file ends before its data" in no_image(tmp_path / "x")


@needs_qemu_img
def test_a_qcow2_that_reads_other_files_is_refused(tmp_path: Path) -> None:
    make_qcow2(tmp_path / "base")
    make_qcow2(tmp_path / "clone", "-b", str(tmp_path / "base"), "-F", "qcow2")
    assert "another file" in no_image(tmp_path / "clone")
    make_qcow2(tmp_path / "split", "-o", f"data_file={tmp_path}/data")
    assert "another file" in no_image(tmp_path / "split")


@needs_qemu_img
def test_a_damaged_qcow2_is_refused(tmp_path: Path) -> None:
    make_qcow2(tmp_path / "x")
    with (tmp_path / "x").open("r+b") as file:
        file.seek(20)
        file.write(b"\xff\xff\xff\xff")  # clusters of an absurd size
    assert "is a damaged qcow2: Unsupported cluster size" in no_image(tmp_path / "x")


def pack(path: Path, *members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.type = kind if name == "odd" else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(content))


def manifest(**fields: object) -> tuple[str, bytes]:
    return "image.json", msgspec.json.encode(BundleManifest(**{"disk": "disk", "disk_format": "raw", **fields}))  # type: ignore[arg-type]


def test_a_bundle_tells_its_disk_and_its_agent(tmp_path: Path) -> None:
    parts = [("disk", RAW), ("kernel", b"k"), ("initrd", b"i")]
    pack(tmp_path / "x", manifest(kernel="kernel", initrd="initrd", agent=True), *parts)
    assert inspect(tmp_path / "x") == ImageFacts("bundle", len(RAW), True)


def test_a_bundle_that_is_not_one_is_refused_by_name(tmp_path: Path) -> None:
    pack(tmp_path / "x", ("disk", RAW), manifest())
    assert "doesn't begin with image.json" in no_image(tmp_path / "x")
    pack(tmp_path / "x", manifest())
    assert "'disk', which isn't in it" in no_image(tmp_path / "x")
    pack(tmp_path / "x", manifest(), ("../disk", RAW))
    assert "not a plain file at the archive's top" in no_image(tmp_path / "x")
    pack(tmp_path / "x", manifest(), ("odd", b""), ("disk", RAW), kind=tarfile.SYMTYPE)
    assert "not a plain file at the archive's top" in no_image(tmp_path / "x")
    pack(tmp_path / "x", manifest(kernel="disk"), ("disk", RAW))
    assert "only one of kernel and initrd" in no_image(tmp_path / "x")
    pack(tmp_path / "x", ("image.json", b"{"), ("disk", RAW))
    assert "image.json" in no_image(tmp_path / "x")
    pack(tmp_path / "x", manifest(disk_format="qcow2"), ("disk", RAW))
    assert "not qcow2, although the bundle says so" in no_image(tmp_path / "x")


@needs_qemu_img
def test_a_bundles_disk_may_not_read_other_files_either(tmp_path: Path) -> None:
    make_qcow2(tmp_path / "base")
    make_qcow2(tmp_path / "clone", "-b", str(tmp_path / "base"), "-F", "qcow2")
    pack(tmp_path / "x", manifest(disk_format="qcow2"), ("disk", (tmp_path / "clone").read_bytes()))
    assert "another file" in no_image(tmp_path / "x")
    assert os.path.exists(tmp_path / "x")
