"""What every volume driver promises, whatever it is made of. A driver's test subclasses ``VolumePromises``.

The subclass gives the fixture ``driver`` (on an empty node), ``reborn``, which returns a new driver on the same node
that remembers nothing, and ``base``, an image file of BASE_BYTES in qcow2 format.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from weft.contracts.driver.volume import KeepsDisks, VolumeDriver
from weft.objects.errors import InvalidInput, NotFound

MIB = 1 << 20
BASE_BYTES = 4 * MIB
ID = "6f1f3c9e-1c2d-4b6a-9a55-0d5f6b9c1a11"


class VolumePromises:
    async def test_an_empty_volume_has_the_size_asked_for(self, driver: VolumeDriver) -> None:
        facts = await driver.ensure(ID, size_bytes=8 * MIB)
        assert (facts.id, facts.size_bytes) == (ID, 8 * MIB)
        assert await driver.inspect(ID) == facts
        assert await driver.list() == [facts]

    async def test_making_it_again_changes_nothing(self, driver: VolumeDriver) -> None:
        first = await driver.ensure(ID, size_bytes=8 * MIB)
        assert await driver.ensure(ID, size_bytes=16 * MIB) == first

    async def test_many_who_want_it_at_once_get_the_same_one(self, driver: VolumeDriver) -> None:
        found = await asyncio.gather(*(driver.ensure(ID, size_bytes=8 * MIB) for _ in range(4)))
        assert {facts.path for facts in found} == {found[0].path}
        assert len(await driver.list()) == 1

    async def test_a_clone_has_the_size_of_its_base_unless_told_otherwise(
        self, driver: VolumeDriver, base: str
    ) -> None:
        assert (await driver.ensure("same", size_bytes=0, base=base)).size_bytes == BASE_BYTES
        assert (await driver.ensure("more", size_bytes=9 * MIB, base=base)).size_bytes == 9 * MIB

    async def test_a_clone_smaller_than_its_base_is_refused_and_leaves_nothing(
        self, driver: VolumeDriver, base: str
    ) -> None:
        with pytest.raises(InvalidInput):
            await driver.ensure(ID, size_bytes=MIB, base=base)
        assert await driver.list() == []

    async def test_a_disk_that_is_kept_as_a_volume_outlives_its_name_and_its_base(
        self, driver: VolumeDriver, base: str
    ) -> None:
        if not isinstance(driver, KeepsDisks):
            pytest.skip("it keeps no disks")
        await driver.ensure("root", size_bytes=9 * MIB, base=base)
        for _ in range(2):  # what is cut off is done again
            assert (await driver.keep("root", ID)).size_bytes == 9 * MIB
        await driver.remove("root")
        Path(base).unlink(missing_ok=True)
        kept = await driver.inspect(ID)
        assert kept is not None and kept.size_bytes == 9 * MIB
        assert await driver.list() == [kept]
        assert (await driver.grow(ID, 16 * MIB)).size_bytes == 16 * MIB

    async def test_an_empty_volume_without_a_size_is_refused(self, driver: VolumeDriver) -> None:
        with pytest.raises(InvalidInput):
            await driver.ensure(ID, size_bytes=0)

    async def test_it_grows_and_never_shrinks(self, driver: VolumeDriver) -> None:
        await driver.ensure(ID, size_bytes=8 * MIB)
        assert (await driver.grow(ID, 16 * MIB)).size_bytes == 16 * MIB
        assert (await driver.grow(ID, 16 * MIB)).size_bytes == 16 * MIB
        with pytest.raises(InvalidInput):
            await driver.grow(ID, 8 * MIB)
        with pytest.raises(NotFound):
            await driver.grow("unknown", 8 * MIB)

    async def test_what_is_removed_is_gone_and_may_be_removed_twice(self, driver: VolumeDriver) -> None:
        await driver.ensure(ID, size_bytes=8 * MIB)
        for _ in range(2):
            await driver.remove(ID)
        assert await driver.inspect(ID) is None
        assert await driver.list() == []

    async def test_a_new_driver_finds_everything_again(
        self, driver: VolumeDriver, reborn: Callable[[], VolumeDriver]
    ) -> None:
        facts = await driver.ensure(ID, size_bytes=8 * MIB)
        assert await reborn().list() == [facts]
