"""Workloads on an image that another project shares, with the controllers over a store in memory and nodes that only pretend."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.controllers.test_conversions import OF, RUNS, ConvertingLab
from tests.scenario.controllers_lab import DIGEST, MIB, Lab
from tests.scenario.scheduler.test_scheduler_answers import ask

from weft.contracts.store import Delete
from weft.controllers.image import controller
from weft.informer.view import Item
from weft.kinds.constraint import ConstraintSpec
from weft.kinds.image import ImageSpec, ImageStatus
from weft.kinds.quota import QuotaSpec, QuotaStatus
from weft.objects.envelope import Envelope, decode_part, merge_part


async def put_shared(lab: Lab, name: str = "base", *shared_with: str, digest: str = "") -> None:
    (lab.folder / "images").mkdir(parents=True, exist_ok=True)
    (lab.folder / "images" / DIGEST).write_bytes(b"")
    form = {"format": "oci", "digest": digest} if digest else {}
    status = ImageStatus(phase="Available", sha256=DIGEST, size=10 * MIB, virtual_size=64 * MIB, **form)  # type: ignore[arg-type]
    spec = ImageSpec(url="file:///none", shared_with=list(shared_with))
    await lab.put("image", name, spec, status=status, project="physics")


async def withdraw(lab: Lab, *shared_with: str) -> None:
    def change(envelope: Envelope) -> None:
        envelope.spec = merge_part(envelope.spec, ImageSpec(url="file:///none", shared_with=list(shared_with)))
        envelope.generation += 1

    await lab.change("/image/physics/base", change)


async def test_a_vm_runs_on_an_image_that_another_project_shares(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await put_shared(lab, "base", "default")
        await lab.put_vm("web", image="physics/base", iso="physics/base")
        await lab.until_phase("web", "Running")
        (allocation,) = await lab.allocations()
        assert allocation.image is not None and allocation.iso is not None
        assert (allocation.image.name, allocation.image.sha256) == ("physics/base", DIGEST)
        assert allocation.iso.sha256 == DIGEST and allocation.resources.disk >= 64 * MIB


async def test_what_runs_goes_on_without_its_share_and_what_is_new_waits_for_one(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await put_shared(lab, "base", "default")
        await lab.put_vm("old", image="physics/base")
        await lab.until_phase("old", "Running")
        await withdraw(lab, "other")
        await lab.put_vm("new", image="physics/base")
        await lab.put_vm("none", image="physics/none")
        refusals = []
        for name, image in (("new", "physics/base"), ("none", "physics/none")):
            await lab.until_refused(name, "imageNotReady")
            placed = await lab.placed(name)
            assert placed is not None
            refusals.append(placed.message.replace(image, "X"))
        assert refusals[0] == refusals[1] and "not shared with project default" in refusals[0]
        await lab.place_anew("old")
        await withdraw(lab, "*")  # given anew, to all
        await lab.until_phase("new", "Running", 3)


async def test_tasks_of_a_job_begin_no_more_once_their_image_is_not_shared(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", runtimes=[RUNS])
        await put_shared(lab, "base", "other", digest=OF)
        await lab.put_job("work", task={"image": "physics/base"})
        await lab.until_refused("work-0", "imageNotReady", kind="container")
        await withdraw(lab, "default")
        await lab.until_job("work", "Running")


CONTENT = bytes(510) + b"\x55\xaa" + bytes(1536)
CONTENT_DIGEST = hashlib.sha256(CONTENT).hexdigest()


async def put_own(lab: Lab, *shared_with: str) -> None:
    """An image of physics, whose file is on the server."""
    (lab.folder / "images").mkdir(parents=True, exist_ok=True)
    (lab.folder / "images" / CONTENT_DIGEST).write_bytes(CONTENT)
    status = ImageStatus(phase="Available", sha256=CONTENT_DIGEST, size=2048, virtual_size=2048, format="raw")
    spec = ImageSpec(url="file:///none", shared_with=list(shared_with))
    await lab.put("image", "base", spec, status=status, project="physics")


async def test_who_knows_the_digest_of_another_project_s_image_gets_it_only_from_a_url_that_gives_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "same.raw").write_bytes(CONTENT)
    (tmp_path / "other.raw").write_bytes(CONTENT + bytes(512))
    async with Lab(tmp_path) as lab:
        lab.has_threads = True
        await put_own(lab, "other")
        for name, file, reason in (("a", "nope", "fetchFailed"), ("b", "other.raw", "sha256Mismatch")):
            await lab.put("image", name, {"url": f"file://{tmp_path}/{file}", "sha256": CONTENT_DIGEST})
            status = await until_image(lab, name, "Failed")
            assert (status.reason, status.sha256) == (reason, "")
        await lab.put("image", "c", {"url": f"file://{tmp_path}/same.raw", "sha256": CONTENT_DIGEST})
        assert (await until_image(lab, "c", "Available")).sha256 == CONTENT_DIGEST
        assert (tmp_path / "images" / CONTENT_DIGEST).read_bytes() == CONTENT


@pytest.mark.parametrize("share", [["default"], ["*"]])
async def test_content_that_the_project_has_or_is_given_is_not_fetched_again(tmp_path: Path, share: list[str]) -> None:
    async with Lab(tmp_path) as lab:
        lab.has_threads = True
        await put_own(lab, *share)
        await lab.put("image", "first", {"url": "file:///nope", "sha256": CONTENT_DIGEST})
        await until_image(lab, "first", "Available")
        await withdraw(lab)
        await lab.put("image", "second", {"url": "file:///nope", "sha256": CONTENT_DIGEST})
        await until_image(lab, "second", "Available")
        for name in ("first", "second"):  # the project has it no more, though physics has
            await lab.store.commit([Delete(f"/image/default/{name}")])
        await lab.put("image", "third", {"url": "file:///nope", "sha256": CONTENT_DIGEST})
        assert (await until_image(lab, "third", "Failed")).reason == "fetchFailed"


async def test_a_file_that_goes_with_another_project_s_image_while_its_twin_is_recorded_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "same.raw").write_bytes(CONTENT)
    async with Lab(tmp_path) as lab:
        lab.has_threads = True
        await put_own(lab)
        real, taken = controller.Images._write_status, False

        async def write(self: controller.Images, image: Item, status: ImageStatus) -> None:
            nonlocal taken
            if status.phase == "Available" and not taken:
                taken = True
                await lab.store.commit([Delete("/image/physics/base")])
                await lab.until(lambda: asyncio.sleep(0, not (tmp_path / "images" / CONTENT_DIGEST).exists()))
            await real(self, image, status)

        monkeypatch.setattr(controller.Images, "_write_status", write)
        await lab.put("image", "mine", {"url": f"file://{tmp_path}/same.raw"})

        async def back() -> bool:
            return taken and (tmp_path / "images" / CONTENT_DIGEST).exists()

        await lab.until(back, 600)
        await until_image(lab, "mine", "Available")


@pytest.mark.parametrize("end", ["killed", "deleted"])
async def test_a_file_whose_image_was_not_recorded_is_nobody_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The controllers end, or the image is deleted, when the file is there and the status isn't written yet."""
    (tmp_path / "same.raw").write_bytes(CONTENT)
    kept, at_work, real = tmp_path / "images" / CONTENT_DIGEST, asyncio.Event(), controller.Images._write_status
    async with Lab(tmp_path) as lab:
        lab.has_threads = True

        async def write(self: controller.Images, image: Item, status: ImageStatus) -> None:
            if status.phase == "Available":
                at_work.set()
                if end == "killed":
                    await asyncio.Event().wait()
                await lab.store.commit([Delete("/image/default/mine")])
                await lab.until(lambda: asyncio.sleep(0, self._leadership.cache.view.get(image.key) is None))
            await real(self, image, status)

        with monkeypatch.context() as patched:
            patched.setattr(controller.Images, "_write_status", write)
            await lab.put("image", "mine", {"url": f"file://{tmp_path}/same.raw"})
            await lab.until(lambda: asyncio.sleep(0, at_work.is_set()), 600)
            assert end == "deleted" or kept.exists()
            if end == "killed":
                await lab.kill_controllers()
        (tmp_path / "same.raw").unlink()
        if end == "killed":
            lab.start_controllers()
            assert (await until_image(lab, "mine", "Failed")).reason == "fetchFailed"
        else:
            await lab.until(lambda: asyncio.sleep(0, not kept.exists()), 600)
        await lab.put("image", "thief", {"url": "file:///nope", "sha256": CONTENT_DIGEST}, project="physics")

        async def failed() -> bool:
            thief = await lab.get("/image/physics/thief")
            return thief is not None and decode_part(thief.status, ImageStatus).reason == "fetchFailed"

        await lab.until(failed, 600)


