"""Image servers and images that mean harm: each is refused by name, in time, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import struct
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.long import mark_seeds
from tests.unit.controllers.image.hostile_site import RAW, HostileSite, hostile_site

from weft.controllers.image import file as image_file
from weft.controllers.image.file import fetch, inspect
from weft.objects.errors import DriverFailed
from weft.objects.image.bundle import MOST_MEMBERS

PATIENCE_SECONDS = 5.0  # on a busy machine, too
SHORT_SECONDS = 0.3  # for whoever gives nothing


@pytest.fixture(scope="module")
def site() -> Iterator[HostileSite]:
    with hostile_site() as found:
        yield found


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file, "PATIENCE_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr(image_file, "MAX_BYTES", 64 * 1024**2)


def get(url: str, target: Path) -> str:
    return fetch(url, target, lambda _: None, threading.Event(), ["127.0.0.0/8", str(target.parent)])


def refused(url: str, target: Path) -> str:
    with pytest.raises(DriverFailed) as caught:
        get(url, target)
    assert caught.value.token == "fetchFailed"
    assert not target.exists()
    return caught.value.message


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/silent", "sent less than 256 KiB in 0.3 s"),
        ("/stuck", "sent less than 256 KiB in 0.3 s"),
        ("/trickle", "sent less than 256 KiB in 0.3 s"),
        ("/continue", "its answer is too long"),
        ("/slow_head", "(sent less than 256 KiB in 0.3 s|got more than 100 headers)"),
        ("/chunk_trailer", "(sent less than 256 KiB in 0.3 s|trailer)"),
        ("/long_head", "its answer is too long"),
        ("/less", "ended after 2048 of 100000 bytes"),
        ("/petabyte", "larger than 67108864 bytes"),
        ("/chunks", "larger than 67108864 bytes"),
        ("/chunk_garbage", "its answer was cut off"),
        ("/chunk_cut", "its answer was cut off"),
        ("/empty", "answered 204"),
        ("/part", "answered 206"),
        ("/none", "answered 404"),
        ("/garbage", "."),
        ("/reset", "."),
        ("/ring", "."),
        ("/ladder", "redirect"),
        ("/to_file", "not allowed"),
        ("/to_ftp", "redirects? "),
        ("/to_nowhere", "."),
    ],
)
def test_a_server_that_does_not_give_what_it_should_is_told_by_name(
    site: HostileSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, why: str
) -> None:
    if "sent less" in why:
        monkeypatch.setattr(image_file, "PATIENCE_SECONDS", SHORT_SECONDS)
    with pytest.raises(DriverFailed, match=why) as caught:
        get(site.url + path, tmp_path / "x")
    assert caught.value.token == "fetchFailed" and f"{site.url}{path}" in caught.value.message
    assert "Traceback" not in caught.value.message and "reason given" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/more", "/banana", "/negative", "/moved", "/endless_redirect"])
def test_what_a_server_says_of_its_answer_is_believed_only_as_far_as_it_is_so(
    site: HostileSite, tmp_path: Path, path: str
) -> None:
    assert get(site.url + path, tmp_path / "x") == hashlib.sha256(RAW).hexdigest()
    assert (tmp_path / "x").read_bytes() == RAW


def test_a_ladder_of_redirects_has_an_end(site: HostileSite, tmp_path: Path) -> None:
    before = len(site.asked)
    refused(f"{site.url}/ladder", tmp_path / "x")
    assert len(site.asked) - before <= 7


def test_a_fetch_from_a_silent_server_is_given_up_as_soon_as_the_image_is_deleted(
    site: HostileSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_file, "PATIENCE_SECONDS", 3600.0)
    stop = threading.Event()
    stopper = threading.Timer(0.3, stop.set)
    stopper.start()
    with pytest.raises(DriverFailed, match="the image was deleted"):
        fetch(f"{site.url}/silent", tmp_path / "x", lambda _: None, stop, ["127.0.0.1"])
    stopper.join()
    assert list(tmp_path.iterdir()) == []


def test_keys_in_an_url_are_not_told_again(site: HostileSite, tmp_path: Path) -> None:
    message = refused(f"{site.url}/none-?X-Amz-Signature=5ec2e7", tmp_path / "x")
    assert "5ec2e7" not in message and "/none" in message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
def test_who_speaks_with_a_server_has_no_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is caught while it waits for a server: its user, and what it could write."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        monkeypatch.setattr(image_file, "PATIENCE_SECONDS", 60.0)

        def give_up() -> None:
            with pytest.raises(DriverFailed):
                fetch(url, tmp_path / "x", lambda _: None, stop, ["127.0.0.1"])

        fetching = threading.Thread(target=give_up)
        fetching.start()
        with server.accept()[0]:
            argv = f"download\0{os.getpid()}\0{url}".encode()
            pid = next(p for p in os.listdir("/proc") if p.isdecimal() and argv in _read(f"/proc/{p}/cmdline"))
            status = dict(line.split(":\t", 1) for line in _read(f"/proc/{pid}/status").decode().splitlines())
            limits = _read(f"/proc/{pid}/limits").decode()
            stop.set()
        fetching.join()
    assert status["Uid"].split() == ["65534"] * 4 and status["Groups"].strip() == ""
    assert int(status["CapEff"], 16) == 0 and int(status["CapPrm"], 16) == 0
    assert any(line.startswith("Max file size") and line.split()[3] == "0" for line in limits.splitlines())


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def test_only_plain_files_that_everybody_may_read_are_taken_from_the_servers_machine(tmp_path: Path) -> None:
    made, target = tmp_path / "made", tmp_path / "x"
    made.mkdir()
    (made / "open").write_bytes(RAW)
    (made / "secret").write_bytes(RAW)
    (made / "secret").chmod(0o640)
    (made / "to-open").symlink_to("open")
    (made / "to-secret").symlink_to("secret")
    (made / "ring").symlink_to("ring")
    os.mkfifo(made / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(made / "socket"))
        names = ("fifo", "socket", "secret", "to-secret", "ring", "no%00name", "missing", "open/missing", "../made")
        places = [f"{made}/{name}" for name in names]
        places += ["/dev/zero", "/dev/stdin", "/dev", "/proc/self/mem", "/proc/kcore", "/etc/shadow", "/root/missing"]
        told = {refused(f"file://{place}", target).replace(f"file://{place}", "URL") for place in places}
    # Nobody learns by it what there is on the server's machine.
    assert told == {"URL is missing, is not a regular file, or is not readable for everybody on the server's machine"}
    assert get(f"file://{made}/to-open", target) == hashlib.sha256(RAW).hexdigest()


def test_every_folder_on_the_way_must_let_everybody_through(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file's own mode says nothing where its folder keeps people out; a folder that was named needn't be open itself."""
    named = tmp_path / "named"
    for place in (tmp_path / "shut", named):
        (place / "inner").mkdir(parents=True)
        (place / "inner" / "disk").write_bytes(RAW)
        place.chmod(0o700)
    (named / "out").symlink_to(tmp_path / "shut" / "inner")
    (named / "inner" / "disk-1").symlink_to("../inner/disk")

    def take(path: object) -> str:
        return fetch(f"file://{path}", tmp_path / "x", lambda _: None, threading.Event(), [str(named)])

    for path in (
        tmp_path / "shut/inner/disk",
        named / "out/disk",
        f"{named}/../shut/inner/disk",
        f"/proc/self/root{tmp_path}/shut/inner/disk",
    ):
        with pytest.raises(DriverFailed, match=r"not readable for everybody") as caught:
            take(path)
        assert (
            "denies access" in caplog.messages[-1]
            and "o+x" in str(caught.value.hint)
            and "--allow-fetch" in str(caught.value.hint)
        )
    assert take(named / "inner/disk") == take(named / "inner/disk-1") == hashlib.sha256(RAW).hexdigest()
    (named / "inner").chmod(0o700)
    with pytest.raises(DriverFailed):
        take(named / "inner/disk")
    assert "named/inner denies access" in caplog.messages[-1]


