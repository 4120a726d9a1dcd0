"""Layers of real qcow2 files: every chain reads what it should, whatever cut the driver off, and nothing unneeded is left."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.volume import ID, MIB
from tests.long import mark_long

from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.layers import KeptDisk, KeptSnapshot
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.errors import DriverFailed, InvalidInput

SIZE = 4 * MIB
CUT = 77  # the exit status of a child that was killed at its step


def make_driver(place: Path, node: str = "n1") -> DirectoryVolumes:
    host = Host(node, node, str(place), str(place), "wtst", "10.99.0.1", "lo", "weft/t", Capacity(1, 1, 1))
    return DirectoryVolumes(host)


@pytest.fixture
def driver(tmp_path: Path) -> DirectoryVolumes:
    return make_driver(tmp_path)


@pytest.fixture
def base(tmp_path: Path) -> str:
    path = tmp_path / "base.raw"
    path.write_bytes(b"b" * SIZE)
    return str(path)


def describe(files: list[str], base: str | None) -> str:
    node = None if base is None else {"driver": "raw", "file": {"driver": "file", "filename": base}}
    for path in files:
        node = {"driver": "qcow2", "file": {"driver": "file", "filename": path}, "backing": node}  # type: ignore[dict-item]
    return f"json:{json.dumps(node)}"


def write(files: list[str], letter: str, at: int, length: int = 65536, base: str | None = None) -> None:
    command = f"write -P {ord(letter)} {at} {length}"
    subprocess.run(["qemu-io", "-c", command, describe(files, base)], check=True, stdout=subprocess.DEVNULL)


def read(files: list[str], base: str | None = None) -> str:
    """The first letter of each 64 KiB, a dot for zeroes."""
    with tempfile.NamedTemporaryFile() as out:
        subprocess.run(["qemu-img", "convert", "-O", "raw", describe(files, base), out.name], check=True)
        data = Path(out.name).read_bytes()
    return "".join(chr(data[at]) if data[at] else "." for at in range(0, len(data), 65536))


async def list_files(driver: DirectoryVolumes, id_: str = ID) -> list[str]:
    facts = await driver.inspect(id_)
    assert facts is not None
    return [*(layer.path for layer in await driver.layers.list_layers(id_)), facts.path]


async def read_volume(driver: DirectoryVolumes, id_: str = ID, base: str | None = None) -> str:
    return read(await list_files(driver, id_), base).rstrip(".b")


async def write_volume(driver: DirectoryVolumes, letter: str, block: int, id_: str = ID) -> None:
    write(await list_files(driver, id_), letter, block * 65536)


async def freeze(driver: DirectoryVolumes, *layer_ids: str) -> None:
    for layer_id in layer_ids:
        await driver.layers.begin_layer(ID, layer_id)
        await driver.layers.finish_layer(ID, layer_id)


def kept(id_: str, *layers: str) -> KeptSnapshot:
    return KeptSnapshot(id_, f"uid-{id_}", {"root": KeptDisk(layers, SIZE)})


async def read_kept(driver: DirectoryVolumes, id_: str, base: str | None = None) -> str:
    [found] = [one for one in await driver.layers.list_kept() if one.id == id_]
    folder = Path(driver.layers.memory_path("x")).parent
    return read([str(folder / f"{layer}.qcow2") for layer in next(iter(found.disks.values())).layers], base).rstrip(
        ".b"
    )


def list_all(place: Path) -> set[str]:
    """The files of the pool that hold data."""
    paths = [path for path in (place / "volumes").rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.name for path in paths if path.suffix not in (".chain", ".kept")}


async def test_what_is_written_after_a_snapshot_is_in_the_overlay_and_the_layer_stays(driver: DirectoryVolumes) -> None:
    facts = await driver.ensure(ID, size_bytes=SIZE)
    write([facts.path], "a", 0)
    overlay = await driver.layers.begin_layer(ID, "one")
    write([facts.path, overlay], "n", 65536)
    layer = await driver.layers.finish_layer(ID, "one")
    assert (read([layer.path]).rstrip("."), await read_volume(driver)) == ("a", "an")
    assert layer.used_bytes >= 65536


async def test_an_overlay_survives_the_sweep_of_what_a_killed_driver_left(tmp_path: Path) -> None:
    await make_driver(tmp_path).ensure(ID, size_bytes=SIZE)
    overlay = await make_driver(tmp_path).layers.begin_layer(ID, "one")
    again = make_driver(tmp_path)
    await again.ensure("other", size_bytes=SIZE)
    await again.remove("other")
    assert await again.layers.begin_layer(ID, "one") == overlay and Path(overlay).exists()


async def test_a_restore_goes_back_and_forth_between_contents(driver: DirectoryVolumes, base: str) -> None:
    await driver.ensure(ID, size_bytes=0, base=base, base_format="raw")
    write(await list_files(driver), "a", 0, base=base)
    await freeze(driver, "one")
    await driver.layers.keep(kept("s1", "one"))
    write(await list_files(driver), "n", 65536, base=base)
    await driver.layers.keep_present(kept("s2", "one", "present"), {ID: "present"})
    await driver.layers.replace(ID, "s1", "root", "present")
    assert (await read_volume(driver, base=base), await read_kept(driver, "s2", base)) == ("a", "an")
    write(await list_files(driver), "x", 65536 * 2, base=base)
    assert (await read_volume(driver, base=base), await read_kept(driver, "s2", base)) == ("abx", "an")
    await driver.layers.replace(ID, "s2", "root", "gone")
    assert await read_volume(driver, base=base) == "an"


async def test_what_nobody_kept_goes_with_a_restore_and_with_its_last_snapshot(
    driver: DirectoryVolumes, tmp_path: Path
) -> None:
    await driver.ensure(ID, size_bytes=SIZE)
    await freeze(driver, "one")
    await driver.layers.keep(kept("s1", "one"))
    await freeze(driver, "two")
    await driver.layers.replace(ID, "s1", "root", "present")
    assert list_all(tmp_path) == {f"{ID}.qcow2", "one.qcow2"}
    await driver.remove(ID)
    assert list_all(tmp_path) == {"one.qcow2"}
    await driver.layers.drop("s1")
    assert list_all(tmp_path) == set()


async def test_absorbed_layers_read_the_same_from_the_volume_the_snapshots_and_clones(
    driver: DirectoryVolumes, tmp_path: Path, base: str
) -> None:
    await driver.ensure(ID, size_bytes=0, base=base, base_format="raw")
    for number, layer in enumerate(("one", "two", "three")):
        write(await list_files(driver), "xyz"[number], 0, 65536 * (4 - number), base=base)
        write(await list_files(driver), "p", 65536 * 6 + number * 4096, 512, base=base)  # less than a cluster
        await freeze(driver, layer)
    write(await list_files(driver), "w", 0, base=base)
    await driver.layers.keep(kept("s2", "one", "two"))
    assert (await read_volume(driver, base=base), await read_kept(driver, "s2", base)) == ("wzyxbbp", "yyyxbbp")
    for layer in ("one", "three"):
        assert layer in await driver.layers.list_unneeded(ID)
        await driver.layers.absorb_layer(ID, layer, base=base, base_format="raw")
        assert (await read_volume(driver, base=base), await read_kept(driver, "s2", base)) == ("wzyxbbp", "yyyxbbp")
    assert [layer.id for layer in await driver.layers.list_layers(ID)] == ["two"]
    assert list_all(tmp_path) == {f"{ID}.qcow2", "two.qcow2"}
    await driver.layers.drop("s2")
    await driver.layers.absorb_layer(ID, "two", base=base, base_format="raw")
    assert (await read_volume(driver, base=base), list_all(tmp_path)) == ("wzyxbbp", {f"{ID}.qcow2"})


async def test_a_layer_below_a_larger_one_is_absorbed_whole(driver: DirectoryVolumes) -> None:
    await driver.ensure(ID, size_bytes=SIZE)
    await write_volume(driver, "a", 0)
    await freeze(driver, "one")
    await driver.grow(ID, 2 * SIZE)
    await write_volume(driver, "n", 65)
    before = await read_volume(driver)
    await driver.layers.absorb_layer(ID, "one", base=None, base_format="qcow2")
    facts = await driver.inspect(ID)
    assert facts is not None and facts.size_bytes == 2 * SIZE and await read_volume(driver) == before


async def test_a_header_that_names_a_file_of_the_host_is_not_followed_when_layers_are_united(
    driver: DirectoryVolumes, tmp_path: Path
) -> None:
    facts = await driver.ensure(ID, size_bytes=SIZE)
    await freeze(driver, "one")
    secret = tmp_path / "secret"
    options = f"data_file={secret},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, facts.path, str(SIZE)], check=True)
    before = secret.read_bytes()
    with pytest.raises(DriverFailed, match="refers to another file"):
        await driver.layers.absorb_layer(ID, "one", base=None, base_format="qcow2")
    assert secret.read_bytes() == before


async def test_a_disk_that_left_its_vm_before_it_went_back_is_written_to_beside_what_was_kept_of_it(
    driver: DirectoryVolumes,
) -> None:
    await driver.ensure(ID, size_bytes=SIZE)
    await freeze(driver, "one")
    await write_volume(driver, "a", 0)
    await driver.layers.keep_present(kept("s1", "one", "present"), {ID: "present"})
    await driver.ensure(ID, size_bytes=SIZE)  # another VM begins with it: that restore doesn't go on
    await write_volume(driver, "x", 1)
    assert (await read_volume(driver), await read_kept(driver, "s1")) == ("ax", "a")


async def test_layers_follow_a_disk_that_two_nodes_share(tmp_path: Path) -> None:
    driver = make_driver(tmp_path)
    await driver.ensure(ID, size_bytes=SIZE)
    await write_volume(driver, "a", 0)
    await freeze(driver, "one")
    await write_volume(driver, "n", 1)
    for _ in range(2):
        await driver.share(ID, "other")
    assert await read_volume(driver, "other") == "an"
    await driver.remove(ID)
    assert (await read_volume(driver, "other"), list_all(tmp_path)) == ("an", {"other.qcow2", "one.qcow2"})
    await driver.layers.begin_layer("other", "two")
    with pytest.raises(DriverFailed, match="while a snapshot"):
        await driver.share("other", "third")


async def test_a_disk_that_is_received_stands_on_nothing_that_was_here(
    driver: DirectoryVolumes, tmp_path: Path
) -> None:
    await driver.ensure(ID, size_bytes=SIZE)
    await write_volume(driver, "a", 1)
    await freeze(driver, "one")
    work = driver.begin(ID)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", work, str(SIZE)], check=True)
    write([work], "r", 0)
    await driver.complete(ID)
    assert (await read_volume(driver), list_all(tmp_path)) == ("r", {f"{ID}.qcow2"})


async def test_a_file_system_on_layers_is_whole_as_a_raw_volume_and_takes_no_part_in_snapshots(
    driver: DirectoryVolumes, tmp_path: Path
) -> None:
    facts = await driver.ensure_files("from", size_bytes=SIZE)
    disk = await driver.ensure(ID, size_bytes=SIZE)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", facts.path, disk.path], check=True)
    await freeze(driver, "one", "two")
    found = await driver.ensure_files(ID, size_bytes=SIZE)
    check = subprocess.run(["e2fsck", "-fn", found.path], capture_output=True, text=True, check=False)
    assert (check.returncode, found.format) == (0, "raw"), check.stdout
    assert list_all(tmp_path) == {"from.raw", f"{ID}.raw"}
    with pytest.raises(InvalidInput) as caught:
        await driver.layers.begin_layer(ID, "three")
    assert caught.value.token == "unsupported" and caught.value.hint


async def test_each_layer_counts_once_with_the_lowest_snapshot_that_keeps_it_while_its_vm_stands_on_it(
    driver: DirectoryVolumes,
) -> None:
    await driver.ensure(ID, size_bytes=SIZE)
    for layer in ("one", "two"):  # the guest writes all of its disk, again and again
        write(await list_files(driver), "a", 0, SIZE)
        await freeze(driver, layer)
    await driver.layers.keep(kept("s2", "one", "two"))
    await driver.layers.keep(kept("s1", "one"))
    memory, half = Path(driver.layers.memory_path("s1")), Path(f"{driver.layers.memory_path('s1')}.part")
    memory.write_bytes(b"m" * 8192)
    half.write_bytes(b"m" * 100)

    async def count() -> dict[str, int]:
        return {one.id: one.used_bytes // SIZE for one in await driver.layers.list_kept()}

    assert await count() == {"s1": 1, "s2": 1}
    assert {one.id: one.memory_bytes for one in await driver.layers.list_kept()} == {"s1": 8192, "s2": 0}
    await driver.remove(ID)
    assert await count() == {"s1": 1, "s2": 1}
    await driver.layers.drop("s1")
    assert await count() == {"s2": 2}, "it keeps what the other one counted"
    assert not memory.exists() and not half.exists()


async def test_while_a_record_is_broken_nothing_is_removed(driver: DirectoryVolumes, tmp_path: Path) -> None:
    await driver.ensure(ID, size_bytes=SIZE)
    await freeze(driver, "one")
    await driver.layers.keep(kept("s1", "one"))
    record = tmp_path / "volumes" / "layers" / "s1.kept"
    record.write_bytes(b"{")
    with pytest.raises(DriverFailed, match="can't be read"):
        await driver.remove(ID)
    assert "one.qcow2" in list_all(tmp_path)


Act = Callable[[DirectoryVolumes], Coroutine[Any, Any, object]]


async def lay_out(driver: DirectoryVolumes) -> None:
    """A disk that reads aac; snapshot s1 reads a, s2 reads aa."""
    await driver.ensure(ID, size_bytes=SIZE)
    await driver.ensure("other", size_bytes=SIZE)
    for number, layer in enumerate(("zero", "one", "two")):
        if number:
            await write_volume(driver, "a", number - 1)
        await freeze(driver, layer)
    await driver.layers.keep(kept("s1", "zero", "one"))
    await driver.layers.keep(kept("s2", "zero", "one", "two"))
    await write_volume(driver, "c", 2)


async def begin_and_write(driver: DirectoryVolumes) -> None:
    overlay = await driver.layers.begin_layer(ID, "three")
    write([*(await list_files(driver)), overlay], "n", 3 * 65536)


async def take_point_in(driver: DirectoryVolumes, id_: str, letter: str, at: int, on: str = "") -> None:
    disk = "root" if on else ""
    async with driver.copies.write(f"{id_}-in", SIZE, on=on, disk=disk) as socket:
        url = f"nbd+unix:///?socket={socket}"
        command = ["qemu-io", "-f", "raw", "-c", f"write -P {ord(letter)} {at * 65536} 65536", url]
        await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
    await driver.copies.take_in(KeptSnapshot(id_, "uid", {"root": KeptDisk((f"{id_}-in",), SIZE)}), on=on)


async def take_points_in(driver: DirectoryVolumes) -> None:
    await take_point_in(driver, "p1", "x", 0)
    await take_point_in(driver, "p2", "y", 1, "p1")
    await take_point_in(driver, "s3", "z", 2, "p2")
    await driver.layers.drop("p1")
    await driver.layers.drop("p2")


# What is done, and what the disk reads afterwards, or may read if that is cut off. The first is done before, in one piece.
ACTS: dict[str, tuple[Act | None, Act, str, str]] = {
    "begin": (None, lambda driver: driver.layers.begin_layer(ID, "three"), "aac", "aac"),
    "finish": (begin_and_write, lambda driver: driver.layers.finish_layer(ID, "three"), "aacn", "aac"),
    "undo": (
        lambda driver: driver.layers.begin_layer(ID, "three"),
        lambda driver: driver.layers.undo_layer(ID, "three"),
        "aac",
        "aac",
    ),
    "keep present": (
        None,
        lambda driver: driver.layers.keep_present(kept("s3", "zero", "one", "two", "three"), {ID: "three"}),
        "aac",
        "aac",
    ),
    "take": (
        None,
        lambda driver: driver.taking.take(KeptSnapshot("s3", "uid", {ID: KeptDisk((), 0)}), {ID: "three"}),
        "aac",
        "aac",
    ),
    "take files": (
        lambda driver: driver.ensure_files("files", size_bytes=SIZE),
        lambda driver: driver.taking.take(KeptSnapshot("s3", "uid", {"files": KeptDisk((), 0)}), {"files": "three"}),
        "aac",
        "aac",
    ),
    "replace": (
        lambda driver: driver.layers.keep_present(kept("s3", "zero", "one", "two", "three"), {ID: "three"}),
        lambda driver: driver.layers.replace(ID, "s1", "root", "three"),
        "a",
        "aac",
    ),
    "replace files": (
        lambda driver: driver.ensure_files("files", size_bytes=SIZE),
        lambda driver: driver.layers.replace("files", "s1", "root", "three"),
        "aac",
        "aac",
    ),
    "absorb into a layer": (
        None,
        lambda driver: driver.layers.absorb_layer(ID, "zero", base=None, base_format="qcow2"),
        "aac",
        "aac",
    ),
    "absorb into the volume": (
        lambda driver: driver.layers.drop("s2"),
        lambda driver: driver.layers.absorb_layer(ID, "two", base=None, base_format="qcow2"),
        "aac",
        "aac",
    ),
    "forget": (None, lambda driver: driver.layers.forget_layer(ID, "zero"), "aac", "aac"),
    "clone": (None, lambda driver: driver.layers.clone("new", "s1", "root"), "aac", "aac"),
    "share": (None, lambda driver: driver.share(ID, "new"), "aac", "aac"),
    "take in": (None, lambda driver: take_point_in(driver, "s3", "z", 2, "s1"), "aac", "aac"),
    "merge": (take_points_in, lambda driver: driver.copies.merge("p1-in"), "aac", "aac"),
    "drop": (None, lambda driver: driver.layers.drop("s1"), "aac", "aac"),
    "remove another": (None, lambda driver: driver.remove("other"), "aac", "aac"),
    "remove": (None, lambda driver: driver.remove(ID), "", "aac"),
}


def run_until(place: Path, act: Act, step: int) -> bool:
    """Do it in a child that kills itself right before its ``step``-th effect on the pool. Whether it was done before."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert status in (0, 9), f"the child ended with {status}"
        return status == 0
    try:
        taken = 0

        def count(event: str, args: tuple[Any, ...]) -> None:
            nonlocal taken
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes or event in ("os.link", "os.rename", "os.remove", "os.mkdir", "subprocess.Popen"):
                taken += 1
                if taken == step:
                    os.kill(os.getpid(), 9)

        driver = make_driver(place)
        sys.addaudithook(count)
        asyncio.run(_run(act, driver))
        os._exit(0)
    except BaseException as problem:
        os.write(2, f"{problem!r}\n".encode())
        os._exit(1)


