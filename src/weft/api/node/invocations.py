"""Functions that messages of devices invoke: which topics, for the node's gateway; and its ticket to hand messages over.

A node invokes functions of the project whose devices it takes, and only those whose spec names topics. Reads functions, a project's
at most once in a few seconds; writes events on what was dropped.
"""

from __future__ import annotations

import msgspec

from weft.api.auth.served_devices import read_devices_project
from weft.api.context import ApiContext
from weft.api.node.join import require_own
from weft.api.request.call import Call, json_answer
from weft.api.route import Route, Topic
from weft.kinds.function import FUNCTION
from weft.objects.envelope import Envelope, decode_envelope
from weft.objects.errors import InvalidInput, NotFound
from weft.objects.identity import kind_prefix, object_key
from weft.protocol.devices import MOST_MESSAGE_BYTES, MOST_TRIGGERED, InvocationsInput
from weft.serving.answer import Answer
from weft.trust.tickets import LIFETIME_SECONDS, sign_ticket

KNOWN_SECONDS = 5.0
_PAGE = 500
TOLD_SECONDS = 60.0  # people are told of dropped messages once in so long, for each function


class _Spec(msgspec.Struct):
    topics: list[str] = []


async def find_topics(context: ApiContext, project: str) -> dict[str, list[str]]:
    """The topics that invoke functions of ``project``, by name, of MOST_TRIGGERED functions."""
    now = context.clock.elapsed()
    known = context.topics.get(project)
    if known is not None and now - known[0] < KNOWN_SECONDS:
        return known[1]
    found, after = dict[str, list[str]](), None
    while len(found) < MOST_TRIGGERED:
        page = await context.store.list(kind_prefix(FUNCTION.name, project), limit=_PAGE, after=after)
        for entry in page.entries:
            if b'"topics":["' in entry.value and len(found) < MOST_TRIGGERED:
                envelope = decode_envelope(entry.value)
                if topics := _read_topics(envelope):
                    found[envelope.name] = topics
        after = page.next
        if after is None:
            break
    context.topics = {name: one for name, one in context.topics.items() if now - one[0] < KNOWN_SECONDS}
    context.topics[project] = now, found
    return found


def _read_topics(envelope: Envelope) -> list[str]:
    return [] if envelope.deleting_since is not None else msgspec.json.decode(envelope.spec, type=_Spec).topics


async def open_invocations(context: ApiContext, call: Call, name: str) -> Answer:
    """``POST /v1/nodes/{name}:invocations``, by the node itself."""
    enrolment = await require_own(context, call, name)
    call.query()
    try:
        given = msgspec.json.decode(await call.read_body(), type=InvocationsInput)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidInput("give function (a name), and how many messages were dropped", field="function") from None
    node = enrolment.name if enrolment is not None else name
    project = await read_devices_project(context, node)
    entry = await context.store.get(object_key(FUNCTION.name, project, given.function[:100]))
    envelope = decode_envelope(entry.value, entry.revision) if entry is not None else None
    if envelope is None or not _read_topics(envelope):
        raise NotFound(
            f"no topic of project {project} invokes function {given.function[:100]!r}",
            hint="weft function set NAME --topics weft/PROJECT/+/event",
        )
    _report_dropped(context, envelope, node, given)
    claims = {
        **{"node_uid": "", "allocation": "", "guest_id": "", "token": "", "right": ""},
        **{"verb": "invoke", "input": {}, "subject": f"node {node}", "device_node": call.actor.id},
        "workload": {"kind": FUNCTION.name, "project": project, "name": envelope.name, "uid": envelope.uid},
        "expires": context.clock.now() + LIFETIME_SECONDS,
    }
    return json_answer(
        {
            "ticket": sign_ticket(context.settings.ticket_key, claims),
            "address": context.settings.gateway_for(call.host),
            "server_name": context.settings.server_name,
        }
    )


def _report_dropped(context: ApiContext, envelope: Envelope, node: str, given: InvocationsInput) -> None:
    """The words say no number: so the journal counts the same event up, and keeps its place for others."""
    now = context.clock.elapsed()
    context.told_dropped = {uid: at for uid, at in context.told_dropped.items() if now - at < TOLD_SECONDS}
    if given.dropped <= 0 or envelope.uid in context.told_dropped:
        return
    context.told_dropped[envelope.uid] = now
    why = []
    if given.dropped > given.too_large:
        why.append("more came than its queue takes")
    if given.too_large > 0:
        why.append(f"some are larger than {MOST_MESSAGE_BYTES >> 10} KiB")
    words = f"node {node} dropped messages for it: {', and '.join(why)}"
    context.add_event(envelope.ref, "MessagesDropped", words, "Warning")


ROUTES = (
    Route(
        "POST",
        "/v1/nodes/{name}:invocations",
        open_invocations,
        "A ticket with which a node hands messages of its devices over to a function",
        where="nodes",
        topic=Topic("refused", "report", "node", name="{name}"),
        takes=InvocationsInput,
    ),
)
