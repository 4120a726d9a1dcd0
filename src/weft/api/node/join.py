"""Enrolment: a machine with a join token becomes a node with a certificate of its own, and later renews that.

Writes the Node object, its enrolment and the token's use in one commit. A join whose answer was lost may be repeated with
the same token and key.
"""

from __future__ import annotations

import msgspec
from cryptography import x509

import weft
from weft.api.admission.commit import read_again, retry
from weft.api.auth.authorise import require_enrolled
from weft.api.auth.enrolments import change
from weft.api.context import ApiContext, TokenFacts
from weft.api.request.call import Call, Change, json_answer
from weft.api.route import Route, Topic
from weft.client.server.version_skew import is_newer
from weft.contracts.store import Absent, AtRevision, Precondition, Put, Write
from weft.kinds.node import NODE, NodeSpec
from weft.kinds.token import TokenStatus
from weft.objects.envelope import Envelope, decode_part, encode_envelope, merge_part
from weft.objects.errors import AlreadyExists, Forbidden, IllegalTransition, NotAuthenticated
from weft.objects.identity import check_name, new_uid, object_key
from weft.objects.schema import read_strict
from weft.protocol.report import JoinAnswer, JoinInput, RenewInput
from weft.serving.answer import Answer
from weft.trust.ca import digest_of_key, read_csr
from weft.trust.enrolment import Enrolment, enrolment_key, read_enrolment


async def join(context: ApiContext, call: Call) -> Answer:
    """``POST /v1/join``."""
    if call.actor.kind != "joiner":
        raise Forbidden("only a join token lets a machine join", hint="weft token create --join")
    token = await context.tokens.find(object_key("token", None, call.actor.id))
    if token is not None and token.spec.use != "join":
        raise Forbidden("this token lets a server join, not a node", hint="weft token create --join")
    call.query()
    given = read_strict(await call.read_object(), JoinInput, "")
    name = check_name(given.node, "node")
    _refuse_newer(name, given.release)
    csr = read_csr(given.csr)
    key = digest_of_key(csr)
    uid, begins = await retry(context, lambda: _enrol(context, call.actor.id, name, key))
    call.changed.append(Change(Envelope(kind=NODE.name, name=name, uid=uid), ""))
    return _certificate(context, call, csr, uid, begins)


def _refuse_newer(node: str, release: str) -> None:
    """Raise IllegalTransition if the agent of ``node`` is newer than this server."""
    if is_newer(release, weft.__version__):
        raise IllegalTransition(
            f"this cluster runs weft {weft.__version__}, and node {node} has {release}: an agent can't be newer than the servers",
            reason="newerAgent",
            hint=f"install weft {weft.__version__} there, or upgrade the servers first",
        )


async def renew(context: ApiContext, call: Call, name: str) -> Answer:
    """``POST /v1/nodes/{name}:renew``, by the node itself: a new certificate for another year. If that has another key, the
    present key counts until the new one is used."""
    await require_own(context, call, name)
    call.query()
    given = read_strict(await call.read_object(), RenewInput, "")
    csr = read_csr(given.csr)
    key, begins = digest_of_key(csr), context.authority.begin()

    def note(known: Enrolment) -> Enrolment:
        following = known.next_sha256 if key == known.key_sha256 else key
        return msgspec.structs.replace(known, next_sha256=following, latest=max(known.latest, begins))

    if call.actor.peer is not None:
        await change(context, call.actor, call.actor.peer, note)
    return _certificate(context, call, csr, call.actor.id, begins)


async def require_own(context: ApiContext, call: Call, name: str) -> Enrolment | None:
    """The enrolment of the node ``name``. Raises Forbidden unless the request is the node's own."""
    if call.actor.kind != "node":
        raise Forbidden("only the node itself may do this, with its certificate")
    enrolment = await require_enrolled(context, call.actor)
    if enrolment is not None and enrolment.name != name:
        raise Forbidden(f"this certificate is node {enrolment.name}'s, not {name}'s")
    return enrolment


