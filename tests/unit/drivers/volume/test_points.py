"""What changed of a disk comes into a pool as a layer on what came before, and old layers are merged from below."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.unit.drivers.volume.test_served_disks import BLOCK, copy_out, image, letters
from tests.unit.drivers.volume.test_volume_layers import SIZE, list_all, make_driver

from weft.backup.process.nbd import NbdClient
from weft.contracts.driver.layers import MOST_LAYERS, KeptDisk, KeptSnapshot
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.errors import InvalidInput, NotFound

__all__ = ["image"]


@pytest.fixture
def driver(tmp_path: Path) -> DirectoryVolumes:
    return make_driver(tmp_path)


def put(socket: str, changes: dict[int, str]) -> None:
    with NbdClient(socket) as client:
        for block, letter in changes.items():
            if letter == "0":
                client.write_zeroes(block * BLOCK, BLOCK)
            else:
                client.write(block * BLOCK, letter.encode() * BLOCK)
        client.flush()


async def add(driver: DirectoryVolumes, number: int, changes: dict[int, str], *, on: int = 0, size: int = SIZE) -> None:
    """Take point ``number`` in, on point ``on``."""
    former = f"p{on}" if on else ""
    async with driver.copies.write(f"in{number}", size, on=former, disk="root" if on else "") as socket:
        await asyncio.to_thread(put, socket, changes)
    disks = {"root": KeptDisk((f"in{number}",), size)}
    await driver.copies.take_in(KeptSnapshot(f"p{number}", f"uid-p{number}", disks), on=former)


async def show(driver: DirectoryVolumes, number: int) -> str:
    return letters((await copy_out(driver, f"p{number}", None))[0]).rstrip(".")


async def list_layers(driver: DirectoryVolumes) -> dict[str, tuple[str, ...]]:
    return {one.id: one.disks["root"].layers for one in await driver.layers.list_kept()}


async def add_three(driver: DirectoryVolumes) -> None:
    await add(driver, 1, {0: "a", 1: "a", 2: "a", 3: "a"})
    await add(driver, 2, {1: "b", 2: "b"}, on=1)
    await add(driver, 3, {2: "0", 3: "c", 5: "c"}, on=2)


async def test_each_point_reads_as_the_disk_was_and_holds_only_what_changed(driver: DirectoryVolumes) -> None:
    await add_three(driver)
    assert [await show(driver, number) for number in (1, 2, 3)] == ["aaaa", "abba", "ab.c.c"]
    _, extents, is_whole, _ = await copy_out(driver, "p3", None, "p2")
    assert (sorted(start // BLOCK for start, _, _ in extents), is_whole) == ([2, 3, 5], False)


async def test_a_piece_that_is_smaller_than_a_cluster_leaves_the_rest_of_it(driver: DirectoryVolumes) -> None:
    await add(driver, 1, {0: "a"})
    async with driver.copies.write("in2", SIZE, on="p1", disk="root") as socket:

        def write() -> None:
            with NbdClient(socket) as client:
                client.write(512, b"b" * 512)
                client.flush()

        await asyncio.to_thread(write)
    await driver.copies.take_in(KeptSnapshot("p2", "u", {"root": KeptDisk(("in2",), SIZE)}), on="p1")
    data = (await copy_out(driver, "p2", None))[0]
    assert data[:BLOCK] == b"a" * 512 + b"b" * 512 + b"a" * (BLOCK - 1024)


async def test_a_disk_may_have_grown_but_not_shrunk(driver: DirectoryVolumes) -> None:
    await add(driver, 1, {0: "a"})
    await add(driver, 2, {SIZE // BLOCK: "b"}, on=1, size=2 * SIZE)
    assert await show(driver, 2) == "a" + "." * (SIZE // BLOCK - 1) + "b"
    with pytest.raises(InvalidInput) as caught:
        await add(driver, 3, {0: "c"}, on=2)
    assert caught.value.token == "tooSmall"


async def test_a_clone_of_a_point_hides_the_image_that_it_is_opened_on(driver: DirectoryVolumes, image: str) -> None:
    await add(driver, 1, {0: "a", 1: "0"})
    await add(driver, 2, {0: "0"}, on=1)
    data, _, _, _ = await copy_out(driver, "p2", image)
    assert letters(data)[:3] == "..i"


async def test_points_that_nobody_needs_are_merged_from_below_and_the_others_read_the_same(
    driver: DirectoryVolumes, tmp_path: Path
) -> None:
    await add_three(driver)
    assert await driver.copies.list_mergeable() == []
    await driver.layers.drop("p1")
    await driver.layers.drop("p2")
    assert await driver.copies.list_mergeable() == ["in1", "in2"]
    await driver.copies.merge("in1")
    await driver.copies.merge("in1")
    assert (await list_layers(driver), await show(driver, 3)) == ({"p3": ("in2", "in3")}, "ab.c.c")
    await add(driver, 4, {7: "d"}, on=3)
    await driver.copies.merge("in2")
    assert await list_layers(driver) == {"p3": ("in3",), "p4": ("in3", "in4")}
    assert [await show(driver, number) for number in (3, 4)] == ["ab.c.c", "ab.c.c.d"]
    assert {name for name in list_all(tmp_path) if name.startswith("in")} == {"in3.qcow2", "in4.qcow2"}


async def test_a_point_that_is_on_its_way_outlives_a_merge_below_it(driver: DirectoryVolumes) -> None:
    await add_three(driver)
    await driver.layers.drop("p1")
    await driver.layers.drop("p2")
    async with driver.copies.write("in4", SIZE, on="p3", disk="root") as socket:
        await asyncio.to_thread(put, socket, {6: "d"})
        for layer in await driver.copies.list_mergeable():
            await driver.copies.merge(layer)
        await asyncio.to_thread(put, socket, {7: "d"})
    await driver.copies.take_in(KeptSnapshot("p4", "u", {"root": KeptDisk(("in4",), SIZE)}), on="p3")
    assert (await list_layers(driver))["p4"] == ("in3", "in4")
    assert await show(driver, 4) == "ab.c.cdd"


async def test_what_a_volume_stands_on_or_came_otherwise_is_not_merged(driver: DirectoryVolumes) -> None:
    await add_three(driver)
    await driver.layers.drop("p1")
    await driver.layers.clone("web", "p2", "root")
    assert await driver.copies.list_mergeable() == []
    await driver.copies.merge("in1")
    assert (await list_layers(driver))["p3"] == ("in1", "in2", "in3")
    await driver.ensure("db", size_bytes=SIZE)
    for layer in ("l1", "l2"):
        await driver.layers.begin_layer("db", layer)
        await driver.layers.finish_layer("db", layer)
    await driver.layers.keep(KeptSnapshot("s1", "uid-s1", {"root": KeptDisk(("l1", "l2"), SIZE)}))
    await driver.remove("db")
    await driver.layers.drop("p2")
    assert "l1" not in await driver.copies.list_mergeable()


async def test_what_continues_nothing_or_too_much_is_refused_and_leaves_nothing(driver: DirectoryVolumes) -> None:
    await add(driver, 1, {0: "a"})
    with pytest.raises(NotFound) as gone:
        await add(driver, 2, {0: "b"}, on=9)
    assert gone.value.token == "snapshotGone"
    async with driver.copies.write("in2", SIZE, on="p1", disk="root"):
        pass
    await driver.layers.drop("p1")
    with pytest.raises(NotFound) as gone:
        await driver.copies.take_in(KeptSnapshot("p2", "u", {"root": KeptDisk(("in2",), SIZE)}), on="p1")
    assert gone.value.token == "snapshotGone"
    await add(driver, 1, {0: "a"})
    for number in range(2, MOST_LAYERS + 1):
        await add(driver, number, {}, on=number - 1)
    with pytest.raises(InvalidInput) as many:
        await add(driver, MOST_LAYERS + 1, {}, on=MOST_LAYERS)
    assert many.value.token == "tooManyLayers"
    assert f"p{MOST_LAYERS + 1}" not in await list_layers(driver)
