"""Lists of the kinds that snapshots are taken of, and of an object's snapshots."""

from __future__ import annotations

from typing import Any

from weft.cli.session import Session
from weft.kinds.fields.cells import dig
from weft.kinds.record import Kind
from weft.objects.errors import Forbidden

Object = dict[str, Any]


def has_snapshots(kind: Kind) -> bool:
    """Whether snapshots are taken of objects of this kind."""
    return kind.verb("snapshot") is not None


def is_of(snapshot: Object, workload: Object) -> bool:
    """Whether it is of this workload, and not of an earlier one of the same name. One that isn't begun will be, unless it failed
    because that one was gone."""
    uid = dig(snapshot, "status.workload_uid", "")
    return uid == workload["uid"] if uid else bool(snapshot["created_at"] >= workload["created_at"])


def list_snapshots(session: Session, what: str) -> list[Object]:
    """Those of ``what`` (vm/web), the oldest first, without those that are being deleted. None for who may not see snapshots."""
    return group_snapshots(session, f"spec.of={what}").get(what, [])


def group_snapshots(session: Session, fields: str = "") -> dict[str, list[Object]]:
    """Those of the project by what they are of (``vm/web``), as ``list_snapshots`` has them."""
    try:
        items = session.client.list("snapshot", fields=fields).items
    except Forbidden:
        return {}
    found: dict[str, list[Object]] = {}
    for one in sorted(items, key=lambda one: (dig(one, "status.taken_at") or one["created_at"], one["name"])):
        if not one.get("deleting_since"):
            found.setdefault(str(dig(one, "spec.of", "")), []).append(one)
    return found
