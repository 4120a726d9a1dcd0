"""What goes with a disk from one pool to another: layers under ids of their own, snapshots and memory; whatever cuts it off."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import msgspec
import pytest
from tests.conformance.volume import ID
from tests.long import mark_long
from tests.unit.drivers.volume.test_volume_layers import (
    SIZE,
    copy,
    freeze,
    kept,
    list_all,
    make_driver,
    read_everything,
    read_kept,
    read_volume,
    run_until,
    write_volume,
)

from weft.contracts.driver.layers import CarriedDisk
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.errors import IllegalTransition, InvalidInput

KEY = "migration-1"


async def lay_out(driver: DirectoryVolumes) -> None:
    """A disk that reads axc; its snapshots read a and ax, another workload's too."""
    await driver.ensure(ID, size_bytes=SIZE)
    for number, layer in enumerate(("one", "two")):
        await write_volume(driver, "ax"[number], number)
        await freeze(driver, layer)
    await write_volume(driver, "c", 2)
    for name, layers in (("s1", ("one",)), ("s2", ("one", "two"))):
        await driver.layers.keep(msgspec.structs.replace(kept(name, *layers), workload="w1"))
    await driver.layers.keep(msgspec.structs.replace(kept("s3", "one", "two"), workload="w2"))
    Path(driver.layers.memory_path("s1")).write_bytes(b"memory")


async def send(here: DirectoryVolumes, there: DirectoryVolumes) -> None:
    """All but the disk itself."""
    carried, files = await here.transfer.pack(ID, "root", "w1", KEY, memory=True)
    assert sorted(carried.list_files()) == sorted(files)
    await there.transfer.expect(ID, carried)
    for name, path in files.items():
        shutil.copyfile(path, await there.transfer.begin(ID, name))
        await there.transfer.complete(ID, name)


async def arrive(here: DirectoryVolumes, there: DirectoryVolumes) -> None:
    await send(here, there)
    facts = await here.inspect(ID)
    assert facts is not None
    shutil.copyfile(facts.path, there.begin(ID))
    await there.complete(ID)
    await there.transfer.settle(ID)


@pytest.fixture
async def here(tmp_path: Path) -> DirectoryVolumes:
    (tmp_path / "here").mkdir()
    driver = make_driver(tmp_path / "here")
    await lay_out(driver)
    return driver


@pytest.fixture
def there(tmp_path: Path) -> DirectoryVolumes:
    (tmp_path / "there").mkdir()
    return make_driver(tmp_path / "there", "n2")


async def test_a_disk_reads_the_same_there_and_so_do_its_workloads_snapshots(
    here: DirectoryVolumes, there: DirectoryVolumes
) -> None:
    await arrive(here, there)
    assert await read_volume(there) == "axc"
    assert [one.id for one in await there.layers.list_kept()] == ["s1", "s2"], "the other one is another workload's"
    assert (await read_kept(there, "s1"), await read_kept(there, "s2")) == ("a", "ax")
    assert Path(there.layers.memory_path("s1")).read_bytes() == b"memory"
    ids = {layer.id for layer in await there.layers.list_layers(ID)}
    assert ids.isdisjoint({"one", "two"}), "the same id may be another layer there"


async def test_what_left_is_forgotten_here_and_what_others_stand_on_stays(
    here: DirectoryVolumes, there: DirectoryVolumes, tmp_path: Path
) -> None:
    await arrive(here, there)
    for _ in range(2):
        await here.transfer.release("root", "w1", memory=True)
        await here.remove(ID)
    assert [one.id for one in await here.layers.list_kept()] == ["s3"] and await read_kept(here, "s3") == "ax"
    assert list_all(tmp_path / "here") == {"one.qcow2", "two.qcow2"}


async def test_a_disk_that_comes_back_has_its_snapshots_once(here: DirectoryVolumes, there: DirectoryVolumes) -> None:
    await arrive(here, there)
    await arrive(there, here)
    assert [one.id for one in await here.layers.list_kept()] == ["s1", "s2", "s3"]
    assert (await read_volume(here), await read_kept(here, "s1"), await read_kept(here, "s3")) == ("axc", "a", "ax")


