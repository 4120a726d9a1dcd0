"""Verbs beyond create, change, delete: each changes the object in one commit, makes another, or gives a ticket for the gateway.

The Kind record defines what a verb does; it is carried out here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from weft.api.admission import admit
from weft.api.admission.admit import Draft
from weft.api.admission.commit import read_again, record_change, settle, was_done
from weft.api.admission.refusals import not_found, refuse_deleting, taken
from weft.api.admission.view import View
from weft.api.auth.authorise import require_permission
from weft.api.context import ApiContext
from weft.api.log.departed import claim_departed
from weft.api.object.backup_files import claim_backup, claim_repository
from weft.api.object.replica import claim_replica, find_order, refuse_other_point
from weft.api.request.call import Call, Change, json_answer, object_answer
from weft.api.request.if_match import Match
from weft.api.request.manifest import Manifest, read_manifest
from weft.api.request.target import Target
from weft.api.request.trace import traced
from weft.contracts.store import AtRevision, Put
from weft.contracts.trace.context import write_traceparent
from weft.kinds.allocation import AllocationSpec
from weft.kinds.backup import BACKUP
from weft.kinds.backup_repository import BACKUP_REPOSITORY
from weft.kinds.migration import ENDED, MIGRATION, MigrationStatus
from weft.kinds.node import NODE
from weft.kinds.parts.convert_verb import describe_departure
from weft.kinds.parts.stream_verbs import LOOKS, RECEIVE, STREAM_VERBS, refuse_early
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.record import Kind, Verb
from weft.kinds.registry import KINDS, find_kind, is_workload
from weft.kinds.replica import REPLICA
from weft.kinds.snapshot import SNAPSHOT
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope, merge_part
from weft.objects.errors import AlreadyExists, Forbidden, IllegalTransition, InvalidInput, NotFound, TooLarge, WeftError
from weft.objects.identity import new_uid, object_key, short_id
from weft.objects.lifecycle import ALLOWED, Phase, check_verb
from weft.objects.schema import read_strict, suggest
from weft.objects.spec_change import FieldChange, plan_spec_change
from weft.serving.answer import Answer
from weft.trust.tickets import LIFETIME_SECONDS, sign_ticket

_MOST_INPUT_BYTES = 40_000  # the ticket that contains it must fit into one frame
PLACE_SECONDS = 10.0  # exec waits so long for a workload that is about to be placed; then the node waits for the guest
_POLL_SECONDS = 0.1
_STARTABLE = ("Stopped", "Suspended", "Failed")
_NOT_VERBS = {  # verbs of the API that are no English ones, as an error says them
    "capture": "capture packets of",
    "console": "open the console of",
    "contents": "list the backups in",
    "extend-lease": "extend the lease of",
    "cancel-lease": "cancel the lease of",
    "files": "see the files of",
    "flows": "see the flows of",
    "forward": "forward a port of",
    "logs": "read the logs of",
    "maintenance": "change the maintenance of",
    "metrics": "see the metrics of",
    "screen": "see the screen of",
}


async def act(context: ApiContext, call: Call, target: Target) -> Answer:
    """``POST …/{name}:{verb}``."""
    kind, verb = target.kind, _find_verb(target)
    doing = _NOT_VERBS.get(verb.name, verb.name)
    is_sender = kind is REPLICA and verb.name == RECEIVE.name and call.actor.kind == "node"
    order = await find_order(context, call, target) if is_sender else None
    if order is None:
        require_permission(call.actor, f"{kind.name}:{verb.name}", target.project, f"{doing} {kind.a_title}")
    dry_run = False
    if verb.stream:
        call.query()  # a ticket opens what it is for: there is no trying
    else:
        dry_run = call.read_dry_run()
    given = _read_input(verb, await call.read_object())
    expected = Match(call)
    if order is not None:
        refuse_other_point(order, given, target)
    elif call.actor.is_cluster:
        named = await read_again(context, target.key)
        if named is None or call.actor.is_kept_from(named.creator):
            raise not_found(kind, target.require_name(), target.project)
    elif verb.for_its_cluster:
        raise Forbidden(
            f"{doing}: only the linked cluster that made {kind.a_title} may",
            reason="onlyItsCluster",
            hint="its controllers do so while the VM runs there",
        )
    if verb.stream:
        if expected.is_given:
            expected.check(kind, target.require_name(), await read_again(context, target.key))
        return await _open_stream(context, call, target, verb, given)
    if verb.make is not None:
        return await _make(context, call, target, verb, given, expected, dry_run=dry_run)
    key = None if dry_run else call.idempotency_key
    try:
        draft = await settle(
            context, lambda view: _plan(context, call, view, target, verb, given, expected), key=key, dry_run=dry_run
        )
    except WeftError:
        # A verb that was carried out may be illegal in the state that it led to.
        stored = await read_again(context, target.key) if key is not None and await was_done(context, key) else None
        if stored is None:
            raise
        return object_answer(stored)
    if not dry_run:
        call.changed.append(Change(draft.envelope, draft.action, draft.changes))
    if draft.changes and not dry_run:
        said = f": {verb.says(given)}" if verb.says is not None else ""
        context.add_event(draft.envelope.ref, "Asked", f"{verb.name} requested by {call.actor.name}{said}")
    return object_answer(draft.envelope)


async def _plan(
    context: ApiContext, call: Call, view: View, target: Target, verb: Verb, given: Any, expected: Match
) -> Draft:
    kind = target.kind
    current = await view.get(kind, target.project, target.require_name())
    expected.check(kind, target.require_name(), current)
    if current is None:
        raise not_found(kind, target.require_name(), target.project)
    if not verb.while_deleted:
        refuse_deleting(kind, current)
    if not verb.changes:
        raise NotFound(f"{kind.title} verb {verb.name} does nothing")
    old = decode_part(current.spec, kind.spec)
    whole = {**_read_whole(kind, current), "now": round(context.clock.now(), 3)}
    whole["others"] = await _read_others(view, target, verb, whole, given)
    for permission, what in verb.rights(whole, given) if verb.rights is not None else ():
        call.actor.require(permission, target.project, what)
    new = old if verb.change is None else msgspec.convert(verb.change(whole, given), kind.spec)
    if kind.admission.check is not None:
        kind.admission.check(new)
    asked, changes, marked = plan_act(kind, current, verb.act(whole, given) if verb.act is not None else {}, verb)
    changes = [*plan_spec_change(old, new), *changes]
    if not changes and not marked:
        return Draft(kind, current, "unchanged")
    rights = await admit.require_permissions(context, view, kind, target.project, current.name, call.actor, old, new)
    draft = await admit.plan_spec(context, view, kind, asked, old, new, changes, call.actor)
    draft.changes = [*changes, *marked]
    draft.preconditions += rights
    await admit.charge(context, view, draft, old, new, current)
    return draft


def _read_whole(kind: Kind, current: Envelope) -> dict[str, Any]:
    """The object as plain data, with what its spec, its actions and its marks are unless somebody has said otherwise."""
    whole: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(current))
    whole["spec"] = msgspec.to_builtins(decode_part(current.spec, kind.spec))
    for part, type_ in (("actions", kind.actions), ("marks", kind.marks)):
        if type_ is not None:
            whole[part] = msgspec.to_builtins(decode_part(getattr(current, part), type_))
    return whole


def plan_act(
    kind: Kind, current: Envelope, fields: Mapping[str, Any], verb: Verb
) -> tuple[Envelope, list[FieldChange], list[FieldChange]]:
    """The object with what ``verb`` sets of its actions and marks, and what of each part that changes."""
    envelope, changes = msgspec.structs.replace(current), dict[str, list[FieldChange]](actions=[], marks=[])
    for part, type_ in (("actions", kind.actions), ("marks", kind.marks)):
        if type_ is None:
            continue
        old = decode_part(getattr(current, part), type_)
        own = {name: value for name, value in fields.items() if name in type_.__struct_fields__}
        new = msgspec.convert({**msgspec.to_builtins(old), **own}, type_)
        if part == "marks":
            for name in own:
                if f":{verb.name}" not in kind.access.mark_writers[name]:
                    raise TypeError(f"the verb {verb.name} of {kind.plural} writes {name}, which others do")
        if new != old:
            setattr(envelope, part, merge_part(getattr(current, part), new, old))
            changes[part] = plan_spec_change(old, new, part=part)
    return envelope, changes["actions"], changes["marks"]


async def _make(
    context: ApiContext, call: Call, target: Target, verb: Verb, given: Any, expected: Match, *, dry_run: bool
) -> Answer:
    """The object that the verb makes for ``target``."""
    assert verb.make is not None
    kind, key, make = target.kind, None if dry_run else call.idempotency_key, verb.make
    mark = hashlib.sha256((key or new_uid()).encode()).hexdigest()[:5]

    needed: list[Draft] = []  # made before that

    async def plan(view: View) -> Draft:
        needed.clear()
        current = await view.get(kind, target.project, target.require_name())
        expected.check(kind, target.require_name(), current)
        if current is None:
            raise not_found(kind, target.require_name(), target.project)
        refuse_deleting(kind, current)
        whole = msgspec.json.decode(msgspec.json.encode(current))
        await _leave_out_an_ended_migration(view, target, whole["status"], mark)
        whole["others"] = await _read_others(view, target, verb, whole, given)
        made = make(whole, given, mark)
        if made is None:
            return await _plan(context, call, view, target, verb, given, expected)
        manifest = read_manifest(made, project=target.project, by_verb=True)
        if verb.changes:
            needed.extend(await _plan_before(context, call, view, target, verb, whole, given, mark))
            return await _make_with_change(context, call, view, target, verb, given, manifest, expected, needed)
        there = await view.get(manifest.kind, manifest.project, manifest.name)
        # A name with the mark is of this request; one that people chose may be another's.
        if key is not None and there is not None and (there.name.endswith(mark) or await was_done(context, key)):
            return Draft(manifest.kind, there, "unchanged")
        if there is not None:  # said before what it needs, whose names follow from this one
            raise _taken(context, call, manifest.kind, there)
        needed.extend(await _plan_before(context, call, view, target, verb, whole, given, mark))
        draft = await admit.plan_create(context, view, manifest, call.actor)
        add_drafts(draft, needed)
        if expected.is_given:
            draft.preconditions.append(AtRevision(current.key, current.revision))
        return draft

    if verb.changes and key is not None and await was_done(context, key):
        made = await _find_made(context, target)
        if made is not None:
            return object_answer(made)

    draft = await settle(context, plan, key=key, dry_run=dry_run)
    if not dry_run:
        for each in (*needed, draft):
            record_change(context, call, each)
    return object_answer(draft.envelope, 201 if draft.action == "created" and not dry_run else 200)


async def _plan_before(
    context: ApiContext,
    call: Call,
    view: View,
    target: Target,
    verb: Verb,
    whole: dict[str, Any],
    given: Any,
    mark: str,
) -> list[Draft]:
    """Plan the objects that the verb makes before its main object."""
    needed = []
    for made in verb.make_before(whole, given, mark) if verb.make_before is not None else ():
        part = read_manifest(made, project=target.project, by_verb=True)
        if (other := await view.get(part.kind, part.project, part.name)) is not None:
            raise _taken(context, call, part.kind, other, "; the names of its volumes follow from it")
        needed.append(await admit.plan_create(context, view, part, call.actor))
    return needed


def add_drafts(draft: Draft, needed: list[Draft]) -> None:
    """Commit these with the draft."""
    for each in needed:
        draft.writes += each.writes
        draft.preconditions = list(dict.fromkeys([*draft.preconditions, *each.preconditions]))
        draft.guards = [*{guard.key: guard for guard in [*draft.guards, *each.guards]}.values()]


def _taken(context: ApiContext, call: Call, kind: Kind, other: Envelope, why: str = "") -> AlreadyExists:
    """The error for a name that is taken; ``why``: what another one follows from. Of a copy it doesn't propose to delete what has
    that name: it may be the original."""
    error = taken(context, kind, other, call.actor)
    if other.deleting_since is None and kind is not SNAPSHOT:
        error.hint = f"use another name{why}"
    return error


async def _read_others(view: View, target: Target, verb: Verb, whole: dict[str, Any], given: Any) -> dict[str, Any]:
    """The objects that the verb's functions need beside the one that it is for: by ``vm/web``, as plain data."""
    others = {}
    for kind, name in verb.reads(whole, given) if verb.reads is not None else ():
        found = await view.get(find_kind(kind), target.project, name)
        if found is not None:
            others[f"{kind}/{name}"] = msgspec.json.decode(msgspec.json.encode(found))
    return others


