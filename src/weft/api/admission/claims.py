"""Claims: objects that must exist alone in the fabric for their owner to be admitted, such as published ports.

They are made, changed and deleted in the owner's own commit. Reads the claims there are; probes this machine's ports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.api.state.published_ports import FORCE_HINT, find_reserved, is_port_free
from weft.contracts.store import Absent, AtRevision, Delete, Precondition, Put, Write
from weft.kinds.published_port import PublishedPortSpec
from weft.kinds.record import Claim, ClaimWithin, Kind
from weft.kinds.registry import BY_NAME
from weft.objects.envelope import Envelope, encode_envelope, merge_part
from weft.objects.errors import InUse, NotFound
from weft.objects.identity import new_uid, object_key

MOST = 60  # of one owner, so that any object fits into one commit


async def plan_claims(
    context: ApiContext, view: View, kind: Kind, owner: Envelope, old: Any, new: Any
) -> tuple[list[Write], list[Precondition]]:
    """The writes that turn the claims of ``old`` (None: a new owner) into those of ``new``, and what must hold for
    them. Raises InUse if another owner has one, or something outside weft holds the port."""
    asked, before = _claims(kind, owner, new), [] if old is None else _claims(kind, owner, old)
    if not asked and not before:
        return [], []
    held = {_key(claim) for claim in _to_release(before)}
    wanted = {_key(claim): claim for claim in [await _resolve(view, owner, c) for c in asked]}
    writes: list[Write] = []
    preconditions: list[Precondition] = []
    for key, claim in wanted.items():
        current = await view.get_key(key)
        if current is None:
            await _refuse_foreign(context, claim)
            envelope = _make(context, owner, claim)
            view.plan(key, envelope)
            writes.append(Put(key, encode_envelope(envelope)))
            preconditions.append(Absent(key))
        elif current.owner is None or current.owner.uid != owner.uid:
            by = f" by {current.owner.kind}/{current.owner.name}" if current.owner is not None else ""
            raise InUse(f"{claim.taken}{by}", reason=claim.reason, field=claim.field, hint=claim.hint)
        elif not claim.keeps:
            spec = merge_part(current.spec, claim.spec)
            if bytes(spec) != bytes(current.spec):
                changed = msgspec.structs.replace(current, spec=spec, generation=current.generation + 1)
                writes.append(Put(key, encode_envelope(changed)))
                preconditions.append(AtRevision(key, current.revision))
    writes.extend(Delete(key) for key in sorted(held - wanted.keys()))
    return writes, preconditions


def plan_release(kind: Kind, owner: Envelope, spec: Any) -> list[Write]:
    """The deletes of all claims of an owner that goes."""
    return [Delete(_key(claim)) for claim in _to_release(_claims(kind, owner, spec))]


def _claims(kind: Kind, owner: Envelope, spec: Any) -> Sequence[Claim | ClaimWithin]:
    return [] if kind.claims is None else kind.claims(owner, spec)


def _to_release(claims: Sequence[Claim | ClaimWithin]) -> list[Claim]:
    return [claim for claim in claims if isinstance(claim, Claim) and not claim.keeps]


async def _resolve(view: View, owner: Envelope, claim: Claim | ClaimWithin) -> Claim:
    if isinstance(claim, Claim):
        return claim
    within = await view.get(BY_NAME[claim.kind], owner.project, claim.name)
    if within is None:
        raise NotFound(f'{claim.kind} "{claim.name}" not found', hint=f"weft {claim.kind} list")
    return claim.make(within)


def _key(claim: Claim) -> str:
    return object_key(claim.kind, None, claim.name)


def _make(context: ApiContext, owner: Envelope, claim: Claim) -> Envelope:
    kind = BY_NAME[claim.kind]
    return Envelope(
        kind=claim.kind,
        name=claim.name,
        uid=new_uid(),
        owner=owner.ref,
        schema=kind.schema,
        created_at=context.clock.now(),
        spec=msgspec.Raw(msgspec.json.encode(claim.spec)),
        status=msgspec.Raw(msgspec.json.encode(kind.status())),
    )


async def _refuse_foreign(context: ApiContext, claim: Claim) -> None:
    if claim.forced or not isinstance(claim.spec, PublishedPortSpec):
        return
    settings, port, protocol = context.settings, claim.spec.port, claim.spec.protocol
    if reserved := find_reserved(port, protocol, (*settings.listen, *settings.gateways, *settings.functions)):
        raise InUse(
            f"port {port}/{protocol} is reserved for {reserved}",
            reason="portReserved",
            field=claim.field,
            hint=f"choose another port; {FORCE_HINT}",
        )
    nodes = await context.node_ports.find_holders(port, protocol)
    address = settings.publish_address
    if nodes:
        where = f"on {nodes}"
    elif address is None or await is_port_free(address, port, protocol, context.clock):
        return
    else:
        where = f"on the server's machine ({address})"
    raise InUse(
        f"port {port}/{protocol} is held by another program {where}",
        reason=claim.reason,
        field=claim.field,
        hint=f"choose another port; ss -lpn 'sport = :{port}' shows there which program has it; {FORCE_HINT}",
    )
