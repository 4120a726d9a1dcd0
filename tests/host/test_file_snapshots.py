"""Snapshots of raw volumes by real loop devices, mounts and qemu-img: what a container has mounted is copied as of one instant."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.layers import KeptDisk, KeptSnapshot
from weft.drivers.linux import freeze_holder
from weft.drivers.linux.frozen_files import find_mounted, hold_frozen
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.drivers.volume.directory.file_copies import FROZEN
from weft.drivers.volume.directory.qemu_img import describe_chain
from weft.objects.errors import DriverFailed, IllegalTransition

ID, MIB = "vol-1", 1 << 20
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="needs loop devices"
)

# Writes to the mounted file system again and again: each pair of files is written one after the other.
WRITER = """
import os, sys
sys.path.insert(0, {src!r})
from pathlib import Path
from weft.drivers.linux.namespace_thread import leave_mounts
from weft.drivers.runtime.oci.rootfs.loop_device import mount_disk
leave_mounts(())
at = Path({at!r})
mount_disk({raw!r}, at, "ext4")
(at / "ballast").write_bytes(os.urandom(8 << 20))
print("mounted", flush=True)
count = 0
while True:
    for name in ("first", "second"):
        with (at / name).open("w") as file:
            file.write(f"{{count:08}}" * 2000)
            file.flush()
            os.fsync(file.fileno())
    count += 1
    if count == 5:
        print("busy", flush=True)
"""


def make_driver(tmp_path: Path) -> DirectoryVolumes:
    place = str(tmp_path / "state")
    return DirectoryVolumes(Host("n1", "n1", place, place, "wtst", "10.99.0.1", "lo", "weft/t", Capacity(1, 1, 1)))


@pytest.fixture
def driver(tmp_path: Path) -> DirectoryVolumes:
    return make_driver(tmp_path)


def describe(id_: str) -> tuple[KeptSnapshot, dict[str, str]]:
    taken_at = float(("one", "two", "three").index(id_) + 1)
    return KeptSnapshot(id_, f"uid-{id_}", {ID: KeptDisk((), 0, "data")}, taken_at=taken_at), {ID: f"layer-{id_}"}


@pytest.fixture
def writer(driver: DirectoryVolumes, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    facts = asyncio.run(driver.ensure_files(ID, size_bytes=32 * MIB))
    at = tmp_path / "at"
    at.mkdir()
    words = WRITER.format(src=str(Path(freeze_holder.__file__).parents[3]), at=str(at), raw=facts.path)
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(words)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(2)] == ["mounted", "busy"]
        yield process
        process.kill()


async def read_out(driver: DirectoryVolumes, tmp_path: Path, snapshot: str) -> Path:
    clone = await driver.layers.clone(f"copy-of-{snapshot}", snapshot, ID)
    files = [*(layer.path for layer in await driver.layers.list_layers(clone.id)), clone.path]
    out = tmp_path / f"{snapshot}.raw"
    chain = describe_chain([(path, "qcow2") for path in files])
    subprocess.run(["qemu-img", "convert", "-q", "-O", "raw", chain, str(out)], check=True)
    return out


def debugfs(path: Path, name: str) -> str:
    done = subprocess.run(["debugfs", "-R", f"cat /{name}", str(path)], capture_output=True, text=True, check=True)
    return done.stdout[:8]


async def test_a_file_system_that_is_written_is_copied_clean_and_of_one_instant(
    driver: DirectoryVolumes, writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    seen = []
    for id_ in ("one", "two", "three"):
        facts = await driver.taking.take(*describe(id_))
        assert facts.consistency == "filesystem" and facts.pause_ms > 0
        assert await driver.taking.take(*describe(id_))  # repeated, it changes nothing
        out = await read_out(driver, tmp_path, id_)
        # A frozen file system has its journal written out: nothing is left to replay or to mend.
        assert subprocess.run(["e2fsck", "-fn", str(out)], capture_output=True, check=False).returncode == 0
        first, second = (debugfs(out, name) for name in ("first", "second"))
        assert int(first or second) - int(second or first) in (0, 1)
        seen.append(int(second or first))
    assert writer.poll() is None and seen == sorted(seen) and seen[0] < seen[2]
    kept = {one.id: one for one in await driver.layers.list_kept()}
    assert kept["three"].disks[ID].layers == ("layer-one", "layer-two", "layer-three")
    assert kept["three"].used_bytes < kept["one"].used_bytes


async def test_a_snapshot_in_the_middle_goes_and_the_ones_around_it_stay_whole(
    driver: DirectoryVolumes, tmp_path: Path
) -> None:
    facts = await driver.ensure_files(ID, size_bytes=32 * MIB)
    for id_ in ("one", "two", "three"):
        subprocess.run(["debugfs", "-w", "-R", f"mkdir /{id_}", facts.path], check=True, capture_output=True)
        assert (await driver.taking.take(*describe(id_))).consistency == "stopped"
    await driver.layers.drop("two")
    for id_, names in (("one", {"one"}), ("three", {"one", "two", "three"})):
        out = await read_out(driver, tmp_path, id_)
        listed = subprocess.run(["debugfs", "-R", "ls -p /", str(out)], capture_output=True, text=True, check=True)
        assert {name for name in ("one", "two", "three") if f"/{name}/" in listed.stdout} == names
        assert subprocess.run(["e2fsck", "-fn", str(out)], capture_output=True, check=False).returncode == 0


async def test_a_volume_that_a_machine_has_is_refused_and_nothing_is_kept(driver: DirectoryVolumes) -> None:
    facts = await driver.ensure_files(ID, size_bytes=32 * MIB)
    words = ["qemu-io", "-f", "raw", facts.path]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as machine:
        assert machine.stdin is not None and machine.stdout is not None
        machine.stdin.write("length\n")
        machine.stdin.flush()
        assert "32 MiB" in machine.stdout.readline()
        with pytest.raises(IllegalTransition, match="in use by a machine"):
            await driver.taking.take(*describe("one"))
        machine.stdin.close()
    assert await driver.layers.list_kept() == []


async def test_a_file_system_thaws_when_the_time_is_up_or_whoever_froze_it_is_gone(
    driver: DirectoryVolumes, writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    facts = await driver.inspect(ID)
    assert facts is not None
    folder = find_mounted(Path(facts.path))
    assert folder is not None
    try:
        with pytest.raises(DriverFailed, match="stand still"):
            async with hold_frozen([folder], 0.2):
                await asyncio.sleep(1)
        holder = [sys.executable, "-ISB", freeze_holder.__file__, "60", str(folder)]
        for end in ("close", "signal"):
            with subprocess.Popen(
                holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[folder]
            ) as process:
                assert process.stdin is not None and process.stdout is not None
                assert [process.stdout.readline() for _ in range(2)] == ["freezing\n", "frozen\n"]
                if end == "close":
                    process.stdin.close()
                else:
                    process.send_signal(signal.SIGTERM)
                assert process.stdout.readline() == "thawed\n"
        left = subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[folder])
        assert left.stdout is not None
        assert [left.stdout.readline() for _ in range(2)] == ["freezing\n", "frozen\n"]
        driver._work(FROZEN).write_text(facts.path)  # as take writes it first
        left.kill()
        left.communicate()
        driver = make_driver(tmp_path)  # the agent was killed too, and has started again
    finally:
        os.close(folder)
    assert (await driver.taking.take(*describe("one"))).consistency == "filesystem"  # it can be frozen again