async def _leave_out_an_ended_migration(view: View, target: Target, status: dict[str, Any], mark: str) -> None:
    """Take out of ``status`` a migration that has ended: the status names it for a moment longer. Nor does the one that an earlier
    try of this request made keep the verb from anything."""
    if name := status.get(MIGRATION.name):
        found = await view.get(MIGRATION, target.project, name)
        if found is None or name.endswith(f"-{mark}") or decode_part(found.status, MigrationStatus).phase in ENDED:
            status[MIGRATION.name] = ""


async def _make_with_change(
    context: ApiContext,
    call: Call,
    view: View,
    target: Target,
    verb: Verb,
    given: Any,
    manifest: Manifest,
    expected: Match,
    needed: list[Draft],
) -> Draft:
    """The new object, what is needed for it, and the change of ``target`` that belongs to it, in one commit."""
    changed = await _plan(context, call, view, target, verb, given, expected)
    draft = await admit.plan_create(context, view, manifest, call.actor)
    if verb.owns:
        draft.envelope.owner = changed.envelope.ref
        draft.writes = [Put(draft.envelope.key, encode_envelope(draft.envelope)), *draft.writes[1:]]
    add_drafts(draft, [*needed, changed])
    return draft


async def _find_made(context: ApiContext, target: Target) -> Envelope | None:
    """The newest object that a verb made for ``target``."""
    owner = await read_again(context, target.key)
    kinds = [kind.name for kind in KINDS if kind.access.removable]
    pages = [await context.store.list(object_key(kind, target.project, f"{target.name}-")) for kind in kinds]
    found = [decode_envelope(entry.value, entry.revision) for page in pages for entry in page.entries]
    own = [one for one in found if owner is not None and one.owner is not None and one.owner.uid == owner.uid]
    return max(own, key=lambda one: one.revision, default=None)