async def _run(act: Act, driver: DirectoryVolumes) -> None:
    await act(driver)


@pytest.mark.parametrize("stride", mark_long([4, 1], 1), ids=["every fourth step", "every step"])
@pytest.mark.parametrize("name", mark_long(list(ACTS), "undo", "share", "drop", "remove another", "forget", "begin"))
def test_a_driver_that_is_killed_at_any_step_loses_nothing_and_the_act_is_done_when_it_is_repeated(
    tmp_path: Path, name: str, stride: int
) -> None:
    before, act, done, cut = ACTS[name]
    origin = tmp_path / "origin"
    origin.mkdir()
    asyncio.run(lay_out(make_driver(origin)))
    if before is not None:
        asyncio.run(_run(before, make_driver(origin)))
    whole = tmp_path / "whole"
    copy(origin, whole)
    asyncio.run(_run(act, make_driver(whole)))
    wanted = asyncio.run(read_everything(make_driver(whole)))
    steps = 1 - stride
    while True:
        steps += stride
        place = tmp_path / "place"
        copy(origin, place)
        was_done = run_until(place, act, steps)
        found = asyncio.run(read_everything(make_driver(place)))
        assert found.get(ID, "") in ({done} if was_done else {done, cut}), f"step {steps}"
        assert all(found[id_] == wanted[id_] for id_ in ("s1", "s2", "s3") if id_ in found and id_ in wanted), (
            f"step {steps}"
        )
        asyncio.run(_run(act, make_driver(place)))
        assert asyncio.run(read_everything(make_driver(place))) == wanted, f"step {steps}"
        assert list_all(place) == list_all(whole), f"step {steps}"
        subprocess.run(["rm", "-r", str(place)], check=True)
        if was_done:
            break
    assert steps > 3, "it has been cut off"


