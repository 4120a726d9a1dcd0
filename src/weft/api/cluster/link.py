"""The side of a link that begins it: asks the other cluster with the token that was printed there, then writes its own half. If
this server is killed in between, the other side has a half without this one; a new token and the same command renew that."""

from __future__ import annotations

import asyncio

from weft import __version__
from weft.api.admission.commit import retry
from weft.api.admission.references import plan_project
from weft.api.admission.view import View
from weft.api.auth.authorise import require_permission
from weft.api.cluster.accept import check_word
from weft.api.cluster.hello import read_epoch
from weft.api.cluster.link_names import plan_name
from weft.api.cluster.members import Other, merge_terms, plan_link, read_members, refuse_itself
from weft.api.context import ApiContext
from weft.api.request.call import Call, Change, object_answer
from weft.api.route import Route
from weft.client.cluster.peer import begin_link, find_ca
from weft.kinds.cluster import CLUSTER, GRANTS_TAKE
from weft.kinds.fields.cluster.link import LinkTerms, check_sha256, check_terms, check_url, find_uid
from weft.objects.envelope import Envelope
from weft.objects.errors import InvalidInput, NotAuthenticated
from weft.objects.identity import check_name
from weft.objects.schema import read_strict
from weft.protocol.link import NEWEST, OLDEST, AcceptAnswer, AcceptInput, LinkInput, read_link_token
from weft.serving.answer import Answer
from weft.trust.tokens import hash_secret, make_secret, make_token_id, write_token

_LINK = f"{CLUSTER.name}:create"


async def link(context: ApiContext, call: Call, name: str) -> Answer:
    """``POST /v1/clusters/{name}:link``."""
    require_permission(call.actor, _LINK, None, "link a cluster")
    call.query()
    given = read_strict(await call.read_object(), LinkInput, "")
    check_name(name)
    terms = read_strict({"grants": given.grants, "projects": given.projects}, LinkTerms, "")
    check_terms(terms.grants or (), terms.projects or {}, "link")
    if terms.grants or (terms.grants is None and terms.projects):  # these widen the grants that it has already
        require_permission(call.actor, GRANTS_TAKE, None, "let another cluster do more here")
    url, own_url = check_url(given.url, "url"), check_url(given.own_url, "own_url")
    for project in terms.projects or ():
        await plan_project(View(context.store, context.clock), project)  # before the other side has its half
    read = read_link_token(given.token)
    if read is None:
        raise InvalidInput(
            "token is not the text of a link token", field="token", hint="copy what weft cluster link-token printed"
        )
    token, sha256 = read
    refuse_itself(context, sha256[:32], "token")
    former = (await read_members(context)).find(name, sha256[:32])
    merge_terms(terms, former)
    if former is None:
        await plan_name(context, name, sha256[:32])  # before the other side has its half
    ca = await asyncio.to_thread(find_ca, url, sha256)
    secret, own_id = make_secret(), make_token_id("cluster")
    offer = AcceptInput(
        ca=context.authority.ca,
        url=own_url,
        token_id=own_id,
        sha256=hash_secret(secret),
        release=__version__,
        epoch=await read_epoch(context),
        oldest=OLDEST,
        newest=NEWEST,
    )
    try:
        answer = await asyncio.to_thread(begin_link, url, token, ca, offer)
    except NotAuthenticated as problem:
        raise InvalidInput(problem.message, reason=problem.token, field="url", hint=problem.hint) from None
    other = _read_other(answer, ca, url)
    text = write_token(answer.token_id, secret)

    async def attempt() -> Envelope:
        former = (await read_members(context)).find(name, find_uid(ca))
        made, writes, preconditions = await plan_link(
            context,
            name=name,
            former=former,
            other=other,
            given=terms,
            token_id=own_id,
            secret=text,
            creator=call.actor.creator,
            phase="Linked",
        )
        made.revision = await context.store.commit(writes, preconditions)
        context.accounts.note(made)
        return made

    made = await retry(context, attempt)
    call.changed.append(Change(made, "created"))
    context.add_event(
        made.ref, "Linked", f"linked with {url} by {call.actor.name}; this cluster is {check_name(answer.name)} there"
    )
    return object_answer(made, 201)


def _read_other(answer: AcceptAnswer, ca: str, url: str) -> Other:
    """Raises InvalidInput for an answer that no cluster of weft's gives."""
    check_name(answer.name, "answer.name")
    check_name(answer.token_id, "answer.token_id")
    if not OLDEST <= answer.protocol <= NEWEST or find_uid(answer.ca, "answer.ca") != find_uid(ca):
        raise InvalidInput("the other cluster's answer contradicts what was asked", reason="linkProtocol", field="url")
    return Other(
        ca=ca,
        url=url,
        release=check_word(answer.release, "answer.release"),
        epoch=check_word(answer.epoch, "answer.epoch"),
        protocol=answer.protocol,
        asks_with=check_sha256(answer.sha256, "answer.sha256"),
    )


ROUTES = (
    Route(
        "POST",
        "/v1/clusters/{name}:link",
        link,
        "Link another cluster under this name, with the token that was printed there",
        permission=_LINK,
        where="all",
        takes=LinkInput,
        status="201",
    ),
)
