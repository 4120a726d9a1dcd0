"""The side of a link that printed its token: takes in the cluster that shows it, and says what that needs to know. The Cluster
object, the other's token and the use of the link token are one commit."""

from __future__ import annotations

import msgspec

from weft import __version__
from weft.api.admission.commit import retry
from weft.api.cluster.hello import read_epoch
from weft.api.cluster.members import Other, plan_link, read_members, refuse_itself
from weft.api.context import ApiContext
from weft.api.request.call import Call, Change, json_answer
from weft.api.route import Route, Topic
from weft.contracts.store import AtRevision, Put
from weft.kinds.fields.cluster.link import LinkTerms, check_sha256, check_url, find_uid
from weft.kinds.token import TokenStatus
from weft.objects.envelope import Envelope, decode_part, encode_envelope, merge_part
from weft.objects.errors import Forbidden, InvalidInput, NotAuthenticated
from weft.objects.identity import check_name, object_key
from weft.objects.schema import read_strict
from weft.protocol.link import NEWEST, OLDEST, PATH, AcceptAnswer, AcceptInput, choose_protocol
from weft.serving.answer import Answer
from weft.trust.tokens import make_token, make_token_id

MOST_WORD = 64  # characters of a release or an epoch


async def accept(context: ApiContext, call: Call) -> Answer:
    """``POST /v1/link``."""
    if call.actor.kind != "linker":
        raise Forbidden("only a link token links a cluster", hint="weft cluster link-token")
    call.query()
    given = read_strict(await call.read_object(), AcceptInput, "")
    uid, other = find_uid(given.ca), read_other(given)
    check_name(given.token_id, "token_id")
    refuse_itself(context, uid, "ca")
    asks, sha256 = make_token(given.token_id)
    own_id = make_token_id("cluster")
    made = await retry(context, lambda: _take_in(context, call.actor.id, uid, other, own_id, asks))
    call.changed.append(Change(made, "created"))
    context.add_event(made.ref, "Linked", f"linked with token {call.actor.id}; it is reached at {other.url}")
    answer = AcceptAnswer(
        name=made.name,
        ca=context.authority.ca,
        token_id=own_id,
        sha256=sha256,
        release=__version__,
        epoch=await read_epoch(context),
        protocol=other.protocol,
    )
    return json_answer(msgspec.to_builtins(answer))


def read_other(given: AcceptInput) -> Other:
    """Raises InvalidInput, also where both sides have no protocol in common."""
    protocol = choose_protocol(given.oldest, given.newest)
    if not protocol:
        raise InvalidInput(
            f"the clusters have no protocol for links in common: {OLDEST} to {NEWEST} in release {__version__} here, "
            f"{given.oldest} to {given.newest} in release {check_word(given.release, 'release')} there",
            reason="linkProtocol",
            hint="update the cluster with the older release",
        )
    return Other(
        ca=given.ca,
        url=check_url(given.url, "url"),
        release=check_word(given.release, "release"),
        epoch=check_word(given.epoch, "epoch"),
        protocol=protocol,
        asks_with=check_sha256(given.sha256, "sha256"),
    )


def check_word(text: str, field: str) -> str:
    """``text`` if it is one short word. Raises InvalidInput."""
    if not 0 < len(text) <= MOST_WORD or not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidInput(f"{field} must be a word of at most {MOST_WORD} characters", field=field)
    return text


async def _take_in(context: ApiContext, token_id: str, uid: str, other: Other, own_id: str, secret: str) -> Envelope:
    token = await context.tokens.read(object_key("token", None, token_id))
    if token is None:
        raise NotAuthenticated("the token is not valid", hint="weft cluster link-token makes another")
    status = decode_part(token.envelope.status, TokenStatus)
    if status.used_at is not None:
        raise NotAuthenticated(
            f"token {token_id} was used already: a link token links one cluster",
            reason="tokenUsed",
            hint="weft cluster link-token makes another",
        )
    terms, members = token.spec.link or LinkTerms(), await read_members(context)
    made, writes, preconditions = await plan_link(
        context,
        name=terms.name or f"cluster-{uid[:8]}",
        former=members.find(terms.name, uid),
        other=other,
        given=terms,
        token_id=own_id,
        secret=secret,
        creator=token.envelope.creator,
        phase="Pending",
    )
    used = TokenStatus(used_at=context.clock.now(), cluster_uid=uid)
    token.envelope.status = merge_part(token.envelope.status, used)
    writes.append(Put(token.envelope.key, encode_envelope(token.envelope)))
    preconditions.append(AtRevision(token.envelope.key, token.envelope.revision))
    made.revision = await context.store.commit(writes, preconditions)
    context.accounts.note(made)  # it may ask at once
    return made


ROUTES = (
    Route(
        "POST",
        PATH,
        accept,
        "Link the cluster that sends this, with a link token",
        topic=Topic("always", "link", "cluster"),
        takes=AcceptInput,
        answers=AcceptAnswer,
    ),
)
