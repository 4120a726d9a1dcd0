"""Guests that a node reports without an allocation: its own copies of the allocations they once had. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.kinds.allocation import AllocationSpec
from weft.kinds.node import NodeReport

# here: the guest is this node's, if it is anywhere; open: its migration is under way, or it was handed over and the target hasn't
# confirmed; left: its target has confirmed that it took over; abandoned: it was migrating here, never ran and never will.
GuestLocation = Literal["here", "open", "left", "abandoned"]


class OrphanCopy(msgspec.Struct):
    """The allocation of an orphan, as its node knew it last."""

    uid: str
    spec: AllocationSpec
    standing: GuestLocation | Literal[""] = ""  # where the guest is, as far as this node knows; "": an older agent
    migration: str = ""  # the key of its last migration
    runs: bool = True  # its node saw it alive last, or has an older agent


def read_copies(report: NodeReport) -> list[OrphanCopy]:
    """The copies in a node's report, without those that can't be parsed, perhaps a newer agent's. Nothing is known of an end
    of a migration whose node doesn't report ``standing``; a source that has aborted its migration reports here."""
    copies = []
    for text in report.orphan_allocations:
        try:
            copy = msgspec.json.decode(text, type=OrphanCopy)
        except msgspec.MsgspecError:
            continue
        if not copy.standing:
            migration = copy.spec.migration
            copy.standing, copy.migration = ("here", "") if migration is None else ("open", migration.key)
        copies.append(copy)
    return copies


def find_given_up(report: NodeReport) -> set[str]:
    """Uids of the node's orphans that certainly have no guest."""
    return {copy.uid for copy in read_copies(report) if copy.standing == "abandoned"}
