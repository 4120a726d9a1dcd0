"""Many objects in one request: ``batch`` (each for itself, one kind) and ``apply`` (all checked first, any kinds).

Both split their writes into commits within the store contract's limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from weft.api.admission import admit
from weft.api.admission.admit import Draft, Fleet
from weft.api.admission.commit import TRIES, note_failure, read_again, record_change, settle, was_done
from weft.api.admission.quota import note_commit
from weft.api.admission.view import View
from weft.api.auth import tokens
from weft.api.auth.authorise import authorise_write, require_writing
from weft.api.context import ApiContext
from weft.api.object import arrivals
from weft.api.request.call import MAX_BULK_BYTES, Call, json_answer
from weft.api.request.manifest import Manifest, read_manifest
from weft.api.request.problem import status_of
from weft.api.request.target import Target
from weft.api.request.trace import note_phase
from weft.api.route import Route, Topic
from weft.contracts.store import (
    MAX_COMMIT_BYTES,
    MAX_PRECONDITIONS,
    MAX_WRITES,
    AtRevision,
    LeaseHeld,
    Precondition,
    PreconditionFailed,
    Put,
    Write,
)
from weft.kinds.registry import KINDS
from weft.objects.envelope import Envelope
from weft.objects.errors import AlreadyExists, Forbidden, IllegalTransition, InUse, InvalidInput, Unavailable, WeftError
from weft.objects.identity import object_key
from weft.serving.answer import Answer
from weft.trust.credentials import Actor

MOST_OBJECTS = 1000
_BREATH = 50  # so many objects, then other requests get their turn
_MOST_BYTES = MAX_COMMIT_BYTES - 50_000


@dataclass
class _Part:
    """One object of a bulk request: its position there, and its outcome."""

    index: int
    manifest: Manifest | None = None
    draft: Draft | None = None
    error: WeftError | None = None
    stored: Envelope | None = None


async def create_batch(context: ApiContext, call: Call, target: Target) -> Answer:
    """``POST …/{plural}:batch``: one result for each object, in order."""
    call.query()
    raws = await _read_objects(call, {"objects"})
    context.writes.take(call.actor, context.clock.elapsed(), len(raws) - 1)  # the request itself has counted as one
    tokens.refuse_without_secret(target.kind)
    arrivals.refuse_put(target.kind)
    key = call.idempotency_key
    with View(context.store, context.clock) as view:
        parts = await _plan_batch(context, view, target, call.actor, raws)
        written: dict[str, int] = {}
        for group in _groups([part for part in parts if part.draft is not None]):
            await _commit_group(context, view, call.actor, group, key, written)
    if key is not None:
        await _forgive_repeats(context, parts, key)
    for part in parts:
        if part.draft is not None and part.error is None and part.stored is None:
            record_change(context, call, part.draft)
    return json_answer({"results": [_result(part, call.request_id) for part in parts]})


async def _plan_batch(
    context: ApiContext, view: View, target: Target, actor: Actor, raws: Sequence[Any]
) -> list[_Part]:
    """A draft of each new object, or the error of its own."""
    fleet = Fleet(len(raws))
    parts: list[_Part] = []
    for index, raw in enumerate(raws):
        part = _Part(index)
        parts.append(part)
        try:
            part.manifest = read_manifest(raw, kind=target.kind, project=target.project)
            part.draft = await _plan_new(context, view, fleet, part.manifest, actor)
        except WeftError as error:
            part.error = error
        if index % _BREATH == _BREATH - 1:
            await context.clock.sleep(0)
    return parts


async def apply(context: ApiContext, call: Call) -> Answer:
    """``POST /v1/apply``: all objects or, if one of them is invalid, none."""
    require_writing(call.actor, "apply manifests")
    asked = call.read_dry_run()
    body = await call.read_object(MAX_BULK_BYTES)
    raws = _check_objects(body, {"objects", "dry_run"})
    context.writes.take(call.actor, context.clock.elapsed(), len(raws) - 1)
    for project in _authorise(call.actor, raws):
        context.rates.take(call.actor, project)
    call.is_dry_run = dry_run = asked or body.get("dry_run", False) is True
    key = None if dry_run else call.idempotency_key
    if key is not None and await was_done(context, key):
        return json_answer({"results": [_applied(part) for part in await _find_applied(context, raws)]})
    for attempt in range(TRIES):
        with View(context.store, context.clock) as view:
            parts = await _plan_apply(context, view, call.actor, raws)
            if dry_run:
                break
            try:
                await _commit_apply(context, view, parts, key)
                break
            except PreconditionFailed as problem:
                note_failure(context, problem)
                # Others wrote meanwhile: in the next round, what was stored of a larger request is unchanged.
                if attempt == TRIES - 1:
                    raise Unavailable(
                        "the objects that this request needs are changing too fast", retry_after_seconds=1
                    ) from None
    if not dry_run:
        for part in parts:
            if part.draft is not None:
                record_change(context, call, part.draft)
    return json_answer({"results": [_applied(part) for part in parts]})


def _authorise(actor: Actor, raws: Sequence[Any]) -> set[str]:
    """The projects of the objects. Raises Forbidden if ``actor`` may not write one of them. What can't be read is refused later."""
    projects = set[str]()
    for raw in raws:
        try:
            manifest = read_manifest(raw)
        except WeftError:
            continue
        authorise_write(actor, manifest.kind, manifest.project, "apply", one=False)
        projects |= {manifest.project} if manifest.project else set()
    return projects


