"""A reservation that should last longer: all of its slots get the later end, where they are, or none of them. Pure but for the
snapshot, which counts the longer slots at once."""

from __future__ import annotations

import msgspec

from weft.informer.commit import edit
from weft.informer.view import Item
from weft.kinds.allocation import AllocationSpec
from weft.kinds.fields.lease import LONGEST_SECONDS
from weft.kinds.reservation import ReservationSpec
from weft.objects.envelope import merge_part
from weft.objects.quantity import format_time
from weft.scheduler.allocation.count import count_allocation
from weft.scheduler.allocation.lease import find_extension
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.table.snapshot import amounts_of


def extend_slots(
    engine: Engine, spec: ReservationSpec, slots: list[Item], span: tuple[float, float, float], now: float
) -> tuple[list[Item], str]:
    """The slots with the later end, counted in the snapshot; or none, and until when all of them could last. ``span``: the
    reservation's start, its end so far and the one that it should have, in seconds since 1970."""
    start, end, wanted = span
    most, longer = min(wanted, start + LONGEST_SECONDS), list[Item]()
    too_long = most < wanted
    for slot in slots:
        place = slot.spec(AllocationSpec)
        assert place.lease is not None
        amounts, held = amounts_of(place.resources)[:2], end + spec.grace
        until = find_extension(engine, place.node_uid, amounts, held, most + spec.grace) - spec.grace
        # Counted until then also where that is too early: the next slot on this node sees it.
        most = max(end, min(most, until))
        lease = msgspec.structs.replace(place.lease, end=most)
        changed, later = edit(slot), msgspec.structs.replace(place, lease=lease)
        changed.spec = merge_part(changed.spec, later)
        changed.generation += 1
        longer.append(Item(changed, spec=later))
        count_allocation(engine.snapshot, slot.key, longer[-1], now)
    if slots and most == wanted:
        return longer, ""
    for slot in slots:
        count_allocation(engine.snapshot, slot.key, slot, now)
    text = f"cannot extend to {format_time(wanted)}; the latest possible end is {format_time(most)}"
    return [], f"{text}, after a year" if too_long and most == start + LONGEST_SECONDS else text
