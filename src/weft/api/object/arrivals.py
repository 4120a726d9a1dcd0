"""Lets a VM of a linked cluster in that migrates here: the Arrival, the VM, its volumes and its addresses, in one commit; or
refuses it with all that it lacks here, at once. Nobody but a linked cluster makes arrivals."""

from __future__ import annotations

from typing import Any

from weft.api.admission import admit
from weft.api.admission.admit import Draft
from weft.api.admission.commit import read_again, record_change, settle, was_done
from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.api.object.verbs import add_drafts
from weft.api.request.call import Call, object_answer
from weft.api.request.manifest import Manifest, read_manifest
from weft.api.request.target import Target
from weft.contracts.store import Absent, Put
from weft.kinds.arrival import (
    ARRIVAL,
    ArrivalNic,
    ArrivalSpec,
    list_networks,
    make_arriving_vm,
    make_arriving_volumes,
    name_source,
)
from weft.kinds.endpoint import (
    ENDPOINT,
    EndpointSpec,
    EndpointStatus,
    describe_holder,
    describe_taken_mac,
    endpoint_name,
)
from weft.kinds.image import ImageStatus
from weft.kinds.network import NETWORK, NetworkSpec
from weft.kinds.parts.nic import check_address
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.record import Kind
from weft.kinds.securitygroup import SECURITY_GROUP
from weft.kinds.vm import VM, VmSpec
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope
from weft.objects.errors import Forbidden, IllegalTransition, InvalidInput, WeftError, shorten
from weft.objects.identity import kind_prefix, named_key, object_key
from weft.objects.schema import read_strict
from weft.serving.answer import Answer

MOST_ARRIVALS = 256  # of one cluster in a project, those that it hasn't settled included
_SHOWN = 600  # characters of each reason


async def create(context: ApiContext, call: Call, raw: dict[str, Any], target: Target, *, dry_run: bool) -> Answer:
    """``POST …/arrivals``. Raises IllegalTransition (``cantTake``) with each reason in ``details.reasons``."""
    if not call.actor.is_cluster:
        raise Forbidden(
            "only a linked cluster lets VMs arrive here",
            reason="onlyItsCluster",
            hint="at that cluster: weft vm migrate NAME --to-cluster HERE",
        )
    manifest = read_manifest(raw, kind=ARRIVAL, project=target.project)
    made: list[Draft] = []

    async def plan(view: View) -> Draft:
        made.clear()
        call.actor.require("arrival:create", manifest.project, "let a VM migrate here")
        await _refuse_too_many(view, manifest.project, call.actor.name)
        draft = await admit.plan_create(context, view, manifest, call.actor)
        made.extend(await _plan_workload(context, view, manifest, draft, name_source(call.actor.name)))
        add_drafts(draft, made)
        return draft

    key = None if dry_run else call.idempotency_key
    try:
        draft = await settle(context, plan, key=key, dry_run=dry_run)
    except WeftError:
        # The reason may be the effect of the first request with this key, whose answer got lost.
        there = object_key(ARRIVAL.name, manifest.project, manifest.name)
        stored = await read_again(context, there) if key is not None and await was_done(context, key) else None
        if stored is None:
            raise
        return object_answer(stored)
    if not dry_run:
        for each in (*made, draft):
            record_change(context, call, each)
    return object_answer(draft.envelope, 200 if dry_run else 201)


def refuse_put(kind: Kind) -> None:
    """Raise InvalidInput for an arrival in a request that would make it without a VM."""
    if kind is ARRIVAL:
        raise InvalidInput(
            "an arrival can't be made or changed this way: a linked cluster creates it",
            field="kind",
            hint="at that cluster: weft vm migrate NAME --to-cluster HERE",
        )


async def _refuse_too_many(view: View, project: str | None, cluster: str) -> None:
    """Each stays until the other cluster has taken note of its end: one that never does fills no store."""
    page = await view.store.list(kind_prefix(ARRIVAL.name, project))
    made = [decode_envelope(entry.value, entry.revision).creator for entry in page.entries].count(cluster)
    if made >= MOST_ARRIVALS:
        raise IllegalTransition(
            f"{made} arrivals of this cluster are in project {project} already, with those that are over",
            reason="tooManyArrivals",
            hint="wait until some have arrived; delete migrations that are over, so that this cluster may forget them",
        )


async def _plan_workload(
    context: ApiContext, view: View, manifest: Manifest, draft: Draft, cluster: str
) -> list[Draft]:
    """The VM with its volumes and addresses."""
    spec = decode_part(draft.envelope.spec, ArrivalSpec)
    made = make_arriving_vm(manifest.name, spec, cluster, manifest.labels or {})
    parts = [
        read_manifest(one, project=manifest.project, by_verb=True)
        for one in (*make_arriving_volumes(manifest.name, spec), made)
    ]
    reasons = await _list_lacks(view, manifest.project, parts, spec)
    drafts: list[Draft] = []
    if not reasons:
        try:
            drafts += [await admit.plan_create(context, view, part, None) for part in parts]
        except WeftError as problem:
            reasons.append(problem.message)
    if reasons:
        raise IllegalTransition(
            f"{spec.of} can't migrate here: {'; '.join(shorten(one, _SHOWN) for one in reasons)}",
            reason="cantTake",
            hint="mend that here, then migrate it again",
            details={"reasons": [shorten(one, _SHOWN) for one in reasons]},
        )
    await _hold_addresses(context, view, drafts[-1], spec)
    return drafts