def test_nobody_puts_another_folder_in_the_place_of_one_that_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("open", "shut"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "disk").write_bytes(RAW + place.encode() * 128)
    (tmp_path / "shut").chmod(0o700)
    real = os.open

    def swap(path: Any, flags: int, *more: Any, **how: Any) -> int:
        if path == "disk":  # its folder has been looked at
            (tmp_path / "open").rename(tmp_path / "was-open")
            (tmp_path / "shut").rename(tmp_path / "open")
        return real(path, flags, *more, **how)

    monkeypatch.setattr(os, "open", swap)
    target = tmp_path / "x"
    assert get(f"file://{tmp_path}/open/disk", target) == hashlib.sha256(RAW + b"open" * 128).hexdigest()


NEAR = ["127.0.0.1", "127.9.9.9", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "localhost"]


@pytest.mark.parametrize(
    ("scheme", "host"),
    [*(("http", host) for host in NEAR), ("https", "127.0.0.1"), ("https", "[::1]"), ("ftp", "127.0.0.1")],
)
def test_images_are_not_fetched_from_the_server_s_own_machine_or_links(tmp_path: Path, host: str, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"{scheme}://{host}:{server.getsockname()[1]}/x"
        with pytest.raises(DriverFailed, match="start the server with --allow-fetch") as caught:
            fetch(url, tmp_path / "x", lambda _: None, threading.Event())
        assert caught.value.token == "fetchFailed"
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    ("host", "allowed", "what"),
    [
        ("[fec0::1]", [], "link-local"),
        ("[::127.0.0.1]", [], "this machine itself"),
        ("10.9.9.9", ["!10.9.9.9"], "a node of this fabric"),
        ("[::ffff:10.9.9.9]", ["!10.9.9.9"], "a node of this fabric"),
        ("10.9.9.9", ["public-only"], "a private address"),
        ("100.64.0.1", ["public-only"], "a private address"),
        ("[fd00::1]", ["public-only"], "a private address"),
    ],
)
def test_nor_from_nodes_of_the_fabric_nor_where_that_is_set_from_private_addresses(
    tmp_path: Path, host: str, allowed: list[str], what: str
) -> None:
    with pytest.raises(DriverFailed, match=f"is {what}: to fetch images from there"):
        fetch(f"http://{host}:9/x", tmp_path / "x", lambda _: None, threading.Event(), allowed)


