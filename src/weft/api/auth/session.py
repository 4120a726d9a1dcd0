"""Sessions of browsers: a session is a token of the user's own, as a login makes it; a cookie has one half of its secret, the page
the other."""

from __future__ import annotations

import msgspec

from weft.api.admission.limits import LOGIN_LABEL
from weft.api.auth import oidc
from weft.api.auth.authenticate import identify
from weft.api.auth.authorise import require_person
from weft.api.auth.cookie import check_origin, own_origin, split_token, write_cookie
from weft.api.auth.login import BY_PASSWORD, check_seconds, find_user, make_login
from weft.api.context import ApiContext, TokenFacts
from weft.api.request.call import JSON, Call, Change, json_answer
from weft.api.route import Route, Topic
from weft.contracts.store import Delete
from weft.kinds.token import TOKEN
from weft.kinds.user import USER
from weft.objects.envelope import Envelope, decode_envelope
from weft.objects.errors import Forbidden, IllegalTransition, InvalidInput, NotAuthenticated
from weft.objects.identity import object_key
from weft.objects.schema import read_strict
from weft.protocol.login import LoginBegun, SessionAnswer, SessionInput
from weft.serving.answer import Answer
from weft.serving.shares import who_is
from weft.trust.credentials import invalid_token

_encoder = msgspec.json.Encoder()


async def begin(context: ApiContext, call: Call) -> Answer:
    """``POST /v1/session``, from a page of this origin: a new token for a user's password, a login at the OIDC provider, or another
    token of a user. The answer has one half of its secret in a cookie, and the other as the page key."""
    check_origin(call)
    call.query()
    given = read_strict(await call.read_object(), SessionInput, "")
    check_seconds(given)
    if given.oidc:
        return json_answer(await oidc.begin(context, call, given, f"{own_origin(call)}/"))
    if given.token:
        user, made_by = await _find_by_token(context, call, given.token)
        claims, seconds = made_by.marks.claims, _shorten(context, made_by, given.expires_seconds)
        limit = (made_by.spec.role, made_by.spec.project)
        begun_by = made_by.envelope.labels.get(LOGIN_LABEL, BY_PASSWORD)
        if begun_by == BY_PASSWORD:  # else it is such a session itself, and counts where that does
            begun_by = made_by.envelope.uid
    else:
        user, claims = await find_user(context, call, given)
        seconds, limit, begun_by = given.expires_seconds, ("", None), BY_PASSWORD
    call.changed.append(Change(user, ""))
    made = await make_login(context, user, seconds, claims, name="session", limit=limit, begun_by=begun_by)
    cookie, page_key = split_token(made.secret)
    body = _encoder.encode(SessionAnswer(user=made.user, expires_at=made.expires_at, page_key=page_key))
    return Answer(201, body, (*JSON, write_cookie(cookie, seconds)))


async def end(context: ApiContext, call: Call) -> Answer:
    """``DELETE /v1/session``: delete the token in the request's cookie, and the cookie."""
    require_person(call.actor, "end a session")
    call.query()
    if call.bearer:  # as weft dashboard adds it: a page that ends its session leaves the login of its user alone
        raise IllegalTransition(
            f"the request has the token {call.actor.id}, and no session's cookie",
            reason="noSession",
            hint=f"weft token delete {call.actor.id} deletes the token",
        )
    key = object_key(TOKEN.name, None, call.actor.id)
    facts = await context.tokens.read(key)
    if facts is not None:
        context.tokens.note(key, None, await context.store.commit([Delete(key)]))
        call.changed.append(Change(facts.envelope, "deleted"))
    return Answer(204, headers=(write_cookie("", 0),))


async def _find_by_token(context: ApiContext, call: Call, text: str) -> tuple[Envelope, TokenFacts]:
    """The user of a token, and the token. Raises NotAuthenticated, Throttled, and Forbidden for a token without a user."""
    address = who_is(call.request.address)
    key = f"token {address}"
    context.logins.take(key, address, context.clock.elapsed())
    actor = await identify(context, f"Bearer {text[:500]}")
    facts = await context.tokens.find(object_key(TOKEN.name, None, actor.id))
    if facts is None or actor.kind != "person":
        raise invalid_token()
    context.logins.give_back(key, address)
    if actor.user is None:
        raise Forbidden(
            f"token {actor.id} belongs to no user: a session needs one",
            reason="noUser",
            hint="log in as a user, or run weft dashboard, which uses the token of its context",
        )
    entry = await context.store.get(object_key(USER.name, None, actor.user.name))
    if entry is None:
        raise NotAuthenticated("the token's user was deleted", hint="ask an administrator")
    return decode_envelope(entry.value, entry.revision), facts


def _shorten(context: ApiContext, made_by: TokenFacts, seconds: float) -> float:
    """A session ends no later than the token that began it."""
    ends = made_by.spec.expires_at
    if ends is None:
        return seconds
    left = ends - context.clock.now()
    if left <= 0:
        raise InvalidInput("the token has expired", field="token", hint="log in again")
    return min(seconds, left)


ROUTES = (
    Route(
        "POST",
        "/v1/session",
        begin,
        "A session for a browser, in a cookie: by password, at the OIDC provider, or by a token; takes no credentials",
        topic=Topic("always", "login"),
        takes=SessionInput,
        answers=(SessionAnswer, LoginBegun),
        status="201",
    ),
    Route(
        "DELETE",
        "/v1/session",
        end,
        "End the session whose cookie the request has",
        topic=Topic("always", "logout"),
        status="204",
    ),
)