async def _list_lacks(view: View, project: str | None, parts: list[Manifest], spec: ArrivalSpec) -> list[str]:
    """Reasons that keep it from coming, in sentences."""
    lacks = []
    for part in parts:
        there = await view.get(part.kind, part.project, part.name)
        if there is not None and part.kind is VM and (where := decode_part(there.marks, WorkloadMarks).departed):
            lacks.append(
                f"vm/{part.name} here is only the name of a VM that migrated to {where}: weft vm delete {part.name} -p {project}, "
                "at this cluster, frees it; the VM stays where it runs"
            )
        elif there is not None:
            lacks.append(f"{part.kind.name}/{part.name} exists here already")
    workload = read_strict(parts[-1].spec, VmSpec, "spec.workload")
    lacks += await _list_image_lacks(view, project, workload.image, spec)
    for name in workload.security_groups:
        if await view.get(SECURITY_GROUP, project, name) is None:
            lacks.append(f"securitygroup/{name} doesn't exist here")
    for nic in spec.nics:
        if why := await _find_network_lack(view, project, nic):
            lacks.append(why)
    return lacks


async def _list_image_lacks(view: View, project: str | None, name: str, spec: ArrivalSpec) -> list[str]:
    image = await view.get_key(named_key("image", project, name))
    if image is None:
        return [f"image/{name} doesn't exist here: add it with the same content ({spec.image[:12]}…)"]
    status = decode_part(image.status, ImageStatus)
    if status.phase != "Available":
        return [f"image/{name} is {status.phase} here, not Available"]
    if status.sha256 != spec.image:
        return [
            f"image/{name} has other content here: it is not {spec.image[:12]}…"
        ]  # whose it is, only its project learns
    return []


async def _find_network_lack(view: View, project: str | None, nic: ArrivalNic) -> str:
    network = await view.get(NETWORK, project, nic.network)
    if network is None or network.deleting_since is not None:
        return f"network/{nic.network} doesn't exist here"
    cidr = decode_part(network.spec, NetworkSpec).cidr
    if cidr != nic.cidr:
        return (
            f"network/{nic.network} is {cidr} here, not {nic.cidr}, and a guest that runs keeps its address: it can migrate only "
            "in a network that has one name and one range at both clusters (weft network create NAME --cidr RANGE)"
        )
    try:
        check_address(nic.address, network, "spec.nics")
    except InvalidInput as problem:
        return problem.message
    holder = await view.get(ENDPOINT, None, endpoint_name(network.uid, nic.address))
    if holder is not None:
        by = describe_holder(decode_part(holder.spec, EndpointSpec), project)
        return f"{nic.address} in network {nic.network} is taken here by {by}"
    page = await view.store.list(object_key(ENDPOINT.name, None, f"{network.uid}."))
    endpoints = (decode_part(decode_envelope(entry.value, entry.revision).spec, EndpointSpec) for entry in page.entries)
    same = next((one for one in endpoints if one.mac == nic.mac), None)
    return describe_taken_mac(same, project) if same is not None else ""


async def _hold_addresses(context: ApiContext, view: View, draft: Draft, spec: ArrivalSpec) -> None:
    """Add the endpoints of the addresses that nobody chose: with the MACs that the running guest has."""
    workload = draft.envelope
    claimed, guarded = list_networks(spec), dict[str, Envelope]()
    for index, nic in enumerate(spec.nics):
        if ":" in claimed[index]:
            continue  # a chosen one: its claim made it
        network = await view.get(NETWORK, workload.project, nic.network)
        assert network is not None
        endpoint = _make_endpoint(context, workload, network, index, nic)
        draft.writes.append(Put(endpoint.key, encode_envelope(endpoint)))
        draft.preconditions.append(Absent(endpoint.key))  # the VM names the network, which so stays as it is
        guarded[network.key] = network
    # Written as it is, at the revision on which the reference to it relies: of two arrivals that bring the same MAC, both found
    # free, one fails and looks again. So does the scheduler, which draws MACs for VMs of this cluster; where its commit was first,
    # the arrivals controller finds that.
    draft.writes += [Put(network.key, encode_envelope(network)) for network in guarded.values()]


def _make_endpoint(context: ApiContext, workload: Envelope, network: Envelope, index: int, nic: ArrivalNic) -> Envelope:
    spec = EndpointSpec(
        workload=workload.ref,
        network=nic.network,
        network_uid=network.uid,
        index=index,
        mac=nic.mac,
        address=nic.address,
    )
    name = endpoint_name(network.uid, nic.address)
    return ENDPOINT.make(name, spec, context.clock.now(), uid="", owner=workload, status=EndpointStatus())
