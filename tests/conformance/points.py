"""What every pool promises that takes in points of replicas: see ``DiskCopies``. A driver's test subclasses ``PointPromises``, with
the fixtures of ``LayerPromises``. A point is cut off here as where the agent is killed: nothing is told to the driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import pytest

from weft.backup.process.nbd import NbdClient
from weft.contracts.driver.layers import CopiesDisks, HasLayers, KeptDisk, KeptSnapshot
from weft.contracts.driver.volume import VolumeDriver
from weft.objects.errors import InvalidInput, NotFound

BLOCK = 65536
SIZE = 128 * BLOCK


class PointsDriver(VolumeDriver, HasLayers, CopiesDisks, Protocol): ...


class Cut(Exception):
    """The sender goes, or the agent ends here."""


def put(socket: str, changes: Mapping[int, str], *, whole: bool = False) -> None:
    """Write letters to blocks, as a receiver does."""
    with NbdClient(socket) as client:
        if whole:
            client.write_zeroes(0, client.size)
        for block, letter in changes.items():
            if letter == "0":
                client.write_zeroes(block * BLOCK, BLOCK)
            else:
                client.write(block * BLOCK, letter.encode() * BLOCK)
        client.flush()


async def write(
    driver: PointsDriver, layer: str, changes: Mapping[int, str], *, on: str = "", disk: str = "root", size: int = SIZE
) -> None:
    async with driver.copies.write(layer, size, on=on, disk=disk if on else "") as socket:
        await asyncio.to_thread(put, socket, changes, whole=not on)


async def write_half(
    driver: PointsDriver, layer: str, changes: Mapping[int, str], *, on: str, size: int = SIZE
) -> None:
    with pytest.raises(Cut):
        async with driver.copies.write(layer, size, on=on, disk="root") as socket:
            await asyncio.to_thread(put, socket, changes)
            raise Cut


def describe(number: int, *, size: int = SIZE) -> KeptSnapshot:
    return KeptSnapshot(f"p{number}", f"uid-p{number}", {"root": KeptDisk((f"in{number}",), size)})


async def add(driver: PointsDriver, number: int, changes: Mapping[int, str], *, on: str = "", size: int = SIZE) -> None:
    """Take point ``number`` in."""
    await write(driver, f"in{number}", changes, on=on, size=size)
    await driver.copies.take_in(describe(number, size=size), on=on)
    await driver.copies.discard([f"in{number}"])


async def add_three(driver: PointsDriver) -> None:
    await add(driver, 1, {0: "a", 1: "a", 2: "a", 3: "a"})
    await add(driver, 2, {1: "b", 2: "b"}, on="p1")
    await add(driver, 3, {2: "0", 3: "c", 5: "c"}, on="p2")


async def read(driver: PointsDriver, snapshot: str, disk: str = "root") -> bytes:
    def receive(socket: str) -> bytes:
        with NbdClient(socket) as client:
            return client.read(0, client.size)

    async with driver.copies.read(snapshot, disk, base=None, base_format="raw") as served:
        return await asyncio.to_thread(receive, served.socket)


async def show(driver: PointsDriver, snapshot: str, disk: str = "root") -> str:
    """The first letter of each block, a dot for zeroes."""
    data = await read(driver, snapshot, disk)
    return "".join(chr(data[at]) if data[at] else "." for at in range(0, len(data), BLOCK)).rstrip(".")


async def list_layers(driver: PointsDriver) -> dict[str, tuple[str, ...]]:
    return {one.id: one.disks["root"].layers for one in await driver.layers.list_kept()}


async def freeze(driver: PointsDriver, volume: str, layer: str, *below: str) -> None:
    """A snapshot of the volume, with the layer's name."""
    await driver.layers.begin_layer(volume, layer)
    await driver.layers.finish_layer(volume, layer)
    await driver.layers.keep(KeptSnapshot(f"s-{layer}", "u", {"root": KeptDisk((*below, layer), SIZE)}))


async def merge_all(driver: PointsDriver) -> None:
    while layers := await driver.copies.list_mergeable():
        await driver.copies.merge(layers[0])