def test_an_address_that_was_allowed_is_open_though_it_is_a_node_s_and_private(tmp_path: Path) -> None:
    closed = socket.socket()
    with closed, pytest.raises(DriverFailed, match="refused"):
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        fetch(url, tmp_path / "x", lambda _: None, threading.Event(), ["127.0.0.1", "!127.0.0.1", "public-only"])


def test_nor_by_a_redirect_nor_by_an_address_of_another_interface(site: HostileSite, tmp_path: Path) -> None:
    """What counts is where a connection goes, however it was named."""

    def redirect() -> None:
        with server.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(f"HTTP/1.1 302 Found\r\nLocation: {site.url}/image\r\n\r\n".encode())

    with socket.create_server(("127.0.0.2", 0)) as server:
        answering = threading.Thread(target=redirect)
        answering.start()
        url = f"http://127.0.0.2:{server.getsockname()[1]}/x"
        with pytest.raises(DriverFailed, match=r"127\.0\.0\.1 is this machine itself"):
            fetch(url, tmp_path / "x", lambda _: None, threading.Event(), ["127.0.0.2"])
        answering.join(10)
    own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    own.connect(("192.0.2.1", 9))  # sends nothing: which address this machine goes out with
    address = own.getsockname()[0]
    own.close()
    with pytest.raises(DriverFailed, match=f"{address} is an address of this machine"):
        fetch(f"http://{address}:1/x", tmp_path / "x", lambda _: None, threading.Event())


def no_image(path: Path) -> str:
    with pytest.raises(DriverFailed) as caught:
        inspect(path)
    assert caught.value.token == "notAnImage"
    return caught.value.message


needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def qemu_img(*words: str) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def empty_disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A qcow2 of 8 MiB in which nothing is written."""
    path = tmp_path_factory.mktemp("disk") / "x"
    qemu_img("create", "-q", "-f", "qcow2", str(path), "8M")
    return path.read_bytes()


@needs_qemu_img
@pytest.mark.parametrize(
    "backing",
    [
        "/etc/shadow",
        "json:{{'driver':'raw','file':{{'driver':'file','filename':'/etc/shadow'}}}}",
        "nbd://127.0.0.1:1/x",
        "{folder}/base",
    ],
)
def test_a_disk_that_would_read_the_host_through_a_backing_file_is_refused(tmp_path: Path, backing: str) -> None:
    (tmp_path / "base").write_bytes(bytes(4096))
    place = backing.format(folder=tmp_path)
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", place, "-F", "raw", str(tmp_path / "x"), "8M")
    assert "depends on another file" in no_image(tmp_path / "x")


@needs_qemu_img
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vdi", ""),
        ("vhdx", ""),
        ("qed", ""),
    ],
)
def test_other_formats_are_no_images_wherever_their_extents_lie(tmp_path: Path, format: str, options: str) -> None:
    words = ["-o", options] if options else []
    qemu_img("create", "-q", "-f", format, *words, str(tmp_path / "x"), "8M")
    assert "neither qcow2, nor a raw disk" in no_image(tmp_path / "x")


def test_a_vmdk_that_names_a_file_of_the_host_is_no_image(tmp_path: Path) -> None:
    lines = ["# Disk DescriptorFile", "version=1", "CID=1", 'createType="monolithicFlat"', 'RW 8 FLAT "/etc/shadow" 0']
    (tmp_path / "x").write_text("\n".join(lines).ljust(2048))
    assert "neither qcow2, nor a raw disk" in no_image(tmp_path / "x")


@needs_qemu_img
def test_a_disk_of_a_size_that_cannot_be_is_refused(tmp_path: Path, empty_disk: bytes) -> None:
    (tmp_path / "x").write_bytes(empty_disk)
    for size in (2**63 + 512, 2**62, 60 * 2**40, 16 * 2**40 + 512, 0):
        with (tmp_path / "x").open("r+b") as file:
            file.seek(24)
            file.write(struct.pack(">Q", size))
        assert f"a disk of {size} bytes" in no_image(tmp_path / "x")


@needs_qemu_img
def test_an_encrypted_disk_is_refused(tmp_path: Path) -> None:
    secret = ["--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s"]
    qemu_img("create", "-q", *secret, "-f", "qcow2", str(tmp_path / "x"), "8M")
    no_image(tmp_path / "x")


@needs_qemu_img
@pytest.mark.parametrize("seed", mark_seeds(20))
def test_a_header_of_noise_is_refused_or_understood_but_never_hurts(
    tmp_path: Path, empty_disk: bytes, seed: int
) -> None:
    (tmp_path / "x").write_bytes(empty_disk)
    noise = hashlib.sha512(bytes([seed])).digest()
    with (tmp_path / "x").open("r+b") as file:
        file.seek(8 + 4 * seed)
        file.write(noise[: 4 + seed % 8])
    try:
        inspect(tmp_path / "x")
    except DriverFailed as problem:
        assert problem.token == "notAnImage" and "json:" not in problem.message


MANIFEST = b'{"disk":"disk","disk_format":"raw"}'


def header(name: str, size: int, type_: bytes = b"0") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, type_
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


MANIFEST_MEMBER = header("image.json", len(MANIFEST)) + padded(MANIFEST)


@pytest.mark.parametrize(
    "rest",
    [
        header("disk", 512, b"S") + bytes(512),  # a hole of any size (GNU)
        header("disk", 512, b"x") + bytes(512),  # a pax header
        header("disk", 512, b"L") + bytes(512),  # a long name
        header("disk", 0, b"1"),
        header("disk", 0, b"2"),
        header("disk", 0, b"3"),
        header("disk", 0, b"6"),
        header("/disk", 512) + bytes(512),
        header("..", 512) + bytes(512),
        header(".blob", 512) + bytes(512),
        header("di\nsk", 512) + bytes(512),
        header("disk", 2**40) + bytes(512),
        header("disk", 8**11) + bytes(512),
        b"x" * 512,
        header("disk", 0)[:300],
        b"",
    ],
)
def test_an_archive_with_more_than_plain_members_is_refused(tmp_path: Path, rest: bytes) -> None:
    (tmp_path / "x").write_bytes(MANIFEST_MEMBER + rest)
    no_image(tmp_path / "x")


def test_an_archive_of_endless_members_or_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(MANIFEST_MEMBER + b"".join(header(f"m{i}", 0) for i in range(MOST_MEMBERS)))
    assert "one too many" in no_image(tmp_path / "x")
    (tmp_path / "x").write_bytes(header("image.json", 100 * 1024**2))
    os.truncate(tmp_path / "x", 100 * 1024**2 + 1536)
    assert "no image.json" in no_image(tmp_path / "x")


@needs_qemu_img
def test_qemu_img_sees_a_disk_inside_a_bundle_too(tmp_path: Path, empty_disk: bytes) -> None:
    manifest = MANIFEST.replace(b"raw", b"qcow2")
    for damage, sound in ((b"", True), (b"\xff\xff\xff\xff", False)):
        disk = bytearray(empty_disk)
        disk[20 : 20 + len(damage)] = damage
        members = (
            header("image.json", len(manifest)) + padded(manifest) + header("disk", len(disk)) + padded(bytes(disk))
        )
        (tmp_path / "x").write_bytes(members + bytes(1024))
        if sound:
            assert inspect(tmp_path / "x").virtual_size == 8 * 1024**2
        else:
            assert "the bundle's disk is a damaged qcow2" in no_image(tmp_path / "x")
