"""Answer of this server to a linked cluster that asks: who it is, what it speaks, and which history its store has."""

from __future__ import annotations

import msgspec

from weft import __version__
from weft.api.context import ApiContext
from weft.api.request.call import Call, json_answer
from weft.api.route import Route
from weft.contracts.store import epoch_of
from weft.kinds.cluster import CLUSTER, ClusterStatus
from weft.kinds.fields.cluster.link import HELLO, find_uid
from weft.objects.envelope import decode_envelope, decode_part
from weft.objects.identity import CLUSTER_PREFIX, kind_prefix, object_key
from weft.protocol.link import NEWEST, OLDEST, PATH, HelloAnswer
from weft.serving.answer import Answer


async def read_epoch(context: ApiContext) -> str:
    """The history of this server's store; it is another after a restore."""
    return epoch_of((await context.store.list(kind_prefix(CLUSTER.name))).cursor)


async def hello(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/link``."""
    call.actor.require(HELLO, None, "ask how this cluster is")
    call.query()
    now, seen, phase = context.clock.now(), None, ""
    if call.actor.name.startswith(CLUSTER_PREFIX):
        name = call.actor.name.removeprefix(CLUSTER_PREFIX)
        if (entry := await context.store.get(object_key(CLUSTER.name, None, name))) is not None:
            status = decode_part(decode_envelope(entry.value).status, ClusterStatus)
            seen, phase = None if status.seen_at is None else max(0.0, now - status.seen_at), status.phase
    answer = HelloAnswer(
        uid=find_uid(context.authority.ca),
        release=__version__,
        epoch=await read_epoch(context),
        oldest=OLDEST,
        newest=NEWEST,
        now=now,
        seen_seconds=seen,
        phase=phase,
        servers=context.servers.urls,
    )
    return json_answer(msgspec.to_builtins(answer))


ROUTES = (
    Route(
        "GET",
        PATH,
        hello,
        "How this cluster is, for the clusters that it is linked with",
        permission=HELLO,
        where="all",
        answers=HelloAnswer,
    ),
)