async def _plan_new(context: ApiContext, view: View, fleet: Fleet, manifest: Manifest, actor: Actor) -> Draft:
    """A draft of a new object. Names are compared only within the request: the commit finds one that exists already."""
    if view.is_planned(_key_of(manifest)):
        raise AlreadyExists(f'{manifest.kind.title} "{manifest.name}" is in this request twice', field="name")
    return await admit.plan_create(context, view, manifest, actor, known_absent=True, fleet=fleet)


async def _commit_group(
    context: ApiContext, view: View, actor: Actor, group: list[_Part], key: str | None, written: dict[str, int]
) -> None:
    """One commit for all; if it fails, one for each."""
    try:
        revision = await _commit(context, view, group, None if key is None else f"{key}/{group[0].index}", written)
    except WeftError:
        view.end()  # each of them takes its own turn
        for part in group:
            await _commit_alone(context, actor, part, key)
        return
    is_repeat = key is not None and not await _is_ours(context, group[0])
    for part in group:
        if is_repeat and part.manifest is not None:
            part.stored = await read_again(context, _key_of(part.manifest))
        elif part.draft is not None:
            part.draft.envelope.revision = revision


async def _is_ours(context: ApiContext, part: _Part) -> bool:
    """Whether the stored object is the one that this request planned, not that of an earlier one with the same key."""
    draft = part.draft
    stored = None if draft is None else await read_again(context, draft.envelope.key)
    return draft is not None and stored is not None and stored.uid == draft.envelope.uid


async def _commit_alone(context: ApiContext, actor: Actor, part: _Part, key: str | None) -> None:
    manifest = part.manifest
    if manifest is None:
        return
    try:
        part.draft = await settle(
            context,
            lambda view: admit.plan_create(context, view, manifest, actor),
            key=None if key is None else f"{key}/{part.index}/alone",
        )
    except WeftError as error:
        part.error = error


async def _commit(
    context: ApiContext, view: View, parts: Sequence[_Part], key: str | None, written: dict[str, int]
) -> int:
    """Commit these parts. ``written`` is what earlier commits of this request wrote, with the revision: while a guard is at that
    one, nobody else has written it since."""
    drafts = [part.draft for part in parts if part.draft is not None]
    preconditions = dict.fromkeys(precondition for draft in drafts for precondition in draft.preconditions)
    writes: list[Write] = [write for draft in drafts for write in draft.writes]
    guards = {guard.key: guard for draft in drafts for guard in draft.guards}
    for name, guard in guards.items():
        if name in written:
            for one in [one for one in preconditions if not isinstance(one, LeaseHeld) and one.key == name]:
                del preconditions[one]
            preconditions[AtRevision(name, written[name])] = None
        if all(write.key != name for write in writes):
            writes.append(guard)
    began = context.clock.now()
    revision = await context.store.commit(writes, list(preconditions), idempotency_key=key)
    note_phase("commit", began, context.clock)
    note_commit(context, view, guards.values(), revision)
    written.update({write.key: revision for write in writes})
    return revision