class PointPromises:
    async def test_each_point_reads_as_the_disk_was_and_says_what_changed(self, driver: PointsDriver) -> None:
        await add_three(driver)
        assert [await show(driver, one) for one in ("p1", "p2", "p3")] == ["aaaa", "abba", "ab.c.c"]
        assert await list_layers(driver) == {"p1": ("in1",), "p2": ("in1", "in2"), "p3": ("in1", "in2", "in3")}
        async with driver.copies.read("p3", "root", base=None, base_format="raw", since="p2") as served:
            found = {block for at, size, _ in served.extents for block in range(at // BLOCK, -(-(at + size) // BLOCK))}
            assert not served.is_whole and {2, 3, 5} <= found and len(found) < SIZE // BLOCK

    async def test_what_a_point_is_a_copy_of_is_remembered(
        self, driver: PointsDriver, reborn: Callable[[], PointsDriver]
    ) -> None:
        await write(driver, "in1", {})
        disks = {"root": KeptDisk(("in1",), SIZE, "")}
        point = KeptSnapshot("p1", "here", disks, taken_at=7.5, source="there", consistency="filesystem", final=True)
        await driver.copies.take_in(point)
        [kept] = await reborn().layers.list_kept()
        found = (kept.uid, kept.taken_at, kept.source, kept.consistency, kept.final, kept.came)
        assert found == ("here", 7.5, "there", "filesystem", True, True)

    async def test_a_piece_that_is_smaller_than_a_cluster_leaves_the_rest_of_it(self, driver: PointsDriver) -> None:
        await add(driver, 1, {0: "a"})

        def write_little(socket: str) -> None:
            with NbdClient(socket) as client:
                client.write(512, b"b" * 512)
                client.flush()

        async with driver.copies.write("in2", SIZE, on="p1", disk="root") as socket:
            await asyncio.to_thread(write_little, socket)
        await driver.copies.take_in(describe(2), on="p1")
        assert (await read(driver, "p2"))[:BLOCK] == b"a" * 512 + b"b" * 512 + b"a" * (BLOCK - 1024)

    async def test_a_disk_may_have_grown_but_not_shrunk(self, driver: PointsDriver) -> None:
        await add(driver, 1, {0: "a"})
        await add(driver, 2, {SIZE // BLOCK: "b"}, on="p1", size=2 * SIZE)
        assert await show(driver, "p2") == "a" + "." * (SIZE // BLOCK - 1) + "b"
        assert len(await read(driver, "p1")) == SIZE
        with pytest.raises(InvalidInput) as caught:
            await add(driver, 3, {0: "c"}, on="p2")
        assert caught.value.token == "tooSmall"

    async def test_what_was_cut_off_is_in_no_later_point(
        self, driver: PointsDriver, reborn: Callable[[], PointsDriver]
    ) -> None:
        await add(driver, 1, {0: "a", 3: "a"})
        await write_half(driver, "in2", {0: "x", 1: "x", 3: "0"}, on="p1", size=2 * SIZE)
        await add(reborn(), 2, {2: "b"}, on="p1")
        assert await show(driver, "p2") == "a.ba" and len(await read(driver, "p2")) == SIZE
        await write_half(driver, "in3", {4: "x"}, on="p2")
        await driver.copies.discard(["in3"])
        with pytest.raises(NotFound):
            await driver.copies.take_in(describe(3), on="p2")
        await add(driver, 3, {}, on="p2")
        assert [await show(driver, one) for one in ("p1", "p2", "p3")] == ["a..a", "a.ba", "a.ba"]

    async def test_what_was_written_is_taken_in_once_however_often_that_is_asked(
        self, driver: PointsDriver, reborn: Callable[[], PointsDriver]
    ) -> None:
        await add(driver, 1, {0: "a"})
        with pytest.raises(NotFound):
            await driver.copies.take_in(describe(2), on="p1")
        await write(driver, "in2", {1: "b"}, on="p1")
        for again in (lambda: driver, lambda: driver, reborn):
            await again().copies.take_in(describe(2), on="p1")
            await again().copies.discard(["in2"])
        with pytest.raises(NotFound):
            await reborn().copies.take_in(KeptSnapshot("p3", "u", {"root": KeptDisk(("in3",), SIZE)}), on="p2")
        assert await list_layers(driver) == {"p1": ("in1",), "p2": ("in1", "in2")}
        await add(reborn(), 3, {2: "c"}, on="p2")
        assert [await show(driver, one) for one in ("p1", "p2", "p3")] == ["a", "ab", "abc"]

    async def test_a_point_that_came_comes_again_and_stays_as_it_is(
        self, driver: PointsDriver, reborn: Callable[[], PointsDriver]
    ) -> None:
        """Its sender didn't hear that it had come."""
        await add(driver, 1, {0: "a"})
        await add(driver, 2, {1: "b"}, on="p1")
        for again, number, on in ((reborn(), 1, ""), (reborn(), 2, "p1")):
            await write(again, f"in{number}", {7: "x"}, on=on)
            await again.copies.take_in(describe(number), on=on)
            await again.copies.discard([f"in{number}"])
        assert [await show(driver, one) for one in ("p1", "p2")] == ["a", "ab"]
        await add(driver, 3, {2: "c"}, on="p2")
        assert await show(driver, "p3") == "abc"

    async def test_all_disks_of_a_point_come_in_one_step_or_none(self, driver: PointsDriver) -> None:
        for layer in ("a1", "b1", "c1"):
            await write(driver, layer, {0: layer[0]})
        disks = {name: KeptDisk((f"{name}1",), SIZE, name) for name in "abc"}
        await driver.copies.take_in(KeptSnapshot("p1", "u1", disks))
        await write(driver, "a2", {1: "a"}, on="p1", disk="a")
        await write(driver, "b2", {1: "b"})  # whole, since its chain broke
        later = KeptSnapshot("p2", "u2", {name: KeptDisk((f"{name}2",), SIZE, name) for name in "abd"})
        with pytest.raises(NotFound):
            await driver.copies.take_in(later, on="p1")  # d, a new one, has not come
        assert [one.id for one in await driver.layers.list_kept()] == ["p1"]
        await write(driver, "d2", {1: "d"})
        for _ in range(2):
            await driver.copies.take_in(later, on="p1")
        await driver.copies.discard(["a2", "b2", "d2"])
        assert [await show(driver, "p2", name) for name in "abd"] == ["aa", ".b", ".d"]
        assert [await show(driver, "p1", name) for name in "abc"] == ["a", "b", "c"]
        await driver.layers.drop("p1")
        await merge_all(driver)
        assert [await show(driver, "p2", name) for name in "abd"] == ["aa", ".b", ".d"]

    async def test_points_that_nobody_needs_are_merged_from_below_and_the_others_read_the_same(
        self, driver: PointsDriver, reborn: Callable[[], PointsDriver]
    ) -> None:
        await add_three(driver)
        assert await driver.copies.list_mergeable() == []
        await driver.layers.drop("p1")
        await driver.layers.drop("p2")
        assert await reborn().copies.list_mergeable() == ["in1", "in2"]
        await driver.copies.merge("in1")
        await reborn().copies.merge("in1")
        assert (await list_layers(driver), await show(driver, "p3")) == ({"p3": ("in2", "in3")}, "ab.c.c")
        await add(driver, 4, {7: "d"}, on="p3")
        await driver.copies.merge("in2")
        assert await list_layers(driver) == {"p3": ("in3",), "p4": ("in3", "in4")}
        assert [await show(driver, one) for one in ("p3", "p4")] == ["ab.c.c", "ab.c.c.d"]

    async def test_a_point_that_is_on_its_way_outlives_a_merge_below_it(self, driver: PointsDriver) -> None:
        await add_three(driver)
        await driver.layers.drop("p1")
        await driver.layers.drop("p2")
        async with driver.copies.write("in4", SIZE, on="p3", disk="root") as socket:
            await asyncio.to_thread(put, socket, {6: "d"})
            await merge_all(driver)
            await asyncio.to_thread(put, socket, {7: "d"})
        await driver.copies.take_in(describe(4), on="p3")
        assert (await list_layers(driver))["p4"] == ("in3", "in4")
        assert await show(driver, "p4") == "ab.c.cdd"

    async def test_the_newest_point_may_go_and_the_next_one_continues_the_one_before(
        self, driver: PointsDriver
    ) -> None:
        await add_three(driver)
        await driver.layers.drop("p3")
        await add(driver, 4, {6: "d"}, on="p2")
        assert [await show(driver, one) for one in ("p2", "p4")] == ["abba", "abba..d"]
        await add(driver, 5, {6: "e"}, on="p2")  # beside a newer one
        assert [await show(driver, one) for one in ("p2", "p4", "p5")] == ["abba", "abba..d", "abba..e"]
        await driver.layers.drop("p2")
        await driver.layers.drop("p4")
        await merge_all(driver)
        await add(driver, 6, {7: "f"}, on="p5")
        assert [await show(driver, one) for one in ("p5", "p6")] == ["abba..e", "abba..ef"]

    async def test_what_a_volume_stands_on_or_came_otherwise_is_not_merged(self, driver: PointsDriver) -> None:
        await add_three(driver)
        await driver.layers.drop("p1")
        await driver.layers.clone("web", "p2", "root")
        assert await driver.copies.list_mergeable() == []
        await driver.copies.merge("in1")
        assert (await list_layers(driver))["p3"] == ("in1", "in2", "in3")
        await driver.ensure("db", size_bytes=SIZE)
        await freeze(driver, "db", "l1")
        await freeze(driver, "db", "l2", "l1")
        await driver.layers.drop("s-l1")
        await driver.remove("db")
        await driver.layers.drop("p2")
        assert "l1" not in await driver.copies.list_mergeable()

    async def test_a_volume_made_from_a_point_keeps_what_it_holds_while_points_come_and_go(
        self, driver: PointsDriver
    ) -> None:
        await add_three(driver)
        await driver.layers.clone("web", "p2", "root")
        await add(driver, 4, {0: "d"}, on="p3")
        for one in ("p1", "p2", "p3", "p4"):
            await driver.layers.drop(one)
        await freeze(driver, "web", "l1", *(one.id for one in await driver.layers.list_layers("web")))
        assert await show(driver, "s-l1") == "abba"
        assert await driver.layers.list_layers("web") != []

    async def test_what_comes_back_continues_a_snapshot_of_a_volume(self, driver: PointsDriver) -> None:
        await add(driver, 1, {0: "a", 1: "a"})
        await driver.layers.clone("web", "p1", "root")
        await freeze(driver, "web", "l1", "in1")
        await driver.layers.drop("p1")
        await add(driver, 2, {1: "b"}, on="s-l1")
        await add(driver, 3, {2: "c"}, on="p2")
        await write_half(driver, "in4", {0: "x"}, on="p3")
        await add(driver, 4, {3: "d"}, on="p3")
        assert [await show(driver, one) for one in ("s-l1", "p2", "p3", "p4")] == ["aa", "ab", "abc", "abcd"]
        assert (await list_layers(driver))["p4"] == ("in1", "l1", "in2", "in3", "in4")
        await driver.layers.replace("web", "p4", "root", "l2")
        await driver.remove("web")
        for one in ("s-l1", "p2", "p3"):
            await driver.layers.drop(one)
        await merge_all(driver)
        assert (await list_layers(driver), await show(driver, "p4")) == ({"p4": ("in4",)}, "abcd")

    async def test_what_continues_nothing_is_refused_and_leaves_nothing(self, driver: PointsDriver) -> None:
        await add(driver, 1, {0: "a"})
        with pytest.raises(NotFound) as gone:
            await add(driver, 2, {0: "b"}, on="p9")
        assert gone.value.token == "snapshotGone"
        await write(driver, "in2", {}, on="p1")
        await driver.layers.drop("p1")
        with pytest.raises(NotFound) as gone:
            await driver.copies.take_in(describe(2), on="p1")
        assert gone.value.token == "snapshotGone"
        assert await driver.layers.list_kept() == []
