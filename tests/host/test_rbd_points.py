"""A Ceph pool takes points of replicas in as a folder does, and whoever is killed or lost meanwhile spoils none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ceph_lab import needs_ceph, run_ceph
from rbd_lab import Cut, io, list_images, make_driver, rbd
from tests.conformance.points import (
    BLOCK,
    SIZE,
    PointPromises,
    PointsDriver,
    add,
    add_three,
    describe,
    list_layers,
    put,
    show,
    write,
    write_half,
)
from tests.unit.agent.replication import test_there_and_back as there_and_back
from tests.unit.agent.replication.test_there_and_back import Node, connect, order

from weft.contracts.driver.volume import VolumeFacts
from weft.drivers.linux.ceph.programs import CephClient
from weft.drivers.volume.rbd import disk_copies, heads
from weft.drivers.volume.rbd.driver import RbdVolumes
from weft.launch.local.ceph.layout import CephPlan
from weft.objects.errors import DriverFailed, InvalidInput, NotFound
from weft.objects.identity import short_id

pytestmark = [needs_ceph, pytest.mark.host]


@pytest.fixture(scope="module")
def ceph() -> Iterator[CephPlan]:
    with run_ceph() as plan:
        yield plan


@pytest.fixture
async def driver(ceph: CephPlan) -> AsyncIterator[RbdVolumes]:
    driver = make_driver(ceph)
    yield driver
    await drop_all(ceph, driver)


async def drop_all(ceph: CephPlan, driver: RbdVolumes) -> None:
    """Nothing is left of what is deleted, neither images nor records."""
    for kept in await driver.layers.list_kept():
        await driver.layers.drop(kept.id)
    for facts in await driver.list():
        await driver.remove(facts.id)
    assert await list_images(ceph, driver) == []
    assert rados(ceph, "listomapkeys", "weft-snapshots") == ""


def rados(ceph: CephPlan, *words: str) -> str:
    argv = ["rados", "-c", str(ceph.conf), "--id", "weft", "-p", ceph.pool, *words]
    return subprocess.run(argv, check=False, capture_output=True, text=True).stdout


def list_snapshots(ceph: CephPlan, image: str) -> list[str]:
    found = json.loads(rbd(ceph, "snap", "ls", f"{ceph.pool}/{image}", "--format", "json"))
    return [one["name"] for one in found]


class TestPointsInCeph(PointPromises):
    @pytest.fixture
    def reborn(self, ceph: CephPlan) -> Callable[[], PointsDriver]:
        return lambda: make_driver(ceph)


async def test_a_point_takes_what_changed_inside_the_image_of_the_one_before(
    ceph: CephPlan, driver: RbdVolumes
) -> None:
    large = 16 * SIZE
    await add(driver, 1, {0: "a"}, size=large)
    await add(driver, 2, {1: "b"}, on="p1", size=large)
    assert await list_images(ceph, driver) == ["weft-kept-in1"]
    [first, second] = await driver.layers.list_kept()
    assert 0 < first.used_bytes <= 2 * (4 << 20), "what is zero takes no space"
    assert second.used_bytes <= 4 << 20
    await driver.layers.drop("p1")
    await driver.copies.merge("in1")
    assert list_snapshots(ceph, "weft-kept-in1") == ["in2"]


async def test_a_writer_that_was_lost_is_cut_off_and_is_in_no_point(ceph: CephPlan, driver: RbdVolumes) -> None:
    await add(driver, 1, {0: "a"})
    lost, now = make_driver(ceph, "n1"), make_driver(ceph, "n2")
    with pytest.raises((DriverFailed, OSError)):
        async with lost.copies.write("in2", SIZE, on="p1", disk="root") as socket:
            await asyncio.to_thread(put, socket, {1: "x"})
            async with now.copies.write("in2", SIZE, on="p1", disk="root") as other:
                await asyncio.to_thread(put, other, {2: "b"})
                await asyncio.to_thread(put, socket, {3: "x"})  # the other one's claim counts
    await write(now, "in2", {2: "c"}, on="p1")
    with pytest.raises(NotFound):
        await lost.copies.take_in(describe(2), on="p1")
    await lost.copies.discard(["in2"])
    await now.copies.take_in(describe(2), on="p1")
    await now.copies.discard(["in2"])
    assert [await show(driver, one) for one in ("p1", "p2")] == ["a", "a.c"]


async def test_a_machine_on_a_clone_of_a_point_writes_on_while_a_lost_writer_is_cut_off(
    ceph: CephPlan, driver: RbdVolumes
) -> None:
    await add(driver, 1, {0: "a"})
    facts = await driver.layers.clone("web", "p1", "root")
    assert facts.rbd is not None
    options = f"driver=rbd,pool={ceph.pool},image={facts.rbd.image},conf={ceph.conf},user=weft"
    machine = await asyncio.create_subprocess_exec(
        *("qemu-io", "--image-opts", options), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert machine.stdin is not None and machine.stdout is not None
    for step in (1, 2):
        machine.stdin.write(f"write -P {step} {step * BLOCK} 64k\n".encode())
        while b"ops" not in (said := await asyncio.wait_for(machine.stdout.readline(), 30)):
            assert b"failed" not in said, said
        if step == 1:
            await write_half(driver, "in2", {0: "x"}, on="p1")
            await add(make_driver(ceph, "n2"), 2, {2: "b"}, on="p1")
    machine.stdin.write(b"quit\n")
    assert await asyncio.wait_for(machine.wait(), 30) == 0
    assert "verification failed" not in io(ceph, facts.rbd.image, f"read -P 2 {2 * BLOCK} 64k").stdout
    assert await show(driver, "p2") == "a.b"


async def test_a_chain_that_is_too_long_is_refused(driver: RbdVolumes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_copies, "MOST_LAYERS", 2)
    await add(driver, 1, {0: "a"})
    await add(driver, 2, {1: "b"}, on="p1")
    with pytest.raises(InvalidInput) as many:
        await add(driver, 3, {}, on="p2")
    assert many.value.token == "tooManyLayers" and "p3" not in await list_layers(driver)


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("act", ["whole", "next", "beside", "merge"])
async def test_an_agent_killed_at_any_command_spoils_no_point_and_the_next_one_goes_on(
    ceph: CephPlan, driver: RbdVolumes, monkeypatch: pytest.MonkeyPatch, act: str, stride: int
) -> None:
    async def take(one: RbdVolumes, letter: str) -> None:
        on = {"whole": "", "next": "p2", "beside": "p1"}[act]
        await write(one, "in3", {4: letter}, on=on)
        await one.copies.take_in(describe(3), on=on)

    async def merge(one: RbdVolumes) -> None:
        for layer in await one.copies.list_mergeable():
            await one.copies.merge(layer)

    run, left = CephClient.run, 0

    async def count(client: CephClient, program: str, *words: str, **more: Any) -> str:
        nonlocal left
        left -= 1
        said = await run(client, program, *words, **more)
        if left == 0:
            raise Cut  # its effect is there, and nobody has heard of it
        return said

    below = {"whole": "....", "next": "abba", "beside": "aaaa", "merge": "ab.c.c"}[act]
    for step in range(stride, 80, stride):
        if act == "merge":
            await add_three(driver)
            await driver.layers.drop("p1")
            await driver.layers.drop("p2")
        else:
            await add(driver, 1, {0: "a", 1: "a", 2: "a", 3: "a"})
            await add(driver, 2, {1: "b", 2: "b"}, on="p1")
        left, killed, one = step, False, make_driver(ceph)
        with monkeypatch.context() as patch:
            patch.setattr(CephClient, "run", count)
            try:
                await (merge(one) if act == "merge" else take(one, "x"))
            except Cut:
                killed = True
        came = any(kept.id == "p3" for kept in await driver.layers.list_kept())
        again = make_driver(ceph)
        if act == "merge":
            await merge(again)
            assert (await show(driver, "p3"), await list_layers(driver)) == (below, {"p3": ("in3",)}), step
        else:
            await take(again, "y")
            await again.copies.discard(["in3"])
            assert [await show(driver, point) for point in ("p1", "p2")] == ["aaaa", "abba"], step
            assert await show(driver, "p3") == f"{below}{'x' if came else 'y'}", step
            await add(again, 4, {5: "z"}, on="p3")
            assert await show(driver, "p4") == f"{below}{'x' if came else 'y'}z", step
        await drop_all(ceph, driver)
        if not killed:
            break
    assert not killed


async def test_what_an_agent_had_begun_that_was_killed_goes_with_the_next_one(
    ceph: CephPlan, driver: RbdVolumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(driver, 1, {0: "a"})
    with monkeypatch.context() as patch:
        patch.setattr(heads, "RUN", "earlier")
        killed, elsewhere = make_driver(ceph), make_driver(ceph, "n2")
        for layer, on in (("in2", "p1"), ("one", "")):
            await write(killed, layer, {1: "x"}, on=on)
        rbd(ceph, "snap", "create", "--no-progress", f"{ceph.pool}/weft-kept-in1@in2")  # it was being taken in
        await write(elsewhere, "other", {1: "x"})
    now = make_driver(ceph)
    assert await now.copies.list_mergeable() == []
    assert await list_images(ceph, now) == ["weft-kept-in1", "weft-kept-other"]
    assert list_snapshots(ceph, "weft-kept-in1") == ["in1"]
    await elsewhere.copies.discard(["other"])
    await add(driver, 2, {2: "b"}, on="p1")
    assert await show(driver, "p2") == "a.b"


def stamp(ceph: CephPlan, facts: VolumeFacts | None, letter: str, block: int) -> None:
    assert facts is not None and facts.rbd is not None
    assert "1 ops" in io(ceph, facts.rbd.image, f"write -P {ord(letter)} {block * BLOCK} 64k").stdout


@contextlib.asynccontextmanager
async def two_nodes(east: Node, west: Node) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for node in (east, west):
            await node.sender.close()


async def test_a_disk_in_ceph_is_sent_with_what_changed_and_comes_back_from_a_folder_with_what_changed(
    ceph: CephPlan, driver: RbdVolumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    east, west = Node(tmp_path / "east", driver), Node(tmp_path / "west")
    async with two_nodes(east, west):
        await driver.ensure("home", size_bytes=there_and_back.SIZE)
        for block, letter in enumerate("abc"):
            stamp(ceph, await driver.inspect("home"), letter, block)
        await east.take("s1", "v-east", "home", "data")
        connect(monkeypatch, west)
        west.receiver.put_orders([order("p1", 1, "", "")])
        assert (await east.send("s1", "v-east", "data", "")).is_whole
        stamp(ceph, await driver.inspect("home"), "d", 3)
        await east.take("s22", "v-east", "home", "data")
        west.receiver.put_orders([order("p2", 2, "p1", "s1")])
        report = await east.send("s22", "v-east", "data", "s1")
        assert (report.is_whole, report.bytes) == (False, BLOCK)
        assert await west.show("p2", "v-east") == "abcd"

        await west.driver.layers.clone("made", short_id("p2"), "v-east")  # it was promoted
        await there_and_back.write_volume(west.driver, "x", 1, "made")
        await west.take("q1", "v-west", "made", "web-data")
        stamp(ceph, await driver.inspect("home"), "z", 5)  # by the guest that was cut off
        connect(monkeypatch, east)
        east.receiver.put_orders([order("e1", 3, "s22", "s22")])
        report = await west.send("q1", "v-west", "web-data", "p2")
        assert (report.is_whole, report.bytes) == (False, BLOCK)
        assert [await east.show(uid, "v-east") for uid in ("s22", "e1")] == ["abcd", "axcd"]
        back = await driver.layers.replace("home", short_id("e1"), "v-east", "before")  # and brought back
        assert back.rbd is not None
        assert "verification failed" not in io(ceph, back.rbd.image, f"read -P {ord('x')} {BLOCK} 64k").stdout


async def test_a_replica_in_ceph_gets_what_changed_and_its_vm_goes_back_whole(
    ceph: CephPlan, driver: RbdVolumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    east, west = Node(tmp_path / "east"), Node(tmp_path / "west", driver)
    async with two_nodes(east, west):
        await east.driver.ensure("home", size_bytes=there_and_back.SIZE)
        connect(monkeypatch, west)
        for number, (uid, letter) in enumerate((("s1", "a"), ("s22", "b"), ("s333", "c")), 1):
            await there_and_back.write_volume(east.driver, letter, number - 1, "home")
            await east.take(uid, "v-east", "home", "data")
            parent = (f"p{number - 1}", ("", "s1", "s22")[number - 1]) if number > 1 else ("", "")
            west.receiver.put_orders([order(f"p{number}", number, *parent)])
            report = await east.send(uid, "v-east", "data", parent[1])
            assert (report.number, report.is_whole, report.bytes) == (number, number == 1, BLOCK)
        assert [await west.show(f"p{number}", "v-east") for number in (1, 2, 3)] == ["a", "ab", "abc"]
        assert len(await list_images(ceph, driver)) == 1

        await driver.layers.clone("made", short_id("p3"), "v-east")  # it was promoted
        stamp(ceph, await driver.inspect("made"), "x", 1)
        await west.take("q1", "v-west", "made", "web-data")
        connect(monkeypatch, east)
        east.receiver.put_orders([order("e1", 4, "s333", "s333")])
        assert (await west.send("q1", "v-west", "web-data", "p3")).is_whole
        assert await east.show("e1", "v-west") == "axc"
