"""What a node reports of guests that it has without an allocation: its own copies of the allocations they once had. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.kinds.allocation import AllocationSpec
from weft.kinds.node import NodeReport

# here: the guest is this node's, if it is anywhere; open: its move isn't broken off yet, or it was handed over and the target's
# word is missing; left: its target has said that it took over; abandoned: it was to come here, never ran and never will.
GuestLocation = Literal["here", "open", "left", "abandoned"]


class OrphanCopy(msgspec.Struct):
    """The allocation of an orphan, as its node was told it last. ``move`` is the key of the move that it was last a side of,
    ``standing`` where the guest is for all that this node knows, nothing of an agent from before they said so. ``runs``: it is
    alive by its node's last look, or that is an agent that doesn't say."""

    uid: str
    spec: AllocationSpec
    standing: GuestLocation | Literal[""] = ""
    migration: str = ""
    runs: bool = True


def read_copies(report: NodeReport) -> list[OrphanCopy]:
    """The copies in a node's report; those that can't be read, of a newer agent perhaps, are left out. Of a side of a move
    whose node doesn't say where it stands nothing is known; a source that has broken its move off says that it is here."""
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
    """Uids of the node's orphans that surely are no guests."""
    return {copy.uid for copy in read_copies(report) if copy.standing == "abandoned"}
