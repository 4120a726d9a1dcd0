"""Explanations of a gang's placement or refusal: each member's own verdicts, with the others counted. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from weft.contracts.policy import Request
from weft.kinds.fields.lease import LEASE_CONFLICT
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import Explanation, explain
from weft.scheduler.gang.leases import LeasedMember, LeasedPlace, Refusal
from weft.scheduler.gang.placement import GangMember, Joint, Seats


def explain_places(
    engine: Engine, members: Sequence[GangMember], joint: Joint, *, also: Sequence[int] = ()
) -> list[Explanation]:
    """Explain each placed member: its verdicts with those before it counted; for the rows ``also`` in any case."""
    assert joint.rows is not None
    explanations: dict[int, Explanation] = {}
    with engine.snapshot.trial() as trial:
        seats = Seats(engine, members, trial)
        for member in joint.order:
            row = joint.rows[member]
            request = members[member].request
            explanation = explain(engine, request, members[member].uid, row, also=[row, *also])
            message = f"placed together with {len(members) - 1} more of gang {_name(request)}"
            explanations[member] = msgspec.structs.replace(explanation, message=message, gang=_name(request))
            seats.put(member, row)
    return [explanations[member] for member in range(len(members))]


def explain_refusal(
    engine: Engine, members: Sequence[GangMember], joint: Joint, *, also: Sequence[int] = ()
) -> list[Explanation]:
    """Explain each member of a refused gang: which member lacks what; verdicts for the rows ``also`` in any case."""
    lacking = members[joint.lacking]
    with engine.snapshot.trial() as trial:
        seats = Seats(engine, members, trial)
        for member in joint.order:
            if member in joint.rest:
                seats.put(member, joint.rest[member])
        refused = explain(engine, lacking.request, lacking.uid, None, also=also)
    name = _name(lacking.request)
    beside = f" when {len(joint.rest)} of the others are placed" if joint.rest else ""
    proof = "" if joint.proven else " (found by a search, not proven)"
    message = f"gang {name}: {lacking.name} has no place{beside}: {refused.message}{proof}"
    explanations = []
    for number, each in enumerate(members):
        own = refused if number == joint.lacking else explain(engine, each.request, each.uid, None, also=also)
        nearest = (refused.nearest, refused.nearest_node) if number == joint.lacking else ("", "")
        explanations.append(
            msgspec.structs.replace(
                own, error=refused.error, message=message, nearest=nearest[0], nearest_node=nearest[1], gang=name
            )
        )
    return explanations


def explain_leased_places(
    engine: Engine, members: Sequence[LeasedMember], places: Mapping[int, LeasedPlace]
) -> list[Explanation]:
    """Explain each placed member, in the order of ``places``. Capacity over time is nothing that a node's score knows."""
    explanations = []
    for number, place in places.items():
        request = members[number].request
        base = msgspec.structs.replace(request, amounts=(0, 0, request.amounts[2]))
        message = f"placed together with {len(members) - 1} more of gang {_name(request)}"
        own = explain(engine, base, members[number].uid, place.row)
        explanations.append(msgspec.structs.replace(own, message=message, gang=_name(request)))
    return explanations


def explain_leased_refusal(engine: Engine, members: Sequence[LeasedMember], refusal: Refusal) -> list[Explanation]:
    """Explain each member: which one lacks what. Who may wait waits; for the others it is too late."""
    lacking, explanations = members[refusal.lacking], []
    name = _name(lacking.request)
    beside = f" when {refusal.placed} of the others are placed" if refusal.placed else ""
    message = f"gang {name}: {lacking.name} has no place{beside}: {refusal.conflict.message}"
    for each in members:
        waits = each.asked is None or each.asked.mode == "best-effort"
        error = "insufficientResources" if waits else LEASE_CONFLICT
        found = Explanation(len(engine.snapshot), [], {}, error, message, nearest_node=refusal.conflict.node)
        explanations.append(msgspec.structs.replace(found, gang=name))
    return explanations


def _name(request: Request) -> str:
    return request.gang.partition("/")[2]
