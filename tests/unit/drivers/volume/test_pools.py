"""A pool is a folder that says which storage it is; nodes that see the same one share what is in it, and nothing else does."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

import msgspec
import pytest

from weft.agent.volume.pools import Pools
from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.errors import DriverFailed

MIB = 1 << 20
ID = "4f9d0c1e-vol"


def make_driver(folder: Path, node: str, place: Path) -> DirectoryVolumes:
    state = folder / node
    state.mkdir(exist_ok=True)
    host = Host(node, f"uid-{node}", str(state), str(state), "wtst", "10.99.0.1", "lo", "weft/t", Capacity(1, 1, 1))
    place.mkdir(exist_ok=True)
    return DirectoryVolumes(host, "shared", str(place))


def test_nodes_that_find_a_pool_without_an_id_at_the_same_moment_agree_on_one(tmp_path: Path) -> None:
    drivers = [make_driver(tmp_path, f"n{i}", tmp_path / "pool") for i in range(8)]
    ids: list[str] = []
    gate = threading.Barrier(len(drivers))

    def refresh(driver: DirectoryVolumes) -> None:
        gate.wait()
        ids.append(driver.pool().id)

    threads = [threading.Thread(target=refresh, args=(driver,)) for driver in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8 and len(set(ids)) == 1
    assert [path.name for path in (tmp_path / "pool").iterdir()] == ["weft-pool-id"]
    assert make_driver(tmp_path, "other", tmp_path / "another").pool().id not in ids


async def test_what_another_node_has_taken_away_is_gone_and_what_is_not_mounted_is_not(tmp_path: Path) -> None:
    place = tmp_path / "pool"
    here, there = (make_driver(tmp_path, name, place) for name in ("n1", "n2"))
    local = make_driver(tmp_path, "n3", tmp_path / "local")
    pools = Pools(local, {"shared": here}, SystemClock(), asyncio.Event())
    for driver, id_ in ((there, "a-volume-shared"), (there, "a-volume-taken"), (local, "a-volume-local")):
        await driver.ensure(id_, size_bytes=MIB)
    ids = {"a-volume-shared", "a-volume-taken", "a-volume-local"}
    assert await pools.find_gone(ids) == set()
    await there.remove("a-volume-taken")
    assert await pools.find_gone(ids) == {"a-volume-taken"}
    place.rename(tmp_path / "elsewhere")
    place.mkdir()
    assert await pools.find_gone(ids) == set(), "an empty folder is a mount that is missing"


async def test_a_pool_whose_mount_is_missing_gets_no_new_id_and_no_disks(tmp_path: Path) -> None:
    place = tmp_path / "pool"
    driver = make_driver(tmp_path, "n1", place)
    id_ = driver.pool().id
    await driver.ensure(ID, size_bytes=MIB)
    place.rename(tmp_path / "elsewhere")
    place.mkdir()
    with pytest.raises(DriverFailed, match="is not the same storage as before"):
        driver.pool()
    pools = Pools(driver, {"shared": driver}, SystemClock(), asyncio.Event())
    await pools.refresh()
    assert [pool.id for pool in pools.facts] == ["", ""] and "mount" in pools.facts[1].problem + "isn't mounted"
    with pytest.raises(DriverFailed):
        await pools.find("shared", id_)
    assert list(place.iterdir()) == []
    shutil.rmtree(place)
    (tmp_path / "elsewhere").rename(place)
    assert driver.pool().id == id_


async def test_a_pool_that_is_other_storage_than_was_said_is_refused(tmp_path: Path) -> None:
    driver = make_driver(tmp_path, "n1", tmp_path / "pool")
    pools = Pools(driver, {"fast": driver}, SystemClock(), asyncio.Event())
    assert await pools.find("fast", driver.pool().id) is driver
    with pytest.raises(DriverFailed, match="but the disk is on storage") as caught:
        await pools.find("fast", "another-id")
    assert caught.value.token == "noPool"
    with pytest.raises(DriverFailed, match="no storage pool slow"):
        await pools.find("slow")


async def test_a_disk_that_two_nodes_share_outlives_either_of_its_names(tmp_path: Path) -> None:
    here, there = (make_driver(tmp_path, node, tmp_path / "pool") for node in ("n1", "n2"))
    await here.ensure("aaaaaaaaaa", size_bytes=MIB)
    for _ in range(2):  # it may be repeated
        shared = await there.share("aaaaaaaaaa", "bbbbbbbbbb")
    assert shared.size_bytes == MIB
    await here.remove("aaaaaaaaaa")
    assert await there.inspect("bbbbbbbbbb") == msgspec.structs.replace(shared)
    with pytest.raises(DriverFailed):
        await there.share("aaaaaaaaaa", "cccccccccc")
    await there.ensure("dddddddddd", size_bytes=MIB)
    with pytest.raises(DriverFailed, match="another disk"):
        await there.share("dddddddddd", "bbbbbbbbbb")
    await there.remove("bbbbbbbbbb")
    assert [facts.id for facts in await here.list()] == ["dddddddddd"]


async def test_nodes_that_make_the_same_volume_at_once_get_one_and_sweep_only_their_own(tmp_path: Path) -> None:
    here, there = (make_driver(tmp_path, node, tmp_path / "pool") for node in ("n1", "n2"))
    first, second = await asyncio.gather(here.ensure(ID, size_bytes=MIB), there.ensure(ID, size_bytes=MIB))
    assert Path(first.path).samefile(second.path)
    work = Path(there.begin(ID))
    work.write_bytes(b"half")
    make_driver(tmp_path, "n1", tmp_path / "pool")
    assert work.exists(), "the other node is at it"
    make_driver(tmp_path, "n2", tmp_path / "pool")
    assert not work.exists()


async def test_a_disk_grows_on_a_node_that_has_its_base_elsewhere(tmp_path: Path) -> None:
    here, there = (make_driver(tmp_path, node, tmp_path / "pool") for node in ("n1", "n2"))
    base = tmp_path / "base.raw"
    base.write_bytes(b"weft" * 1024 * 256)
    await here.ensure(ID, size_bytes=0, base=str(base), base_format="raw")
    base.rename(tmp_path / "moved.raw")
    assert (await there.grow(ID, 4 * MIB)).size_bytes == 4 * MIB
