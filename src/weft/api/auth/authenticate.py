"""Authenticates requests: by bearer token, or by the certificate of the connection."""

from __future__ import annotations

from weft.api.auth.authorise import require_enrolled
from weft.api.auth.enrolments import let_in
from weft.api.context import ApiContext, KnownBearer, TokenFacts
from weft.api.request.call import Call
from weft.objects.errors import Forbidden, NotAuthenticated
from weft.objects.identity import object_key
from weft.trust.credentials import (
    Actor,
    check_bearer,
    check_certificate,
    has_expired,
    invalid_token,
    missing_credentials,
    read_bearer,
)
from weft.trust.peer import Peer

MOST_BEARERS = 1000  # bearers that are remembered


async def authenticate(context: ApiContext, call: Call) -> Actor:
    """The actor. Raises NotAuthenticated, with no more detail than a stranger may know."""
    bearer = call.bearer
    if bearer:
        return _known(context, bearer) or await _by_token(context, bearer)
    peer = call.peer
    if peer is not None and peer.node_uid is not None:
        return await _by_certificate(context, peer, peer.node_uid)
    raise missing_credentials(
        "send Authorization: Bearer weft_… or a node's certificate; weft uses the context's token"
    )


async def is_still_let_in(context: ApiContext, actor: Actor) -> bool:
    """Whether ``actor`` would still be let in: for streams, which check it now and then."""
    if actor.kind == "node":
        try:
            await require_enrolled(context, actor)
        except (Forbidden, NotAuthenticated):
            return False
        return True
    facts = await _find(context, actor.id)
    return facts is not None and not has_expired(facts.spec, context.clock.now())


async def _by_certificate(context: ApiContext, peer: Peer, uid: str) -> Actor:
    actor = check_certificate(peer, uid, context.clock.now())
    await let_in(context, actor, peer)
    return actor


def _known(context: ApiContext, bearer: str) -> Actor | None:
    """The actor of a bearer that was checked before, if its token hasn't changed since."""
    known = context.bearers.get(bearer)
    if known is None:
        return None
    facts, tokens = known.facts, context.tokens
    is_good = tokens.live and tokens.found.get(facts.key) is facts and not has_expired(facts.spec, context.clock.now())
    return known.actor if is_good else None


async def _by_token(context: ApiContext, bearer: str) -> Actor:
    token = read_bearer(bearer)
    facts = await _find(context, token.id)
    if facts is None:
        raise invalid_token()
    actor = check_bearer(token, facts.spec, context.clock.now())
    if actor.role == "invoker":
        raise Forbidden(
            f"token {token.id} may only invoke functions",
            hint="weft function endpoint shows where; use another token for anything else",
        )
    if len(context.bearers) >= MOST_BEARERS:
        context.bearers.clear()
    context.bearers[bearer] = KnownBearer(facts, actor)
    return actor


async def _find(context: ApiContext, token_id: str) -> TokenFacts | None:
    key = object_key("token", None, token_id)
    known = context.tokens.found.get(key) if context.tokens.live else None
    return known or await context.tokens.read(key)
