"""What a node keeps of images: shared, forgotten in order, and whole after any kill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from image_lab import Made, digest, entry, files, leftovers, node, tar
from registry_lab import Registry, Request

from weft.contracts.driver.image import RegistryCredentials
from weft.objects.errors import DriverFailed, InvalidInput, WeftError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    registry = Registry()
    async with registry.serve() as registry.place:
        yield registry


def large(size: int = 400_000) -> bytes:
    return tar([(entry("blob"), os.urandom(size))])


async def test_pulls_at_once_fetch_each_layer_once(registry: Registry, tmp_path: Path) -> None:
    shared = large()
    one = registry.add("1", Made([shared, files(a="1")], "plain"))
    registry.add("2", Made([shared, files(a="2")], "plain"))
    store, seen = node(tmp_path), []
    pulls = [
        store.pull(f"{registry.place}/a:{tag}", progress=lambda *news: seen.append(news))
        for tag in ("1", "2", "1", "1")
    ]
    images = await asyncio.gather(*pulls, store.pull(f"{registry.place}/b:2"))
    assert len({image.digest for image in images}) == 2
    assert registry.asked(one.layers[0]["digest"]) == 1 == registry.asked(one.layers[1]["digest"])
    assert len(seen) > 4 and leftovers(tmp_path) == []


async def test_a_layer_is_fetched_by_no_other_pull_once_it_is_here_though_its_image_is_not(
    registry: Registry, tmp_path: Path
) -> None:
    shared, goes_on = large(), asyncio.Event()
    one = registry.add("1", Made([shared, files(a="1")], "plain"))
    registry.add("2", Made([shared, files(a="2")], "plain"))

    async def hold_last_layer(request: Request) -> bool:
        if one.layers[1]["digest"] in request.path:
            await goes_on.wait()
        return False

    registry.spoil, store = hold_last_layer, node(tmp_path)
    first = asyncio.create_task(store.pull(f"{registry.place}/a:1"))
    while store._layers.find(one.diff_ids[0]) is None:
        await asyncio.sleep(0.01)
    await store.pull(f"{registry.place}/a:2")
    assert registry.asked(one.layers[0]["digest"]) == 1 and not first.done()
    goes_on.set()
    await first
    assert store._fetched == {}, "what is remembered meanwhile ends with the pulls"


def claim_layers(registry: Registry, tag: str, of: Made, own: Made) -> None:
    """An image whose configuration names the layers of ``of``, with the blobs of ``own``: so makes it who only knows digests."""
    manifest = json.loads(own.blobs[own.manifest])
    manifest["config"] = json.loads(of.blobs[of.manifest])["config"]
    text = json.dumps(manifest).encode()
    registry.blobs |= own.blobs | {digest(text): text}
    registry.tags[tag] = digest(text)


async def test_who_knows_the_digests_of_a_private_image_s_layers_or_has_its_manifest_has_no_layer(
    registry: Registry, tmp_path: Path
) -> None:
    store, known = node(tmp_path), RegistryCredentials("vic", "s3cret")
    private = registry.add("private", Made([files(secret="1")], "plain"))
    assert await store.pull(f"{registry.place}/vic/app:private", credentials=known)
    claim_layers(registry, "claims", private, Made([files(mine="1")], "plain"))
    for credentials in (None, RegistryCredentials("atk", "other")):
        with pytest.raises(DriverFailed, match="a layer unpacks to"):
            await store.pull(f"{registry.place}/atk/app:claims", credentials=credentials)
    layer = registry.blobs.pop(private.layers[0]["digest"])
    for digest_ in ("", private.manifest):  # the manifest alone, at a place of one's own
        with pytest.raises(WeftError):
            await store.pull(f"{registry.place}/atk/app:private", digest_)
    assert await store.pull(f"{registry.place}/vic/again:private", credentials=known), "who had it has it"
    registry.blobs[private.layers[0]["digest"]] = layer
    assert await store.pull(f"{registry.place}/atk/app:private"), "the registry gives it to everybody"
    del registry.blobs[private.layers[0]["digest"]]
    assert await store.pull(f"{registry.place}/b/app:private", credentials=RegistryCredentials("bob", "x"))
    assert len(await store.list()) == 1 and leftovers(tmp_path) == []


async def test_one_who_gives_up_takes_nothing_from_others_and_the_last_one_ends_it(
    registry: Registry, tmp_path: Path
) -> None:
    image = registry.add("1", Made([large(2_000_000)], "plain"))
    begun, go = asyncio.Event(), asyncio.Event()

    async def spoil(request: Request) -> bool:
        if image.layers[0]["digest"] in request.path:
            begun.set()
            await go.wait()
        return False

    registry.spoil = spoil
    store = node(tmp_path)
    first, second = (asyncio.create_task(store.pull(f"{registry.place}/{name}:1")) for name in ("a", "b"))
    await begun.wait()
    await asyncio.sleep(0.2)
    first.cancel()
    await asyncio.wait([first])
    go.set()
    assert (await second).digest == image.manifest and registry.asked(image.layers[0]["digest"]) == 1
    other = registry.add("2", Made([large(2_000_000)], "plain"))
    image, before = other, len(registry.seen)
    begun.clear(), go.clear()
    last = asyncio.create_task(store.pull(f"{registry.place}/a:2"))
    await begun.wait()
    last.cancel()
    await asyncio.wait([last])
    assert leftovers(tmp_path) == [] and before < len(registry.seen) and await store.find(other.manifest) is None


async def test_a_bad_place_of_a_layer_is_not_everybodys(registry: Registry, tmp_path: Path) -> None:
    good = registry.add("1", Made([large()], "plain"))
    waits = asyncio.Event()

    async def spoil(request: Request) -> bool:
        if "/v2/bad/blobs/" in request.path and good.layers[0]["digest"] in request.path:
            waits.set()
            await asyncio.sleep(0.5)
            await request.answer(404)
            return True
        return False

    registry.spoil = spoil
    store = node(tmp_path)
    bad = asyncio.create_task(store.pull(f"{registry.place}/bad:1"))
    await waits.wait()
    assert (await store.pull(f"{registry.place}/good:1")).digest == good.manifest
    with pytest.raises(WeftError):
        await bad


async def test_the_oldest_that_nobody_uses_is_forgotten_first(registry: Registry, tmp_path: Path) -> None:
    base = large(1_000_000)
    store = node(tmp_path, budget_bytes=2_500_000)
    images = []
    for tag in "1234":
        registry.add(tag, Made([base, large(1_000_000)], "plain"))
        images.append(await store.pull(f"{registry.place}/a:{tag}"))
    assert await store.forget([images[0].digest]) == 3_000_000
    assert [image.digest for image in await store.list()] == [images[0].digest]
    assert (await node(tmp_path).list())[0].digest == images[0].digest
    empty = node(tmp_path, budget_bytes=0)
    assert await empty.forget([]) == 2_000_000 and await empty.list() == []
    assert list((tmp_path / "oci" / "layers").glob("*/layer.json")) == [] and leftovers(tmp_path) == []


async def test_what_a_pull_under_way_needs_is_not_forgotten(registry: Registry, tmp_path: Path) -> None:
    base = large()
    registry.add("1", Made([base], "plain"))
    second = registry.add("2", Made([base, large()], "plain"))
    store = node(tmp_path, budget_bytes=0)
    await store.pull(f"{registry.place}/a:1")
    begun, go = asyncio.Event(), asyncio.Event()

    async def spoil(request: Request) -> bool:
        if second.layers[1]["digest"] in request.path:
            begun.set()
            await go.wait()
        return False

    registry.spoil = spoil
    pull = asyncio.create_task(store.pull(f"{registry.place}/a:2"))
    await begun.wait()
    await store.forget([])
    go.set()
    assert all(Path(path).is_dir() for path in store.root(await pull))


async def test_a_full_disk_is_said_before_anything_is_fetched(registry: Registry, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    image = registry.add("1", Made([large(3_000_000)], "plain"))
    bomb = registry.add("2", Made([tar([(entry("z"), bytes(30_000_000))])], "gzip"))
    assert os.system(f"mount -t tmpfs -o size=4m weft-test {small}") == 0
    try:
        for tag, made in (("1", image), ("2", bomb)):
            registry.seen.clear()
            store = node(small)
            if tag == "1":
                (small / "filler").write_bytes(bytes(2_000_000))
            with pytest.raises(DriverFailed, match="has no space") as caught:
                await store.pull(f"{registry.place}/a:{tag}")
            assert caught.value.token == "noSpace" and leftovers(small) == []
            assert registry.asked(made.layers[0]["digest"]) == (0 if tag == "1" else 1)
    finally:
        os.system(f"umount {small}")


def left_running() -> list[str]:
    """This installation's processes that fetch and unpack, and whose parent has gone."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
            if words[0] == sys.executable and any("weft.drivers.image.oci" in word for word in words) and parent == "1":
                found.append(" ".join(words))
    return found


