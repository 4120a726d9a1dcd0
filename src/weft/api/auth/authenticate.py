"""Who asks: by bearer token, or by the certificate of the connection. Nobody is let in without either."""

from __future__ import annotations

import datetime

from weft.api.auth.authorise import require_enrolled
from weft.api.auth.enrolments import let_in
from weft.api.context import ApiContext, KnownBearer, TokenFacts
from weft.api.request.call import Actor, Call
from weft.objects.errors import Forbidden, NotAuthenticated
from weft.objects.identity import NODE_PREFIX, object_key
from weft.trust.peer import Peer
from weft.trust.tokens import parse_token, verify_secret

MOST_BEARERS = 1000  # bearers that are remembered


async def authenticate(context: ApiContext, call: Call) -> Actor:
    """Who asks. Raises NotAuthenticated, saying no more than a stranger may know."""
    bearer = call.bearer
    if bearer:
        return _known(context, bearer) or await _by_token(context, bearer)
    peer = call.peer
    if peer is not None and peer.node_uid is not None:
        return await _by_certificate(context, peer, peer.node_uid)
    raise NotAuthenticated(
        "missing credentials",
        hint="send Authorization: Bearer weft_… or a node's certificate; weft uses the context's token",
    )


async def is_still_let_in(context: ApiContext, actor: Actor) -> bool:
    """Whether ``actor``, let in before, still would be: asked now and then while a stream lasts."""
    if actor.kind == "node":
        try:
            await require_enrolled(context, actor)
        except (Forbidden, NotAuthenticated):
            return False
        return True
    facts = await _find(context, actor.id)
    return facts is not None and not _has_expired(context, facts)


async def _by_certificate(context: ApiContext, peer: Peer, uid: str) -> Actor:
    if not peer.begins <= context.clock.now() < peer.ends:
        raise _out_of_time(context, peer.begins, peer.ends)
    actor = Actor(kind="node", name=f"{NODE_PREFIX}{uid}", id=uid, peer=peer)
    await let_in(context, actor, peer)
    return actor


def _known(context: ApiContext, bearer: str) -> Actor | None:
    """Who that is, if it was found out before and the token is stored as it was then."""
    known = context.bearers.get(bearer)
    if known is None:
        return None
    facts, tokens = known.facts, context.tokens
    is_good = tokens.live and tokens.found.get(facts.key) is facts and not _has_expired(context, facts)
    return known.actor if is_good else None


async def _by_token(context: ApiContext, bearer: str) -> Actor:
    facts, actor = await _identify(context, bearer)
    if len(context.bearers) >= MOST_BEARERS:
        context.bearers.clear()
    context.bearers[bearer] = KnownBearer(facts, actor)
    return actor


async def _identify(context: ApiContext, bearer: str) -> tuple[TokenFacts, Actor]:
    scheme, _, text = bearer.partition(" ")
    token = parse_token(text.strip()) if scheme.lower() == "bearer" else None
    if token is None:
        raise NotAuthenticated("the token is not a weft token", hint="a token looks like weft_ID_SECRET")
    facts = await _find(context, token.id)
    if facts is None or not verify_secret(token.secret, facts.spec.sha256):
        raise NotAuthenticated("the token is not valid", hint="it may have been deleted; make up renews a local one")
    if _has_expired(context, facts):
        raise NotAuthenticated(f"token {token.id} has expired", hint="weft token create makes another")
    spec = facts.spec
    if spec.role == "invoker":
        raise Forbidden(
            f"token {token.id} may only invoke functions",
            hint="weft function endpoint shows where; use another token for anything else",
        )
    if spec.use == "join":
        return facts, Actor(kind="joiner", name=f"token {token.id}", id=token.id)
    return facts, Actor(kind="person", name=spec.subject or token.id, id=token.id, is_admin=spec.role == "admin")


def _out_of_time(context: ApiContext, begins: float, ends: float) -> NotAuthenticated:
    begin, end, now = (
        datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M")
        for at in (begins, ends, context.clock.now())
    )
    return NotAuthenticated(
        f"the node's certificate is valid from {begin} to {end} UTC, but the server's clock says {now}",
        reason="certificateExpired",
        hint="if that clock is right: weft token create --join --node NAME, and join again with the same --state",
    )


async def _find(context: ApiContext, token_id: str) -> TokenFacts | None:
    key = object_key("token", None, token_id)
    known = context.tokens.found.get(key) if context.tokens.live else None
    return known or await context.tokens.read(key)


def _has_expired(context: ApiContext, facts: TokenFacts) -> bool:
    expires_at = facts.spec.expires_at
    return expires_at is not None and expires_at <= context.clock.now()