class MakingLab(ConvertingLab):
    """One whose server makes disks of container images: here each is what it is made of."""

    def start_controllers(self, holder: str = "here", **settings: Any) -> None:
        self.made: list[str] = []

        def make(url: str, digest: str, credentials: object, target: Path, *_: object) -> str:
            self.made.append(url)
            target.write_bytes(bytes(510) + b"\x55\xaa" + bytes(1536))
            return "0a" * 32

        super().start_controllers(holder, make_bundle=make, **settings)


async def test_an_image_is_made_of_another_only_while_that_is_shared(tmp_path: Path) -> None:
    async with MakingLab(tmp_path) as lab:
        lab.has_threads = True
        await put_shared(lab, "base", "other", digest=OF)
        await lab.put("image", "mine", {"url": "oci://physics/base"})
        status = await until_image(lab, "mine", "Failed")
        assert "physics/base does not exist" in status.message and "ask its project to share it" in status.message
        await withdraw(lab, "default")
        await until_image(lab, "mine", "Available")
        assert lab.made == [f"oci-archive:{tmp_path}/images/{DIGEST}"]


async def test_a_container_on_a_shared_image_becomes_a_vm_on_a_copy_of_it(tmp_path: Path) -> None:
    async with MakingLab(tmp_path) as lab:
        lab.has_threads = True
        await lab.add_node("n1", runtimes=[RUNS])
        await put_shared(lab, "base", "default", digest=OF)
        await lab.put_container("web", image="physics/base")
        await lab.until_phase("web", "Running", kind="container")
        await lab.convert("container/web", "vm")
        status = await lab.until_conversion("AwaitingConfirmation")
        vm = await lab.machine()
        assert vm.image == status.image and "/" not in vm.image
        copy = await lab.get(f"/image/default/{vm.image}")
        assert copy is not None and decode_part(copy.spec, ImageSpec).url == "oci://physics/base"


