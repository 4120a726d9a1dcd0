"""Evidence that guests of a silent node have certainly ended there. Pure.

A node's ``contact`` is another one each time that its agent begins or has been unheard, and it is in the node's report before any
guest starts again. So what was seen of a node with one contact holds for as long as its report has that one, by any clock; and all
that is concluded is committed only if the node is unchanged.
"""

from __future__ import annotations

import math

import msgspec

from weft.controllers.loss.outlook import PROMISE_SECONDS
from weft.failover.timing import stretch
from weft.informer.loss.renewals import PROMPT_SECONDS
from weft.informer.view import Item
from weft.kinds.allocation import AllocationReport, AllocationSpec, EndedBy, is_held
from weft.kinds.node import SILENT_PHASES, NodeActions, NodeMarks, NodeReport, NodeSpec, NodeStatus
from weft.kinds.parts.node.power import is_off
from weft.objects.quantity import format_duration, format_time

TOGETHER_SECONDS = 120.0  # nodes that fell silent within it of each other did so for one reason
_PART = 3  # with more than one in three nodes silent together, nobody knows better than people


class Silence(msgspec.Struct, frozen=True):
    """A node that isn't heard."""

    node: Item
    seconds: float  # at least
    is_live: bool  # its lease isn't over yet
    many: str = ""  # how many are silent with it, if they are too many
    pause: float = -math.inf  # seconds left of the pause of its guard; below 0: it ended before


def find_evidence(silence: Silence, place: Item, now: float) -> EndedBy | None:
    """Evidence that a guest runs no more on its silent node; None if there is none yet."""
    node = silence.node
    report, status, actions = node.report(NodeReport), node.status(NodeStatus), node.actions(NodeActions)
    reading = node.marks(NodeMarks).power_reading
    spec, name = place.spec(AllocationSpec), node.envelope.name
    held = is_held(spec, place.report(AllocationReport))
    lapsed = (
        not silence.is_live
        and silence.seconds >= PROMISE_SECONDS + stretch(spec.loss_after)
        and silence.pause <= -PROMISE_SECONDS
    )
    asks = held or _has_read(place)
    off = is_off(reading, report.contact, node.spec(NodeSpec).power) and status.phase in SILENT_PHASES
    if asks and off and not silence.many and silence.seconds > PROMPT_SECONDS:
        at = reading.off_at if reading is not None and reading.off_at is not None else now
        return EndedBy(by="power", at=at, message=f"the BMC of node {name} said off at {format_time(at)}")
    confirmed = bool(report.contact) and actions.off_confirmed_contact == report.contact
    if asks and confirmed and lapsed:  # then it is safe also if they are wrong, and a guard holds it
        at = actions.off_confirmed_at
        return EndedBy(by="person", at=at, message=f"people confirmed at {format_time(at)} that node {name} is off")
    if held and lapsed and not silence.many and status.phase == "NotReady":
        promised = format_duration(PROMISE_SECONDS)
        message = f"node {name} was not heard for {promised}: its guard ended the guest before that"
        return EndedBy(by="guard", at=now, message=message)
    return None


def _has_read(place: Item) -> bool:
    """Whether the node knows of the allocation, if at all, that its guest is started only once the server was asked."""
    report = place.report(AllocationReport)
    return report.generation == place.envelope.generation or (
        place.envelope.generation == 1 and place.spec(AllocationSpec).loss_guard == 1
    )


def describe_many(node: Item, silent: dict[str, float], nodes: int) -> str:
    """Count the nodes that are silent together with one, if they are too many of all ``nodes``; else empty. ``silent`` has by uid
    when that began."""
    since = silent.get(node.uid)
    if since is None:
        return ""
    together = sum(abs(other - since) <= TOGETHER_SECONDS for other in silent.values())
    return f"{together} of {nodes} nodes are silent together" if together > 1 and together * _PART > nodes else ""
