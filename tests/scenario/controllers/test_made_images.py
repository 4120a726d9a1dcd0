"""Images made from VMs as the controllers see to them, with a pretend node: through kills, failures, and a change of mind."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.scenario.controllers_lab import Lab
from tests.scenario.migration_lab import MovingLab
from tests.scenario.snapshot_lab import SnapshotNode, join

from weft.contracts.store import Delete
from weft.kinds.image import ImageStatus
from weft.kinds.orders import OrderReports
from weft.kinds.parts.image.work import ImageOrder, ImageReport, name_sent
from weft.kinds.snapshot import SnapshotMarks, SnapshotSpec
from weft.objects.envelope import decode_part

RAW = bytes(510) + b"\x55\xaa" + bytes(1536)
DIGEST = hashlib.sha256(RAW).hexdigest()
KEY = "/image/default/gold"


async def read_status(lab: Lab) -> ImageStatus:
    envelope = await lab.get(KEY)
    assert envelope is not None
    return decode_part(envelope.status, ImageStatus)


async def until(lab: Lab, phase: str) -> ImageStatus:
    lab.has_threads = phase in ("Available", "Failed")

    async def there() -> bool:
        return (await read_status(lab)).phase == phase

    await lab.until(there, 600)
    return await read_status(lab)


async def is_tidy(lab: Lab) -> bool:
    """No snapshot and no file is left of the making."""
    left = [one.name for one in await lab.every("snapshot") if one.deleting_since is None]
    return not left and not [path for path in (lab.folder / "images").iterdir() if path.name.startswith(".")]


async def begin(lab: MovingLab, **spec: object) -> tuple[SnapshotNode, ImageOrder]:
    """A running VM, and an image of it that its node is asked to make."""
    node = await join(lab)
    await lab.put_vm("web")
    await lab.until_phase("web", "Running")
    await lab.put("image", "gold", {"made_from": "vm/web", **spec})
    order = (await until(lab, "Copying")).order
    assert order is not None
    return node, order


async def send(lab: Lab, node: SnapshotNode, order: ImageOrder, content: bytes = RAW) -> None:
    """What the API server and the node do once the image is made."""
    digest = hashlib.sha256(content).hexdigest()
    name_sent(lab.folder / "images", order.uid, digest).write_bytes(content)
    done = ImageReport(uid=order.uid, snapshot=order.snapshot, phase="done", sha256=digest, cleaned=["machine id"])
    await node.write_report(orders=OrderReports(image=[done]))


async def test_an_image_is_made_from_a_snapshot_of_a_vm_whatever_is_killed_between_the_steps(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        node.takes = False
        await lab.put_vm("web")
        await lab.until_phase("web", "Running")
        await lab.put("image", "gold", {"made_from": "vm/web"})
        await until(lab, "Snapshotting")
        (snapshot,) = await lab.every("snapshot")
        assert decode_part(snapshot.spec, SnapshotSpec) == SnapshotSpec(of="vm/web")
        assert decode_part(snapshot.marks, SnapshotMarks) == SnapshotMarks(automatic="image", image="tiny")
        await lab.kill_controllers()
        node.takes = True
        lab.start_controllers()
        await node.act((await lab.every("allocation"))[0].key)
        order = (await until(lab, "Copying")).order
        assert order is not None
        assert (order.snapshot, order.disk, order.keeps_identity, order.hostname) == (
            snapshot.uid,
            "root",
            False,
            "web",
        )
        await node.write_report(
            orders=OrderReports(image=[ImageReport(uid=order.uid, snapshot=order.snapshot, message="copies")])
        )

        async def is_told() -> bool:
            return (await read_status(lab)).message == "copies"

        await lab.until(is_told)
        await lab.kill_controllers()
        await send(lab, node, order)
        (lab.folder / "images" / ".fetch-half").write_bytes(b"half")
        lab.start_controllers()
        status = await until(lab, "Available")
        assert (status.sha256, status.size, status.order, status.cleaned) == (DIGEST, 2048, None, ["machine id"])
        assert (tmp_path / "images" / DIGEST).read_bytes() == RAW
        await lab.until(lambda: is_tidy(lab))
        assert (await lab.status("web")).phase == "Running"
        await lab.put_vm("twin", image="gold")
        await lab.until_phase("twin", "Running")


async def test_an_image_that_is_deleted_while_it_is_made_leaves_nothing(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        _, order = await begin(lab)
        name_sent(tmp_path / "images", order.uid, DIGEST).write_bytes(RAW)
        await lab.store.commit([Delete(KEY)])
        await lab.until(lambda: is_tidy(lab))
        assert not (tmp_path / "images" / DIGEST).exists()


async def test_an_image_fails_with_its_nodes_words_and_its_snapshot_goes(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node, order = await begin(lab, keep_identity=True)
        assert order.keeps_identity
        failed = ImageReport(
            uid=order.uid, snapshot=order.snapshot, phase="failed", reason="cantClean", message="has LVM"
        )
        await node.write_report(orders=OrderReports(image=[failed]))
        status = await until(lab, "Failed")
        assert (status.reason, status.message, status.order) == ("cantClean", "has LVM", None)
        await lab.until(lambda: is_tidy(lab))


@pytest.mark.parametrize("is_before", [True, False])
async def test_an_image_of_a_vm_that_goes_fails_unless_its_snapshot_was_taken(tmp_path: Path, is_before: bool) -> None:
    async with MovingLab(tmp_path) as lab:
        if is_before:
            await lab.put_vm("web")  # without a node, it has no disk yet
            await lab.put("image", "gold", {"made_from": "vm/web"})
            await until(lab, "Snapshotting")
            await lab.delete("/vm/default/web")
            status = await until(lab, "Failed")
            assert status.reason == "vmGone" and "vm/web" in status.message
        else:
            node, order = await begin(lab)
            await lab.delete("/vm/default/web")
            await lab.until_gone("/vm/default/web")
            await send(lab, node, order)
            await until(lab, "Available")
        await lab.until(lambda: is_tidy(lab))


async def test_what_a_node_sent_is_checked_as_any_image_and_what_the_server_lost_is_said(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node, order = await begin(lab)
        await send(lab, node, order, b"<html>no image</html>")
        assert (await until(lab, "Failed")).reason == "notAnImage"
        await lab.until(lambda: is_tidy(lab))
        await lab.store.commit([Delete(KEY)])
        await lab.put("image", "gold", {"made_from": "vm/web"})
        again = (await until(lab, "Copying")).order
        assert again is not None
        await send(lab, node, again)
        await until(lab, "Available")
        await lab.kill_controllers()
        (tmp_path / "images" / DIGEST).unlink()
        lab.start_controllers()
        status = await until(lab, "Failed")
        assert status.reason == "contentGone" and "create it again" in status.message
        await lab.kill_controllers()
        (tmp_path / "images" / DIGEST).write_bytes(RAW)
        lab.start_controllers()
        assert (await until(lab, "Available")).cleaned == ["machine id"]
