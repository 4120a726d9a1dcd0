"""Create, put, patch: the API server's writes of one object."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from weft.api.admission import admit
from weft.api.admission.admit import Draft
from weft.api.admission.commit import describe_deleted, record_change, settle, was_done
from weft.api.admission.refusals import not_found
from weft.api.admission.view import View
from weft.api.auth import tokens
from weft.api.auth.authorise import require_own
from weft.api.context import ApiContext
from weft.api.object import arrivals
from weft.api.request.call import Call, object_answer
from weft.api.request.if_match import Match, refuse_stale
from weft.api.request.manifest import read_manifest
from weft.api.request.target import Target
from weft.kinds.arrival import ARRIVAL
from weft.kinds.rolebinding import ROLE_BINDING, RoleBindingSpec
from weft.kinds.user import USER, UserSpec
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import InvalidInput, UnknownField, WeftError
from weft.objects.identity import object_key
from weft.serving.answer import Answer

CREATE = {"token": tokens.create}  # the kinds with a create of their own
_PATCHED = ("labels", "spec", "uid", "generation")


async def create(context: ApiContext, call: Call, target: Target) -> Answer:
    """``POST`` on a collection."""
    dry_run = call.read_dry_run()
    raw = await call.read_object()
    if target.kind is ARRIVAL:
        return await arrivals.create(context, call, raw, target, dry_run=dry_run)
    if (create_own := CREATE.get(target.kind.name)) is not None:
        return await create_own(context, call, raw, dry_run=dry_run)
    manifest = read_manifest(raw, kind=target.kind, project=target.project)

    async def plan(view: View) -> Draft:
        draft = await admit.plan_create(context, view, manifest, call.actor)
        if target.kind.access.readers == "administered":
            require_own(call.actor, draft.envelope)
        return draft

    draft = await _settle_once(context, call, target, manifest.name, plan, dry_run)
    if not dry_run:
        record_change(context, call, draft)
    more = {"identities": await _list_identities(context, draft.envelope)} if target.kind is ROLE_BINDING else {}
    return object_answer(draft.envelope, 200 if dry_run else 201, **more)


async def _list_identities(context: ApiContext, binding: Envelope) -> dict[str, str]:
    """Identities at the OIDC provider of the users of a role binding, by name; "": users of weft alone. A name alone doesn't say
    it. Nothing where there is no provider and nobody is linked with one."""
    found = {}
    for name in decode_part(binding.spec, RoleBindingSpec).users:
        entry = await context.store.get(object_key(USER.name, None, name))
        if entry is not None:
            found[name] = decode_part(decode_envelope(entry.value).spec, UserSpec).identity
    return found if context.provider is not None or any(found.values()) else {}


async def put(context: ApiContext, call: Call, target: Target) -> Answer:
    """``PUT`` on an object."""
    dry_run = call.read_dry_run()
    manifest = read_manifest(await call.read_object(), kind=target.kind, project=target.project, name=target.name)
    tokens.refuse_without_secret(manifest.kind)
    if target.kind is ARRIVAL:
        call.actor.require("arrival:create", target.project, "create an arrival")
    arrivals.refuse_put(target.kind)
    expected = Match(call)

    async def plan(view: View) -> Draft:
        if expected.is_given or manifest.revision is not None:
            current = await view.get(manifest.kind, manifest.project, manifest.name)
            expected.check(manifest.kind, manifest.name, current)
            refuse_stale(manifest.kind, manifest.name, current, manifest.revision)
        return await admit.plan_put(context, view, manifest, call.actor)

    draft = await _settle_once(context, call, target, manifest.name, plan, dry_run)
    return _answer(context, call, draft, dry_run)


async def patch(context: ApiContext, call: Call, target: Target) -> Answer:
    """``PATCH`` on an object: a JSON merge patch (RFC 7396) on labels and spec."""
    dry_run = call.read_dry_run()
    raw = await call.read_object()
    for field in raw:
        if field not in _PATCHED:
            raise UnknownField(
                f"{field[:80]} can't be patched", field=field[:80], hint="only labels, spec, uid and generation can"
            )

    expected = Match(call)

    async def plan(view: View) -> Draft:
        current = await view.get(target.kind, target.project, target.require_name())
        expected.check(target.kind, target.require_name(), current)
        if current is None:
            raise not_found(target.kind, target.require_name(), target.project)
        manifest = read_manifest(
            _patched(current, raw, target), kind=target.kind, project=target.project, name=target.name
        )
        return await admit.plan_update(context, view, manifest, current, call.actor)

    draft = await _settle_once(context, call, target, target.require_name(), plan, dry_run)
    return _answer(context, call, draft, dry_run)


def _settle_once(
    context: ApiContext, call: Call, target: Target, name: str, plan: Callable[[View], Awaitable[Draft]], dry_run: bool
) -> Awaitable[Draft]:
    """The draft of ``plan``, committed; a repeat of a request that was carried out changes nothing."""
    key = None if dry_run else call.idempotency_key
    if key is None:
        return settle(context, plan, dry_run=dry_run)
    return _settle_with_key(context, key, target, name, plan)


async def _settle_with_key(
    context: ApiContext, key: str, target: Target, name: str, plan: Callable[[View], Awaitable[Draft]]
) -> Draft:
    try:
        return await settle(context, plan, key=key)
    except WeftError:
        # The reason may be the effect of the first request with this key.
        if not await was_done(context, key):
            raise
        current = await View(context.store, context.clock).get(target.kind, target.project, name)
        if current is None:
            raise describe_deleted() from None
        return Draft(target.kind, current, "unchanged")


def merge_patch(old: Any, patch_: Any) -> Any:
    """``old`` with ``patch_`` merged in, as RFC 7396 has it: None removes a field."""
    if not isinstance(patch_, dict):
        return patch_
    merged = dict(old) if isinstance(old, dict) else {}
    for name, value in patch_.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def _patched(current: Envelope, raw: dict[str, Any], target: Target) -> dict[str, Any]:
    spec = raw.get("spec", {})
    labels = raw.get("labels", {})
    if not isinstance(spec, dict) or not isinstance(labels, dict):
        raise InvalidInput("a patch must be a set of fields", hint='like {"spec": {"cpu": 2}}')
    whole = msgspec.to_builtins(decode_part(current.spec, target.kind.spec))
    return {
        "spec": merge_patch(whole, spec),
        "labels": merge_patch(current.labels, labels),
        "uid": raw.get("uid"),
        "generation": raw.get("generation"),
    }


def _answer(context: ApiContext, call: Call, draft: Draft, dry_run: bool) -> Answer:
    if not dry_run:
        record_change(context, call, draft)
    answer = object_answer(draft.envelope, 201 if draft.action == "created" and not dry_run else 200)
    answer.headers += (("weft-action", draft.action),)
    return answer
