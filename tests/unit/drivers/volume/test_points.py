"""What changed of a disk comes into a folder as a file on what came before, and old files are merged from below."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conformance.points import SIZE as POINT_SIZE
from tests.conformance.points import PointPromises, PointsDriver, add, add_three, list_layers, merge_all
from tests.unit.drivers.volume.test_served_disks import BLOCK, copy_out, image, letters
from tests.unit.drivers.volume.test_volume_layers import list_all, make_driver

from weft.contracts.driver.layers import MOST_LAYERS
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.errors import InvalidInput

__all__ = ["image"]


@pytest.fixture
def driver(tmp_path: Path) -> DirectoryVolumes:
    return make_driver(tmp_path)


class TestPointsInAFolder(PointPromises):
    @pytest.fixture
    def reborn(self, tmp_path: Path) -> Callable[[], PointsDriver]:
        return lambda: make_driver(tmp_path)


async def test_a_point_holds_only_what_changed(driver: DirectoryVolumes) -> None:
    await add_three(driver)
    _, extents, is_whole, size = await copy_out(driver, "p3", None, "p2")
    assert (sorted(start // BLOCK for start, _, _ in extents), is_whole, size) == ([2, 3, 5], False, POINT_SIZE)


async def test_a_clone_of_a_point_hides_the_image_that_it_is_opened_on(driver: DirectoryVolumes, image: str) -> None:
    await add(driver, 1, {0: "a", 1: "0"})
    await add(driver, 2, {0: "0"}, on="p1")
    data, _, _, _ = await copy_out(driver, "p2", image)
    assert letters(data)[:3] == "..."


async def test_files_that_were_merged_are_gone(driver: DirectoryVolumes, tmp_path: Path) -> None:
    await add_three(driver)
    await driver.layers.drop("p1")
    await driver.layers.drop("p2")
    await merge_all(driver)
    assert {name for name in list_all(tmp_path) if name.startswith("in")} == {"in3.qcow2"}


async def test_a_chain_that_is_too_long_is_refused(driver: DirectoryVolumes) -> None:
    await add(driver, 1, {0: "a"})
    for number in range(2, MOST_LAYERS + 1):
        await add(driver, number, {}, on=f"p{number - 1}")
    with pytest.raises(InvalidInput) as many:
        await add(driver, MOST_LAYERS + 1, {}, on=f"p{MOST_LAYERS}")
    assert many.value.token == "tooManyLayers"
    assert f"p{MOST_LAYERS + 1}" not in await list_layers(driver)