async def _forgive_repeats(context: ApiContext, parts: Sequence[_Part], key: str) -> None:
    """Set the results of a repeated request: the objects that the first one made, and only those."""
    done: dict[str, bool] = {}
    starts = [f"{key}/{part.index}" for part in parts]
    for part in parts:
        if not isinstance(part.error, (AlreadyExists, InUse)) or part.manifest is None:
            continue
        stored = await read_again(context, _key_of(part.manifest))
        if stored is None or not _matches(part.manifest, stored):
            continue
        for candidate in (f"{key}/{part.index}/alone", *starts[: part.index + 1][::-1]):
            if candidate not in done:
                done[candidate] = await was_done(context, candidate)
            if done[candidate]:
                part.error, part.stored = None, stored
                break


def _matches(manifest: Manifest, stored: Envelope) -> bool:
    spec = msgspec.json.encode(admit.read_spec(manifest.kind, manifest.spec))
    return (manifest.labels or {}) == stored.labels and spec == bytes(stored.spec)


async def _plan_apply(context: ApiContext, view: View, actor: Actor, raws: Sequence[Any]) -> list[_Part]:
    """Drafts of all objects, those that others refer to first. Raises InvalidInput with every problem."""
    parts = [_Part(index) for index in range(len(raws))]
    for part in parts:
        try:
            part.manifest = read_manifest(raws[part.index])
            tokens.refuse_without_secret(part.manifest.kind)
            arrivals.refuse_put(part.manifest.kind)
        except WeftError as error:
            part.error = error
    seen: set[str] = set()
    for count, part in enumerate(_in_order(parts)):
        manifest = part.manifest
        if manifest is None:
            continue
        try:
            if _key_of(manifest) in seen:
                raise InvalidInput(f'{manifest.kind.title} "{manifest.name}" is in this request twice', field="name")
            seen.add(_key_of(manifest))
            part.draft = await admit.plan_put(context, view, manifest, actor)
        except WeftError as error:
            part.error = error
        if count % _BREATH == _BREATH - 1:
            await context.clock.sleep(0)
    _refuse_all(parts)
    return parts


async def _find_applied(context: ApiContext, raws: Sequence[Any]) -> list[_Part]:
    """The objects of a repeated request, as they are now: a late repeat changes nothing."""
    parts = []
    for index, raw in enumerate(raws):
        manifest = read_manifest(raw)
        stored = await read_again(context, _key_of(manifest))
        parts.append(_Part(index, draft=None if stored is None else Draft(manifest.kind, stored, "unchanged")))
    return parts


async def _commit_apply(context: ApiContext, view: View, parts: Sequence[_Part], key: str | None) -> None:
    """Commit all; ``key`` is part of the last commit: once it is stored, everything is."""
    wanted = [part for part in _in_order(parts) if part.draft is not None and part.draft.writes]
    groups, written = list(_groups(wanted)), dict[str, int]()
    for group in groups:
        revision = await _commit(context, view, group, key if group is groups[-1] else None, written)
        for part in group:
            if part.draft is not None:
                part.draft.envelope.revision = revision


def _in_order(parts: Sequence[_Part]) -> list[_Part]:
    return sorted(
        (part for part in parts if part.manifest is not None and part.error is None),
        key=lambda part: (_RANKS[part.manifest.kind.name], part.index) if part.manifest else (0, 0),
    )


def _rank_kinds() -> dict[str, int]:
    """The order of kinds: a kind comes after those that it refers to, but in fields that the server sets, or that name what
    exists; projects come first, since all other objects are in one, and then what is granted to them."""
    ranks = {kind.name: 0 if kind.lifetime.holds_objects else 1 if kind.access.granted else 2 for kind in KINDS}
    for _ in KINDS:
        for kind in KINDS:
            for reference in () if kind.lifetime.holds_objects else kind.references:
                own = reference.field.removeprefix("spec.")
                by_server = own.startswith("marks.") or own in kind.admission.kept_fields
                if not by_server and not reference.existing:
                    ranks[kind.name] = max(ranks[kind.name], ranks[reference.kind] + 1)
    return ranks


_RANKS = _rank_kinds()


