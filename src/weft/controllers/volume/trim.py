"""Turn a request to trim a volume into an order to the node of the VM that uses it, and take its result. Pure."""

from __future__ import annotations

from weft.controllers.node_reports import find_node_report
from weft.informer.view import Item, View
from weft.kinds.orders import TRIM
from weft.kinds.parts.snapshot.volume_work import TrimOrder
from weft.kinds.registry import BY_NAME
from weft.kinds.volume import VolumeActions, VolumeStatus, VolumeTrim


def plan_trim(view: View, volume: Item, status: VolumeStatus, now: float) -> None:
    """Put the order, or the result of the last one, into ``status``."""
    asked, order = volume.actions(VolumeActions).trim, status.trim_order
    done = status.trimmed.generation if status.trimmed is not None else 0
    if asked <= done:
        status.trim_order = None
        return
    of = status.attached_to
    if of is None or BY_NAME[of.kind].snapshots != "machine" or status.node_uid is None or volume.deleting:
        message = "no running VM has it attached any more"
        _end(status, VolumeTrim(generation=asked, at=now, reason="notAttached", message=message))
        return
    report = find_node_report(view, TRIM, order)
    if report is not None and report.phase != "working" and order is not None and order.generation == asked:
        result = VolumeTrim(
            generation=asked,
            at=now,
            trimmed=report.trimmed,
            freed=report.freed,
            reason=report.reason,
            message=report.message,
        )
        _end(status, result)
        return
    status.trim_order = TrimOrder(uid=volume.uid, generation=asked, node_uid=status.node_uid, workload=of.uid)


def _end(status: VolumeStatus, result: VolumeTrim) -> None:
    status.trim_order, status.trimmed = None, result
