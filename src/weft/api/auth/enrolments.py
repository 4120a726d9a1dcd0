"""Stores which of a node's certificates counts. Each change has the stored enrolment as its precondition: a key that was replaced
meanwhile changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from weft.api.admission.commit import retry
from weft.api.context import ApiContext
from weft.contracts.store import AtRevision, Put
from weft.trust.credentials import Actor
from weft.trust.enrolment import Enrolment, Standing, adopt, enrolment_key, judge, read_enrolment, refuse_replaced
from weft.trust.peer import Peer


async def let_in(context: ApiContext, actor: Actor, peer: Peer) -> None:
    """Store the key of a certificate that is used for the first time. Raises Forbidden for a node that was removed,
    NotAuthenticated for a certificate that doesn't count."""
    enrolment = await context.enrolments.check(actor.id, peer)
    if enrolment is not None and judge(enrolment, peer) is Standing.NEWER:
        await change(context, actor, peer, lambda known: adopt(known, peer))


async def change(context: ApiContext, actor: Actor, peer: Peer, make: Callable[[Enrolment], Enrolment]) -> None:
    """Store what ``make`` makes of the enrolment of the node, if it has one and wasn't removed. Raises NotAuthenticated if
    another key has replaced the peer's."""
    key = enrolment_key(actor.id)

    async def attempt() -> None:
        entry = await context.store.get(key)
        known = None if entry is None else read_enrolment(entry.value)
        if entry is None or known is None or known.removed_at is not None:
            return
        if judge(known, peer) is Standing.REPLACED:
            raise refuse_replaced(known)
        changed = make(known)
        if changed != known:
            value = msgspec.json.encode(changed)
            revision = await context.store.commit([Put(key, value)], [AtRevision(key, entry.revision)])
            context.enrolments.note(actor.id, value, revision)

    await retry(context, attempt)
