"""Loss of a node: what people confirm of a silent one, and what of its guests is certain then."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from weft.kinds.fields.cells import dig
from weft.kinds.record import Object
from weft.objects.errors import IllegalTransition
from weft.objects.quantity import format_time
from weft.objects.schema import field

# Capability: it starts no guest with an odd ``loss_guard`` before the server has confirmed it, and knows what a lost one is.
ASKS_FIRST = "asks-first"
MASS_LOSS = "massLoss"  # reason of the condition GuestsGoOn: many nodes are silent together


class GuardInput(msgspec.Struct):
    pause: Annotated[
        float,
        field(
            "From now on, how long no guest there ends, or starts elsewhere, because the node isn't heard",
            quantity="duration",
            ge=60,
            le=86_400,
        ),
    ]


def pause_guard(obj: Object, given: GuardInput) -> dict[str, Any]:
    """The actions that the verb sets. Raises IllegalTransition: the node may have read of the longer one, and be cut off since."""
    until, former = obj["now"] + given.pause, dig(obj, "actions.guard_paused_until", 0.0)
    if until < former:
        raise IllegalTransition(
            f"the guard of node/{dig(obj, 'name', '')} is paused until {format_time(former)}, which can't be shortened",
            hint="its node counts on it; give a longer time, or wait",
        )
    return {"guard_paused_until": until}


def confirm_off(obj: Object, _: Any) -> dict[str, Any]:
    """The actions that the verb sets. Raises IllegalTransition."""
    name, phase = dig(obj, "name", ""), dig(obj, "status.phase", "")
    contact = dig(obj, "report.contact", "")
    if phase not in ("Autonomous", "NotReady") or dig(obj, "status.lost_contact", "") != contact:
        raise IllegalTransition(
            f"node/{name} is {phase}, so it isn't off",
            hint="only a node that sends no heartbeat can be confirmed as off",
        )
    if ASKS_FIRST not in (dig(obj, "report.capabilities") or []):
        raise IllegalTransition(
            f"the agent of node/{name} is older than this: once back, it would start its guests before it asks",
            hint=f"if it doesn't come back: weft node delete {name} --force",
        )
    return {"off_confirmed_contact": contact, "off_confirmed_at": obj["now"]}
