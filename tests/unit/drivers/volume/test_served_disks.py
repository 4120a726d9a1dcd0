"""Disks of snapshots go out of a real pool over NBD, whole or as what changed, and come into one as a snapshot."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.drivers.volume.test_volume_layers import SIZE, kept, make_driver, read, write

from weft.backup.process.nbd import NbdClient
from weft.contracts.driver.layers import KeptDisk, KeptSnapshot
from weft.drivers.volume import disk_server
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.errors import DriverFailed, IllegalTransition, NotFound

ID, BLOCK = "web", 65536


@pytest.fixture
def driver(tmp_path: Path) -> DirectoryVolumes:
    return make_driver(tmp_path)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image.raw"
    path.write_bytes(b"i" * (8 * BLOCK))
    os.truncate(path, SIZE)
    return str(path)


async def change(driver: DirectoryVolumes, image: str | None, layer: str, letters: str, at: int, length: int) -> None:
    """Write to the volume, and freeze that as a layer."""
    facts = await driver.inspect(ID)
    assert facts is not None
    files = [*(one.path for one in await driver.layers.list_layers(ID)), facts.path]
    write(files, letters, at, length, base=image)
    await driver.layers.begin_layer(ID, layer)
    await driver.layers.finish_layer(ID, layer)


def receive(socket: str) -> bytes:
    with NbdClient(socket) as client:
        return client.read(0, client.size)


async def copy_out(driver: DirectoryVolumes, snapshot: str, image: str | None, since: str = "") -> tuple:  # type: ignore[type-arg]
    async with driver.copies.read(snapshot, "root", base=image, base_format="raw", since=since) as served:
        data = await asyncio.to_thread(receive, served.socket)
        return data, served.extents, served.is_whole, served.size_bytes


def list_blocks(extents: list[tuple[int, int, bool]]) -> set[int]:
    return {at // BLOCK for start, length, _ in extents for at in range(start, start + length, BLOCK)}


def read_chain(driver: DirectoryVolumes, image: str | None, *layers: str) -> str:
    folder = Path(driver.layers.memory_path("x")).parent
    return read([str(folder / f"{layer}.qcow2") for layer in layers], image)


def letters(data: bytes) -> str:
    return "".join(chr(data[at]) if data[at] else "." for at in range(0, len(data), BLOCK))


async def make_three(driver: DirectoryVolumes, image: str) -> None:
    await driver.ensure(ID, size_bytes=SIZE, base=image, base_format="raw")
    for number, (letter, at, length) in enumerate([("a", 0, 1), ("b", 20 * BLOCK, 1), ("c", 40 * BLOCK, 3)], 1):
        await change(driver, image, f"l{number}", letter, at, length * BLOCK)
        await driver.layers.keep(kept(f"s{number}", *(f"l{one}" for one in range(1, number + 1))))


async def test_a_whole_read_is_the_disk_with_its_image_and_names_all_that_holds_data(
    driver: DirectoryVolumes, image: str
) -> None:
    await make_three(driver, image)
    data, extents, is_whole, size = await copy_out(driver, "s3", image)
    assert (size, is_whole) == (SIZE, True)
    assert letters(data) == read_chain(driver, image, "l1", "l2", "l3")
    assert letters(data).rstrip(".") == "aiiiiiii" + "." * 12 + "b" + "." * 19 + "ccc"
    assert list_blocks(extents) == {*range(8), 20, 40, 41, 42}
    assert not any(zero for _, _, zero in extents)


async def test_since_an_earlier_snapshot_exactly_the_changed_clusters_are_named(
    driver: DirectoryVolumes, image: str
) -> None:
    await make_three(driver, image)
    for since, changed in (("s2", {40, 41, 42}), ("s1", {20, 40, 41, 42}), ("s3", set())):
        data, extents, is_whole, _ = await copy_out(driver, "s3", image, since)
        assert (list_blocks(extents), is_whole) == (changed, False), since
        assert letters(data).count("c") == 3


async def test_one_written_byte_names_its_cluster_and_a_cleared_one_is_a_zero(
    driver: DirectoryVolumes, image: str
) -> None:
    await make_three(driver, image)
    await change(driver, image, "l4", "d", 50 * BLOCK + 700, 512)
    await change(driver, image, "l5", "\0", 0, BLOCK)
    await driver.layers.keep(kept("s4", "l1", "l2", "l3", "l4", "l5"))
    data, extents, _, _ = await copy_out(driver, "s4", image, "s3")
    assert list_blocks(extents) == {0, 50}
    assert letters(data)[0] == "." and data[50 * BLOCK + 700 : 50 * BLOCK + 1212] == b"d" * 512


async def test_a_layer_that_is_absorbed_in_between_changes_nothing(driver: DirectoryVolumes, image: str) -> None:
    await make_three(driver, image)
    before = await copy_out(driver, "s3", image, "s1")
    await driver.layers.drop("s2")
    assert await driver.layers.list_unneeded(ID) == ["l2"]
    await driver.layers.absorb_layer(ID, "l2", base=image, base_format="raw")
    [after] = [one for one in await driver.layers.list_kept() if one.id == "s3"]
    assert after.disks["root"].layers == ("l1", "l3")
    data, extents, is_whole, _ = await copy_out(driver, "s3", image, "s1")
    assert (data, list_blocks(extents), is_whole) == (before[0], list_blocks(before[1]), False)


async def test_without_what_it_stood_on_all_is_named_again(driver: DirectoryVolumes, image: str) -> None:
    await make_three(driver, image)
    await driver.layers.keep(kept("s9", "l1", "l3"))  # another chain than that of s2
    for snapshot, since in (("s3", "gone"), ("s9", "s2"), ("s1", "s3")):
        assert (await copy_out(driver, snapshot, image, since))[2], (snapshot, since)
    with pytest.raises(NotFound, match="snapshot none"):
        await copy_out(driver, "none", image)


async def test_a_layer_that_refers_to_another_file_shows_nothing_of_it(
    driver: DirectoryVolumes, tmp_path: Path
) -> None:
    await driver.ensure(ID, size_bytes=SIZE)
    await change(driver, None, "l1", "a", 0, BLOCK)
    await driver.layers.keep(kept("s1", "l1"))
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * SIZE)
    layer = Path(driver.layers.memory_path("x")).parent / "l1.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2"]
    layer.unlink()
    subprocess.run([*create, "-b", secret, "-F", "raw", layer, str(SIZE)], check=True)
    assert (await copy_out(driver, "s1", None))[0] == bytes(SIZE)
    layer.unlink()
    subprocess.run([*create, "-o", f"data_file={tmp_path}/other,data_file_raw=on", layer, str(SIZE)], check=True)
    with pytest.raises(DriverFailed, match="refers to another file"):
        await copy_out(driver, "s1", None)


def send(socket: str) -> None:
    """A disk whose first block is data, the second one zero though an image is below, and the third never written."""
    with NbdClient(socket) as client:
        client.write(0, b"x" * BLOCK)
        client.write_zeroes(BLOCK, BLOCK)
        client.write(9 * BLOCK, b"y" * BLOCK)
        client.flush()


async def test_a_disk_that_was_written_is_kept_and_cloned_and_its_zeroes_hide_an_image(
    driver: DirectoryVolumes, image: str
) -> None:
    for _ in range(2):  # what a call that was cut off has left is gone
        async with driver.copies.write("in", SIZE) as socket:
            await asyncio.to_thread(send, socket)
    snapshot = KeptSnapshot("s1", "uid-s1", {"root": KeptDisk(("in",), SIZE)})
    await driver.copies.take_in(snapshot)
    await driver.copies.take_in(snapshot)
    assert [one.id for one in await driver.layers.list_kept()] == ["s1"]
    await driver.layers.clone("copy", "s1", "root")
    facts = await driver.inspect("copy")
    assert facts is not None
    files = [*(one.path for one in await driver.layers.list_layers("copy")), facts.path]
    assert read(files, image).rstrip(".") == "x.iiiiii.y"
    assert (await copy_out(driver, "s1", None))[0][: 2 * BLOCK] == b"x" * BLOCK + bytes(BLOCK)


async def test_what_was_written_and_is_not_wanted_goes(driver: DirectoryVolumes, tmp_path: Path) -> None:
    async with driver.copies.write("in", SIZE):
        pass
    assert any("import" in path.name for path in tmp_path.rglob("*"))
    for _ in range(2):
        await driver.copies.discard(["in", "other"])
    assert not any("import" in path.name for path in tmp_path.rglob("*"))


async def test_a_snapshot_whose_disk_did_not_come_is_not_kept(driver: DirectoryVolumes) -> None:
    async with driver.copies.write("one", SIZE):
        pass
    disks = {"root": KeptDisk(("one",), SIZE), "data": KeptDisk(("two",), SIZE)}
    with pytest.raises(NotFound, match="two"):
        await driver.copies.take_in(KeptSnapshot("s1", "uid-s1", disks))
    assert await driver.layers.list_kept() == []
    async with driver.copies.write("two", SIZE):
        pass
    await driver.copies.take_in(KeptSnapshot("s1", "uid-s1", disks))
    assert [one.id for one in await driver.layers.list_kept()] == ["s1"]


async def test_what_stands_for_a_served_disk_is_known_by_its_server_and_read_by_nobody(
    driver: DirectoryVolumes,
) -> None:
    await driver.copies.stand_in("in", "weft-backup-s1/root")
    await driver.copies.take_in(KeptSnapshot("s1", "uid-s1", {"root": KeptDisk(("in",), SIZE)}))
    made = await driver.layers.clone("copy", "s1", "root")
    (layer,) = await driver.layers.list_layers("copy")
    assert (layer.format, layer.server, made.size_bytes) == ("nbd", "weft-backup-s1/root", SIZE)
    with pytest.raises(DriverFailed):
        await copy_out(driver, "s1", None)
    with pytest.raises(IllegalTransition, match="still stands on the backup"):
        await driver.transfer.pack("copy", "root", "w", "k", memory=False)
    await driver.layers.forget_layer("copy", "in")  # the file above has all of it
    assert await driver.layers.list_layers("copy") == []


KILLED = """
import asyncio, os, sys
from weft.drivers.volume.disk_server import serve_disk

async def main():
    async with serve_disk(sys.argv[1], read_only=True) as socket:
        print(socket, flush=True)
        os.kill(os.getpid(), 9)

asyncio.run(main())
"""


async def test_a_server_goes_with_the_process_that_was_killed(tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, str(SIZE)], check=True)
    done = subprocess.run([sys.executable, "-c", KILLED, str(disk)], stdout=subprocess.PIPE, check=False)
    socket = done.stdout.decode().strip()
    assert done.returncode == -9 and socket
    async with asyncio.timeout(20):
        while True:
            try:
                receive(socket)
            except OSError:
                break
            await asyncio.sleep(0.01)
    shutil.rmtree(Path(socket).parent)


def test_a_socket_that_is_there_before_its_server_listens_is_not_ready(tmp_path: Path) -> None:
    path = str(tmp_path / "disk")
    assert not disk_server._listens(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        assert not disk_server._listens(path)
        server.listen()
        assert disk_server._listens(path)
    assert not disk_server._listens(path), "its server is gone"
