"""Has images made from VMs: a snapshot first, then its node makes the image of it and sends that to the server, where ``Images``
checks and keeps it.

Reads images, VMs, snapshots, nodes; writes image.status with the order for the node, makes and deletes the snapshots. Woken by any
of those. Nodes get the order with the API server's answers to their reports, and report on it. An image that is deleted meanwhile
takes its order with it; its snapshot goes as soon as no image is being made from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.controllers.node_reports import find_node_report
from weft.informer.commit import Commit, Draft
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.allocation import ROOT
from weft.kinds.image import IMAGE, IMAGES_BY_SNAPSHOT, IMAGES_BY_UID, ImageSpec, ImageStatus, source_key
from weft.kinds.node import NODES_BY_UID, NodeReport, NodeStatus
from weft.kinds.orders import MAKE_IMAGE
from weft.kinds.parts.image.work import ImageOrder
from weft.kinds.snapshot import SNAPSHOT, SNAPSHOTS_BY_UID, SnapshotMarks, SnapshotSpec, SnapshotStatus
from weft.kinds.vm import VmSpec
from weft.objects.identity import cut_name, new_uid

SOURCE = "images"
MAKING = ("Snapshotting", "Copying")


class MadeImages:
    name = "made images"
    kinds = ("image", "vm", "snapshot", "node")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "image":
                items = [item for item in (change.old, change.new) if item is not None]
                uids = [uid for item in items if (uid := item.status(ImageStatus).snapshot_uid)]
                return [change.key, *(item.key for uid in uids for item in view.find(SNAPSHOTS_BY_UID, uid))]
            case "snapshot":
                return [change.key, *(item.key for item in view.find(IMAGES_BY_SNAPSHOT, change.item.uid))]
            case "node":
                return self._route_node(view, change)
        return ()

    def _route_node(self, view: View, change: Changed) -> Iterable[str]:
        if has_changed(change, lambda node: node.status(NodeStatus).phase == "Ready"):
            return [item.key for item in view.of_kind("image").values() if item.status(ImageStatus).phase in MAKING]
        if not has_changed(change, lambda node: node.report(NodeReport).orders.image):
            return ()
        items = [item for item in (change.old, change.new) if item is not None]
        uids = {one.uid for item in items for one in item.report(NodeReport).orders.image}
        return [item.key for uid in sorted(uids) for item in view.find(IMAGES_BY_UID, uid)]

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        items = [item for key in keys if (item := view.get(key)) is not None and not item.deleting]
        commits = [PLANS[item.envelope.kind](view, item, now) for item in items]
        return Plan([commit for commit in commits if commit is not None])


def plan_snapshot(view: View, snapshot: Item, now: float) -> Commit | None:
    """Delete it once no image is being made from it."""
    users = view.find(IMAGES_BY_SNAPSHOT, snapshot.uid)
    is_used = any(item.status(ImageStatus).phase in MAKING and not item.deleting for item in users)
    if snapshot.marks(SnapshotMarks).automatic != "image" or is_used:
        return None
    draft = Draft()
    draft.change(snapshot, deleting_since=now)
    return draft.commit(snapshot.key)


def plan_image(view: View, image: Item, now: float) -> Commit | None:
    spec, status = image.spec(ImageSpec), image.status(ImageStatus)
    if not spec.made_from or status.phase not in ("Pending", *MAKING):
        return None
    draft = Draft()
    if status.phase == "Pending":
        planned = _begin(draft, view, image, now)
    elif status.phase == "Snapshotting":
        planned = _await_snapshot(view, image)
    else:
        planned = _await_copy(view, image)
    events = []
    if planned.phase == "Failed":
        events = [Event("Warning", "ImageFailed", planned.message, image.envelope.ref, SOURCE)]
    if planned != status:
        draft.change(image, status=planned)
    return draft.commit(image.key, events)


def _begin(draft: Draft, view: View, image: Item, now: float) -> ImageStatus:
    """A snapshot of the VM; its name tells for which image."""
    spec, status, envelope = image.spec(ImageSpec), image.status(ImageStatus), image.envelope
    vm = view.get(source_key(image))
    if vm is None or vm.deleting:
        return _fail(status, "vmGone", f"{spec.made_from} is gone")
    uid = new_uid()
    wanted, marks = SnapshotSpec(of=spec.made_from), SnapshotMarks(automatic="image", image=vm.spec(VmSpec).image)
    name = cut_name(envelope.name, f"-{uid[:12]}")
    draft.make(
        SNAPSHOT.make(name, wanted, now, uid=uid, project=envelope.project, creator=envelope.creator, marks=marks)
    )
    return replace(status, phase="Snapshotting", snapshot_uid=uid, reason="", message="")


def _await_snapshot(view: View, image: Item) -> ImageStatus:
    status, snapshot = image.status(ImageStatus), _find_snapshot(view, image)
    if snapshot is None:
        return _fail(status, "snapshotGone", "its snapshot was deleted before it was copied")
    taken = snapshot.status(SnapshotStatus)
    if taken.phase == "Failed":
        return _fail(status, taken.reason or "snapshotFailed", f"no snapshot could be taken: {taken.message}")
    if taken.phase == "Unavailable":
        return _fail(status, "snapshotGone", f"its snapshot can't be copied: {taken.message}")
    if taken.phase != "Ready":
        return replace(status, reason=taken.reason, message=taken.message)
    if all(disk.key != ROOT for disk in taken.disks.values()):
        return _fail(status, "noDisk", f"{image.spec(ImageSpec).made_from} has no root disk")
    return _order(view, image, snapshot)


def _await_copy(view: View, image: Item) -> ImageStatus:
    status, snapshot = image.status(ImageStatus), _find_snapshot(view, image)
    report = find_node_report(view, MAKE_IMAGE, status.order)
    if report is not None and report.phase == "failed":
        return _fail(status, report.reason or "copyFailed", report.message or "its node could not make it")
    if report is not None and report.phase == "done":
        sent = replace(status, phase="Fetching", sha256=report.sha256, cleaned=report.cleaned, order=None)
        return replace(sent, reason="", message="the server checks it")
    if snapshot is None or snapshot.status(SnapshotStatus).phase != "Ready":
        return _fail(status, "snapshotGone", "its snapshot is gone before it was copied")
    if status.order is None or not _is_ready(view, status.order.node_uid):
        return _order(view, image, snapshot)
    if status.order.node_uid != snapshot.status(SnapshotStatus).node_uid:
        return _order(view, image, snapshot)
    return replace(status, reason="", message=report.message if report is not None else "")


def _order(view: View, image: Item, snapshot: Item) -> ImageStatus:
    """The order for the node where the snapshot lies now."""
    spec, taken = image.spec(ImageSpec), snapshot.status(SnapshotStatus)
    begun = replace(image.status(ImageStatus), phase="Copying", consistency=taken.consistency, order=None)
    if taken.node_uid is None or not _is_ready(view, taken.node_uid):
        return replace(begun, reason="nodeNotReady", message=f"waits: node {taken.node} is not ready")
    order = ImageOrder(
        uid=image.uid,
        name=f"{image.envelope.project}/{image.envelope.name}",
        node_uid=taken.node_uid,
        snapshot=snapshot.uid,
        disk=ROOT,
        image_sha256=taken.image_sha256,
        keeps_identity=spec.keep_identity,
        hostname=spec.made_from.partition("/")[2],
    )
    return replace(begun, order=order, reason="", message="")


def _find_snapshot(view: View, image: Item) -> Item | None:
    found = view.find(SNAPSHOTS_BY_UID, image.status(ImageStatus).snapshot_uid)
    return next((item for item in found if not item.deleting), None)


def _is_ready(view: View, node_uid: str) -> bool:
    return any(node.status(NodeStatus).phase == "Ready" for node in view.find(NODES_BY_UID, node_uid))


def _fail(status: ImageStatus, reason: str, message: str) -> ImageStatus:
    return replace(status, phase="Failed", order=None, reason=reason, message=message)


PLANS = {IMAGE.name: plan_image, SNAPSHOT.name: plan_snapshot}
