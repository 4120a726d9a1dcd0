"""Writes how many nodes meet each Constraint into its status, so that its author sees its effect at once.

Counts ready nodes by the constraint's part on facts; the part on free capacity changes with every placement."""

from __future__ import annotations

import numpy as np

from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.view import Item, View
from weft.kinds.constraint import ConstraintSpec, ConstraintStatus
from weft.language.parse import read_expression
from weft.objects.envelope import merge_part
from weft.objects.errors import InvalidInput
from weft.scheduler.constraint.match import find_meeting, split
from weft.scheduler.table.snapshot import Snapshot

SHOWN = 16


def plan_constraint_status(view: View, snapshot: Snapshot) -> list[Commit]:
    """Write the status of every Constraint whose status changes."""
    commits = []
    for item in view.of_kind("constraint").values():
        status = _count(item, snapshot)
        if not item.deleting and status != item.status(ConstraintStatus):
            envelope = edit(item)
            envelope.status = merge_part(envelope.status, status)
            commits.append(Commit(item.key, [put(envelope)], [unchanged(item)]))
    return commits


def _count(item: Item, snapshot: Snapshot) -> ConstraintStatus:
    try:
        asked, _ = split(read_expression(str(item.spec(ConstraintSpec).expression)))
    except InvalidInput:
        return ConstraintStatus(nodes=int(snapshot.online.sum()))  # written by a newer weft: no node meets it
    meeting = snapshot.online if asked is None else snapshot.online & find_meeting(asked, snapshot)
    rows = np.flatnonzero(meeting)
    names = sorted(snapshot.names[row] for row in rows)
    return ConstraintStatus(meeting=len(names), nodes=int(snapshot.online.sum()), names=names[:SHOWN])
