"""How one workload gets what another one had: addresses with their MAC, and published ports, in one commit."""

from __future__ import annotations

import msgspec

from weft.informer.commit import Draft, edit, put, unchanged
from weft.informer.view import Item, View
from weft.kinds.allocation import AllocationReport, AllocationSpec, is_at_rest
from weft.kinds.endpoint import ENDPOINTS_BY_WORKLOAD, EndpointSpec, EndpointStatus
from weft.kinds.parts.workload import WorkloadSpec, claim_places
from weft.kinds.published_port import PUBLISHED_PORTS_BY_WORKLOAD, PublishedPortSpec, PublishedPortStatus
from weft.kinds.record import Claim
from weft.kinds.registry import BY_NAME
from weft.objects.envelope import Envelope, merge_part
from weft.objects.identity import new_uid, object_key


class HandoverFacts(msgspec.Struct, frozen=True):
    """One allocation."""

    rests: bool  # its node reports it stopped, as its spec desires
    holds: bool  # volumes or NICs


def read_place(allocation: Item) -> HandoverFacts:
    spec, report = allocation.spec(AllocationSpec), allocation.report(AllocationReport)
    rests = is_at_rest(spec, report) and spec.role == "active" and spec.migration is None and not allocation.deleting
    return HandoverFacts(rests, bool(spec.volumes or spec.nics))


def plan_claims(
    draft: Draft, view: View, giver_uid: str, taker: Envelope, workload_spec: WorkloadSpec, now: float
) -> tuple[list[str], str]:
    """Give one workload's endpoints and published ports to another, with the same network, address, MAC and port; ports of the
    taker that no workload has are made. What ports are left, and a sentence on ports that others have taken."""
    give_endpoints(draft, view, giver_uid, taker, now)
    return give_ports(draft, view, giver_uid, taker, workload_spec, now)


def give_endpoints(draft: Draft, view: View, giver_uid: str, taker: Envelope, now: float, **changes: str) -> None:
    """``changes``: fields of the endpoints' specs that change besides."""
    for endpoint in view.find(ENDPOINTS_BY_WORKLOAD, giver_uid):
        envelope, spec = edit(endpoint), endpoint.spec(EndpointSpec)
        # This is another NIC: what nodes reported of the former isn't true of it.
        envelope.uid, envelope.owner, envelope.created_at = new_uid(), taker.ref, now
        given = msgspec.structs.replace(spec, workload=taker.ref, **changes)
        envelope.spec = merge_part(envelope.spec, given)
        envelope.status = msgspec.Raw(msgspec.json.encode(EndpointStatus()))
        draft.writes.append(put(envelope))
        draft.preconditions.append(unchanged(endpoint))


def give_ports(
    draft: Draft, view: View, giver_uid: str, taker: Envelope, workload_spec: WorkloadSpec, now: float
) -> tuple[list[str], str]:
    """Claim ports as ``plan_claims`` does, and nothing else."""
    publish, lost = list(workload_spec.publish), ""
    held = {item.key: item for item in view.find(PUBLISHED_PORTS_BY_WORKLOAD, giver_uid)}
    for claim, text in zip(_list_ports(taker, workload_spec), workload_spec.publish, strict=True):
        key = object_key(claim.kind, None, claim.name)
        current = held.get(key) or view.get(key)
        spec = claim.spec
        assert isinstance(spec, PublishedPortSpec)
        if current is None:
            draft.make(BY_NAME[claim.kind].make(claim.name, spec, now, owner=taker))
        elif key in held:
            envelope = edit(current)
            envelope.owner, envelope.generation = taker.ref, envelope.generation + 1
            envelope.spec = merge_part(envelope.spec, spec)
            envelope.status = msgspec.Raw(msgspec.json.encode(PublishedPortStatus()))
            draft.writes.append(put(envelope))
            draft.preconditions.append(unchanged(current))
        elif current.envelope.owner != taker.ref:
            by = current.envelope.owner
            publish.remove(text)
            lost = f"port {spec.port}/{spec.protocol} is now published by {f'{by.kind}/{by.name}' if by else 'another'}"
    return publish, lost


def _list_ports(taker: Envelope, spec: WorkloadSpec) -> list[Claim]:
    claims = claim_places(taker, spec)
    return [claim for claim in claims if isinstance(claim, Claim) and isinstance(claim.spec, PublishedPortSpec)]
