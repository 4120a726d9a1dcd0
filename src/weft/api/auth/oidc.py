"""Logs people in at the OIDC provider, in a browser (authorization code with PKCE, RFC 7636) or by a code that they type on another
device (RFC 8628). The server asks the provider; what it must remember meanwhile is sealed and kept by the client."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from typing import Any
from urllib.parse import urlencode

import msgspec

from weft.api.admission import admit
from weft.api.admission.admit import Draft
from weft.api.admission.commit import record_change, settle
from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.api.request.call import Call
from weft.api.request.manifest import Manifest
from weft.api.state.oidc_provider import LoginRefused, Provider
from weft.kinds.token import TOKEN
from weft.kinds.user import USER, UserSpec
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import Forbidden, IllegalTransition, InvalidInput, NotAuthenticated, Unavailable
from weft.objects.identity import cut_name, kind_prefix, object_key
from weft.protocol.login import LoginBegun, LoginInput
from weft.serving.shares import who_is
from weft.trust.id_tokens import Identity

SESSION_SECONDS = 600.0
_PLACE = "oidc-login"
_REDIRECT = re.compile(r"http://(127\.0\.0\.1|\[::1\]|localhost):\d{1,5}/callback")
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
# What a log's reader takes for weft itself, or for those who run it: an administrator may give such a name, a provider may not.
RESERVED = frozenset(
    "admin administrator api fabric-admin gateway nobody operator root scheduler server system weft".split()
)
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")


class _Session(msgspec.Struct):
    """State of a login that has begun."""

    expires: float  # unix seconds
    nonce: str = ""  # of the browser flow, as the next two
    verifier: str = ""
    redirect: str = ""
    device_code: str = ""


def require_provider(context: ApiContext) -> Provider:
    """Raises Unavailable where the server has none."""
    if context.provider is None:
        raise Unavailable(
            "this server has no OIDC provider",
            reason="noProvider",
            hint="weft login --user NAME logs in with a password; weft server --oidc-issuer URL names a provider",
        )
    return context.provider


async def begin(context: ApiContext, call: Call, given: LoginInput, page: str = "") -> LoginBegun:
    """Begin a login: where the person goes, and what the client sends back; a browser may come back to ``page``, too. Raises
    Unavailable, Throttled, InvalidInput."""
    provider, address = require_provider(context), who_is(call.request.address)
    context.logins.take(f"begin {address}", address, context.clock.elapsed())
    session = _Session(context.clock.now() + SESSION_SECONDS)
    begun = await (
        _begin_device(provider, session) if given.oidc == "device" else _begin_browser(provider, session, given, page)
    )
    context.logins.give_back(f"begin {address}", address)
    sealed = context.settings.seal_keys.seal(msgspec.json.encode(session), _PLACE)
    return msgspec.structs.replace(begun, session=sealed)


async def finish(context: ApiContext, call: Call, given: LoginInput) -> tuple[Envelope, list[str]]:
    """The user who has logged in, and the person's groups at the provider. Raises NotAuthenticated, IllegalTransition
    (``loginPending``) while the person hasn't yet, Forbidden, Throttled, Unavailable."""
    provider, address = require_provider(context), who_is(call.request.address)
    key = f"finish {address}"
    context.logins.take(key, address, context.clock.elapsed())
    session = _open(context, given.session)
    if session.device_code:
        grant = {"grant_type": _DEVICE_GRANT, "device_code": session.device_code}
    else:
        grant = {
            "grant_type": "authorization_code",
            "code": given.code[:4096],
            "redirect_uri": session.redirect,
            "code_verifier": session.verifier,
        }
    try:
        identity = await provider.redeem(grant, session.nonce or None)
    except LoginRefused as refused:
        if refused.code in ("authorization_pending", "slow_down"):
            context.logins.give_back(key, address)
            raise IllegalTransition(
                "the person hasn't logged in yet", reason="loginPending", hint="try again", retry_after_seconds=5
            ) from None
        raise
    context.logins.give_back(key, address)
    return await _find_user(context, call, provider.settings.issuer, identity), list(identity.groups)