def _groups(parts: Sequence[_Part]) -> Iterator[list[_Part]]:
    """Successive parts, in groups that fit into one commit each."""
    group: list[_Part] = []
    writes, size, preconditions, guards = 0, 0, set[Precondition](), set[str]()
    for part in parts:
        draft = part.draft
        if draft is None:
            continue
        bytes_ = sum([len(w.key) + (len(w.value) if isinstance(w, Put) else 0) for w in draft.writes])
        new = [precondition for precondition in draft.preconditions if precondition not in preconditions]
        own = {guard.key for guard in draft.guards}
        if group and (
            writes + len(draft.writes) + len(guards | own) > MAX_WRITES
            or size + bytes_ > _MOST_BYTES
            or len(preconditions) + len(new) > MAX_PRECONDITIONS
        ):
            yield group
            group, writes, size, preconditions, new, guards = [], 0, 0, set(), draft.preconditions, set()
        group.append(part)
        writes, size = writes + len(draft.writes), size + bytes_
        preconditions.update(new)
        guards |= own
    if group:
        yield group


def _refuse_all(parts: Sequence[_Part]) -> None:
    wrong = [part for part in parts if part.error is not None]
    if not wrong:
        return
    problems = []
    for part in wrong:
        if part.error is not None:
            inner = part.error.details.get("problems") or [part.error.to_dict()]
            problems += [{**problem, "index": part.index, **_named(part)} for problem in inner]
    first = wrong[0].error
    message = first.message if first is not None else ""
    alike = (one for one in (Forbidden, IllegalTransition) if all(isinstance(part.error, one) for part in wrong))
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    tokens = {problem["reason"] for problem in problems}
    raise next(alike, InvalidInput)(
        f"{_title(wrong[0])}{message}{rest}: nothing was changed",
        reason=tokens.pop() if len(tokens) == 1 else None,
        field=first.field if first is not None else None,
        hint=first.hint if first is not None else None,
        details={"problems": problems},
    )


def _named(part: _Part) -> dict[str, str]:
    return {} if part.manifest is None else {"object": f"{part.manifest.kind.name}/{part.manifest.name}"}


def _title(part: _Part) -> str:
    return (
        f"object {part.index + 1}: "
        if part.manifest is None
        else f'{part.manifest.kind.title} "{part.manifest.name}": '
    )


def _key_of(manifest: Manifest) -> str:
    return object_key(manifest.kind.name, manifest.project, manifest.name)


async def _read_objects(call: Call, known: set[str]) -> list[Any]:
    return _check_objects(await call.read_object(MAX_BULK_BYTES), known)


def _check_objects(body: dict[str, Any], known: set[str]) -> list[Any]:
    for field in body:
        if field not in known:
            raise InvalidInput(f"{field[:80]} is not a field of this request", field=field[:80])
    objects = body.get("objects")
    if not isinstance(objects, list):
        raise InvalidInput("objects must be a list", field="objects", hint='like {"objects": [{"name": "web-1", …}]}')
    if len(objects) > MOST_OBJECTS:
        raise InvalidInput(
            f"objects: {len(objects)} are too many for one request", field="objects", hint=f"at most {MOST_OBJECTS}"
        )
    return objects


def _result(part: _Part, request_id: str) -> dict[str, Any]:
    if part.error is not None:
        problem = {**part.error.to_dict(), "status": status_of(part.error), "request_id": request_id}
        return {"error": problem}
    if part.stored is not None:
        return {"object": part.stored}
    return {"object": part.draft.envelope if part.draft is not None else None}


def _applied(part: _Part) -> dict[str, Any]:
    draft = part.draft
    if draft is None:
        return {}
    return {"action": draft.action, "object": draft.envelope, "changes": draft.changes}


def make_objects_schema(item: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The schema of a body with many objects, with ``more`` beside them."""
    objects = {"type": "array", "maxItems": MOST_OBJECTS, "items": item}
    return {"type": "object", "required": ["objects"], "properties": {"objects": objects, **more}}


RESULTS = {"type": "object", "properties": {"results": {"type": "array", "items": {"type": "object"}}}}
ROUTES = (
    Route(
        "POST",
        "/v1/apply",
        apply,
        "Create or change objects of any kinds, all or none",
        permission="KIND:update",
        where="each",
        topic=Topic("always", "apply"),
        takes=make_objects_schema({"type": "object"}, dry_run={"type": "boolean"}),
        answers=RESULTS,
    ),
)
