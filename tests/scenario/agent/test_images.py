"""Images, from their URL to the folder that nodes take them from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
from tests.scenario.agent_lab import make_bundle
from tests.scenario.controllers_lab import GIB, Lab
from tests.unit.controllers.image.hostile_site import hostile_site

from weft.contracts.store import Delete
from weft.controllers.image import file
from weft.images.busybox.build import pack_image
from weft.kinds.image import ImageStatus
from weft.kinds.node import NodeRuntime
from weft.objects.envelope import Envelope, decode_part
from weft.objects.image.bundle import BundleManifest

RAW = bytes(510) + b"\x55\xaa" + bytes(1536)
DIGEST = hashlib.sha256(RAW).hexdigest()


async def status_of(lab: Lab, name: str) -> ImageStatus:
    envelope = await lab.get(f"/image/default/{name}")
    assert envelope is not None
    return decode_part(envelope.status, ImageStatus)


async def until_phase(lab: Lab, name: str, phase: str) -> ImageStatus:
    lab.has_threads = True

    async def there() -> bool:
        return (await status_of(lab, name)).phase == phase

    await lab.until(there, 600)
    return await status_of(lab, name)


async def test_an_image_is_fetched_checked_and_kept_and_who_waited_for_it_runs(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(RAW)
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web", image="mine")
        await lab.until_refused("web", "imageNotReady")
        await lab.put("image", "mine", {"url": f"file://{tmp_path}/disk.raw", "sha256": DIGEST})
        status = await until_phase(lab, "mine", "Available")
        assert (status.sha256, status.size, status.virtual_size, status.format) == (DIGEST, 2048, 2048, "raw")
        assert (tmp_path / "images" / DIGEST).read_bytes() == RAW
        await lab.until_phase("web", "Running")
        assert (await lab.allocations())[0].image.sha256 == DIGEST


async def test_an_image_with_another_digest_fails_and_says_so_to_who_wants_it(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(RAW)
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put("image", "bad", {"url": f"file://{tmp_path}/disk.raw", "sha256": "0" * 64})
        status = await until_phase(lab, "bad", "Failed")
        assert status.reason == "sha256Mismatch" and DIGEST in status.message and "sha256" in status.message
        assert [path.name for path in (tmp_path / "images").iterdir()] == ["ab" * 32]  # nothing half-done is left
        await lab.put_vm("web", image="bad")
        await lab.until_refused("web", "imageFailed")
        placed = await lab.placed("web")
        assert placed is not None and "sha256" in placed.message


async def test_an_image_that_could_not_be_had_is_tried_again(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.put("image", "late", {"url": f"file://{tmp_path}/disk.raw"})
        status = await until_phase(lab, "late", "Failed")
        assert status.reason == "fetchFailed" and "is missing" in status.message
        (tmp_path / "disk.raw").write_bytes(RAW)
        await until_phase(lab, "late", "Available")


async def test_a_file_that_was_lost_is_fetched_again_and_a_fetch_that_was_cut_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(RAW)
    async with Lab(tmp_path) as lab:
        await lab.put("image", "mine", {"url": f"file://{tmp_path}/disk.raw"})
        await until_phase(lab, "mine", "Available")
        await lab.kill_controllers()
        (tmp_path / "images" / DIGEST).unlink()
        (tmp_path / "images" / ".fetch-old").write_bytes(b"half")
        lab.start_controllers()

        async def back() -> bool:
            return (tmp_path / "images" / DIGEST).exists()

        await lab.until(back)
        await until_phase(lab, "mine", "Available")
        assert not (tmp_path / "images" / ".fetch-old").exists()


async def test_an_image_that_an_older_weft_fetched_says_how_much_memory_it_needs_once_it_was_looked_at_again(
    tmp_path: Path,
) -> None:
    least = 96 << 20
    manifest = BundleManifest("disk.raw", "raw", "kernel", "initrd", min_memory_bytes=least)
    (tmp_path / "small.tar").write_bytes(make_bundle(**{"image.json": msgspec.json.encode(manifest)}))
    async with Lab(tmp_path) as lab:
        await lab.put("image", "small", {"url": f"file://{tmp_path}/small.tar"})
        assert (await until_phase(lab, "small", "Available")).min_memory == least
        await lab.kill_controllers()

        def forget(image: Envelope) -> None:
            old = msgspec.structs.replace(decode_part(image.status, ImageStatus), min_memory=0)
            image.status = msgspec.Raw(msgspec.json.encode(old))

        await lab.change("/image/default/small", forget)
        assert (await status_of(lab, "small")).min_memory == 0
        lab.start_controllers()

        async def known() -> bool:
            return (await status_of(lab, "small")).min_memory == least

        await lab.until(known)
        said = [event.reason for event in lab.journal.events if event.reason == "ImageAvailable"]
        assert len(said) == 1, "that it is there is told once"


async def test_a_file_goes_with_the_last_image_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(RAW)
    async with Lab(tmp_path) as lab:
        for name in ("one", "two"):
            await lab.put("image", name, {"url": f"file://{tmp_path}/disk.raw"})
            await until_phase(lab, name, "Available")
        await lab.store.commit([Delete("/image/default/one")])
        await lab.pass_time(1)
        assert (tmp_path / "images" / DIGEST).exists()
        await lab.store.commit([Delete("/image/default/two")])

        async def gone() -> bool:
            return not (tmp_path / "images" / DIGEST).exists()

        await lab.until(gone)


async def test_what_a_hostile_server_or_image_did_stands_on_the_image_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "PATIENCE_SECONDS", 1.0)
    (tmp_path / "page").write_bytes(b"<html>not found</html>")
    with hostile_site() as site:
        async with Lab(tmp_path) as lab:
            wanted = {
                "stuck": (f"{site.url}/stuck", "fetchFailed", "sent less than"),
                "ring": (f"{site.url}/ring", "fetchFailed", "redirect"),
                "less": (f"{site.url}/less", "fetchFailed", "ended after"),
                "page": (f"file://{tmp_path}/page", "notAnImage", "neither qcow2"),
                "shadow": ("file:///etc/shadow", "fetchFailed", "is not readable for everybody"),
            }
            for name, (url, reason, words) in wanted.items():
                await lab.put("image", name, {"url": url})
                status = await until_phase(lab, name, "Failed")
                assert status.reason == reason and words in status.message, status
            await lab.put("image", "good", {"url": f"{site.url}/image"})
            await until_phase(lab, "good", "Available")
            for name in wanted:  # what may pass is tried again until then
                await lab.store.commit([Delete(f"/image/default/{name}")])

            async def only_the_good_one() -> bool:
                return {path.name for path in (tmp_path / "images").iterdir()} == {"ab" * 32, DIGEST}

            await lab.until(only_the_good_one)


async def test_images_whose_servers_only_hang_keep_no_new_image_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "PATIENCE_SECONDS", 3600.0)
    with hostile_site() as site:
        async with Lab(tmp_path) as lab:
            for name in ("a", "b"):
                await lab.put("image", name, {"url": f"{site.url}/later_silent"})
                await until_phase(lab, name, "Failed")

            site.silent, before = True, len(site.asked)

            async def tried_again() -> bool:
                return len(site.asked) > before

            await lab.until(tried_again, 600)
            await lab.put("image", "good", {"url": f"{site.url}/image"})
            await until_phase(lab, "good", "Available")
            for name in ("a", "b"):
                await lab.store.commit([Delete(f"/image/default/{name}")])


async def test_a_container_runs_an_image_that_the_fabric_holds_and_a_machine_does_not(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(RAW)
    (tmp_path / "web.tar").write_bytes(pack_image(bytes(1024)))
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", runtimes=[NodeRuntime(name="crun", kinds=["container"], isolations=["container"])])
        await lab.put_container("web", image="web")
        await lab.until_refused("web", "imageNotReady", "container")
        await lab.put("image", "web", {"url": f"file://{tmp_path}/web.tar"})
        status = await until_phase(lab, "web", "Available")
        assert (status.format, status.virtual_size) == ("oci", 0)
        await lab.until_phase("web", "Running", kind="container")
        place = (await lab.allocations())[0]
        assert (place.image.sha256, place.image.digest, place.resources.disk) == (status.sha256, status.digest, GIB)
        assert place.container.image == "web"
        await lab.put("image", "disk", {"url": f"file://{tmp_path}/disk.raw"})
        await until_phase(lab, "disk", "Available")
        await lab.put_vm("machine", image="web")
        await lab.until_refused("machine", "wrongImage")
        await lab.put_container("process", image="disk")
        await lab.until_refused("process", "wrongImage", "container")
