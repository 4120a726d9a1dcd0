"""Layers on a full disk: what can't be made leaves everything as it was, and says why."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.volume import ID, MIB
from tests.unit.drivers.volume.test_volume_layers import freeze, kept, list_all, make_driver, read_volume, write_volume

from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.errors import DriverFailed

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")]
SIZE = 4 * MIB


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


async def lay_out(pool: Path) -> DirectoryVolumes:
    """A disk that reads abc, and a snapshot of it that reads a."""
    driver = make_driver(pool)
    await driver.ensure(ID, size_bytes=SIZE)
    for number, layer in enumerate(("one", "two")):
        await write_volume(driver, "ab"[number], number)
        await freeze(driver, layer)
    await write_volume(driver, "c", 2)
    await driver.layers.keep(kept("s1", "one"))
    return driver


def fill(pool: Path, *, left: int) -> Path:
    filler = pool / "filler"
    with filler.open("wb") as file:
        facts = os.statvfs(pool)
        os.posix_fallocate(file.fileno(), 0, facts.f_bavail * facts.f_frsize - left)
    return filler


async def test_on_a_full_disk_no_step_is_half_done_and_with_space_each_goes_on(pool: Path) -> None:
    driver = await lay_out(pool)
    files = list_all(pool)
    filler = fill(pool, left=0)
    present = kept("s3", "one", "two", "three")
    steps = {
        "begin": lambda: driver.layers.begin_layer(ID, "three"),
        "keep": lambda: driver.layers.keep_present(present, {ID: "three"}),
        "clone": lambda: driver.layers.clone("new", "s1", "root"),
        "replace": lambda: driver.layers.replace(ID, "s1", "root", "three"),
    }
    for name, step in steps.items():
        with pytest.raises(DriverFailed) as caught:
            await step()
        assert caught.value.token == "noSpace", name
        assert await read_volume(driver) == "abc" and await driver.inspect("new") is None, name
    assert await driver.layers.find_unfinished(ID) == ""
    filler.unlink()
    await driver.remove("nothing")  # sweeps
    assert list_all(pool) == files
    await driver.layers.keep_present(present, {ID: "three"})
    await driver.layers.replace(ID, "s1", "root", "three")
    assert await read_volume(driver) == "a"


async def test_a_disk_that_fills_up_while_layers_are_united_reads_the_same_and_they_are_united_later(
    pool: Path,
) -> None:
    driver = await lay_out(pool)
    subprocess.run(
        ["qemu-io", "-c", f"write -P 99 {MIB} {2 * MIB}", str(pool / "volumes" / f"{ID}.qcow2")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    before = await read_volume(driver)
    filler = fill(pool, left=256 * 1024)
    with pytest.raises(DriverFailed) as caught:
        await driver.layers.absorb_layer(ID, "two", base=None, base_format="qcow2")
    assert caught.value.token == "noSpace" and "two" in await driver.layers.list_unneeded(ID)
    filler.unlink()
    assert await read_volume(driver) == before
    await driver.layers.absorb_layer(ID, "two", base=None, base_format="qcow2")
    assert await read_volume(driver) == before and "two.qcow2" not in list_all(pool)


async def test_on_a_full_disk_snapshots_can_be_removed(pool: Path) -> None:
    driver = await lay_out(pool)
    await driver.layers.drop("s1")
    await driver.remove(ID)
    driver = await lay_out(pool)
    await driver.layers.keep(kept("s2", "one", "two"))
    filler = fill(pool, left=0)
    await driver.layers.drop("s2")
    await driver.remove(ID)
    await driver.layers.drop("s1")
    filler.unlink()
    assert list_all(pool) == set()