async def test_killed_at_any_point_it_has_an_image_whole_or_not(registry: Registry, tmp_path: Path) -> None:
    image = registry.add(
        "1", Made([large(1_000_000), tar((entry(f"d/f{n}"), b"x") for n in range(500)), files(z="1")], "gzip")
    )
    program = (
        "import asyncio, sys; sys.path.insert(0, sys.argv[3]); from image_lab import node; from pathlib import Path;"
        "asyncio.run(node(Path(sys.argv[1])).pull(sys.argv[2]))"
    )
    argv = [sys.executable, "-c", program, str(tmp_path), f"{registry.place}/a:1", str(Path(__file__).parent)]
    layers = tmp_path / "oci" / "layers"
    points = {  # what is there when it is killed
        "a request": lambda: registry.asked("/v2/") > 0,
        "a blob on its way": lambda: any(path.is_file() for path in layers.glob(".making-*")),
        "a layer in the making": lambda: any(path.is_dir() for path in layers.glob(".making-*/fs")),
        "a layer": lambda: any(layers.glob("[!.]*/layer.json")),
        "an image": lambda: any((tmp_path / "oci" / "images").glob("sha256-*.json")),
    }
    done = 0
    for is_there in points.values():
        registry.seen.clear()
        process = await asyncio.create_subprocess_exec(*argv)
        async with asyncio.timeout(30):
            while process.returncode is None and not is_there():
                await asyncio.sleep(0.002)
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        async with asyncio.timeout(60):
            while left_running():
                await asyncio.sleep(0.05)
        store = node(tmp_path)
        for found in await store.list():
            done += 1
            assert found.digest == image.manifest
            top = [Path(path) for path in store.root(found)]
            assert (top[0] / "z").read_text() == "1" and len(list((top[1] / "d").iterdir())) == 500
        await store.forget([image.manifest])  # sweeps first
        assert leftovers(tmp_path) == []
    assert done == 1 and (await store.pull(f"{registry.place}/a:1")).digest == image.manifest


