"""Takes in another server: a machine that shows a server's join token gets the keys of the fabric, sealed with that token.

Writes the token's use, before anything is given: who sees the token later gets nothing for it."""

from __future__ import annotations

import asyncio

import msgspec

import weft
from weft.api.admission.commit import retry
from weft.api.context import ApiContext, TokenFacts
from weft.api.request.call import Call, Change, json_answer
from weft.api.route import Route, Topic
from weft.api.servers.members import give_up, read_member, take_in
from weft.contracts.store import Absent, AtRevision, Put
from weft.kinds.server import SERVER, ServerMarks, ServerSpec, ServerStatus
from weft.kinds.token import SERVER_USE, TokenStatus
from weft.objects.envelope import Envelope, decode_part, encode_envelope, merge_part
from weft.objects.errors import AlreadyExists, Forbidden, IllegalTransition, NotAuthenticated, WeftError
from weft.objects.identity import check_name, object_key
from weft.objects.schema import read_strict
from weft.protocol.server.join import PATH, MemberPlace, ServerJoinAnswer, ServerJoinInput, name_use
from weft.protocol.server.presence import LEASE_PREFIX
from weft.serving.answer import Answer
from weft.trust.credentials import read_bearer
from weft.trust.seal import derive_key, seal

_ANOTHER = "weft token create --use server makes another"


async def join(context: ApiContext, call: Call) -> Answer:
    """``POST /v1/servers:join``."""
    shown = read_bearer(call.bearer) if call.actor.kind == "joiner" else None
    if shown is None:
        raise Forbidden("only a server's join token lets a server join", hint="weft token create --use server")
    await _require_use(context, call.actor.id)
    call.query()
    given = read_strict(await call.read_object(), ServerJoinInput, "")
    check_name(given.name, "name")
    _refuse_release(given.release)
    place = read_member(context, given.member)
    keys = await asyncio.to_thread(context.read_keys)
    await _check_use(context, call.actor.id, given)  # before the store takes a member in
    if place is not None:
        keys = msgspec.structs.replace(keys, members=await take_in(context, place))
    try:
        await retry(context, lambda: _use(context, call.actor.id, given, place))
    except WeftError:
        if place is not None:
            await give_up(context, place)
        raise
    call.changed.append(Change(Envelope(kind=SERVER.name, name=given.name, uid=given.uid), ""))
    context.add_event(
        Envelope(kind=SERVER.name, name=given.name, uid=given.uid).ref, "Joined", f"joined with token {call.actor.id}"
    )
    use = name_use(given)
    sealed = seal(derive_key(shown.secret.encode(), use), msgspec.json.encode(keys), use)
    return json_answer(ServerJoinAnswer(sealed))


def _refuse_release(release: str) -> None:
    """Raise IllegalTransition for another release than this server's, but for its third number: the newer one of two rewrites
    objects, and the older one can't change those any more."""
    if release and release.split(".")[:2] != weft.__version__.split(".")[:2]:
        raise IllegalTransition(
            f"this fabric runs weft {weft.__version__}, and the new server {release}",
            hint=f"install weft {weft.__version__} there, and upgrade all servers after it has joined",
        )


async def _require_use(context: ApiContext, token_id: str) -> None:
    """Raise Forbidden for a token by which nodes join."""
    token = await context.tokens.find(object_key("token", None, token_id))
    if token is not None and token.spec.use != SERVER_USE:
        raise Forbidden("this token lets a node join, not a server", hint=_ANOTHER)


async def _check_use(context: ApiContext, token_id: str, given: ServerJoinInput) -> TokenFacts:
    """Read the token. Raises NotAuthenticated for one that was used, AlreadyExists for a name that another server has."""
    token = await context.tokens.read(object_key("token", None, token_id))
    if token is None:
        raise NotAuthenticated("the token is not valid", hint=_ANOTHER)
    if decode_part(token.envelope.status, TokenStatus).used_at is not None:
        raise NotAuthenticated(
            f"token {token_id} was used already: it lets one server join", reason="tokenUsed", hint=_ANOTHER
        )
    is_known = await context.store.get(object_key(SERVER.name, None, given.name)) is not None
    if is_known or await context.store.leases(LEASE_PREFIX + given.name):
        raise AlreadyExists(
            f"server {given.name} exists already",
            field="name",
            hint="choose another name: weft server list shows those that are taken",
        )
    return token


async def _use(context: ApiContext, token_id: str, given: ServerJoinInput, place: MemberPlace | None) -> None:
    """Note that the server has used the token, and make its object if it has a member of the store. Raises as ``_check_use``."""
    token, key = await _check_use(context, token_id, given), object_key(SERVER.name, None, given.name)
    used = TokenStatus(used_at=context.clock.now(), server_uid=given.uid)
    token.envelope.status = merge_part(token.envelope.status, used)
    writes = [Put(token.envelope.key, encode_envelope(token.envelope))]
    if place is not None:
        status = ServerStatus(message=f"server {given.name} has joined, and was never started")
        marks = ServerMarks(member=place.client)
        made = SERVER.make(given.name, ServerSpec(), context.clock.now(), marks=marks, status=status)
        writes.append(Put(key, encode_envelope(made)))
    await context.store.commit(writes, [AtRevision(token.envelope.key, token.envelope.revision), Absent(key)])


ROUTES = (
    Route(
        "POST",
        PATH,
        join,
        "Give a new server the keys of the fabric, with a server's join token",
        topic=Topic("always", "server"),
        takes=ServerJoinInput,
        answers=ServerJoinAnswer,
    ),
)
