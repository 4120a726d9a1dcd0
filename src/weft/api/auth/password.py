"""Checks and sets users' passwords. What a stranger learns is the same for every failure: which users there are, and which of them
are disabled or have a password, is in neither the answer's words nor its time."""

from __future__ import annotations

import msgspec

from weft.api.admission import admit
from weft.api.admission.admit import Draft
from weft.api.admission.commit import read_again, settle
from weft.api.admission.escalation import refuse_excess
from weft.api.admission.limits import LOGIN_LABEL
from weft.api.admission.refusals import not_found
from weft.api.admission.view import View
from weft.api.auth.authorise import require_person
from weft.api.context import ApiContext
from weft.api.request.call import Call, json_answer
from weft.api.route import Route
from weft.contracts.store import MAX_WRITES, Delete
from weft.kinds.token import TOKEN
from weft.kinds.user import MOST_BYTES, USER, UserMarks, UserSpec, check_password, place_of_password
from weft.objects.envelope import Envelope, decode_envelope, decode_part, merge_part
from weft.objects.errors import AlreadyExists, NotAuthenticated, WeftError
from weft.objects.identity import check_name, kind_prefix, object_key
from weft.objects.schema import read_strict
from weft.protocol.login import PasswordAnswer, PasswordInput
from weft.serving.answer import Answer
from weft.serving.shares import who_is
from weft.trust.credentials import Actor
from weft.trust.passwords import hash_password, verify_password

MOST_ENDED = MAX_WRITES - 1


async def find_by_password(context: ApiContext, call: Call, name: str, password: str) -> Envelope:
    """The user of that name, if it is the user's password. Raises NotAuthenticated, Throttled."""
    address = who_is(call.request.address)
    context.logins.take(name[:MOST_BYTES], address, context.clock.elapsed())
    user = await _find_user(context, name)
    kept = None if user is None else _open_hash(context, user)
    is_right = await context.logins.hash(lambda: verify_password(password[:MOST_BYTES], kept))
    if user is None or not is_right or decode_part(user.spec, UserSpec).disabled or user.deleting_since is not None:
        raise wrong_password()
    context.logins.give_back(name, address)
    return user


def wrong_password() -> NotAuthenticated:
    """The error of every login that fails."""
    return NotAuthenticated("user or password is wrong", reason="wrongPassword", hint="weft login asks again")


async def set_password(context: ApiContext, call: Call, name: str) -> Answer:
    """``POST /v1/users/{name}:passwd``: administrators set anyone's password; users their own, if they know the one before. It
    ends the user's other logins, or all other tokens."""
    actor = call.actor
    require_person(actor, "set a password")
    is_own = actor.user is not None and actor.user.name == name
    if not is_own:
        actor.require("user:passwd", None, "set another user's password")
        if (other := await _find_user(context, name)) is not None:
            groups = decode_part(other.spec, UserSpec).groups
            refuse_excess(actor, (await context.accounts.read()).list_grants(name, groups), USER)
    call.query()
    given = read_strict(await call.read_object(), PasswordInput, "")
    password = check_password(given.password)
    if is_own and not actor.permits("user:passwd", None):
        await find_by_password(context, call, name, given.old)
    hashed = await context.logins.hash(lambda: hash_password(password))

    async def plan(view: View) -> Draft:
        user = await view.get(USER, None, name)
        if user is None:
            raise not_found(USER, name, None)
        if given.first and decode_part(user.marks, UserMarks).password:
            raise AlreadyExists(
                f"user/{name} has a password already",
                field="first",
                hint=f"weft user passwd {name} sets another one",
            )
        sealed = context.settings.seal_keys.seal(hashed.encode(), place_of_password(user.uid))
        changed, spec = msgspec.structs.replace(user), decode_part(user.spec, UserSpec)
        changed.marks = merge_part(user.marks, UserMarks(password=sealed))
        draft = await admit.plan_spec(context, view, USER, changed, spec, spec, [], actor)
        ended = await _list_tokens(context, user, actor, logins=True)
        draft.writes += [Delete(key) for key in ended[:MOST_ENDED]]
        return draft

    draft = await settle(context, plan)
    user = draft.envelope
    context.accounts.note(user)
    for write in draft.writes:
        if isinstance(write, Delete):
            context.tokens.forget(write.key, user.revision)
    context.add_event(user.ref, "PasswordSet", f"by {actor.name}")
    tokens = await _list_tokens(context, user, actor)
    while given.end_tokens and tokens:  # until all are gone: one of them may have made another meanwhile
        revision = await context.store.commit([Delete(key) for key in tokens[:MAX_WRITES]])
        for key in tokens[:MAX_WRITES]:
            context.tokens.forget(key, revision)
        tokens = await _list_tokens(context, user, actor)
    return json_answer(PasswordAnswer(user=name, tokens=[key.rpartition("/")[2] for key in tokens]))


async def _find_user(context: ApiContext, name: str) -> Envelope | None:
    try:
        return await read_again(context, object_key("user", None, check_name(name, "user")))
    except WeftError:
        return None


async def _list_tokens(context: ApiContext, user: Envelope, actor: Actor, *, logins: bool = False) -> list[str]:
    """The keys of the user's tokens that are stored, or only of those from ``logins``, but for the one that ``actor`` uses."""
    page = await context.store.list(kind_prefix(TOKEN.name))
    found = (decode_envelope(entry.value) for entry in page.entries)
    own = [one for one in found if one.owner == user.ref and one.name != actor.id]
    return [one.key for one in own if not logins or LOGIN_LABEL in one.labels]


def _open_hash(context: ApiContext, user: Envelope) -> str | None:
    sealed = decode_part(user.marks, UserMarks).password
    return context.settings.seal_keys.unseal(sealed, place_of_password(user.uid)).decode() if sealed else None


ROUTES = (
    Route(
        "POST",
        "/v1/users/{name}:passwd",
        set_password,
        "Set a user's password (passwd)",
        permission="user:passwd",
        where="all",
        takes=PasswordInput,
    ),
)