async def test_a_store_that_lost_a_layer_fetches_it_again(registry: Registry, tmp_path: Path) -> None:
    registry.add("1", Made([files(a="1"), files(b="2")]))
    image = await node(tmp_path).pull(f"{registry.place}/a:1")
    (tmp_path / "oci" / "layers" / Path(node(tmp_path).root(image)[0]).parent.name / "layer.json").unlink()
    store = node(tmp_path)
    assert await store.find(image.digest) is None
    again = await store.pull(f"{registry.place}/a:1", image.digest)
    assert (Path(store.root(again)[0]) / "b").read_text() == "2"


async def test_users_and_images_without_layers(registry: Registry, tmp_path: Path) -> None:
    passwd = "root:x:0:0::/root:/bin/sh\nbroken\nweb:x:5:6::/srv:/bin/sh\n"
    real = tar(
        [(entry("usr/share/passwd"), passwd.encode()), entry("etc/passwd", b"2", linkname="/../../usr/share/passwd")]
    )
    hidden = tar([entry(".wh.etc")])
    registry.add("1", Made([real]))
    registry.add("2", Made([real, hidden]))
    registry.add("3", Made([tar([entry("etc/passwd", b"2", linkname="/proc/1/environ")])]))
    registry.add("0", Made([]))
    store = node(tmp_path)
    image = await store.pull(f"{registry.place}/a:1")
    user = await store.find_user(image, "web:7")
    assert (user.uid, user.gid, user.home) == (5, 7, "/srv")
    for tag in "023":
        image = await store.pull(f"{registry.place}/a:{tag}")
        assert all(Path(path).is_dir() for path in store.root(image)) and store.root(image)
        assert (await store.find_user(image, "4")).uid == 4
        with pytest.raises(InvalidInput, match="no user 'web'"):
            await store.find_user(image, "web")
