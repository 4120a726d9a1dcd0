"""Creates tokens: the server draws the secret, keeps its hash (of an access key: nothing), and sends it once, in the answer to
the request. Administrators create them for anyone, those of a project for their project, and users for themselves."""

from __future__ import annotations

import asyncio
from typing import Any

from weft.api.admission import admit
from weft.api.admission.admit import Draft
from weft.api.admission.commit import record_change, settle
from weft.api.admission.limits import LOGIN_LABEL, limit_objects
from weft.api.admission.references import plan_project
from weft.api.admission.refusals import keep_own_labels
from weft.api.admission.view import View
from weft.api.auth.authorise import require_own
from weft.api.context import ApiContext, TokenFacts
from weft.api.request.call import Call, object_answer
from weft.api.request.manifest import read_manifest
from weft.client.context import hash_ca
from weft.contracts.store import Precondition, Put
from weft.kinds.record import Kind
from weft.kinds.token import ONCE, SERVER_USE, TOKEN, TokenSpec
from weft.objects.envelope import Envelope, decode_part, encode_envelope
from weft.objects.errors import Forbidden, InvalidInput
from weft.objects.identity import object_key
from weft.objects.quantity import format_time
from weft.protocol.link import write_link_token
from weft.serving.answer import Answer
from weft.trust.access_keys import derive_secret, make_key_id, place_of_access_key
from weft.trust.credentials import Actor, invalid_token
from weft.trust.tokens import make_token, make_token_id

JOIN_LIFETIME_SECONDS = 86400.0
LINK_LIFETIME_SECONDS = 3600.0
LIFETIMES = {"join": JOIN_LIFETIME_SECONDS, "link": LINK_LIFETIME_SECONDS, SERVER_USE: LINK_LIFETIME_SECONDS}
ACCESS_KEY = "access-key"
_ROUNDED_SECONDS = 0.001  # times in specs have milliseconds
_MOST_HELD = 50  # projects that must still be there when a link token is stored


async def create(context: ApiContext, call: Call, raw: dict[str, Any], *, dry_run: bool) -> Answer:
    """``POST /v1/tokens``: the name is optional. A node's join token expires after a day, one of a server or a link after an hour,
    unless its spec has another time."""
    spec = raw.get("spec")
    if not isinstance(spec, dict):
        spec = {}
    if isinstance(raw.get("labels"), dict) and LOGIN_LABEL in raw["labels"]:
        raise InvalidInput(
            f"labels.{LOGIN_LABEL} is set by the server", field=f"labels.{LOGIN_LABEL}", hint="leave it out"
        )
    actor, use = call.actor, spec.get("use", "token")
    if use == SERVER_USE:
        await asyncio.to_thread(context.read_keys)  # it can't be used where no server can join
    name = raw.get("name") or make_token_id(use if use in (*ONCE, "access", ACCESS_KEY) else "token")
    if use == ACCESS_KEY:
        key_id = make_key_id()
        keys = context.settings.seal_keys
        text = derive_secret(keys.keys[0], key_id)
        sealed = keys.seal(text.encode(), place_of_access_key(key_id))
        full, marks = {"role": "invoker", **spec}, {"key_id": key_id, "sealed": sealed}
    else:
        text, sha256 = make_token(str(name))
        full, marks = dict(spec), {"sha256": sha256}
    latest = None
    if actor.user is not None and not (
        full.get("role", "viewer") and actor.permits("token:create", full.get("project"))
    ):
        full["subject"] = actor.user.name
        latest = await _find_latest_end(context, actor)
        if full.get("expires_at") is None:
            full["expires_at"] = latest
    if use in LIFETIMES and full.get("expires_at") is None:
        full["expires_at"] = context.clock.now() + LIFETIMES[use]
    manifest = read_manifest({**raw, "name": name, "spec": full, "marks": marks}, kind=TOKEN, by_verb=True)
    keep_own_labels(manifest.labels or {}, {})

    async def plan(view: View) -> Draft:
        draft = await admit.plan_create(context, view, manifest, call.actor)
        _give_owner(call.actor, draft, latest)
        draft.preconditions += await _plan_project(view, call.actor, full.get("project"))
        draft.preconditions += await _plan_link(view, draft.envelope)
        draft.counted = await limit_objects(context, view, TOKEN, draft.envelope)
        return draft

    # No Idempotency-Key: nobody has the secret of a token that was made before.
    draft = await settle(context, plan, dry_run=dry_run)
    if dry_run:
        return object_answer(draft.envelope)
    record_change(context, call, draft)
    if use == "link":
        text = write_link_token(text, hash_ca(context.authority.ca))
    return object_answer(draft.envelope, 201, secret=text)


