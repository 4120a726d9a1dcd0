"""What a node reports of guests that it has without an allocation: its own copies of the allocations they once had. Pure."""

from __future__ import annotations

import msgspec

from weft.kinds.allocation import AllocationSpec
from weft.kinds.node import NodeReport


class OrphanCopy(msgspec.Struct):
    """The allocation of an orphan, as its node was told it last."""

    uid: str
    spec: AllocationSpec


def read_copies(report: NodeReport) -> list[OrphanCopy]:
    """The copies in a node's report; those that can't be read, of a newer agent perhaps, are left out."""
    copies = []
    for text in report.orphan_allocations:
        try:
            copies.append(msgspec.json.decode(text, type=OrphanCopy))
        except msgspec.MsgspecError:
            continue
    return copies