async def _open_stream(context: ApiContext, call: Call, target: Target, verb: Verb, given: Any) -> Answer:
    """A ticket with which its bearer reaches the workload's guest through the gateway, once, within a minute. For a kind without
    allocations the gateway itself serves the stream, or the node that it is about."""
    kind, name = target.kind, target.require_name()
    plain = msgspec.to_builtins(given) if given is not None else {}
    if len(msgspec.json.encode(plain)) > _MOST_INPUT_BYTES:
        raise TooLarge(
            f"the input of {verb.name} is larger than {_MOST_INPUT_BYTES} bytes", hint="send it through stdin instead"
        )
    if getattr(given, "deleted", False):
        claims = {**await claim_departed(context, target), **_claim(context, call, target, verb, plain)}
        return _give_ticket(context, call, claims)
    envelope = await read_again(context, target.key)
    deadline = context.clock.elapsed() + (PLACE_SECONDS if verb.name == "exec" else 0.0)
    while envelope is not None and _is_coming(envelope) and context.clock.elapsed() < deadline:
        await context.clock.sleep(_POLL_SECONDS)
        envelope = await read_again(context, target.key)
    if envelope is None:
        raise not_found(kind, name, target.project)
    place: dict[str, Any] = {"node_uid": "", "allocation": "", "guest_id": ""}
    if is_workload(kind.name):
        allocation, spec = await _find_place(context, kind, envelope, verb)
        place = {"node_uid": spec.node_uid, "allocation": allocation.name, "guest_id": short_id(allocation.uid)}
    elif kind is NODE:
        place["node_uid"] = envelope.uid
    elif kind is REPLICA:
        place |= claim_replica(envelope)
    elif kind is BACKUP:
        place |= await claim_backup(context, envelope)
    elif kind is BACKUP_REPOSITORY:
        place |= await claim_repository(context, envelope)
    claims = {
        **place,
        **_claim(context, call, target, verb, plain),
        "workload": {"kind": kind.name, "project": target.project, "name": name, "uid": envelope.uid},
    }
    if (request := traced.get()) is not None:
        claims["traceparent"] = write_traceparent(request.context)
    told = STREAM_VERBS.get(verb.name)
    shown = [FieldChange(f"input.{field}", None, value, "live") for field, value in plain.items()]
    call.changed.append(Change(envelope, "", shown if told is not None and told.audited else ()))
    if verb.needs not in LOOKS:  # who only looks leaves no event
        context.add_event(envelope.ref, "Opened", f"{verb.name} opened by {call.actor.name}")
    return _give_ticket(context, call, claims)


