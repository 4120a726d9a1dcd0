"""Admission: turns a manifest into writes, or refuses it with a reason. Nothing is stored here.

Reads the objects that the manifest refers to. Each of them is in the preconditions: what was true here is still true when the
writes are committed.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import msgspec

from weft.api.admission import references, sealing, uploads
from weft.api.admission.certificates import check_certificate
from weft.api.admission.departing import refuse_departing, refuse_late_snapshot, refuse_lost_ports
from weft.api.admission.escalation import GRANTING_SPECS, plan_gift
from weft.api.admission.growth import refuse_growth
from weft.api.admission.limits import limit_objects, limit_warm_images
from weft.api.admission.priority import find_lease, settle_priority
from weft.api.admission.quota import plan_quota
from weft.api.admission.refusals import (
    guard,
    keep_own_labels,
    not_found,
    refuse_another,
    refuse_deleting,
    refuse_impossible,
    refuse_nodes_range,
    taken,
)
from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.api.request.manifest import Manifest
from weft.contracts.store import Absent, AtRevision, Precondition, Put, Write
from weft.contracts.trace.context import end_mark, mark
from weft.kinds.fields.lease import LeaseStatus, check_extension
from weft.kinds.network import NetworkSpec
from weft.kinds.parts.schema_upgrade import refuse_newer
from weft.kinds.quota import quota_key
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.kinds.token import TOKEN
from weft.objects.envelope import Envelope, decode_part, encode_envelope, merge_part
from weft.objects.errors import (
    Forbidden,
    InvalidInput,
    StaleRevision,
)
from weft.objects.identity import new_uids
from weft.objects.schema import read_strict
from weft.objects.spec_change import NO_LIMITS, FieldChange, Limits, plan_spec_change
from weft.trust.credentials import Actor

_encoder = msgspec.json.Encoder()


class _Leased(msgspec.Struct):
    """The part of a workload's status that is its lease."""

    lease: LeaseStatus | None = None


class Draft(msgspec.Struct):
    """The outcome of one manifest."""

    kind: Kind
    envelope: Envelope
    action: Literal["created", "updated", "unchanged"]  # unchanged: without writes
    changes: list[FieldChange] = []
    writes: list[Write] = []
    preconditions: list[Precondition] = []
    guards: list[Put] = []  # what isn't changed, but written again: one such commit at a time
    labels: dict[str, str] | None = None  # as they were, if they change
    counted: str = ""  # a new object: what it counts with


