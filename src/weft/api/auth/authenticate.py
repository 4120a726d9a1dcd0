"""Authenticates requests: by bearer token, or by the certificate of the connection."""

from __future__ import annotations

from weft.api.auth.authorise import require_enrolled
from weft.api.auth.cookie import join_token, read_cookie
from weft.api.auth.enrolments import let_in
from weft.api.context import ApiContext, KnownBearer, TokenFacts
from weft.api.request.call import Call
from weft.api.state.token_use import find_fresh
from weft.objects.errors import Forbidden, NotAuthenticated
from weft.objects.identity import object_key
from weft.trust.credentials import (
    Actor,
    check_bearer,
    check_certificate,
    has_expired,
    invalid_token,
    make_actor,
    missing_credentials,
    read_bearer,
)
from weft.trust.peer import Peer

LOGIN, SESSION = "/v1/login", "/v1/session"  # which take the credentials of a person instead
PAGE, ASSETS = "/", "/assets/"  # of the dashboard: they hold no data
MOST_BEARERS = 1000  # bearers that are remembered


async def authenticate(context: ApiContext, call: Call) -> Actor:
    """The actor. Raises NotAuthenticated, with no more detail than a stranger may know."""
    if bearer := call.bearer:
        return await identify(context, bearer)
    peer = call.peer
    if peer is not None and (peer.node_uid is not None or peer.server is not None):
        return await _by_certificate(context, peer)
    if _takes_strangers(call):
        return Actor("stranger", "nobody", "")
    if cookie := read_cookie(call):
        actor = await identify(context, f"Bearer {join_token(call, cookie)}")
        if actor.kind != "person":
            raise invalid_token()
        return actor
    raise missing_credentials(
        "weft login --user NAME logs in; a program sends Authorization: Bearer weft_…, a node its certificate"
    )


def read_credentials(call: Call) -> str:
    """The Authorization header of a person's request that was authenticated, also by a session's cookie."""
    return call.bearer or f"Bearer {join_token(call, read_cookie(call))}"


async def identify(context: ApiContext, bearer: str) -> Actor:
    """The actor of an Authorization header. Raises NotAuthenticated."""
    return find_known(context, bearer) or await _by_token(context, bearer)


async def identify_again(context: ApiContext, actor: Actor) -> Actor | None:
    """``actor`` with the rights that it has now, None if it would not be let in any more: for streams, which ask now and then."""
    try:
        if actor.kind == "node":
            await require_enrolled(context, actor)
            return actor
        facts = await _find(context, actor.id)
        return None if facts is None else (await _make_actor(context, facts)).ask_for(actor.own_project)
    except (Forbidden, NotAuthenticated):
        return None


def _takes_strangers(call: Call) -> bool:
    """Whether the request needs no credentials; a browser's old cookie is in no one's way there."""
    is_page = call.method == "GET" and (call.path == PAGE or call.path.startswith(ASSETS))
    return is_page or call.path == LOGIN or (call.path == SESSION and call.method == "POST")


async def _by_certificate(context: ApiContext, peer: Peer) -> Actor:
    actor = check_certificate(peer, context.clock.now())
    if actor.kind == "node":
        await let_in(context, actor, peer)
    if peer.server is not None:
        await context.servers.require(peer.server)
    return actor


def find_known(context: ApiContext, bearer: str) -> Actor | None:
    """The actor of a bearer that was checked before, if its token hasn't changed since."""
    known = context.bearers.get(bearer)
    if known is None:
        return None
    facts, tokens = known.facts, context.tokens
    now = context.clock.now()
    if not tokens.live or tokens.found.get(facts.key) is not facts:
        return None
    if now >= known.quiet_until:
        if has_expired(facts.spec, now):
            return None
        if known.actor.kind == "person":  # a token for one use is used by what it lets in, not by a request
            context.token_use.note(facts.key, facts.used_at, now)
    if known.actor.is_fixed or known.version == context.accounts.version:
        return known.actor
    if (directory := context.accounts.live) is None:
        return None
    actor = make_actor(facts.stored, directory, now)
    context.bearers[bearer] = known._replace(actor=actor, version=context.accounts.version)
    return actor


async def _by_token(context: ApiContext, bearer: str) -> Actor:
    token = read_bearer(bearer)
    facts = await _find(context, token.id)
    if facts is None:
        raise invalid_token()
    version, directory = context.accounts.version, await context.accounts.read()
    try:
        actor = check_bearer(token, facts.stored, directory, context.clock.now())
    except NotAuthenticated:
        owner = facts.stored.owner  # another API server may just have made it
        if owner is None or not await context.accounts.read_again(owner):
            raise
        version, directory = context.accounts.version, await context.accounts.read()
        actor = check_bearer(token, facts.stored, directory, context.clock.now())
    if facts.spec.role == "invoker" and actor.kind == "person":
        raise Forbidden(
            f"token {token.id} may only invoke functions",
            hint="weft function endpoint shows where; use another token for anything else",
        )
    if actor.kind == "person":
        context.token_use.note(facts.key, facts.used_at, context.clock.now())
    if len(context.bearers) >= MOST_BEARERS:
        context.bearers.clear()
    context.bearers[bearer] = KnownBearer(facts, actor, version, _find_quiet(facts))
    return actor


def _find_quiet(facts: TokenFacts) -> float:
    noted = find_fresh(facts.used_at)
    return noted if facts.spec.expires_at is None else min(noted, facts.spec.expires_at)


async def _make_actor(context: ApiContext, facts: TokenFacts) -> Actor:
    return make_actor(facts.stored, await context.accounts.read(), context.clock.now())


async def _find(context: ApiContext, token_id: str) -> TokenFacts | None:
    key = object_key("token", None, token_id)
    known = context.tokens.found.get(key) if context.tokens.live else None
    return known or await context.tokens.read(key)
