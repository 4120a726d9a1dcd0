"""The RBD volume driver keeps the contract's promises with a real Ceph cluster, and cuts off whom it must."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ceph_lab import needs_ceph, run_ceph
from rbd_lab import Cut, io, list_images, make_driver, rbd
from tests.conformance.layers import SIZE, LayerPromises
from tests.conformance.volume import BASE_BYTES, ID, MIB, VolumePromises

from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.layers import KeptDisk, KeptSnapshot
from weft.contracts.driver.volume import VolumeDriver, VolumeFacts
from weft.drivers.linux.ceph.programs import CephClient
from weft.drivers.volume.rbd.driver import RbdVolumes
from weft.launch.local.ceph.layout import CephPlan
from weft.launch.local.ceph.make import ask
from weft.objects.errors import DriverFailed, IllegalTransition, NotFound
from weft.objects.identity import short_id

pytestmark = [needs_ceph, pytest.mark.host]

OBJECT = 4 * MIB  # what Ceph counts in


@pytest.fixture(scope="module")
def ceph() -> Iterator[CephPlan]:
    with run_ceph() as plan:
        yield plan


@pytest.fixture
async def driver(ceph: CephPlan) -> AsyncIterator[RbdVolumes]:
    driver = make_driver(ceph)
    yield driver
    for kept in await driver.layers.list_kept():
        await driver.layers.drop(kept.id)
    for facts in await driver.list():
        await driver.remove(facts.id)
    while driver._images.purging:
        await asyncio.gather(*driver._images.purging)


@pytest.fixture
def base(tmp_path: Path) -> str:
    path = tmp_path / "base"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(BASE_BYTES)], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", str(path)], check=True, capture_output=True)
    return str(path)


class TestRbd(VolumePromises, LayerPromises):
    @pytest.fixture
    def reborn(self, ceph: CephPlan) -> Callable[[], VolumeDriver]:
        return lambda: make_driver(ceph)


async def test_two_nodes_are_the_same_storage_and_see_each_others_volumes(ceph: CephPlan, driver: RbdVolumes) -> None:
    other = make_driver(ceph, "n2")
    assert driver.pool().id == other.pool().id
    assert 0 < driver.pool().free_bytes <= driver.pool().total_bytes < ceph.osd_bytes
    facts = await driver.ensure(ID, size_bytes=8 * MIB)
    assert await other.inspect(ID) == facts
    assert facts.path == f"rbd:{ceph.pool}/weft-disk-{ID}"


async def test_a_clone_has_what_its_image_has_and_the_pool_has_the_image_once(
    ceph: CephPlan, driver: RbdVolumes, base: str
) -> None:
    nodes = [driver, make_driver(ceph, "n2")]
    made = await asyncio.gather(*(node.ensure(f"disk{at}", size_bytes=0, base=base) for at, node in enumerate(nodes)))
    for facts in made:
        assert facts.rbd is not None
        done = io(ceph, facts.rbd.image, "read -P 7 0 1M", "read -P 0 1M 3M")
        assert done.returncode == 0 and "failed" not in done.stdout, done.stdout + done.stderr
        assert facts.used_bytes == 0, "it stands on the image"
    images = [name for name in rbd(ceph, "ls", ceph.pool).split() if name.startswith("weft-image-")]
    [parent] = {
        line.split("@")[0]
        for line in rbd(ceph, "info", f"{ceph.pool}/weft-disk-disk0").splitlines()
        if "parent" in line
    }
    assert len([name for name in images if parent.endswith(name)]) == 1
    assert not [name for name in rbd(ceph, "ls", ceph.pool).split() if name.startswith("weft-making-")]


async def test_a_disk_with_two_names_goes_with_the_last_one(ceph: CephPlan, driver: RbdVolumes) -> None:
    facts = await driver.ensure("source", size_bytes=8 * MIB)
    for _ in range(2):
        shared = await make_driver(ceph, "n2").share("source", "target")
    assert shared.rbd == facts.rbd
    await driver.remove("source")
    assert await driver.inspect("source") is None and (await driver.inspect("target")) == shared
    await driver.remove("target")
    await asyncio.gather(*driver._images.purging)
    assert await driver.list() == [] and rbd(ceph, "trash", "ls", ceph.pool) == ""
    with pytest.raises(DriverFailed):
        await driver.share("source", "target")


async def test_an_image_without_its_volume_and_a_half_made_base_image_go(ceph: CephPlan, driver: RbdVolumes) -> None:
    await driver.ensure(ID, size_bytes=8 * MIB)
    rbd(ceph, "create", f"{ceph.pool}/weft-making-{short_id('uid-n1')}-weft-image-0", "--size", "1M")
    rbd(ceph, "rm", "--no-progress", f"{ceph.pool}/weft-disk-{ID}")  # as where a removal was cut off
    assert await driver.inspect(ID) is None and await driver.list() == []
    await driver.remove(ID)
    await driver.ensure("other", size_bytes=8 * MIB)
    await driver.remove("other")
    await asyncio.gather(*driver._images.purging)
    assert not [name for name in rbd(ceph, "ls", ceph.pool).split() if not name.startswith("weft-image-")]


async def test_what_was_begun_and_never_named_is_not_there_and_is_made_anew(ceph: CephPlan, driver: RbdVolumes) -> None:
    rbd(ceph, "create", f"{ceph.pool}/weft-disk-{ID}", "--size", "1M")
    assert await driver.inspect(ID) is None and await driver.list() == []
    assert (await driver.ensure(ID, size_bytes=8 * MIB)).size_bytes == 8 * MIB


async def test_who_is_fenced_off_can_write_no_more_and_the_next_one_can(ceph: CephPlan, driver: RbdVolumes) -> None:
    facts = await driver.ensure(ID, size_bytes=8 * MIB)
    assert facts.rbd is not None and await driver.fence(ID) == []
    options = f"driver=rbd,pool={ceph.pool},image={facts.rbd.image},conf={ceph.conf},user=weft"
    lost = await asyncio.create_subprocess_exec(
        *("qemu-io", "--image-opts", options), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert lost.stdin is not None and lost.stdout is not None
    lost.stdin.write(b"write -P 1 0 64k\n")
    while b"ops" not in await asyncio.wait_for(lost.stdout.readline(), 30):
        pass
    with pytest.raises(IllegalTransition) as caught:
        await driver.taking.take(KeptSnapshot("s1", "u", {ID: KeptDisk((), 0)}), {ID: "one"})
    assert caught.value.token == "inUse" and await driver.layers.list_kept() == []
    [address] = await make_driver(ceph, "n2").fence(ID)
    assert address in (ask(ceph, "osd", "blocklist", "ls") or "")
    assert "1 ops" in io(ceph, facts.rbd.image, "write -P 2 0 64k").stdout
    lost.stdin.write(b"write -P 3 0 64k\n")  # it may wait for ever, or fail
    with contextlib.suppress(TimeoutError):
        said = await asyncio.wait_for(lost.stdout.readline(), 3)
        assert b"ops" not in said, said
    read = io(ceph, facts.rbd.image, "read -P 2 0 64k").stdout
    assert "64 KiB, 1 ops" in read and "verification failed" not in read
    lost.kill()
    await lost.wait()
    assert await driver.fence(ID) == [], "it has been"


async def test_a_cluster_that_is_not_there_is_an_error_that_says_so(tmp_path: Path, ceph: CephPlan) -> None:
    host = Host("n1", "u", "/nowhere", "/nowhere", "wtst", "10.99.0.1", "lo", "weft/t", Capacity(1, 1, 1))
    with pytest.raises(DriverFailed) as caught:
        RbdVolumes(host, SystemClock(), "ceph", f"weft?conf={tmp_path}/none.conf").pool()
    assert "none.conf can't be read" in caught.value.message
    with pytest.raises(DriverFailed) as caught:
        RbdVolumes(host, SystemClock(), "ceph", f"other?conf={ceph.conf}").pool()
    assert "no pool other" in caught.value.message and "ceph osd pool create other" in str(caught.value.hint)


async def test_a_full_pool_says_so_and_takes_volumes_again_once_there_is_space(
    ceph: CephPlan, driver: RbdVolumes
) -> None:
    facts = await driver.ensure(ID, size_bytes=32 * MIB)
    assert facts.rbd is not None
    assert "1 ops" in io(ceph, facts.rbd.image, "write -P 1 0 8M").stdout
    ask(ceph, "osd", "pool", "set-quota", ceph.pool, "max_bytes", str(4 * MIB))
    full = make_driver(ceph, "n2")
    for _ in range(60):  # what is stored is counted in the background
        await asyncio.sleep(0.5)
        full = make_driver(ceph, "n2")
        if not full.pool().free_bytes:
            break
    try:
        with pytest.raises(DriverFailed) as caught:
            await full.ensure("more", size_bytes=8 * MIB)
        assert caught.value.token == "noSpace" and "is full" in caught.value.message, caught.value.message
    finally:
        ask(ceph, "osd", "pool", "set-quota", ceph.pool, "max_bytes", "0")
    assert (await make_driver(ceph).ensure("more", size_bytes=8 * MIB)).size_bytes == 8 * MIB


def stamp(ceph: CephPlan, facts: VolumeFacts, pattern: int) -> None:
    assert "1 ops" in io(ceph, name(facts), f"write -P {pattern} 0 64k").stdout


def holds(ceph: CephPlan, facts: VolumeFacts, pattern: int) -> bool:
    return "verification failed" not in io(ceph, name(facts), f"read -P {pattern} 0 64k").stdout


def name(facts: VolumeFacts) -> str:
    assert facts.rbd is not None
    return facts.rbd.image


def snapshot_of(id_: str, *layers: str, size: int = SIZE) -> KeptSnapshot:
    return KeptSnapshot(id_, f"uid-{id_}", {"root": KeptDisk(layers, size)})


async def take(driver: RbdVolumes, *layers: str) -> None:
    """A snapshot with the last layer's id, of the disk as it is."""
    await driver.layers.begin_layer(ID, layers[-1])
    await driver.layers.finish_layer(ID, layers[-1])
    await driver.layers.keep(snapshot_of(layers[-1], *layers))