class Fleet:
    """The ``count`` new objects of one request: most have the same spec, which is read once. Nobody changes what ``read`` gave."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._uids: list[str] = []
        self._read: dict[tuple[str, str | None, bytes], tuple[Any, msgspec.Raw]] = {}
        self._named: dict[tuple[str | None, int], list[Precondition]] = {}

    def new_uid(self) -> str:
        """A fresh uid."""
        if not self._uids:
            self._uids = new_uids(self._count)
        return self._uids.pop()

    async def read(self, view: View, kind: Kind, project: str | None, given: dict[str, Any]) -> tuple[Any, msgspec.Raw]:
        """The spec of a new ``kind``, and its stored form. Raises WeftError for an invalid one."""
        text = (kind.name, project, _encoder.encode(given))
        if text not in self._read:
            self._read[text] = await _read_new(view, kind, project, given)
        return self._read[text]

    async def plan_named(
        self, view: View, kind: Kind, envelope: Envelope, spec: Any, actor: Actor | None
    ) -> list[Precondition]:
        """The preconditions of the references in ``spec``, which ``read`` gave, for ``actor``. Raises NotFound, InUse."""
        of = (envelope.project, id(spec))
        found = self._named.get(of)
        if found is None:
            found = await _plan_named(view, kind, envelope, spec, actor)
            if references.is_same_for_all(kind, spec):
                self._named[of] = found
        return found


async def plan_put(context: ApiContext, view: View, manifest: Manifest, actor: Actor) -> Draft:
    """Create the object, if the actor may, or update the existing one to the manifest."""
    current = await view.get(manifest.kind, manifest.project, manifest.name)
    if current is None:
        kind = manifest.kind
        actor.require(f"{kind.name}:create", manifest.project, f"create {kind.a_title}")
        return await plan_create(context, view, manifest, actor, known_absent=True)
    return await plan_update(context, view, manifest, current, actor)


async def plan_create(
    context: ApiContext,
    view: View,
    manifest: Manifest,
    actor: Actor | None,
    *,
    known_absent: bool = False,
    fleet: Fleet | None = None,
) -> Draft:
    """A new object, for ``actor``, None for weft itself. Raises AlreadyExists; with ``known_absent`` the commit finds out.
    ``fleet``: all objects of the request. Raises Forbidden for what takes a further right."""
    kind, former = manifest.kind, None
    if not known_absent:
        former = await view.get(kind, manifest.project, manifest.name)
        if former is not None and not _gives_its_name(kind, former, actor):
            raise taken(context, kind, former, actor)
    if manifest.generation not in (None, 0):
        raise StaleRevision(
            f'{kind.title} "{manifest.name}" does not exist, so its generation {manifest.generation} can\'t be changed',
            field="generation",
            hint="leave uid and generation out to create it",
        )
    if kind.access.reported_by_node:
        raise InvalidInput(
            f"{kind.a_title} is created by joining, not through the API",
            field="kind",
            hint="weft token create --join prints the command",
        )
    if kind.admission.only_name and manifest.name != kind.admission.only_name:
        raise InvalidInput(
            f"name: {kind.a_title} is always called {kind.admission.only_name}: there is one in "
            + ("the fabric" if kind.scope == "fabric" else "each project"),
            field="name",
            hint=f"name it {kind.admission.only_name}",
        )
    if manifest.name in kind.admission.reserved_names:
        raise InvalidInput(
            f"name: {manifest.name} is a built-in {kind.title}", field="name", hint="choose another name"
        )
    if len(manifest.name) > kind.admission.longest_name:
        raise InvalidInput(
            f"name: the name of {kind.a_title} has at most {kind.admission.longest_name} characters",
            field="name",
            hint="choose a shorter one",
        )
    manifest = await sealing.open_backed_up(context, manifest)
    given = sealing.take_in(context, manifest, None)
    if actor is not None and manifest.marks is None:
        keep_own_labels(manifest.labels or {}, {})
    creator = actor.creator if actor is not None else ""
    read = _read_new if fleet is None else fleet.read
    spec, raw = await read(view, kind, manifest.project, given)
    if kind.admission.check_times is not None:
        kind.admission.check_times(spec, context.clock.now())
    relied = await require_permissions(context, view, kind, manifest.project, manifest.name, actor, None, spec)
    if isinstance(spec, NetworkSpec):
        refuse_nodes_range(context, spec.cidr)
    await check_certificate(context, view, kind, manifest.project, manifest.name, None, spec)
    marks = await _make_marks(view, manifest, spec)
    if kind.admission.signed is not None:
        setattr(marks, kind.admission.signed.field, creator)
    if kind.admission.uploads is not None:
        await uploads.require_uploads(context, view, kind, manifest.project, None, spec)
    envelope = kind.make(
        manifest.name,
        spec,
        context.clock.now(),
        uid=former.uid if former is not None else "" if fleet is None else fleet.new_uid(),
        project=manifest.project,
        labels=manifest.labels or {},
        creator=creator,
        marks=marks,
        raw=raw,
    )
    await references.refuse_reserved(view.store, kind, envelope)
    await references.refuse_second(view, kind, envelope, None, spec)
    await refuse_late_snapshot(view, manifest.project, spec, marks)
    limit_warm_images(context, envelope, None, spec)
    mark(envelope)
    key, old = envelope.key, None
    absent: Precondition = Absent(key)
    if former is not None:  # as a change of it, which nothing that exists of it bars
        envelope.generation, old = former.generation + 1, decode_part(former.spec, kind.spec)
        absent = AtRevision(key, former.revision)
    plan_named = _plan_named if fleet is None else fleet.plan_named
    named = await plan_named(view, kind, envelope, spec, actor)
    draft = Draft(kind, envelope, "created", preconditions=[absent, *named, *relied])
    if kind.admission.claims is not None:
        await _claim(context, view, draft, old, spec)
    draft.writes.insert(0, Put(key, encode_envelope(envelope)))
    _check_size(draft)
    await charge(context, view, draft, old, spec, former)
    if actor is not None and kind is not TOKEN and former is None:  # whose a token is, only its own handler knows
        draft.counted = await limit_objects(context, view, kind, envelope)
    view.plan(key, envelope)
    return draft


def _gives_its_name(kind: Kind, former: Envelope, actor: Actor | None) -> bool:
    """Whether ``actor`` may create another object in place of this one: it was refused, is nobody else's, and has nothing."""
    return (
        kind.admission.was_refused is not None
        and kind.admission.was_refused(former)
        and former.deleting_since is None
        and former.owner is None
        and former.creator == (actor.creator if actor is not None else "")
    )


