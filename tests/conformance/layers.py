"""What every volume driver with layers promises. A driver's test subclasses ``LayerPromises`` beside ``VolumePromises``, with
the same fixtures; a driver remembers nothing itself, so the tests ask ``reborn`` again and again.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.conformance.volume import ID, MIB

from weft.contracts.driver.layers import MOST_LAYERS, CanTake, HasLayers, KeptDisk, KeptSnapshot, Layers, Taking
from weft.contracts.driver.volume import VolumeDriver
from weft.objects.errors import IllegalTransition, InvalidInput, NotFound

SIZE = 8 * MIB


def find(driver: VolumeDriver) -> Layers:
    assert isinstance(driver, HasLayers)
    return driver.layers


def find_taking(driver: VolumeDriver) -> Taking:
    assert isinstance(driver, CanTake)
    return driver.taking


async def freeze(driver: VolumeDriver, *layer_ids: str, volume_id: str = ID) -> None:
    for layer_id in layer_ids:
        await find(driver).begin_layer(volume_id, layer_id)
        await find(driver).finish_layer(volume_id, layer_id)


async def list_ids(driver: VolumeDriver, volume_id: str = ID) -> list[str]:
    return [layer.id for layer in await find(driver).list_layers(volume_id)]


def describe(id_: str, *layers: str, disk: str = "root") -> KeptSnapshot:
    return KeptSnapshot(id_, f"uid-of-{id_}", {disk: KeptDisk(layers, SIZE)})


class LayerPromises:
    async def test_a_volume_stands_on_what_was_frozen_bottom_first_and_is_listed_alone(
        self, driver: VolumeDriver, reborn: Callable[[], VolumeDriver]
    ) -> None:
        facts = await driver.ensure(ID, size_bytes=SIZE)
        assert (await list_ids(driver), await find(driver).list_kept()) == ([], [])
        await freeze(driver, "one", "two")
        assert await list_ids(reborn()) == ["one", "two"]
        [found] = await reborn().list()
        assert (found.path, found.size_bytes) == (facts.path, SIZE)

    async def test_volumes_that_no_machine_has_are_taken_at_once_and_once(
        self, driver: VolumeDriver, reborn: Callable[[], VolumeDriver]
    ) -> None:
        await driver.ensure(ID, size_bytes=SIZE)
        snapshot = KeptSnapshot("s1", "uid-of-s1", {ID: KeptDisk((), 0, "data")}, workload="w")
        for _ in range(2):
            taken = await find_taking(reborn()).take(snapshot, {ID: "one"})
        assert (taken.pause_ms, await list_ids(reborn())) == (0.0, ["one"])
        [kept] = await find(reborn()).list_kept()
        assert (kept.uid, kept.disks, kept.workload) == ("uid-of-s1", {ID: KeptDisk(("one",), SIZE, "data")}, "w")
        with pytest.raises(NotFound):
            await find_taking(reborn()).take(describe("s2", disk="none"), {"none": "two"})

    async def test_a_layer_is_unfinished_until_it_is_finished_or_undone_and_each_may_be_repeated(
        self, driver: VolumeDriver, reborn: Callable[[], VolumeDriver]
    ) -> None:
        facts = await driver.ensure(ID, size_bytes=SIZE)
        overlay = await find(driver).begin_layer(ID, "one")
        assert overlay != facts.path and await find(reborn()).begin_layer(ID, "one") == overlay
        assert (await find(reborn()).find_unfinished(ID), await list_ids(reborn())) == ("one", [])
        with pytest.raises(IllegalTransition):
            await find(reborn()).begin_layer(ID, "two")
        with pytest.raises(NotFound):
            await find(reborn()).finish_layer(ID, "two")
        await find(reborn()).undo_layer(ID, "two")
        for _ in range(2):
            await find(reborn()).undo_layer(ID, "one")
        assert (await find(reborn()).find_unfinished(ID), await list_ids(reborn())) == ("", [])
        await find(driver).begin_layer(ID, "one")
        for _ in range(2):
            assert (await find(reborn()).finish_layer(ID, "one")).id == "one"
        await find(reborn()).undo_layer(ID, "one")
        assert await find(reborn()).begin_layer(ID, "one") == facts.path, "it is finished"
        assert (await find(reborn()).find_unfinished(ID), await list_ids(reborn())) == ("", ["one"])

    async def test_a_disk_of_too_many_layers_gets_no_more(self, driver: VolumeDriver) -> None:
        await driver.ensure(ID, size_bytes=SIZE)
        await freeze(driver, *(f"l{number}" for number in range(MOST_LAYERS)))
        with pytest.raises(InvalidInput) as caught:
            await find(driver).begin_layer(ID, "more")
        assert caught.value.token == "tooManyLayers" and caught.value.hint

    async def test_a_volume_that_is_not_there_has_no_layers_and_gets_none(self, driver: VolumeDriver) -> None:
        assert (await list_ids(driver), await find(driver).find_unfinished(ID)) == ([], "")
        with pytest.raises(NotFound):
            await find(driver).begin_layer(ID, "one")
        await driver.ensure(ID, size_bytes=SIZE)
        await freeze(driver, "one")
        await driver.remove(ID)
        await driver.ensure(ID, size_bytes=SIZE)
        assert await list_ids(driver) == [], "the new volume is another one"

    async def test_a_snapshot_is_kept_until_it_is_dropped_also_without_its_volume(
        self, driver: VolumeDriver, reborn: Callable[[], VolumeDriver]
    ) -> None:
        await driver.ensure(ID, size_bytes=SIZE)
        with pytest.raises(NotFound):
            await find(driver).keep(describe("s1", "one"))
        await find(driver).begin_layer(ID, "one")
        for _ in range(2):
            await find(driver).keep(describe("s1", "one"))
        await find(driver).finish_layer(ID, "one")
        await driver.remove(ID)
        [kept] = await find(reborn()).list_kept()
        assert (kept.id, kept.uid, kept.disks) == ("s1", "uid-of-s1", {"root": KeptDisk(("one",), SIZE)})
        for _ in range(2):
            await find(reborn()).drop("s1")
        assert await find(reborn()).list_kept() == []

    async def test_a_clone_stands_on_the_snapshot_and_is_made_once(
        self, driver: VolumeDriver, reborn: Callable[[], VolumeDriver]
    ) -> None:
        await driver.ensure(ID, size_bytes=SIZE)
        await freeze(driver, "one", "two")
        await find(driver).keep(describe("s1", "one"))
        for _ in range(2):
            assert (await find(reborn()).clone("new", "s1", "root")).size_bytes == SIZE
        assert (await list_ids(reborn(), "new"), await list_ids(reborn())) == (["one"], ["one", "two"])
        assert (await find(driver).clone("larger", "s1", "root", size_bytes=2 * SIZE)).size_bytes == 2 * SIZE
        for snapshot, disk in (("s1", "other"), ("s2", "root")):
            with pytest.raises(NotFound) as caught:
                await find(driver).clone("none", snapshot, disk)
            assert caught.value.token == "snapshotGone" and await driver.inspect("none") is None
        await find(driver).drop("s1")
        await driver.remove(ID)
        assert await list_ids(reborn(), "new") == ["one"]

    async def test_a_replaced_disk_goes_back_and_what_stood_there_is_kept(
        self, driver: VolumeDriver, reborn: Callable[[], VolumeDriver]
    ) -> None:
        await driver.ensure(ID, size_bytes=SIZE)
        await freeze(driver, "one")
        await find(driver).keep(describe("s1", "one"))
        await freeze(driver, "two")
        before = describe("s2", "one", "two", "present")
        await find(driver).keep_present(before, {ID: "present"})
        for _ in range(2):
            assert (await find(reborn()).replace(ID, "s1", "root", "present")).size_bytes == SIZE
            await find(reborn()).keep_present(before, {ID: "present"})
        assert await list_ids(reborn()) == ["one"]
        await freeze(driver, "three")
        await find(reborn()).replace(ID, "s1", "root", "present")
        assert await list_ids(reborn()) == ["one", "three"], "repeated, it leaves alone what was written since"
        await find(driver).replace(ID, "s2", "root", "again")
        assert await list_ids(reborn()) == ["one", "two", "present"]
        with pytest.raises(NotFound) as caught:
            await find(driver).replace(ID, "s3", "root", "more")
        assert caught.value.token == "snapshotGone" and await list_ids(reborn()) == ["one", "two", "present"]

    async def test_a_disk_with_an_unfinished_layer_is_not_replaced(self, driver: VolumeDriver) -> None:
        await driver.ensure(ID, size_bytes=SIZE)
        await freeze(driver, "one")
        await find(driver).keep(describe("s1", "one"))
        await find(driver).begin_layer(ID, "two")
        with pytest.raises(IllegalTransition):
            await find(driver).replace(ID, "s1", "root", "present")
        with pytest.raises(IllegalTransition):
            await find(driver).keep_present(describe("s2", "one", "present"), {ID: "present"})
        assert await find(driver).find_unfinished(ID) == "two"

    async def test_a_layer_is_unneeded_once_the_same_file_is_above_it_wherever_it_is(
        self, driver: VolumeDriver
    ) -> None:
        await driver.ensure(ID, size_bytes=SIZE)
        assert await find(driver).list_unneeded(ID) == []
        await freeze(driver, "one", "two", "three")
        assert await find(driver).list_unneeded(ID) == ["one", "two", "three"]
        await find(driver).keep(describe("s2", "one", "two"))
        assert await find(driver).list_unneeded(ID) == ["one", "three"], "the snapshot ends with two"
        await find(driver).keep(describe("s3", "one", "two", "three"))
        assert await find(driver).list_unneeded(ID) == ["one"]
        await find(driver).clone("new", "s2", "root")
        assert await find(driver).list_unneeded(ID) == await find(driver).list_unneeded("new") == []
        await driver.remove("new")
        await find(driver).drop("s2")
        left = [one for one in ("one", "two") if one in await list_ids(driver)]  # some drivers drop them at once
        assert await find(driver).list_unneeded(ID) == left
        await find(driver).begin_layer(ID, "four")
        assert await find(driver).list_unneeded(ID) == [], "a snapshot is being taken"

    @pytest.mark.parametrize("way", ["forget", "absorb"])
    async def test_a_forgotten_layer_leaves_the_volume_and_the_snapshots_above_it(
        self, driver: VolumeDriver, reborn: Callable[[], VolumeDriver], way: str
    ) -> None:
        await driver.ensure(ID, size_bytes=SIZE)
        await freeze(driver, "one", "two")
        await find(driver).keep(describe("s2", "one", "two"))
        for _ in range(2):
            if way == "forget":
                await find(reborn()).forget_layer(ID, "one")
            else:
                await find(reborn()).absorb_layer(ID, "one", base=None, base_format="qcow2")
        assert await list_ids(reborn()) == ["two"]
        [kept] = await find(reborn()).list_kept()
        assert kept.disks["root"].layers == ("two",)

    async def test_a_layer_that_is_needed_is_not_absorbed(self, driver: VolumeDriver) -> None:
        await driver.ensure(ID, size_bytes=SIZE)
        await freeze(driver, "one", "two")
        await find(driver).keep(describe("s1", "one"))
        await find(driver).absorb_layer(ID, "one", base=None, base_format="qcow2")
        await find(driver).absorb_layer(ID, "unknown", base=None, base_format="qcow2")
        assert await list_ids(driver) == ["one", "two"]