def _claim(context: ApiContext, call: Call, target: Target, verb: Verb, plain: Any) -> dict[str, Any]:
    return {
        "verb": verb.name,
        "input": plain,
        "workload": {"kind": target.kind.name, "project": target.project, "name": target.require_name(), "uid": ""},
        "expires": context.clock.now() + LIFETIME_SECONDS,
        "subject": call.actor.name,
        # A node has none: the gateway asks no more of it, and the node that receives goes by its order.
        "token": call.actor.id if call.actor.kind == "person" else "",
        "right": f"{target.kind.name}:{verb.name}",
    }


def _give_ticket(context: ApiContext, call: Call, claims: dict[str, Any]) -> Answer:
    return json_answer(
        {
            "ticket": sign_ticket(context.settings.ticket_key, claims),
            "address": context.settings.gateway_for(call.host),
            "server_name": context.settings.server_name,
        }
    )


def _is_coming(envelope: Envelope) -> bool:
    """Whether a workload that doesn't run yet is about to: neither placed nor refused, or just started."""
    status = msgspec.json.decode(envelope.status)
    spec = msgspec.json.decode(envelope.spec)
    if spec.get("run") != "run" or spec.get("hold") or envelope.deleting_since is not None:
        return False
    if status.get("phase", "Pending") == "Pending":
        placed = envelope.condition("Placed")
        return placed is None or placed.status != "False"
    return bool(status.get("phase") in _STARTABLE and status.get("observed_generation", 0) < envelope.generation)


