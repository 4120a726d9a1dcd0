"""Logs users in: each login makes a token of the user's own, for a while."""

from __future__ import annotations

from weft.api.admission import admit
from weft.api.admission.admit import Draft
from weft.api.admission.commit import settle
from weft.api.admission.limits import LOGIN_LABEL
from weft.api.admission.view import View
from weft.api.auth import oidc
from weft.api.auth.authenticate import LOGIN
from weft.api.auth.authorise import require_person
from weft.api.auth.password import find_by_password, wrong_password
from weft.api.auth.tokens import find_logins
from weft.api.context import ApiContext
from weft.api.request.call import Call, Change, json_answer
from weft.api.request.manifest import Manifest
from weft.api.route import Route, Topic
from weft.contracts.store import AtRevision, Delete, Put
from weft.kinds.permissions import PERMISSIONS
from weft.kinds.token import TOKEN
from weft.kinds.user import USER, UserSpec
from weft.objects.envelope import Envelope, decode_part, encode_envelope
from weft.objects.errors import InvalidInput
from weft.objects.identity import object_key
from weft.objects.schema import read_strict
from weft.protocol.login import HeldPermissions, HeldRole, LoginAnswer, LoginBegun, LoginInput, WhoAmI
from weft.serving.answer import Answer
from weft.trust.credentials import Actor, has_expired
from weft.trust.tokens import make_token, make_token_id

SHORTEST_SECONDS, LONGEST_SECONDS = 60.0, 30 * 86_400.0
MOST_LOGINS = 100  # tokens from logins that a user has at once: the oldest ones go
MOST_BY_TOKEN = 10  # sessions that one token has begun: of these, too, the oldest go, and never a login
MOST_DELETED = 50  # in one login
BY_PASSWORD = "user"  # what the label of a login has; that of a session that a token began has the token's uid


async def login(context: ApiContext, call: Call) -> Answer:
    """``POST /v1/login``: a token for a user's password, or for a login at the OIDC provider, which takes two requests. Raises
    NotAuthenticated, Throttled, and Unavailable for a provider that doesn't answer."""
    call.query()
    given = read_strict(await call.read_object(), LoginInput, "")
    check_seconds(given)
    if given.oidc:
        return json_answer(await oidc.begin(context, call, given))
    user, claims = await find_user(context, call, given)
    call.changed.append(Change(user, ""))
    return json_answer(await make_login(context, user, given.expires_seconds, claims), 201)


def check_seconds(given: LoginInput) -> None:
    """Raise InvalidInput for a login that would last too long, or hardly at all."""
    if not SHORTEST_SECONDS <= given.expires_seconds <= LONGEST_SECONDS:
        raise InvalidInput(
            "expires_seconds is not between a minute and 30 days", field="expires_seconds", hint="leave it out for 12 h"
        )


async def find_user(context: ApiContext, call: Call, given: LoginInput) -> tuple[Envelope, list[str]]:
    """The user who logs in, and the user's groups at the OIDC provider. Raises as ``login`` does."""
    if given.session:
        return await oidc.finish(context, call, given)
    return await find_by_password(context, call, given.user, given.password), []


async def make_login(
    context: ApiContext,
    user: Envelope,
    seconds: float,
    claims: list[str],
    *,
    name: str = "login",
    limit: tuple[str, str | None] = ("", None),
    begun_by: str = BY_PASSWORD,
) -> LoginAnswer:
    """A new token of ``user``, who is in the groups ``claims`` at the OIDC provider, called ``name`` and a number; ``limit`` is the
    role and the project that it allows at most. Expired ones of the user are deleted, and the oldest of too many that were begun
    in the same way: what a limited token begins ends none of its user's logins."""
    now = context.clock.now()
    text, sha256 = make_token(name := make_token_id(name))
    role, project = limit
    spec = {"use": "access", "role": role, "project": project, "subject": user.name, "expires_at": now + seconds}
    manifest = Manifest(
        kind=TOKEN,
        name=name,
        project=None,
        labels={LOGIN_LABEL: begun_by},
        spec=spec,
        marks={"sha256": sha256, "claims": claims},
    )

    async def plan(view: View) -> Draft:
        now_user = await view.get(USER, None, user.name)
        if now_user is None or now_user.uid != user.uid or decode_part(now_user.spec, UserSpec).disabled:
            raise wrong_password()
        draft = await admit.plan_create(context, view, manifest, None)
        draft.envelope.owner = user.ref
        draft.preconditions.append(AtRevision(user.key, now_user.revision))
        draft.writes = [
            Put(draft.envelope.key, encode_envelope(draft.envelope)),
            *_plan_clearance(context, user, begun_by, now),
        ]
        return draft

    draft = await settle(context, plan)
    context.add_event(user.ref, "LoggedIn", f"token {draft.envelope.name}")
    return LoginAnswer(secret=text, token=draft.envelope.name, user=user.name, expires_at=now + seconds)


def _plan_clearance(context: ApiContext, user: Envelope, begun_by: str, now: float) -> list[Delete]:
    logins = find_logins(context, user)
    alike = [facts for facts in logins if facts.envelope.labels[LOGIN_LABEL] == begun_by]
    over = len(alike) - (MOST_LOGINS if begun_by == BY_PASSWORD else MOST_BY_TOKEN) + 1
    oldest = {facts.key for facts in alike[: max(0, over)]}
    gone = [facts for facts in logins if facts.key in oldest or has_expired(facts.spec, now)]
    return [Delete(facts.key) for facts in gone[:MOST_DELETED]]


async def who_am_i(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/whoami``: the caller's name, roles and token."""
    actor = call.actor
    require_person(actor, "ask for roles")
    call.query()
    facts = await context.tokens.find(object_key("token", None, actor.id))
    return json_answer(
        WhoAmI(
            name=actor.name,
            user=actor.user.name if actor.user is not None else None,
            token=actor.id,
            expires_at=facts.spec.expires_at if facts is not None else None,
            claims=facts.marks.claims if facts is not None else [],
            grants=[HeldRole(grant.role, grant.project) for grant in actor.grants],
            limit=HeldRole(actor.limit.role, actor.limit.project) if actor.limit is not None else None,
            permissions=_list_permissions(actor),
        )
    )


def _list_permissions(actor: Actor) -> HeldPermissions:
    names = sorted(PERMISSIONS)
    everywhere = [name for name in names if actor.permits(name, None)]
    further = sorted(set(names).difference(everywhere))
    named = sorted({grant.project for grant in actor.grants if grant.project is not None})
    found = {project: [name for name in further if actor.permits(name, project)] for project in named}
    return HeldPermissions(everywhere=everywhere, projects={project: held for project, held in found.items() if held})


ROUTES = (
    Route(
        "POST",
        LOGIN,
        login,
        "A token for a user's password, or for a login at the OIDC provider; takes no credentials",
        topic=Topic("always", "login"),
        takes=LoginInput,
        answers=(LoginAnswer, LoginBegun),
        status="201",
    ),
    Route("GET", "/v1/whoami", who_am_i, "The caller's roles", answers=WhoAmI),
)
