"""A volume gets a file system once, keeps it, grows with it, and what is something else is never formatted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.conformance.volume import ID, MIB

from weft.contracts.driver.disk_lock import hold_disk
from weft.contracts.driver.host import Capacity, Host
from weft.drivers.linux.ext4 import has_room, measure_files
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.errors import DriverFailed, InvalidInput


@pytest.fixture
def driver(tmp_path: Path) -> DirectoryVolumes:
    return DirectoryVolumes(
        Host("n1", "node-1", str(tmp_path), str(tmp_path), "wtst", "10.99.0.1", "lo", "weft/t", Capacity(1, 1, 1))
    )


def ask(path: str, request: str) -> str:
    """debugfs's word on the file system in ``path``."""
    done = subprocess.run(["debugfs", "-R", request, path], capture_output=True, text=True, check=True)
    return done.stdout


def write(path: str, name: str, text: str) -> None:
    source = Path(path).with_name("source")
    source.write_text(text)
    subprocess.run(["debugfs", "-w", "-R", f"write {source} {name}", path], capture_output=True, check=True)


def qemu_io(path: str, form: str, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["qemu-io", "-f", form, "-c", command, path], capture_output=True, text=True, check=False)


def size_of(path: str) -> int:
    said = dict(line.split(":", 1) for line in ask(path, "stats -h").splitlines() if ":" in line)
    return int(said["Block count"]) * int(said["Block size"])


async def test_a_new_volume_is_an_empty_file_system_of_its_users(driver: DirectoryVolumes) -> None:
    facts = await driver.ensure_files(ID, size_bytes=8 * MIB, owner=(33, 34))
    assert (facts.format, facts.size_bytes, size_of(facts.path)) == ("raw", 8 * MIB, 8 * MIB)
    assert "User:    33   Group:    34" in ask(facts.path, "stat /")
    assert await driver.list() == [facts]
    assert await driver.inspect(ID) == facts
    assert await driver.ensure(ID, size_bytes=8 * MIB) == facts  # as a machine's disk


async def test_what_is_on_it_stays_and_grows_with_it(driver: DirectoryVolumes) -> None:
    facts = await driver.ensure_files(ID, size_bytes=8 * MIB)
    write(facts.path, "kept", "so much\n")
    again = await driver.ensure_files(ID, size_bytes=16 * MIB, owner=(5, 5))
    assert (again.size_bytes, size_of(again.path)) == (16 * MIB, 16 * MIB)
    assert ask(again.path, "cat kept") == "so much\n"
    assert (await driver.ensure_files(ID, size_bytes=8 * MIB)).size_bytes == 16 * MIB


async def test_a_disk_that_grew_while_it_was_a_machines_grows_its_files_at_the_next_mount(
    driver: DirectoryVolumes,
) -> None:
    facts = await driver.ensure_files(ID, size_bytes=8 * MIB)
    assert measure_files(Path(facts.path)) == 8 * MIB
    await driver.grow(ID, 24 * MIB)
    assert measure_files(Path(facts.path)) == 8 * MIB
    again = await driver.ensure_files(ID, size_bytes=24 * MIB)
    assert size_of(again.path) == measure_files(Path(again.path)) == 24 * MIB


@pytest.mark.parametrize(
    ("files", "disk", "grows"),
    [
        (8 * MIB, 8 * MIB, False),
        (8 * MIB, 9 * MIB, True),
        (1 << 40, (1 << 40) + 3 * MIB, False),
        (1 << 40, (1 << 40) + 4 * MIB, True),
        (8 * MIB, 8 * MIB + 4096, False),
        (16 * MIB, 8 * MIB, False),
    ],
)
def test_growing_pays_only_for_more_than_a_remainder(files: int, disk: int, *, grows: bool) -> None:
    assert has_room(files, disk) is grows


async def test_a_machines_disk_with_a_file_system_is_taken_over(driver: DirectoryVolumes, tmp_path: Path) -> None:
    made = await driver.ensure_files("other", size_bytes=8 * MIB)
    write(made.path, "kept", "from a VM\n")
    disk = await driver.ensure(ID, size_bytes=8 * MIB)
    subprocess.run(["qemu-img", "convert", "-n", "-O", "qcow2", "-f", "raw", made.path, disk.path], check=True)
    facts = await driver.ensure_files(ID, size_bytes=8 * MIB)
    assert facts.format == "raw" and ask(facts.path, "cat kept") == "from a VM\n"
    assert not Path(disk.path).exists()
    await driver.remove(ID)
    assert [one.id for one in await driver.list()] == ["other"]


async def test_a_machines_disk_that_nothing_was_written_to_is_formatted(driver: DirectoryVolumes) -> None:
    disk = await driver.ensure(ID, size_bytes=8 * MIB)
    assert qemu_io(disk.path, "qcow2", "write -P 0 1M 64k").returncode == 0
    facts = await driver.ensure_files(ID, size_bytes=4 * MIB)
    assert facts.format == "raw" and facts.size_bytes == size_of(facts.path) == 8 * MIB
    assert not Path(disk.path).exists()