async def plan_update(
    context: ApiContext, view: View, manifest: Manifest, current: Envelope, actor: Actor | None
) -> Draft:
    """A change of ``current`` for ``actor``, None for weft itself. Raises StaleRevision, InvalidInput for what can't be changed,
    IllegalTransition, Forbidden; NotFound for what a linked cluster hasn't made itself."""
    kind = manifest.kind
    if actor is not None and actor.is_kept_from(current.creator):
        raise not_found(kind, current.name, current.project)
    if manifest.uid is not None:
        refuse_another(kind, current, manifest.uid)
    refuse_deleting(kind, current)
    refuse_newer(kind, current)
    if manifest.generation is not None and manifest.generation != current.generation:
        raise StaleRevision(
            f'{kind.title} "{manifest.name}" was changed meanwhile: it is at generation {current.generation}, '
            f"not {manifest.generation}",
            field="generation",
            hint="read the object again and apply the change to what it is now",
            details={"generation": current.generation},
        )
    old = decode_part(current.spec, kind.spec)
    manifest = await sealing.open_backed_up(context, manifest)
    spec = read_spec(kind, sealing.take_in(context, manifest, current), old)
    ceiling = []
    if find_lease(kind, spec) is not None:
        ceiling = await settle_priority(view, kind, current.project, old, spec)
    changes = plan_spec_change(old, spec, functools.partial(read_limits, kind, current))
    refuse_impossible(kind, current, changes)
    if actor is not None:
        await refuse_lost_ports(view, current, old, spec)
    if kind.admission.check_change is not None:
        kind.admission.check_change(old, spec)
    await check_certificate(context, view, kind, current.project, current.name, old, spec)
    relied = await require_permissions(context, view, kind, current.project, current.name, actor, old, spec)
    labels = current.labels if manifest.labels is None else manifest.labels
    if actor is not None:
        labels = keep_own_labels(labels, current.labels)
    if not changes and labels == current.labels:
        return Draft(kind, current, "unchanged")
    if changes:
        guard(kind, current)
    if changes and kind.admission.change_guard is not None:
        kind.admission.change_guard(current, spec, context.clock.now())
    if kind.admission.settle_actions is not None and kind.actions is not None:
        asked = decode_part(current.actions, kind.actions)
        left = merge_part(current.actions, kind.admission.settle_actions(old, spec, asked), asked)
        current = msgspec.structs.replace(current, actions=left)
    draft = await plan_spec(context, view, kind, current, old, spec, changes, actor, labels)
    draft.preconditions += relied
    draft.changes = sealing.hide_changes(kind, changes)
    draft.preconditions += ceiling
    _check_size(draft)
    await charge(context, view, draft, old, spec)
    view.plan(draft.writes[0].key, draft.envelope)
    return draft


async def plan_spec(
    context: ApiContext,
    view: View,
    kind: Kind,
    current: Envelope,
    old: Any,
    new: Any,
    changes: list[FieldChange],
    actor: Actor | None,
    labels: dict[str, str] | None = None,
) -> Draft:
    """The writes that give ``current`` the spec ``new``, and ``labels`` if given, for ``actor``, None for weft itself. The object
    itself is the first write."""
    refuse_newer(kind, current)
    envelope = msgspec.structs.replace(current, labels=current.labels if labels is None else labels)
    signed = kind.admission.signed
    if signed is not None and signed.is_due(change.path for change in changes):
        envelope.marks = merge_part(current.marks, {signed.field: actor.creator if actor is not None else ""})
    if changes:
        envelope.generation = current.generation + 1
        envelope.spec = merge_part(current.spec, new, old)
        envelope.schema = kind.schema
    mark(envelope)
    if not changes:  # of labels alone, or of nothing: no controller has anything to do for it
        end_mark(envelope)
    draft = Draft(kind, envelope, "updated", changes, preconditions=[AtRevision(current.key, current.revision)])
    if envelope.labels != current.labels:
        draft.labels = current.labels
    if changes:
        if actor is not None and (lease := find_lease(kind, new)) is not None:
            held = decode_part(current.status, _Leased).lease
            check_extension(lease, find_lease(kind, old), held, context.clock.now())
        await refuse_departing(view, kind, current, changes)
        await refuse_growth(view, kind, current, old, new)
        limit_warm_images(context, current, old, new)
        if kind.admission.uploads is not None:
            await uploads.require_uploads(context, view, kind, current.project, old, new)
        await references.refuse_second(view, kind, current, old, new)
        draft.preconditions += await references.plan_references(view, kind, current, old, new, actor)
        if kind.admission.claims is not None:
            await _claim(context, view, draft, old, new)
    draft.writes.insert(0, Put(current.key, encode_envelope(envelope)))
    return draft