async def test_a_file_system_that_goes_back_is_what_was_kept_and_what_is_written_since_stays(
    driver: DirectoryVolumes, tmp_path: Path
) -> None:
    facts = await driver.ensure_files(ID, size_bytes=SIZE)
    with Path(facts.path).open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"then")
    then = Path(facts.path).read_bytes()
    await driver.taking.take(KeptSnapshot("s1", "uid", {ID: KeptDisk((), 0)}), {ID: "one"})
    with Path(facts.path).open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"now!")
    back = await driver.layers.replace(ID, "s1", ID, "present")
    assert back.format == "qcow2" and not Path(facts.path).exists()
    await driver.layers.replace(ID, "s1", ID, "present")
    assert (await driver.layers.clone("copy", "s1", ID)).size_bytes == back.size_bytes
    for id_ in (ID, "copy"):
        again = await driver.ensure_files(id_, size_bytes=SIZE)
        assert again.format == "raw" and Path(again.path).read_bytes()[MIB:] == then[MIB:]


def copy(origin: Path, place: Path) -> None:
    subprocess.run(["cp", "-a", str(origin), str(place)], check=True)


async def read_everything(driver: DirectoryVolumes) -> dict[str, str]:
    disks = [facts.id for facts in await driver.list() if facts.format == "qcow2"]
    volumes = {id_: await read_volume(driver, id_) for id_ in disks}
    return volumes | {one.id: await read_kept(driver, one.id) for one in await driver.layers.list_kept()}


@pytest.mark.parametrize("layered", [False, True])
async def test_a_disk_that_is_kept_as_a_volume_has_all_that_it_stood_on(
    driver: DirectoryVolumes, base: str, layered: bool
) -> None:
    await driver.ensure(ID, size_bytes=0, base=base, base_format="raw")
    write(await list_files(driver), "a", 65536, base=base)
    if layered:
        await freeze(driver, "one")
        await driver.layers.keep(kept("s1", "one"))
        write(await list_files(driver), "n", 131072, base=base)
    whole = await asyncio.to_thread(read, await list_files(driver), base)
    assert whole.startswith("banb" if layered else "babb")
    for _ in range(2):
        volume = await driver.keep(ID, "kept", base=base, base_format="raw")
    await driver.remove(ID)
    assert await asyncio.to_thread(read, [volume.path]) == whole
    assert await driver.layers.list_layers("kept") == []
