"""A backup as a disk that QEMU reads over NBD: only by its own user, and with patience."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from weft.backup.format import CHUNK
from weft.backup.process.nbd_server import NbdServer
from weft.contracts.driver.runtime import DiskLayer, GuestDisk
from weft.drivers.runtime.qemu.devices.ids import describe_disk, file_names
from weft.objects.errors import Unavailable

SIZE = 40 * CHUNK + 512
DATA = os.urandom(SIZE)


class Disk:
    def __init__(self) -> None:
        self.fails, self.asked, self.said = 0, threading.Event(), list[str]()

    def read(self, disk: str, offset: int, length: int) -> bytes:
        assert disk == "root"
        if self.fails:
            self.fails -= 1
            raise Unavailable("the backup repository is away")
        return DATA[offset : offset + length]


def serve(name: str, disk: Disk, user: int) -> NbdServer:
    server = NbdServer(name, {"root": SIZE}, [user], disk.read, disk.said.append)
    threading.Thread(target=server.serve, daemon=True).start()
    return server


@pytest.fixture
def name(tmp_path: Path) -> Iterator[str]:
    yield f"weft-test-{os.getpid()}-{tmp_path.name}"


def describe(name: str, export: str = "root") -> str:
    server = {"type": "unix", "path": name, "abstract": True}
    return "json:" + str({"driver": "nbd", "server": server, "export": export}).replace("'", '"').replace(
        "True", "true"
    )


def convert(source: str, target: Path) -> subprocess.CompletedProcess[str]:
    words = ["qemu-img", "convert", "-O", "raw", source, str(target)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
def test_qemu_reads_all_of_it_and_waits_while_the_repository_is_away(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.backup.process.nbd_server.RETRY_SECONDS", 0.05)
    disk = Disk()
    disk.fails = 3
    server = serve(name, disk, os.getuid())
    try:
        done = convert(describe(name), tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out").read_bytes() == DATA
        assert disk.said[0] == "the backup repository is away" and disk.said[-1] == ""
        assert convert(describe(name, "other"), tmp_path / "no").returncode != 0
    finally:
        server.close()


def test_another_user_gets_nothing(name: str) -> None:
    server = serve(name, Disk(), os.getuid() + 1)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(f"\0{name}")
            assert client.recv(100) == b""
    finally:
        server.close()


def test_a_served_layer_is_the_lowest_and_hides_the_image() -> None:
    layers = [DiskLayer("/p/in", "nbd", "weft-backup-s/root"), DiskLayer("/p/l2", "qcow2")]
    disk = GuestDisk("/p/root", "qcow2", "root", base="/images/tiny", layers=layers)
    assert file_names(disk) == ["disk root", "base of root", "layer 1 of root"]
    node: dict[str, Any] = describe_disk(disk, {one: f"fd of {one}" for one in file_names(disk)})
    below = node["backing"]
    assert (below["file"]["filename"], below["read-only"]) == ("fd of layer 1 of root", True)
    served = below["backing"]
    assert (served["driver"], served["export"], served["server"]["path"]) == ("nbd", "root", "weft-backup-s")
    assert "backing" not in served and served["reconnect-delay"] > 86400