async def test_a_mirrored_disk_stands_on_what_has_come_before_it_is_written_to(
    here: DirectoryVolumes, there: DirectoryVolumes
) -> None:
    await there.ensure(ID, size_bytes=SIZE)
    await send(here, there)
    for _ in range(2):
        await there.transfer.adopt(ID)
    assert await read_volume(there) == "ax" and await there.layers.list_kept() == []
    assert await there.layers.list_unneeded(ID) == [], "its snapshots are kept once it is here for good"
    await there.transfer.settle(ID)
    await there.transfer.settle(ID)
    assert [one.id for one in await there.layers.list_kept()] == ["s1", "s2"]


async def test_a_disk_that_does_not_come_leaves_nothing_there(
    here: DirectoryVolumes, there: DirectoryVolumes, tmp_path: Path
) -> None:
    await there.ensure(ID, size_bytes=SIZE)
    await send(here, there)
    await there.transfer.adopt(ID)
    await there.remove(ID)
    assert list_all(tmp_path / "there") == set() and await there.layers.list_kept() == []


async def test_a_disk_without_all_of_its_layers_is_not_taken(here: DirectoryVolumes, there: DirectoryVolumes) -> None:
    carried, files = await here.transfer.pack(ID, "root", "w1", KEY, memory=False)
    await there.ensure(ID, size_bytes=SIZE)
    await there.transfer.expect(ID, carried)
    name, path = next(iter(files.items()))
    shutil.copyfile(path, await there.transfer.begin(ID, name))
    await there.transfer.complete(ID, name)
    with pytest.raises(IllegalTransition, match="have not arrived"):
        await there.transfer.adopt(ID)
    assert await there.layers.list_layers(ID) == []


async def test_only_what_was_announced_comes_and_a_layer_must_be_one(
    here: DirectoryVolumes, there: DirectoryVolumes, tmp_path: Path
) -> None:
    for id_ in ("../x", "", "A"):
        with pytest.raises(InvalidInput):
            await there.transfer.expect(ID, CarriedDisk((id_,)))
    await there.transfer.expect(ID, CarriedDisk(("l1",)))
    with pytest.raises(InvalidInput, match="is not expected"):
        await there.transfer.begin(ID, "l2")
    Path(await there.transfer.begin(ID, "l1")).write_bytes(b"no qcow2")
    with pytest.raises(Exception, match="layer l1"):
        await there.transfer.complete(ID, "l1")
    await there.remove(ID)
    make_driver(tmp_path / "there", "n2")
    assert list_all(tmp_path / "there") == set()


async def test_a_disk_does_not_go_while_a_snapshot_of_it_is_taken(here: DirectoryVolumes) -> None:
    await here.layers.begin_layer(ID, "three")
    with pytest.raises(IllegalTransition):
        await here.transfer.pack(ID, "root", "w1", KEY, memory=True)


@pytest.mark.parametrize("stride", mark_long([3, 1], 1), ids=["every third step", "every step"])
@pytest.mark.parametrize("what", ["arrive", "release"])
def test_a_driver_that_is_killed_at_any_step_has_the_disk_and_its_snapshots_after_another_try(
    tmp_path: Path, what: str, stride: int
) -> None:
    source, origin, whole = tmp_path / "source", tmp_path / "origin", tmp_path / "whole"
    for folder in (source, origin):
        folder.mkdir()
    asyncio.run(lay_out(make_driver(source)))

    async def act(driver: DirectoryVolumes) -> None:
        if what == "arrive":
            await arrive(make_driver(source), driver)
        else:
            await driver.transfer.release("root", "w1", memory=True)
            await driver.remove(ID)

    if what == "release":
        copy(source, tmp_path / "copied")
        origin = tmp_path / "copied"
    copy(origin, whole)
    asyncio.run(act(make_driver(whole)))
    wanted, steps, was_done = asyncio.run(read_everything(make_driver(whole))), 1 - stride, False
    while not was_done:
        steps, place = steps + stride, tmp_path / "place"
        copy(origin, place)
        was_done = run_until(place, act, steps)
        asyncio.run(act(make_driver(place)))
        assert asyncio.run(read_everything(make_driver(place))) == wanted, f"step {steps}"
        assert list_all(place) == list_all(whole), f"step {steps}"
        shutil.rmtree(place)
    assert steps > 5, "it has been cut off"