async def _find_place(
    context: ApiContext, kind: Kind, envelope: Envelope, verb: Verb
) -> tuple[Envelope, AllocationSpec]:
    status = msgspec.json.decode(envelope.status)
    phase = Phase(status.get("phase", "Pending"))
    what = f"{kind.name}/{envelope.name}"
    allocation = await _find_allocation(context, envelope, status.get("node"))
    where = decode_part(envelope.marks, WorkloadMarks).departed
    if where and (allocation is None or verb.name in ALLOWED):
        raise describe_departure(what, where)
    if allocation is not None:
        refuse_early(verb.name, allocation[1].lease, what, context.clock.now())
    if verb.name in ALLOWED:
        check_verb(verb.name, phase, what, why=status.get("message", "") if phase is Phase.UNKNOWN else "")
    if allocation is not None:
        return allocation
    why, hint = _explain_placeless(what, phase, status, once=bool(msgspec.json.decode(envelope.spec).get("once")))
    raise IllegalTransition(
        f"{what} {why}: {verb.name} is not possible now", hint=hint, details={"phase": str(phase), "verb": verb.name}
    )


def _explain_placeless(what: str, phase: Phase, status: dict[str, Any], *, once: bool) -> tuple[str, str]:
    """Why the workload is on no node, and what to do."""
    if once and status.get("ended"):
        gone = "has ended, and its node was deleted: what it had there, such as its log, went with the node"
        return gone, f"weft describe {what} shows how it ended"
    if phase is Phase.STOPPED:
        return "is stopped, and on no node", f"weft start {what} places it again"
    wait = f"weft wait {what} --for=phase=Running, or weft explain {what}"
    return f"is not placed yet ({phase})", wait


async def _find_allocation(
    context: ApiContext, envelope: Envelope, node: str | None
) -> tuple[Envelope, AllocationSpec] | None:
    """The workload's allocation on ``node``."""
    entry = await context.store.get(object_key("node", None, node)) if node else None
    if entry is not None:
        uid = decode_envelope(entry.value).uid
        page = await context.store.list(object_key("allocation", None, f"{uid}."))
        for found in page.entries:
            allocation = decode_envelope(found.value, found.revision)
            spec = decode_part(allocation.spec, AllocationSpec)
            if spec.workload.uid == envelope.uid and spec.role in ("active", "source"):
                return allocation, spec
    return None


def _find_verb(target: Target) -> Verb:
    kind, name = target.kind, target.verb or ""
    verb = kind.verb(name)
    if verb is None:
        known = [v.name for v in kind.verbs]
        meant = suggest(name, known)
        raise NotFound(
            f"{kind.a_title} has no verb {name[:40]!r}",
            field="verb",
            hint=f"did you mean {meant}?" if meant else "verbs: " + (", ".join(known) or "none"),
        )
    return verb


def _read_input(verb: Verb, raw: dict[str, Any]) -> Any:
    if verb.input is None:
        if raw:
            raise InvalidInput(f"{verb.name} takes no input", field=f"input.{next(iter(raw))[:60]}")
        return None
    given = read_strict(raw, verb.input, "input")
    if verb.check is not None:
        verb.check(given)
    return given