async def test_a_disk_goes_back_and_forth_and_its_snapshots_are_deleted_anywhere(
    ceph: CephPlan, driver: RbdVolumes, base: str
) -> None:
    facts = await driver.ensure(ID, size_bytes=SIZE, base=base)
    layers: list[str] = []
    for number in (1, 2, 3):
        stamp(ceph, facts, number)
        layers.append(f"s{number}")
        await take(driver, *layers)
    stamp(ceph, facts, 4)
    await driver.layers.keep_present(snapshot_of("s4", *layers, "present"), {ID: "present"})
    back = await driver.layers.replace(ID, "s2", "root", "present")
    assert holds(ceph, back, 2) and name(back) != name(facts)
    twin = await make_driver(ceph, "n2").layers.clone("twin", "s1", "root", size_bytes=2 * SIZE)
    stamp(ceph, back, 5)
    assert holds(ceph, twin, 1) and twin.size_bytes == 2 * SIZE
    for one in ("s2", "s1", "s3"):
        await make_driver(ceph, "n2").layers.drop(one)
    assert holds(ceph, back, 5) and holds(ceph, twin, 1), "what stands on a snapshot outlives it"
    again = await driver.layers.replace(ID, "s4", "root", "again")
    assert holds(ceph, again, 4)
    [kept] = await driver.layers.list_kept()
    assert kept.id == "s4" and 0 < kept.used_bytes <= 4 * OBJECT
    await driver.layers.drop("s4")
    await driver.remove(ID)
    assert holds(ceph, twin, 1)
    await driver.remove("twin")
    assert await list_images(ceph, driver) == [], "nothing is left of any of it"


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("act", ["take", "replace", "clone", "drop", "remove"])
async def test_an_agent_killed_at_any_command_leaves_a_disk_that_holds_what_it_held_and_goes_on_when_repeated(
    ceph: CephPlan, driver: RbdVolumes, monkeypatch: pytest.MonkeyPatch, act: str, stride: int
) -> None:
    acts: dict[str, Callable[[RbdVolumes], Awaitable[object]]] = {
        "take": lambda one: take(one, "s1", "s2"),
        "replace": lambda one: one.layers.replace(ID, "s1", "root", "present"),
        "clone": lambda one: one.layers.clone("twin", "s1", "root"),
        "drop": lambda one: one.layers.drop("s1"),
        "remove": lambda one: one.remove(ID),
    }
    run, left = CephClient.run, 0

    async def count(client: CephClient, program: str, *words: str, **more: Any) -> str:
        nonlocal left
        left -= 1
        said = await run(client, program, *words, **more)
        if left == 0:
            raise Cut  # its effect is there, and nobody has heard of it
        return said

    for step in range(stride, 60, stride):
        stamp(ceph, await driver.ensure(ID, size_bytes=SIZE), 1)
        await take(driver, "s1")
        facts = await driver.inspect(ID)
        assert facts is not None
        stamp(ceph, facts, 2)
        left, killed = step, False
        with monkeypatch.context() as patch:
            patch.setattr(CephClient, "run", count)
            try:
                await acts[act](make_driver(ceph))
            except Cut:
                killed = True
        now = await make_driver(ceph, "n2").inspect(ID)
        if act != "remove":
            assert now is not None and (holds(ceph, now, 2) or (act == "replace" and holds(ceph, now, 1))), step
        await acts[act](driver)
        now = await driver.inspect(ID)
        kept = [one.id for one in await driver.layers.list_kept()]
        assert (now is None) == (act == "remove")
        assert now is None or holds(ceph, now, 1 if act == "replace" else 2), step
        assert kept == {"take": ["s1", "s2"], "drop": []}.get(act, ["s1"]), step
        if "s1" in kept:
            assert holds(ceph, await driver.layers.clone("other", "s1", "root"), 1), step
        for one in kept:
            await driver.layers.drop(one)
        for volume in ("other", "twin", ID):
            await driver.remove(volume)
        assert await list_images(ceph, driver) == [], step
        if not killed:
            break
    assert not killed


