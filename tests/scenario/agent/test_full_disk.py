"""No room on a disk: what can't be kept is refused in words, nothing is half-made, and all goes on when there is room."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_lab import Fabric, Said, start_fabric

pytestmark = pytest.mark.host


class Disk:
    """A small file system at ``path``, which must be unmounted."""

    def __init__(self, path: Path, size: str) -> None:
        self.path = path
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)

    def fill(self) -> None:
        """Leave no byte."""
        descriptor = os.open(self.path / "ballast", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (1 << 20, 4096, 1):
                while True:
                    try:
                        os.write(descriptor, b"x" * size)
                    except OSError as problem:
                        assert problem.errno == errno.ENOSPC
                        break
        finally:
            os.close(descriptor)

    def make_room(self) -> None:
        (self.path / "ballast").unlink()


@contextmanager
def start_beside(name: str, size: str) -> Iterator[tuple[Fabric, Disk]]:
    """A fabric in which folder ``name`` is a small disk."""
    disks: list[Disk] = []

    @contextmanager
    def mounted(folder: Path) -> Iterator[None]:
        disks.append(Disk(folder / name, size))
        (folder / "pretended").mkdir()  # guests that only pretend live in files, which real ones don't need
        (folder / name / "fake-guests").symlink_to(folder / "pretended")
        try:
            yield
        finally:
            disks[0].unmount()

    with start_fabric(mounted) as fabric:
        yield fabric, disks[0]


def read(fabric: Fabric, *what: str) -> Any:
    said = fabric.weft("get", *what, "-o", "json")
    assert said.code == 0, said.err + fabric.logs()
    return json.loads(said.out)


def until(true: Callable[[], bool], fabric: Fabric, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, fabric.logs()
        time.sleep(0.1)


def test_a_full_disk_under_the_store_refuses_writes_serves_reads_and_recovers() -> None:
    with start_beside("server", "8m") as (fabric, disk):
        fill_the_servers_disk(fabric, disk)


def fill_the_servers_disk(fabric: Fabric, disk: Disk) -> None:
    assert fabric.weft("vm", "create", "web", "--image", "tiny", "--memory", "128M").code == 0
    before = read(fabric, "vm/web")
    disk.fill()
    made, said = [], Said(0, "", "")
    while said.code == 0:  # the log has some room of its own
        assert len(made) < 500
        said = fabric.weft("create", "volume", f"v{len(made)}", "--size", "1G", "--detach")
        made += [f"v{len(made)}"] if said.code == 0 else []
    assert said.code == 1, said
    assert "full" in said.err and "free disk space" in said.err
    answer = fabric.weft("api", "post", "/v1/projects/default/volumes", "-d", '{"name": "x", "spec": {"size": "1G"}}')
    assert answer.code == 1 and "full" in answer.err + answer.out
    time.sleep(3)  # nodes report, controllers try, the journal is written to
    assert sorted(v["name"] for v in read(fabric, "volume")["items"]) == sorted(made)
    assert {n["status"]["phase"] for n in read(fabric, "node")["items"]} == {"Ready"}
    assert fabric.weft("vm", "stop", "web").code == 1

    disk.make_room()
    until(lambda: fabric.weft("create", "volume", "again", "--size", "1G").code == 0, fabric)
    assert read(fabric, "vm/web")["status"]["boot_id"] == before["status"]["boot_id"]
    assert sorted(v["name"] for v in read(fabric, "volume")["items"]) == sorted([*made, "again"])
    assert fabric.weft("vm", "stop", "web").code == 0
    fabric.stop_server()
    fabric.start_server()
    assert sorted(v["name"] for v in read(fabric, "volume")["items"]) == sorted([*made, "again"])


def test_a_full_disk_of_a_node_is_said_of_the_vm_and_leaves_nothing_half_made() -> None:
    with start_beside("n1", "100m") as (fabric, disk):
        wanted = ("--image", "tiny", "--memory", "128M", "--node", "n1")
        for name in ("web", "gone"):
            assert fabric.weft("vm", "create", name, *wanted).code == 0
        web = read(fabric, "vm/web")["status"]
        kept = {path.name: path.read_bytes() for path in (disk.path / "allocations").iterdir()}
        disk.fill()
        said = fabric.weft("vm", "create", "more", *wanted)
        assert said.code == 1 and "noSpace" in said.err and "No space left on device" in said.err, said
        [condition] = [c for c in read(fabric, "vm/more")["conditions"] if c["type"] == "Ready"]
        assert condition["status"] == "False" and "No space left on device" in condition["message"]
        assert read(fabric, "vm/more")["status"]["reason"] == "noSpace"
        assert {path.name: path.read_bytes() for path in (disk.path / "allocations").iterdir()} == kept
        # The others live on, and what gives room back needs none.
        assert fabric.weft("vm", "stop", "web").code == 0
        assert fabric.weft("vm", "delete", "gone", "--yes").code == 0
        # The space that came back may hold a new try of the one that failed.
        assert len(kept.keys() & {path.name for path in (disk.path / "allocations").iterdir()}) == 1

        disk.make_room()
        until(lambda: read(fabric, "vm/more")["status"]["phase"] == "Running", fabric, 60)
        assert read(fabric, "vm/more")["status"]["restarts"] == 0
        assert fabric.weft("vm", "start", "web").code == 0
        assert read(fabric, "vm/web")["status"]["boot_id"] != web["boot_id"]
        assert [n["report"]["orphans"] for n in read(fabric, "node")["items"]] == [[], []]