async def charge(
    context: ApiContext, view: View, draft: Draft, old: Any, new: Any, former: Envelope | None = None
) -> None:
    """Count the draft in its project's quota: the last step of a plan. ``former``: the object with the spec ``old``, where other
    parts differ too. Raises Forbidden."""
    kind, project = draft.kind, draft.envelope.project
    if kind.admission.counts is None or project is None:
        return
    key = quota_key(project)
    if not (context.rates.may_have_quota(key) or view.is_planned(key)):
        draft.preconditions.append(Absent(key))
        return
    guards, preconditions = await plan_quota(context, view, kind, draft.envelope, old, new, former)
    draft.guards += guards
    draft.preconditions += preconditions


def read_spec(kind: Kind, raw: dict[str, Any], old: Any = None) -> Any:
    """``raw`` as the kind's spec with all defaults; kept fields that it is silent of come from ``old``. Raises WeftError."""
    try:
        spec: Any = read_strict(raw, kind.spec)
    except (ValueError, OverflowError) as problem:  # a number so large that Python won't even print it
        raise InvalidInput(f"spec: {problem}", field="spec") from None
    if old is not None:
        for name in kind.admission.kept_fields:
            if name not in raw:
                setattr(spec, name, getattr(old, name))
    if kind.admission.check is not None:
        kind.admission.check(spec)
    if old is None and kind.admission.check_new is not None:
        kind.admission.check_new(spec)
    return spec


def read_limits(kind: Kind, current: Envelope) -> Limits | None:
    """How far a running workload can be resized without a restart; None if it isn't running."""
    return (
        kind.admission.resize_limits(decode_part(current.status, kind.status))
        if kind.admission.resize_limits is not None
        else NO_LIMITS
    )


def _takes_more(kind: Kind, spec: Any) -> bool:
    """Whether a change may take permissions beside that to write."""
    access = kind.access
    further = access.further_rights is not None or access.further_rights_in_project is not None
    return further or isinstance(spec, GRANTING_SPECS)


async def require_permissions(
    context: ApiContext,
    view: View,
    kind: Kind,
    project: str | None,
    name: str,
    actor: Actor | None,
    old: Any,
    new: Any,
) -> list[Precondition]:
    """The preconditions under which the actor may make or change it so, by a manifest or a verb. Raises Forbidden."""
    if not _takes_more(kind, new):
        return []
    if actor is not None and kind.access.further_rights is not None:
        for permission, what in kind.access.further_rights(old, new):
            if not actor.permits(permission, None):
                where = f" in project {actor.project}" if actor.project is not None else ""
                raise Forbidden(
                    f"{actor.name} has role {actor.role}{where}: it can't {what}",
                    hint=f"it takes {permission} in all projects: ask an administrator of the fabric",
                    details={"permission": permission},
                )
    if actor is not None and kind.access.further_rights_in_project is not None:
        for permission, what in kind.access.further_rights_in_project(old, new):
            actor.require(permission, project, what)
    if not isinstance(new, GRANTING_SPECS):
        return []
    return await plan_gift(context, view, kind, name, actor, old, new)


async def _plan_named(view: View, kind: Kind, envelope: Envelope, spec: Any, actor: Actor | None) -> list[Precondition]:
    project = await references.plan_project(view, envelope.project)
    return project + await references.plan_references(view, kind, envelope, None, spec, actor)


async def _claim(context: ApiContext, view: View, draft: Draft, old: Any, new: Any) -> None:
    writes, preconditions = await references.plan_claims(context, view, draft.kind, draft.envelope, old, new)
    draft.writes += writes
    draft.preconditions += preconditions


def _check_size(draft: Draft) -> None:
    claimed = len(draft.writes) - 1
    if claimed > references.MOST_CLAIMS:
        raise InvalidInput(
            f"spec: {claimed} ports, addresses and other claims are too many",
            field="spec",
            hint=f"at most {references.MOST_CLAIMS} in one object",
        )


async def _make_marks(view: View, manifest: Manifest, spec: Any) -> Any:
    """The marks of a new object: what the verb said that makes it, and what the server reads off other objects. One that doesn't
    exist is the references' to refuse. None of a kind without."""
    kind, derived, found = manifest.kind, manifest.kind.admission.derived, {}
    if kind.marks is None:
        return None
    marks = msgspec.convert(manifest.marks or {}, kind.marks)
    for name_of_kind, name in derived.reads(spec, marks) if derived is not None else ():
        other = BY_NAME[name_of_kind]
        envelope = await view.get(other, manifest.project if other.scope == "project" else None, name)
        if envelope is not None:
            found[f"{name_of_kind}/{name}"] = decode_part(envelope.spec, other.spec)
    if derived is not None:
        derived.put(marks, found)
    return marks


async def _read_new(view: View, kind: Kind, project: str | None, given: dict[str, Any]) -> tuple[Any, msgspec.Raw]:
    spec = read_spec(kind, given)
    await settle_priority(view, kind, project, None, spec)
    return spec, _raw(spec)


def _raw(part: msgspec.Struct) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(part))