async def _enrol(context: ApiContext, token_id: str, name: str, key: str) -> tuple[str, float]:
    """The uid of the node, whose only valid key has the digest ``key`` now; and when its certificate begins."""
    token = await context.tokens.read(object_key("token", None, token_id))
    if token is None:
        raise NotAuthenticated("the token is not valid", hint="weft token create --join makes another")
    status = decode_part(token.envelope.status, TokenStatus)
    node = await read_again(context, object_key("node", None, name))
    if status.used_at is not None:
        return await _repeat(context, token, status, node, key)
    bound = token.spec.node
    if bound is not None and bound != name:
        raise Forbidden(f"this token enrols node {bound} only, not {name}", field="node")
    preconditions: list[Precondition] = [AtRevision(token.envelope.key, token.envelope.revision)]
    writes: list[Write] = []
    if node is None:
        node = make_node(context, name, new_uid())
        writes.append(Put(node.key, encode_envelope(node)))
        preconditions.append(Absent(node.key))
    elif bound != name:
        raise AlreadyExists(
            f'node "{name}" exists already',
            field="node",
            hint=f"join under another name; to enrol {name} again: weft token create --join --node {name}",
        )
    else:
        preconditions.append(AtRevision(node.key, node.revision))
    former = await context.store.get(enrolment_key(node.uid))
    begins = context.authority.begin()
    latest = begins if former is None else max(begins, read_enrolment(former.value).latest)
    enrolment = msgspec.json.encode(Enrolment(name=name, key_sha256=key, latest=latest))
    at = enrolment_key(node.uid)
    preconditions.append(Absent(at) if former is None else AtRevision(at, former.revision))
    writes.append(Put(at, enrolment))
    used = TokenStatus(used_at=context.clock.now(), node_uid=node.uid)
    token.envelope.status = merge_part(token.envelope.status, used)
    writes.append(Put(token.envelope.key, encode_envelope(token.envelope)))
    revision = await context.store.commit(writes, preconditions)
    context.enrolments.note(node.uid, enrolment, revision)
    context.add_event(node.ref, "Joined", f"joined with token {token_id}")
    return node.uid, begins


async def _repeat(
    context: ApiContext, token: TokenFacts, status: TokenStatus, node: Envelope | None, key: str
) -> tuple[str, float]:
    """The answer for a machine that uses its token again with the same key: its first answer may be lost."""
    if node is not None and node.uid == status.node_uid:
        entry = await context.store.get(enrolment_key(node.uid))
        known = None if entry is None else read_enrolment(entry.value)
        if entry is not None and known is not None and known.key_sha256 == key:
            begins = context.authority.begin()
            known.latest = max(known.latest, begins)
            await context.store.commit(
                [Put(entry.key, msgspec.json.encode(known))], [AtRevision(entry.key, entry.revision)]
            )
            return node.uid, begins
    raise NotAuthenticated(
        f"token {token.envelope.name} was used already: a join token enrols one node",
        hint="weft token create --join makes another",
    )


def make_node(context: ApiContext, name: str, uid: str) -> Envelope:
    """A Node object without a report."""
    return NODE.make(name, NodeSpec(), context.clock.now(), uid=uid)


def _certificate(
    context: ApiContext, call: Call, csr: x509.CertificateSigningRequest, uid: str, begins: float
) -> Answer:
    answer = JoinAnswer(
        uid,
        context.authority.sign_node(csr, uid, begins),
        context.authority.ca,
        context.settings.gateway_for(call.host),
        context.settings.server_name,
    )
    return json_answer(answer)


ROUTES = (
    Route(
        "POST",
        "/v1/join",
        join,
        "Enrol a node, with a join token",
        topic=Topic("always", "join"),
        takes=JoinInput,
        answers=JoinAnswer,
    ),
    Route(
        "POST",
        "/v1/nodes/{name}:renew",
        renew,
        "Give a node its next certificate, at the node's request",
        where="nodes",
        takes=RenewInput,
        answers=JoinAnswer,
    ),
)