async def test_a_snapshot_is_copied_out_whole_or_what_changed_and_comes_back_as_a_snapshot(
    ceph: CephPlan, driver: RbdVolumes
) -> None:
    facts = await driver.ensure(ID, size_bytes=8 * SIZE)
    io(ceph, name(facts), "write -P 1 0 1M", f"write -P 1 {4 * SIZE} 1M")
    await take(driver, "s1")
    io(ceph, name(facts), "write -P 2 64k 64k", f"discard {4 * SIZE} 4M")
    await take(driver, "s1", "s2")
    io(ceph, name(facts), "write -P 9 0 1M")
    whole = driver.copies.read("s1", "root", base=None, base_format="raw")
    async with whole as served:
        assert served.is_whole and sum(length for _, length, zero in served.extents if not zero) == 2 * MIB
    async with driver.copies.read("s2", "root", base=None, base_format="raw", since="s1") as served:
        assert not served.is_whole
        assert (64 << 10, 64 << 10, False) in served.extents, served.extents
        assert any(at == 4 * SIZE and zero for at, _, zero in served.extents), served.extents
        assert sum(length for _, length, zero in served.extents if not zero) < MIB
        assert "verification failed" not in nbd(served.socket, "-r", "read -P 1 0 64k", "read -P 2 64k 64k")
    async with driver.copies.read("s2", "root", base=None, base_format="raw", since="gone") as served:
        assert served.is_whole
    for _ in range(2):
        async with driver.copies.write("came", SIZE) as socket:
            nbd(socket, "write -P 7 0 64k")
    with pytest.raises(NotFound):
        await driver.copies.take_in(snapshot_of("s3", "none"))
    for _ in range(2):
        await driver.copies.take_in(snapshot_of("s3", "came"))
        await driver.copies.discard(["came", "none"])
    assert holds(ceph, await driver.layers.clone("new", "s3", "root"), 7)
    async with driver.copies.write("left", SIZE):
        pass
    await driver.copies.discard(["left"])
    for one in ("s1", "s2", "s3"):
        await driver.layers.drop(one)
    await driver.remove("new")
    await driver.remove(ID)
    assert await list_images(ceph, driver) == []


def nbd(socket: str, *commands: str) -> str:
    words = [word for command in commands for word in (["-c", command] if " " in command else [command])]
    argv = ["qemu-io", "-f", "raw", *words, f"nbd+unix:///?socket={socket}"]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