async def _plan_link(view: View, token: Envelope) -> list[Precondition]:
    """The preconditions that the projects of a link token exist here, as many as a commit can hold. Raises NotFound,
    naming a similar one."""
    terms = decode_part(token.spec, TokenSpec).link
    found = [
        one
        for name in ((terms.projects if terms is not None else None) or ())
        for one in await plan_project(view, name)
    ]
    return found[:_MOST_HELD]


async def _find_latest_end(context: ApiContext, actor: Actor) -> float | None:
    """When a token that ``actor`` makes for its own user ends at the latest: a while after the login that makes it, or with the
    other token that makes it; None if that has no end. Raises NotAuthenticated if the actor's token is gone."""
    made_by = await context.tokens.find(object_key(TOKEN.name, None, actor.id))
    if made_by is None:
        raise invalid_token()
    if LOGIN_LABEL in made_by.envelope.labels:
        return context.clock.now() + context.settings.user_token_seconds
    return made_by.spec.expires_at


async def _plan_project(view: View, actor: Actor, project: str | None) -> list[Precondition]:
    """The precondition that the token's project exists. Raises NotFound, naming a similar one, for those who may see it, and
    Forbidden for those without a role in it: they learn nothing about it."""
    if project is None or actor.permits("project:get", project) or actor.permits("token:create", project):
        return await plan_project(view, project)
    if not any(grant.project in (None, project) for grant in actor.grants):
        raise actor.refuse("project:get", project, "create a token")
    return []


def _give_owner(actor: Actor, draft: Draft, latest: float | None) -> None:
    """A user's own token belongs to the user, goes with the user, and ends by ``latest``. Raises Forbidden for a token that the
    actor can't give, InvalidInput for one that would end later."""
    envelope = draft.envelope
    spec = decode_part(envelope.spec, TokenSpec)
    if actor.user is None and not spec.role:
        raise InvalidInput("spec.role is missing", field="spec.role", hint="only a user's own token may leave it empty")
    if spec.role and actor.permits("token:create", spec.project):
        return
    if actor.user is None or spec.use in ONCE:
        return require_own(actor, envelope)
    if not spec.role and actor.limit is not None:
        raise Forbidden(
            f"{actor.name} works with a token of role {actor.limit.role}: a token for all that {actor.name} may do exceeds it",
            hint="give a role; weft whoami shows yours",
        )
    if latest is not None and (spec.expires_at is None or spec.expires_at > latest + _ROUNDED_SECONDS):
        raise InvalidInput(
            f"spec.expires_at: a token of your own that this login or token makes ends by {format_time(latest)}",
            field="spec.expires_at",
            hint="give an earlier end, or leave it out; weft login makes tokens that last longer than other tokens do",
        )
    envelope.owner = actor.user
    draft.writes[0] = Put(envelope.key, encode_envelope(envelope))
    return None


def find_logins(context: ApiContext, user: Envelope) -> list[TokenFacts]:
    """The tokens that come from logins of ``user``, oldest first."""
    found = [
        facts
        for facts in context.tokens.found.values()
        if LOGIN_LABEL in facts.envelope.labels and facts.stored.owner == user.ref
    ]
    return sorted(found, key=lambda facts: facts.envelope.created_at)


def refuse_without_secret(kind: Kind) -> None:
    """Raise InvalidInput for a token in a request whose answer can't carry its secret."""
    if kind is TOKEN:
        raise InvalidInput(
            "a token can't be made or changed this way: its secret would be lost",
            field="kind",
            hint="weft token create, or POST /v1/tokens",
        )