async def until_image(lab: Lab, name: str, phase: str) -> ImageStatus:
    async def there() -> bool:
        envelope = await lab.get(f"/image/default/{name}")
        return envelope is not None and decode_part(envelope.status, ImageStatus).phase == phase

    await lab.until(there, 600)
    envelope = await lab.get(f"/image/default/{name}")
    assert envelope is not None
    return decode_part(envelope.status, ImageStatus)


async def test_a_quota_counts_the_disk_of_a_shared_image_also_when_that_is_fetched_later(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.put("quota", "project", QuotaSpec(disk=100 * MIB), status=QuotaStatus())
        await lab.put_vm("web", image="physics/base")

        async def counts(field: str, amount: int) -> bool:
            envelope = await lab.get("/quota/default/project")
            assert envelope is not None
            return decode_part(envelope.status, QuotaStatus).used.get(field) == amount

        await lab.until(lambda: counts("instances", 1))
        await lab.pass_time(2)
        await put_shared(lab, "base", "default")
        await lab.until(lambda: counts("disk", 64 * MIB))


async def test_a_question_about_a_placed_workload_finds_out_nothing_of_what_is_not_shared(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await put_shared(lab, "base", "default")
        await put_shared(lab, "hidden", "other")
        await lab.put("constraint", "hidden", ConstraintSpec(expression="arch=none"), project="physics")
        await lab.put_vm("web", image="physics/base")
        await lab.until_phase("web", "Running")
        await withdraw(lab)
        assert (await ask(lab, "kept", workload="vm/web", changes={"cpu": 2})).best == "n1"
        for field, form in (("image", "physics/{}"), ("iso", "physics/{}"), ("constraint", "@physics/{}")):
            hidden, none = [
                await ask(lab, f"{field}-{name}", workload="vm/web", changes={field: form.format(name)})
                for name in ("hidden", "none")
            ]
            assert hidden.phase == "Failed" and "not shared with project default" in hidden.message
            assert (hidden.reason, hidden.message.replace("hidden", "none")) == (none.reason, none.message)