@pytest.mark.parametrize("form", ["qcow2", "raw"])
async def test_a_disk_with_something_else_on_it_is_refused_and_stays_as_it_is(
    driver: DirectoryVolumes, form: str
) -> None:
    if form == "raw":
        await driver.ensure_files(ID, size_bytes=8 * MIB)
    disk = await driver.ensure(ID, size_bytes=8 * MIB)
    assert disk.format == form
    assert qemu_io(disk.path, form, "write -P 0 0 64k").returncode == 0  # no superblock
    assert qemu_io(disk.path, form, "write -P 85 4M 64k").returncode == 0
    with pytest.raises(InvalidInput) as caught:
        await driver.ensure_files(ID, size_bytes=8 * MIB)
    assert caught.value.token == "notAFileSystem"
    assert (await driver.inspect(ID) or disk).path == disk.path
    assert qemu_io(disk.path, form, "read -P 85 4M 64k").returncode == 0
    assert sorted(path.name for path in Path(disk.path).parent.iterdir()) == [Path(disk.path).name]


async def test_one_that_is_in_use_is_left_alone_and_a_machine_cant_open_it(driver: DirectoryVolumes) -> None:
    facts = await driver.ensure_files(ID, size_bytes=8 * MIB)
    descriptor = os.open(facts.path, os.O_RDWR)
    try:
        assert hold_disk(descriptor)
        with pytest.raises(DriverFailed) as caught:
            await driver.ensure_files(ID, size_bytes=8 * MIB)
        assert caught.value.token == "inUse"
        assert "lock" in qemu_io(facts.path, "raw", "write 0 512").stderr
    finally:
        os.close(descriptor)
    await driver.ensure_files(ID, size_bytes=8 * MIB)


async def test_one_that_a_machine_has_open_is_in_use(driver: DirectoryVolumes) -> None:
    facts = await driver.ensure_files(ID, size_bytes=8 * MIB)
    machine = subprocess.Popen(
        ["qemu-io", "-f", "raw", facts.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert machine.stdin is not None and machine.stdout is not None
    machine.stdin.write("read 0 512\n")
    machine.stdin.flush()
    assert "read" in machine.stdout.readline()
    with pytest.raises(DriverFailed) as caught:
        await driver.ensure_files(ID, size_bytes=8 * MIB)
    assert caught.value.token == "inUse"
    machine.communicate("quit\n", timeout=20)


async def test_a_damaged_one_is_mended_or_refused_and_stays(driver: DirectoryVolumes) -> None:
    facts = await driver.ensure_files(ID, size_bytes=8 * MIB)
    subprocess.run(["debugfs", "-w", "-R", "set_super_value state 0", facts.path], capture_output=True, check=True)
    await driver.ensure_files(ID, size_bytes=8 * MIB)  # not unmounted: looked through
    with open(facts.path, "r+b") as file:
        file.seek(2048)
        file.write(b"\xff" * 2048)  # its group descriptors
    with pytest.raises(DriverFailed, match="e2fsck failed") as refused:
        await driver.ensure_files(ID, size_bytes=8 * MIB)
    assert str(Path(facts.path).parent) not in refused.value.message, "users know nothing of the node's folders"
    assert Path(facts.path).exists()


@pytest.mark.parametrize(
    ("does", "token", "says"),
    [
        ("echo 'Error writing block 9 (No space left on device).'; exit 12", "noSpace", "free some space"),
        ("echo 'Error reading block 9 (Input/output error).'; exit 12", "driverFailed", "kernel log"),
        ("kill -9 $$", "driverFailed", None),
        ("exec sleep 60", "driverFailed", None),
    ],
)
async def test_a_check_that_fails_at_the_node_does_not_call_the_volume_damaged(
    driver: DirectoryVolumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, token: str, says: str | None
) -> None:
    facts = await driver.ensure_files(ID, size_bytes=8 * MIB)
    (tmp_path / "bin").mkdir()
    (fake := tmp_path / "bin" / "e2fsck").write_text(f"#!/bin/sh\n{does}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    if "sleep" in does:
        monkeypatch.setattr("weft.contracts.disk_program._LEAST_SECONDS", 0.1)
    with pytest.raises(DriverFailed) as failed:
        await driver.ensure_files(ID, size_bytes=8 * MIB)
    assert failed.value.token == token and "damaged" not in f"{failed.value} {failed.value.hint}"
    assert (says or "") in (failed.value.hint or "") and os.path.exists(facts.path)


@pytest.mark.parametrize("left", [b"half of a file system", b""])
async def test_what_was_cut_off_begins_anew(driver: DirectoryVolumes, tmp_path: Path, left: bytes) -> None:
    disk = await driver.ensure(ID, size_bytes=8 * MIB)
    (Path(disk.path).parent / f".making-x-{ID}.qcow2").write_bytes(left)
    facts = await driver.ensure_files(ID, size_bytes=8 * MIB)
    write(facts.path, "kept", "so much\n")
    await driver.ensure("old", size_bytes=MIB)
    (Path(disk.path).parent / "old.qcow2").rename(disk.path)  # as it stands between the two names
    again = DirectoryVolumes(driver._host)
    assert ask((await again.ensure_files(ID, size_bytes=8 * MIB)).path, "cat kept") == "so much\n"
    assert not Path(disk.path).exists()


async def test_what_comes_as_raw_is_raw_whatever_its_first_bytes_say(driver: DirectoryVolumes) -> None:
    evil = driver.begin(ID)
    Path(evil).parent.mkdir(exist_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", evil, "1M"], check=True)
    facts = await driver.complete(ID, form="raw")
    assert facts.format == "raw" and facts.path.endswith(".raw")