async def _begin_browser(provider: Provider, session: _Session, given: LoginInput, page: str) -> LoginBegun:
    if not _REDIRECT.fullmatch(given.redirect) and (not page or given.redirect != page):
        raise InvalidInput(
            "redirect must be an address of the client's own machine",
            field="redirect",
            hint="write it like http://127.0.0.1:43210/callback",
        )
    endpoints, state = await provider.find_endpoints(), secrets.token_urlsafe(24)
    session.nonce, session.verifier, session.redirect = (
        secrets.token_urlsafe(24),
        secrets.token_urlsafe(48),
        given.redirect,
    )
    digest = hashlib.sha256(session.verifier.encode()).digest()
    query = {
        "response_type": "code",
        "client_id": provider.settings.client,
        "redirect_uri": session.redirect,
        "scope": provider.settings.scope,
        "state": state,
        "nonce": session.nonce,
        "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
        "code_challenge_method": "S256",
    }
    joiner = "&" if "?" in endpoints.authorization_endpoint else "?"
    return LoginBegun(url=f"{endpoints.authorization_endpoint}{joiner}{urlencode(query)}", state=state)


async def _begin_device(provider: Provider, session: _Session) -> LoginBegun:
    answer = await provider.request_device()
    try:
        session.device_code = _read_text(answer, "device_code")
        url = answer.get("verification_uri_complete") or _read_text(answer, "verification_uri")
        return LoginBegun(url=str(url), user_code=_read_text(answer, "user_code"), interval=5.0)
    except KeyError as problem:
        raise Unavailable(
            f"the OIDC provider can't be used: its answer has no {problem}", reason="providerUnavailable"
        ) from None


def _read_text(answer: dict[str, Any], name: str) -> str:
    if not isinstance(answer.get(name), str):
        raise KeyError(name)
    return str(answer[name])


def _open(context: ApiContext, sealed: str) -> _Session:
    try:
        session = msgspec.json.decode(context.settings.seal_keys.unseal(sealed, _PLACE), type=_Session)
    except (Unavailable, msgspec.MsgspecError):
        session = _Session(0.0)
    if session.expires < context.clock.now():
        raise NotAuthenticated(
            "the login has expired, or was begun elsewhere", reason="loginRefused", hint="log in again"
        )
    return session


async def _find_user(context: ApiContext, call: Call, issuer: str, identity: Identity) -> Envelope:
    """The user who is linked with that person, or a new one: nobody else's account is ever taken over because of a name."""
    linked = f"{issuer}#{identity.subject}"
    page = await context.store.list(kind_prefix(USER.name))
    for entry in page.entries:
        user = decode_envelope(entry.value, entry.revision)
        if decode_part(user.spec, UserSpec).identity == linked and user.deleting_since is None:
            return user
    name = make_user_name(identity.name or identity.subject)
    if any(entry.key.rpartition("/")[2] == name for entry in page.entries):
        raise Forbidden(
            f"there is a user {name} who isn't known to be this person of the OIDC provider",
            reason="nameTaken",
            hint=f"an administrator links them: weft user set {name} --identity '{linked}'",
        )
    if name in RESERVED or await context.tokens.find(object_key(TOKEN.name, None, name)) is not None:
        raise Forbidden(
            f"the OIDC provider calls this person {name}, which looks like {'a token' if name not in RESERVED else 'weft itself'}",
            reason="nameTaken",
            hint=f"an administrator makes a user of another name: weft user create NAME --identity '{linked}'",
        )
    spec = {"full_name": identity.full_name, "identity": linked}
    manifest = Manifest(kind=USER, name=name, project=None, labels=None, spec=spec)

    async def plan(view: View) -> Draft:
        return await admit.plan_create(context, view, manifest, None)

    draft = await settle(context, plan)
    record_change(context, call, draft)
    return draft.envelope


def make_user_name(name: str) -> str:
    """The name of a person at the provider as an object's: ``Ann@school.example`` is ``ann-school-example``, and not ``ann``, who
    is at another school. Pure."""
    made = _NOT_IN_NAMES.sub("-", name.lower()).strip("-")
    return cut_name(made) or "user"
